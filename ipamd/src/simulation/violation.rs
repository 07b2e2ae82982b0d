//! What a run may find broken.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crate::pool::Reason;

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Violation {
    SharedAddress { address: IpAddr, holder: String, other: String },
    SecondAddress { pod: String, first: IpAddr, second: IpAddr },
    CooldownIgnored { address: IpAddr, pod: String, rested: Duration, wanted: Duration },
    InKernelUse { address: IpAddr, pod: String, link: String },
    NotOnNode { address: IpAddr, pod: String, node: usize },
    WrongTable { address: IpAddr, pod: String, said: u32, right: u32 },
    LiveAddressLost { address: IpAddr, pod: String },
    TooManyEnis { node: usize, count: usize, limit: usize },
    AskedTooMuch { node: usize, class: String },
    AnsweredLate { pod: String, after: Duration },
    FalseRefusal { pod: String, reason: Reason, message: String },
    ServedLate { pod: String, after: Duration },
    NeverServed { node: usize, pods: Vec<String> },
    NotInBooks { node: usize, what: String },
    Leaked { what: String },
    NotSettled { node: usize, what: String },
    TargetMissed { node: usize, what: String },
    Restless { node: usize, calls: String },
    DelNotTaken { pod: String, error: String },
    Down { node: usize, error: String },
    Panicked { message: String },
    NotSetUp { pod: String, table: u32 },
    BeyondTarget { node: usize, what: String },
    Forbidden { node: usize, what: String },
    TakenFromKernel { node: usize, address: IpAddr, link: String },
}

impl Violation {
    /// Names the kind, for shrinking and for tables.
    pub(super) fn kind(&self) -> String {
        let text = format!("{self:?}");
        text.split(' ').next().unwrap_or_default().to_owned()
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SharedAddress { address, holder, other } => {
                write!(f, "{address} was given to {other} while {holder} has it")
            }
            Self::SecondAddress { pod, first, second } => {
                write!(f, "{pod} has {first} and was given {second} for the same key")
            }
            Self::CooldownIgnored { address, pod, rested, wanted } => {
                write!(f, "{address} was given to {pod} after a rest of {rested:?}; wanted {wanted:?}")
            }
            Self::InKernelUse { address, pod, link } => {
                write!(f, "{address} was given to {pod} while the kernel routes it to {link}")
            }
            Self::NotOnNode { address, pod, node } => {
                write!(f, "{address} was given to {pod}, but EC2 holds it on no ENI of node {node}")
            }
            Self::WrongTable { address, pod, said, right } => {
                write!(f, "{pod} was told device {said} for {address}, whose ENI is at {right}")
            }
            Self::LiveAddressLost { address, pod } => {
                write!(f, "{address} of the live pod {pod} is no longer on its node")
            }
            Self::TooManyEnis { node, count, limit } => {
                write!(f, "node {node} has {count} ENIs; {limit} are allowed")
            }
            Self::AskedTooMuch { node, class } => {
                write!(f, "node {node} asked EC2 for more than a limit allows ({class}) without any fault")
            }
            Self::AnsweredLate { pod, after } => write!(f, "{pod} got no answer within {after:?}"),
            Self::FalseRefusal { pod, reason, message } => {
                write!(f, "{pod} was refused without a true reason ({reason:?}): {message}")
            }
            Self::ServedLate { pod, after } => {
                write!(f, "{pod} waited {after:?} although nothing was out of order")
            }
            Self::NeverServed { node, pods } => write!(f, "node {node} could serve and did not: {pods:?}"),
            Self::NotInBooks { node, what } => write!(f, "the books of node {node} differ from EC2: {what}"),
            Self::Leaked { what } => write!(f, "leaked at EC2: {what}"),
            Self::NotSettled { node, what } => write!(f, "node {node} does not come to rest: {what}"),
            Self::TargetMissed { node, what } => write!(f, "node {node} misses its target: {what}"),
            Self::Restless { node, calls } => write!(f, "node {node} calls EC2 without need: {calls}"),
            Self::DelNotTaken { pod, error } => write!(f, "DEL of {pod} failed without a reason: {error}"),
            Self::Down { node, error } => write!(f, "the daemon of node {node} does not run: {error}"),
            Self::Panicked { message } => write!(f, "panic: {message}"),
            Self::NotSetUp { pod, table } => {
                write!(f, "{pod} was given an address whose table {table} the host does not have yet")
            }
            Self::Forbidden { node, what } => write!(f, "node {node} asks EC2 for what it may not: {what}"),
            Self::BeyondTarget { node, what } => write!(f, "node {node} asks EC2 for too much: {what}"),
            Self::TakenFromKernel { node, address, link } => {
                write!(f, "node {node} returns {address} while its kernel leads to {link} by it")
            }
        }
    }
}
