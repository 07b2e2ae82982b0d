//! The thread that waits for the kernel to tell of changes, and how it wakes the keeper.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use datapath::monitor::{Changed, Monitor};
use tokio::sync::Notify;
use tracing::{info, warn};

use super::HostFailure;

/// What a look at everything starts with.
const EVERYTHING: Changed = Changed { network: true, filter: true };

/// How long to rest before asking anew a kernel that does not tell: first, and at most.
const PAUSES: Pauses = Pauses { first: Duration::from_secs(1), longest: Duration::from_secs(60) };

#[derive(Debug, Clone, Copy)]
struct Pauses {
    first: Duration,
    longest: Duration,
}

/// What has changed since the keeper last asked. Many changes become one.
#[derive(Debug, Default)]
pub(super) struct Signals {
    network: AtomicBool,
    filter: AtomicBool,
    notify: Notify,
    /// What the kernel does not tell of, and why.
    deaf: Mutex<Option<String>>,
}

impl Signals {
    /// Waits until something has changed, and takes it.
    pub(super) async fn changed(&self) -> Changed {
        loop {
            let changed = Changed {
                network: self.network.swap(false, Ordering::Relaxed),
                filter: self.filter.swap(false, Ordering::Relaxed),
            };
            if changed != Changed::default() {
                return changed;
            }
            self.notify.notified().await;
        }
    }

    /// Why changes are noticed by the clock alone, if they are.
    pub(super) fn deaf(&self) -> Option<String> {
        self.deaf.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn raise(&self, changed: Changed) {
        self.network.fetch_or(changed.network, Ordering::Relaxed);
        self.filter.fetch_or(changed.filter, Ordering::Relaxed);
        self.notify.notify_one();
    }

    fn set_deaf(&self, fault: Option<String>) {
        let mut deaf = self.deaf.lock().unwrap_or_else(PoisonError::into_inner);
        if *deaf == fault {
            return;
        }
        match &fault {
            Some(error) => warn!(error, "the kernel does not tell of changes; looking by the clock"),
            None => info!("the kernel tells of changes again"),
        }
        *deaf = fault;
    }
}

/// Who tells of changes.
trait Source: Sized {
    /// Asks to be told from now on.
    fn open() -> Result<Self, HostFailure>;

    /// What it does not tell of, and why.
    fn lacks(&self) -> Option<String>;

    /// Waits until something has changed, or for as long as `patience` says.
    fn wait(&mut self, patience: Option<Duration>) -> Result<Changed, HostFailure>;
}

impl Source for Monitor {
    fn open() -> Result<Self, HostFailure> {
        Self::open().map_err(HostFailure::of)
    }

    fn lacks(&self) -> Option<String> {
        self.filter_fault().map(ToString::to_string)
    }

