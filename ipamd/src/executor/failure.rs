//! Why a step failed, in the pool's classes.

use std::fmt;

use ec2::{Class, Ec2Error};
use vpc::{EniId, SubnetId};

use crate::chain::chain;
use crate::pool::FailureClass;

/// A step's failure; the message is the whole chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StepError {
    pub(crate) class: FailureClass,
    pub(crate) message: String,
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for StepError {}

impl StepError {
    /// The host's part of a step on `subject` failed.
    pub(super) fn host(subject: &dyn fmt::Display, error: &dyn fmt::Display) -> Self {
        Self { class: FailureClass::Host, message: format!("{subject}: {error}") }
    }

    /// An ENI that was to be given back is in somebody else's hands. Not found, as far as the pool
    /// goes, which then looks at what there is.
    pub(super) fn not_ours(eni: &EniId, why: &dyn fmt::Display) -> Self {
        Self { class: FailureClass::NotFound, message: format!("{eni} is not ours to free: {why}") }
    }

    /// The subnet of a new ENI is not there.
    pub(super) fn unknown_subnet(subnet: &SubnetId) -> Self {
        Self { class: FailureClass::SubnetExhausted, message: format!("{subnet} is not in this zone") }
    }

    /// EC2 made no ENI in this subnet. What is wrong with the subnet leaves others to be tried.
    pub(super) fn in_subnet(subnet: &SubnetId, error: Ec2Error) -> Self {
        let is_subnets_fault = !error.may_have_happened() && blames_subnet(&error);
        let error = Self::from(error);
        match error.class {
            FailureClass::NoFreePrefix => error,
            _ if is_subnets_fault => {
                let message = format!("no ENI in {subnet}: {}", error.message);
                Self { class: FailureClass::SubnetExhausted, message }
            }
            // What EC2 does not know is something else that the request names.
            FailureClass::NotFound => Self { class: FailureClass::Refused, ..error },
            _ => error,
        }
    }

    /// The intent to do `what` could not be recorded, so nothing was begun.
    pub(super) fn not_durable(what: &dyn fmt::Display, error: &dyn std::error::Error) -> Self {
        Self {
            class: FailureClass::NotDurable,
            message: format!("record the intent to {what}: {}", chain(error)),
        }
    }
}

impl From<Ec2Error> for StepError {
    fn from(error: Ec2Error) -> Self {
        Self { class: class_of(&error), message: error.to_string() }
    }
}

/// Whether another subnet might do better. EC2 also refuses an ENI for what else the request names,
/// like a security group, which no other subnet mends.
fn blames_subnet(error: &Ec2Error) -> bool {
    match error.class() {
        Class::SubnetExhausted | Class::NoFreePrefix | Class::NoIpv6Block => true,
        Class::NotFound | Class::Invalid => {
            let detail = error.detail().to_ascii_lowercase();
            error.code().is_some_and(|code| code.starts_with("InvalidSubnet"))
                || (detail.contains("subnet") && !detail.contains("security group"))
        }
        _ => false,
    }
}

fn class_of(error: &Ec2Error) -> FailureClass {
    if error.may_have_happened() {
        return FailureClass::AnswerLost;
    }
    match error.class() {
        Class::Throttled => FailureClass::Throttled,
        Class::Unauthorized { .. } => FailureClass::Denied,
        Class::Credentials => FailureClass::Credentials,
        Class::SubnetExhausted | Class::NoIpv6Block => FailureClass::SubnetExhausted,
        Class::NoFreePrefix => FailureClass::NoFreePrefix,
        Class::Quota => FailureClass::Quota,
        Class::AddressLimit | Class::SlotInUse => FailureClass::LimitReached,
        Class::AttachmentLimit => FailureClass::EniLimit,
        Class::NotFound => FailureClass::NotFound,
        Class::AnswerLost | Class::Malformed => FailureClass::AnswerLost,
        Class::Unavailable | Class::Timeout => FailureClass::Unavailable,
        Class::Invalid => FailureClass::Refused,
        Class::AlreadyDone | Class::Busy => FailureClass::Other,
    }
}
