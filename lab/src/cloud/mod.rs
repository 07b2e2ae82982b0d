//! A model of EC2: instances, subnets, ENIs, limits, error codes, and faults on request.
//!
//! [`Cloud`] is plain synchronous code: time is an argument, chance comes from a seed, so a test
//! of many nodes and long histories replays exactly. [`CloudHandle`] puts it under real time for
//! the HTTP fronts and for the fabric.

mod action;
mod admission;
mod bucket;
mod builder;
mod credentials;
mod eni;
mod error;
mod fault;
mod gate;
mod handle;
mod history;
mod ids;
mod instance;
mod knobs;
mod latency;
mod limits;
mod log;
mod metadata;
mod model;
mod request;
mod snapshot;
mod strangers;
mod subnet;
#[cfg(test)]
mod tests;

pub use admission::{Admission, Caller, Reply};
pub use bucket::{ActionClass, BucketSpec};
pub use builder::{CloudBuilder, STATIC_ACCESS_KEY, STATIC_SECRET_KEY};
pub use credentials::{Credentials, RoleCredentials};
pub use eni::{Attachment, AttachmentStatus, ConnectionTracking, Eni, InterfaceType, PrivateIp};
pub use error::Ec2Error;
pub use fault::{Fault, FaultId, FaultKind};
pub use gate::{Gate, GatePoint};
pub use handle::{CloudHandle, Ec2Reply};
pub use ids::Dice;
pub use instance::{Instance, InstanceState, SecurityGroup, Vpc};
pub use latency::Latency;
pub use limits::InstanceType;
pub use log::{Call, CallRecord, Count, Outcome};
pub use model::{Cloud, LaunchSpec};
pub use request::*;
pub use snapshot::Snapshot;
pub use subnet::{Placement, Subnet};

/// The name under which IMDS requests stand in the log and faults are aimed at them.
pub const IMDS: &str = "Imds";