    fn wait(&mut self, patience: Option<Duration>) -> Result<Changed, HostFailure> {
        Self::wait(self, patience).map_err(HostFailure::of)
    }
}

/// Starts the thread, in the network namespace of the calling one; it ends with the first change
/// after the last other owner of the signals is gone.
pub(super) fn start(monitor: Monitor) -> io::Result<Arc<Signals>> {
    let signals = Arc::new(Signals::default());
    signals.set_deaf(monitor.lacks());
    let keeper = Arc::downgrade(&signals);
    let watch = move || listen(monitor, PAUSES, &keeper);
    thread::Builder::new().name("host-events".to_owned()).stack_size(256 * 1024).spawn(watch)?;
    Ok(signals)
}

/// Passes on what the source tells for as long as there is a keeper. One that fails, or tells only
/// of a part, is opened anew at growing pauses.
fn listen<S: Source>(mut source: S, pauses: Pauses, keeper: &Weak<Signals>) {
    let mut pause = pauses.first;
    loop {
        let retry_at = source.lacks().map(|_| Instant::now() + pause);
        let (fault, has_waited) = loop {
            let patience = retry_at.map(|at| at.saturating_duration_since(Instant::now()));
            let told = source.wait(patience);
            let Some(signals) = keeper.upgrade() else { return };
            match told {
                Ok(changed) => signals.raise(changed),
                Err(error) => break (Some(error.to_string()), false),
            }
            match retry_at {
                Some(at) if Instant::now() >= at => break (source.lacks(), true),
                Some(_) => {}
                None => pause = pauses.first,
            }
        };
        let Some(opened) = reopen(fault, has_waited, &mut pause, pauses, keeper) else { return };
        source = opened;
        let Some(signals) = keeper.upgrade() else { return };
        signals.set_deaf(source.lacks());
        // What changed meanwhile was told to nobody.
        signals.raise(EVERYTHING);
    }
}

/// Tries until the kernel gives a new source; none once there is no keeper. The pause before the
/// first attempt is left out by who `has_waited` already.
fn reopen<S: Source>(
    mut fault: Option<String>,
    mut has_waited: bool,
    pause: &mut Duration,
    pauses: Pauses,
    keeper: &Weak<Signals>,
) -> Option<S> {
    loop {
        keeper.upgrade()?.set_deaf(fault);
        if !has_waited {
            thread::sleep(*pause);
        }
        has_waited = false;
        *pause = (*pause * 2).min(pauses.longest);
        match S::open() {
            Ok(source) => return Some(source),
            Err(error) => fault = Some(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;

    use super::*;

    const NETWORK: Changed = Changed { network: true, filter: false };
    const SHORT: Pauses = Pauses { first: Duration::from_millis(1), longest: Duration::from_millis(4) };

    /// What a source of a test does when it is opened or waits.
    enum Next {
        Opens,
        OpensHalf,
        Refuses,
        Tells,
        Fails,
        /// What the keeper sees at this moment is noted.
        Silent,
    }

    thread_local! {
        static SCRIPT: RefCell<VecDeque<Next>> = const { RefCell::new(VecDeque::new()) };
        static NOTED: RefCell<Vec<(Changed, Option<String>)>> = const { RefCell::new(Vec::new()) };
        static KEEPER: RefCell<Option<Arc<Signals>>> = const { RefCell::new(None) };
    }

    struct Scripted {
        is_half: bool,
    }

    fn next() -> Option<Next> {
        SCRIPT.with_borrow_mut(VecDeque::pop_front)
    }

    /// Takes what was raised.
    fn taken(signals: &Signals) -> Changed {
        let take = |flag: &AtomicBool| flag.swap(false, Ordering::Relaxed);
        Changed { network: take(&signals.network), filter: take(&signals.filter) }
    }

    fn note() {
        let noted = KEEPER.with_borrow(|keeper| keeper.as_ref().map(|it| (taken(it), it.deaf())));
        NOTED.with_borrow_mut(|all| all.extend(noted));
    }

    impl Source for Scripted {
        fn open() -> Result<Self, HostFailure> {
            match next() {
                Some(Next::Opens) => Ok(Self { is_half: false }),
                Some(Next::OpensHalf) => Ok(Self { is_half: true }),
                _ => Err(HostFailure::simulated("no socket")),
            }
        }

        fn lacks(&self) -> Option<String> {
            self.is_half.then(|| "no nftables".to_owned())
        }

        fn wait(&mut self, patience: Option<Duration>) -> Result<Changed, HostFailure> {
            note();
            match next() {
                Some(Next::Tells) => Ok(NETWORK),
                Some(Next::Fails) => Err(HostFailure::simulated("socket broken")),
                Some(_) => {
                    thread::sleep(patience.unwrap_or_default());
                    Ok(Changed::default())
                }
                None => {
                    KEEPER.set(None);
                    Ok(NETWORK)
                }
            }
        }
    }

    /// What the keeper finds at each wait of a source that follows `script`: what was raised since
    /// the wait before, and what it is deaf to.
    fn found(source: Scripted, script: impl IntoIterator<Item = Next>) -> Vec<(Changed, Option<String>)> {
        let signals = Arc::new(Signals::default());
        signals.set_deaf(source.lacks());
        let keeper = Arc::downgrade(&signals);
        KEEPER.set(Some(signals));
        SCRIPT.set(script.into_iter().collect());
        listen(source, SHORT, &keeper);
        NOTED.take()
    }

    #[test]
    fn a_source_that_fails_is_opened_anew_and_everything_is_looked_at() {
        let script = [Next::Tells, Next::Fails, Next::Refuses, Next::Refuses, Next::Opens, Next::Tells];

        let nothing = Changed::default();
        let expected = [(nothing, None), (NETWORK, None), (EVERYTHING, None), (NETWORK, None)];
        assert_eq!(found(Scripted { is_half: false }, script), expected);
    }

    #[test]
    fn what_tells_of_a_part_is_told_of_and_tried_again() {
        let deaf = || Some("no nftables".to_owned());
        let script = [Next::Silent, Next::OpensHalf, Next::Silent, Next::Opens];

        let found = found(Scripted { is_half: true }, script);

        assert_eq!(found, [(Changed::default(), deaf()), (EVERYTHING, deaf()), (EVERYTHING, None)]);
    }

    #[test]
    fn a_part_that_fails_is_opened_anew_too() {
        let script = [Next::Fails, Next::OpensHalf, Next::Fails, Next::Opens];

        let found = found(Scripted { is_half: true }, script);

        let told: Vec<_> = found.into_iter().map(|(changed, _)| changed).collect();
        assert_eq!(told, [Changed::default(), EVERYTHING, EVERYTHING]);
    }

    #[test]
    fn a_kernel_that_stays_silent_is_asked_at_pauses_that_have_an_end() {
        let keeper = Arc::new(Signals::default());
        SCRIPT.set([Next::Refuses, Next::Refuses, Next::Refuses, Next::Opens].into());
        let mut pause = SHORT.first;

        let fault = Some("socket broken".to_owned());
        let opened: Option<Scripted> = reopen(fault, false, &mut pause, SHORT, &Arc::downgrade(&keeper));

        assert!(opened.is_some() && pause == SHORT.longest);
        assert_eq!(keeper.deaf().as_deref(), Some("no socket"), "until the new source is listened to");
    }
}
