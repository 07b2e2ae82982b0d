//! Gates: places where a test holds calls until it has seen or done something.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::watch;

use super::log::Call;

/// Where on its way a call is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GatePoint {
    /// Received, nothing done yet.
    BeforeWork,
    /// Done, the answer not yet sent.
    BeforeAnswer,
}

#[derive(Debug, Clone, Copy, Default)]
struct Traffic {
    arrived: u64,
    let_through: u64,
    is_open: bool,
}

#[derive(Debug)]
struct Barrier {
    action: String,
    point: GatePoint,
    traffic: watch::Sender<Traffic>,
}

/// Holds calls of one action at one point. Dropping it opens the gate for good.
#[derive(Debug)]
pub struct Gate(Arc<Barrier>);

impl Gate {
    /// Waits until `calls` calls have arrived in all, held or passed.
    pub async fn arrived(&self, calls: u64) {
        // The sender lives in `self`, so the wait cannot fail.
        let _ = self.0.traffic.subscribe().wait_for(|it| it.arrived >= calls).await;
    }

    /// Lets the next `calls` calls through, those already waiting first.
    pub fn let_through(&self, calls: u64) {
        self.0.traffic.send_modify(|it| it.let_through += calls);
    }

    /// Lets everything through from now on.
    pub fn open(&self) {
        self.0.traffic.send_modify(|it| it.is_open = true);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.open();
    }
}

#[derive(Debug, Default)]
pub(super) struct Gates(Mutex<Vec<Weak<Barrier>>>);

impl Gates {
    pub(super) fn install(&self, action: &str, point: GatePoint) -> Gate {
        let traffic = watch::Sender::new(Traffic::default());
        let barrier = Arc::new(Barrier { action: action.to_owned(), point, traffic });
        let mut barriers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        barriers.retain(|it| it.strong_count() > 0);
        barriers.push(Arc::downgrade(&barrier));
        Gate(barrier)
    }

    /// Waits at every gate in the way of `call`.
    pub(super) async fn pass(&self, call: &Call, point: GatePoint) {
        let in_the_way: Vec<Arc<Barrier>> = {
            let barriers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            barriers.iter().filter_map(Weak::upgrade).collect()
        };
        for barrier in in_the_way {
            if barrier.point != point || barrier.action != call.action {
                continue;
            }
            let mut traffic = barrier.traffic.subscribe();
            let mut ticket = 0;
            barrier.traffic.send_modify(|it| {
                it.arrived += 1;
                ticket = it.arrived;
            });
            // The sender lives in `barrier`, so the wait ends only when the call may pass.
            let _ = traffic.wait_for(|it| it.is_open || ticket <= it.let_through).await;
        }
    }
}
