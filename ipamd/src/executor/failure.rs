//! Why a step failed, in the pool's classes.

use std::fmt;

use ec2::{Class, Ec2Error};

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

    /// The intent could not be recorded, so nothing was begun.
    pub(super) fn not_durable(error: &dyn std::error::Error) -> Self {
        Self {
            class: FailureClass::NotDurable,
            message: format!("record the intent to make an ENI: {}", chain(error)),
        }
    }
}

impl From<Ec2Error> for StepError {
    fn from(error: Ec2Error) -> Self {
        Self { class: class_of(&error), message: error.to_string() }
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
        Class::SubnetExhausted | Class::NoFreePrefix => FailureClass::SubnetExhausted,
        Class::AddressLimit | Class::AttachmentLimit | Class::SlotInUse => FailureClass::LimitReached,
        Class::NotFound => FailureClass::NotFound,
        Class::AnswerLost | Class::Malformed => FailureClass::AnswerLost,
        Class::Unavailable | Class::Timeout => FailureClass::Unavailable,
        Class::Quota | Class::AlreadyDone | Class::Busy | Class::Invalid => FailureClass::Other,
    }
}
