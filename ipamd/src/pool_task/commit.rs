//! Changes that are made in memory and not yet known to be on disk, with those who wait for that.

use tokio::sync::oneshot;
use vpc::PodKey;

use super::{AddReply, Collected, DelError, DelReply};
use crate::pool::{Assignment, Released};

/// One change and whom to tell.
#[derive(Debug)]
pub(super) enum Change {
    Added {
        key: PodKey,
        assignment: Assignment,
        /// More than one if the runtime repeated its ADD meanwhile.
        replies: Vec<AddReply>,
    },
    Removed {
        released: Released,
        replies: Vec<DelReply>,
    },
    Collected {
        collected: Vec<Collected>,
        reply: oneshot::Sender<Result<Vec<Collected>, DelError>>,
    },
}

/// The changes of the write under way, and those of the next.
#[derive(Debug, Default)]
pub(super) struct Commit {
    writing: Vec<Change>,
    is_writing: bool,
    open: Vec<Change>,
}

impl Commit {
    /// Adds a change to the next write.
    pub(super) fn open(&mut self, change: Change) {
        self.open.push(change);
    }

    /// Has a repeated ADD wait with the first; gives the reply back if that one is durable.
    pub(super) fn follow_add(&mut self, wanted: &PodKey, reply: AddReply) -> Option<AddReply> {
        for change in self.open.iter_mut().rev().chain(self.writing.iter_mut().rev()) {
            match change {
                Change::Added { key, replies, .. } if key == wanted => {
                    replies.push(reply);
                    return None;
                }
                _ => {}
            }
        }
        Some(reply)
    }

    /// Has a repeated DEL wait with the first; gives the reply back if that one is durable.
    pub(super) fn follow_del(&mut self, wanted: &PodKey, reply: DelReply) -> Option<DelReply> {
        for change in self.open.iter_mut().rev().chain(self.writing.iter_mut().rev()) {
            match change {
                Change::Removed { released, replies } if released.allocation.key == *wanted => {
                    replies.push(reply);
                    return None;
                }
                _ => {}
            }
        }
        Some(reply)
    }

    pub(super) fn is_writing(&self) -> bool {
        self.is_writing
    }

    /// Whether there is anything to write.
    pub(super) fn has_changes(&self) -> bool {
        !self.open.is_empty()
    }

    /// Begins the next write with all changes so far. No write may be under way.
    pub(super) fn begin(&mut self) {
        self.is_writing = true;
        self.writing = std::mem::take(&mut self.open);
    }

    /// The write under way is durable: tells everybody who waited for it.
    pub(super) fn succeeded(&mut self) {
        self.is_writing = false;
        for change in self.writing.drain(..) {
            // A caller that has gone does not miss the answer; the runtime's DEL frees the address.
            match change {
                Change::Added { assignment, replies, .. } => {
                    for reply in replies {
                        let _ = reply.send(Ok(assignment.clone()));
                    }
                }
                Change::Removed { released, replies } => {
                    for reply in replies {
                        let _ = reply.send(Ok(released.clone()));
                    }
                }
                Change::Collected { collected, reply } => {
                    let _ = reply.send(Ok(collected));
                }
            }
        }
    }

    /// The write under way failed: every change that is not durable, newest first, to be undone
    /// in that order. Those of the next write are among them, since they build on the failed.
    pub(super) fn failed(&mut self) -> Vec<Change> {
        self.is_writing = false;
        let mut changes = std::mem::take(&mut self.writing);
        changes.append(&mut self.open);
        changes.reverse();
        changes
    }
}
