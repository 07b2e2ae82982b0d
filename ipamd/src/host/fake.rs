//! A host without a kernel, for tests of those who ask it.

use std::sync::{Arc, Mutex};

use super::keeper::Work;
use super::{Evidence, HostHandle, HostHealth};
use tokio::sync::mpsc;

/// What the host was told, and what it says the kernel shows.
#[derive(Debug, Clone, Default)]
pub(crate) struct FakeHost {
    pub(crate) evidence: Arc<Mutex<Evidence>>,
    /// ENIs set up (`up`) and forgotten (`forget`), by address.
    pub(crate) log: Arc<Mutex<Vec<String>>>,
}

impl FakeHost {
    /// A handle to it, served by a task of the current runtime.
    pub(crate) fn handle(&self) -> HostHandle {
        let (work, mut inbox) = mpsc::channel(8);
        let host = self.clone();
        tokio::spawn(async move {
            while let Some(work) = inbox.recv().await {
                host.answer(work);
            }
        });
        HostHandle { work }
    }

    fn answer(&self, work: Work) {
        let note = |text: String| self.log.lock().unwrap().push(text);
        match work {
            Work::Converge { reply, .. } => drop(reply.send(Ok(0))),
            Work::SetUpEni { eni, reply } => {
                note(format!("up {}", eni.address));
                drop(reply.send(Ok(())));
            }
            Work::ForgetEni { address, reply, .. } => {
                note(format!("forget {address}"));
                drop(reply.send(Ok(())));
            }
            Work::RemovePodRules { reply, .. } | Work::VpcCidrs { reply, .. } => drop(reply.send(Ok(()))),
            Work::Evidence { reply } => drop(reply.send(Ok(self.evidence.lock().unwrap().clone()))),
            Work::Health { reply } => drop(reply.send(Ok(HostHealth::default()))),
            Work::KeepPods(_) => {}
        }
    }
}
