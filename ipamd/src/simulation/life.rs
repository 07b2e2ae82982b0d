//! Whether a process still lives: shared by everything through which it could act on its world.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use tokio::sync::Notify;

/// The life of one process. Once it has ended, nothing that the process does has an effect.
#[derive(Debug)]
pub(super) struct Life {
    is_over: AtomicBool,
    /// The operations on disk, EC2 and host that are left; negative for no end.
    fuse: AtomicI64,
    ended: Notify,
}

impl Life {
    /// A life that ends after so many operations, or never by itself.
    pub(super) fn new(operations: Option<u32>) -> Self {
        let fuse = operations.map_or(-1, i64::from);
        Self { is_over: AtomicBool::new(false), fuse: AtomicI64::new(fuse), ended: Notify::new() }
    }

    /// Counts one operation; says whether the process is there to do it.
    pub(super) fn acts(&self) -> bool {
        if self.is_over() {
            return false;
        }
        let left = self.fuse.load(Ordering::Relaxed);
        if left == 0 {
            self.end();
            return false;
        }
        if left > 0 {
            self.fuse.store(left - 1, Ordering::Relaxed);
        }
        true
    }

    /// Has the process end at its `operations`-th operation from now.
    pub(super) fn ends_after(&self, operations: u32) {
        self.fuse.store(i64::from(operations), Ordering::Relaxed);
    }

    /// Takes back [`Life::ends_after`].
    pub(super) fn spare(&self) {
        self.fuse.store(-1, Ordering::Relaxed);
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Ends it: no operation has an effect from now on.
    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.ended.notify_waiters();
    }

    /// Returns when it is over.
    pub(super) async fn over(&self) {
        let ended = self.ended.notified();
        tokio::pin!(ended);
        // Listening begins before the look, or an end in between would be missed.
        ended.as_mut().enable();
        if !self.is_over() {
            ended.await;
        }
    }
}
