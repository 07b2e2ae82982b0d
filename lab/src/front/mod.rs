//! The cloud over HTTP: EC2's Query protocol and the instance metadata service.
//!
//! Listeners come from the caller, because they may live in another network namespace. Each
//! front is a future that serves for ever; dropping it closes its connections.

mod connection;
mod ec2;
mod imds;
mod standalone;
#[cfg(test)]
mod tests;

pub use ec2::serve_ec2;
pub use imds::serve_imds;
pub use standalone::{Standalone, standalone};
