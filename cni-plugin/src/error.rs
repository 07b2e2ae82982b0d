//! CNI errors: the numbers of the specification, our own, and how they are printed.

use std::fmt;

use proto::rpc::RefusalReason;

use crate::json::Json;

/// Why a call failed, as the runtime gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CniError {
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) details: String,
}

/// A CNI error number. Runtimes retry an ADD that failed with any of them, with a new sandbox and
/// growing pauses, and show the text in the pod's events; they differ in what a person should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Code(pub(crate) u32);

impl Code {
    /// Runtimes treat the plugin as too old or too new for the configuration.
    pub(crate) const INCOMPATIBLE_VERSION: Self = Self(1);
    /// The runtime itself called us wrongly.
    pub(crate) const INVALID_ENVIRONMENT: Self = Self(4);
    /// The configuration could not be read from stdin.
    pub(crate) const IO_FAILURE: Self = Self(5);
    /// The configuration is no JSON of the expected shape.
    pub(crate) const DECODING_FAILURE: Self = Self(6);
    /// The configuration lacks something.
    pub(crate) const INVALID_CONFIG: Self = Self(7);
    /// The pod's namespace is that of the plugin.
    pub(crate) const INVALID_NETNS: Self = Self(8);
    /// Time or another pod's DEL helps; the runtime's next attempt may succeed.
    pub(crate) const TRY_AGAIN_LATER: Self = Self(11);
    /// STATUS: no ADD can be served. Runtimes report the node's network as not ready.
    pub(crate) const UNAVAILABLE: Self = Self(50);
    /// EC2 denies what we need: an operator repairs the IAM role.
    pub(crate) const PERMISSION_DENIED: Self = Self(100);
    /// Settings forbid the pool to grow: an operator changes them or moves pods.
    pub(crate) const PROVISIONING_OFF: Self = Self(101);
    /// The request asks for what this node does not serve: the pod or a setting changes.
    pub(crate) const NOT_SERVED: Self = Self(102);
    /// The daemon's answer makes no sense: plugin and daemon do not belong together.
    pub(crate) const ABSURD_ANSWER: Self = Self(103);
    /// EC2 refuses what the node asks for: an operator changes what it complains of.
    pub(crate) const EC2_REFUSES: Self = Self(104);
    /// CHECK: the pod's network is not what ADD made. Runtimes may re-create the pod.
    pub(crate) const DIFFERENT: Self = Self(110);
    /// Everything else; what plugins written with Go's skeleton use for their own errors.
    pub(crate) const INTERNAL: Self = Self(999);

    /// The number for a refused ADD.
    pub(crate) fn of_refusal(reason: RefusalReason) -> Self {
        match reason {
            // Another pod's DEL, a cooldown's end, EC2 or the daemon's own retry brings an address.
            RefusalReason::NodeFull
            | RefusalReason::CoolingDown
            | RefusalReason::PoolFilling
            | RefusalReason::SubnetExhausted
            | RefusalReason::Throttled
            | RefusalReason::Ec2Unavailable
            | RefusalReason::HostSetupFailed
            | RefusalReason::StateNotDurable
            | RefusalReason::NotReady
            | RefusalReason::QuotaExceeded
            | RefusalReason::Quarantined
            | RefusalReason::Unspecified => Self::TRY_AGAIN_LATER,
            RefusalReason::PermissionDenied => Self::PERMISSION_DENIED,
            RefusalReason::Ec2Refuses => Self::EC2_REFUSES,
            RefusalReason::ProvisioningOff => Self::PROVISIONING_OFF,
            RefusalReason::BadRequest => Self::NOT_SERVED,
        }
    }
}

impl CniError {
    /// An error without details.
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    /// The same with details.
    pub(crate) fn with_details(self, details: impl Into<String>) -> Self {
        Self { details: details.into(), ..self }
    }

    /// The error as stdout carries it.
    pub(crate) fn render(&self) -> String {
        let mut fields = vec![
            ("code".to_owned(), Json::number(self.code.0)),
            ("msg".to_owned(), Json::string(self.message.as_str())),
        ];
        if !self.details.is_empty() {
            fields.push(("details".to_owned(), Json::string(self.details.as_str())));
        }
        Json::Object(fields).pretty()
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.details.is_empty() {
            write!(f, ": {}", self.details)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
