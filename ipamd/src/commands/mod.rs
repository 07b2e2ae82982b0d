//! The verbs that run once and end; the daemon itself is not among them.

pub(crate) mod ask;
pub(crate) mod init_node;
pub(crate) mod max_pods;
pub(crate) mod probe;
pub(crate) mod status;
mod text;
pub(crate) mod uninstall;
pub(crate) mod why;
