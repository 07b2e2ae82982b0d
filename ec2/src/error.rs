//! What can go wrong with an EC2 request, sorted by what the caller can do about it.

#[cfg(test)]
mod tests;

use std::fmt;

use crate::Action;

/// What kind of failure it was.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Class {
    /// EC2 throttles, and did nothing.
    Throttled,
    /// The role may not do this.
    Unauthorized {
        /// The missing permission, like `ec2:AttachNetworkInterface`.
        iam_action: Box<str>,
    },
    /// Credentials are missing, expired or not accepted.
    Credentials,
    /// The subnet has not enough free addresses.
    SubnetExhausted,
    /// The subnet has no free block of the size of a prefix.
    NoFreePrefix,
    /// The subnet has no IPv6 block.
    NoIpv6Block,
    /// The ENI holds as many addresses as it can.
    AddressLimit,
    /// The instance or the card holds as many ENIs as it can.
    AttachmentLimit,
    /// Another ENI has the position on the instance.
    SlotInUse,
    /// The account has as many of these as its quota allows.
    Quota,
    /// EC2 does not know the resource, or the address on it.
    NotFound,
    /// It was done before, like detaching what is detached.
    AlreadyDone,
    /// The resource is in a state that does not allow this now, like an ENI still being detached.
    Busy,
    /// EC2 refuses the request as it stands.
    Invalid,
    /// EC2 cannot be reached, or fails.
    Unavailable,
    /// Time ran out with nothing changed: a read, or a change that was not sent.
    Timeout,
    /// A change was sent and no answer came: it may be done.
    AnswerLost,
    /// EC2's answer lacks a field or holds a value that makes no sense.
    Malformed,
}

/// When it makes sense to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retry {
    /// After a short pause.
    Soon,
    /// After reading from EC2 what is really there: our picture of it is out of date.
    AfterReading,
    /// Once someone else changed something: a policy, a quota, the free space of a subnet.
    Later,
    /// Not with this request.
    No,
}

/// Why an EC2 request failed.
///
/// Its text names the action, the resource, EC2's own code and message and, where one is known,
/// what an operator can do. It has no source: the text is the whole chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ec2Error {
    action: Action,
    class: Class,
    may_have_happened: bool,
    resource: Box<str>,
    code: Box<str>,
    detail: Box<str>,
    request_id: Box<str>,
}

/// The most characters of a foreign message that are repeated.
const DETAIL_LIMIT: usize = 400;

impl Ec2Error {
    /// A failure of `action` on `resource`, with a `detail` that says what happened.
    #[must_use]
    pub fn new(action: Action, resource: &dyn fmt::Display, class: Class, detail: &str) -> Self {
        Self {
            may_have_happened: matches!(class, Class::AnswerLost | Class::Malformed) && !action.is_read(),
            action,
            class,
            resource: resource.to_string().into(),
            code: Box::default(),
            detail: shortened(detail).into(),
            request_id: Box::default(),
        }
    }

    /// A failure that EC2 answered with: the HTTP status, the error code and the message.
    #[must_use]
    pub fn answered(
        action: Action,
        resource: &dyn fmt::Display,
        status: u16,
        code: &str,
        message: &str,
    ) -> Self {
        let class = classify(action, status, code, message);
        // With a 5xx other than a plain refusal to serve, EC2 may have done part of the work.
        let may_have_happened = class == Class::Unavailable
            && !action.is_read()
            && !matches!(code, "Unavailable" | "ServiceUnavailable");
        Self {
            code: code.into(),
            may_have_happened,
            ..Self::new(action, resource, class, without_encoded_part(message))
        }
    }

    /// The same with the id by which AWS finds the request.
    #[must_use]
    pub fn with_request_id(mut self, id: Option<&str>) -> Self {
        self.request_id = id.unwrap_or_default().into();
        self
    }

    /// The action that failed.
    #[must_use]
    pub fn action(&self) -> Action {
        self.action
    }

    /// What the action was about, as the text names it.
    #[must_use]
    pub fn resource(&self) -> &str {
        &self.resource
    }

    /// What kind of failure it was.
    #[must_use]
    pub fn class(&self) -> &Class {
        &self.class
    }

    /// EC2's error code, like `RequestLimitExceeded`; `None` when EC2 did not answer with one.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        (!self.code.is_empty()).then_some(&*self.code)
    }

    /// EC2's message or the transport's, at most a few hundred characters; empty when there is none.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// A short name for metrics: EC2's error code, else the name of the class.
    #[must_use]
    pub fn label(&self) -> &str {
        self.code().unwrap_or(match self.class {
            Class::Throttled => "Throttled",
            Class::Unauthorized { .. } => "Unauthorized",
            Class::Credentials => "Credentials",
            Class::SubnetExhausted => "SubnetExhausted",
            Class::NoFreePrefix => "NoFreePrefix",
            Class::NoIpv6Block => "NoIpv6Block",
            Class::AddressLimit => "AddressLimit",
            Class::AttachmentLimit => "AttachmentLimit",
            Class::SlotInUse => "SlotInUse",
            Class::Quota => "Quota",
            Class::NotFound => "NotFound",
            Class::AlreadyDone => "AlreadyDone",
            Class::Busy => "Busy",
            Class::Invalid => "Invalid",
            Class::Unavailable => "Unavailable",
            Class::Timeout => "Timeout",
            Class::AnswerLost => "AnswerLost",
            Class::Malformed => "Malformed",
        })
    }

    /// Whether EC2 may have changed something in spite of the error.
    #[must_use]
    pub fn may_have_happened(&self) -> bool {
        self.may_have_happened
    }

    /// When it makes sense to try again.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self.class {
            _ if self.may_have_happened => Retry::AfterReading,
            Class::Throttled | Class::Unavailable | Class::Timeout | Class::Busy => Retry::Soon,
            Class::AnswerLost
            | Class::AddressLimit
            | Class::AttachmentLimit
            | Class::SlotInUse
            | Class::NotFound
            | Class::AlreadyDone => Retry::AfterReading,
            Class::Unauthorized { .. }
            | Class::Credentials
            | Class::SubnetExhausted
            | Class::NoFreePrefix
            | Class::NoIpv6Block
            | Class::Quota => Retry::Later,
            Class::Invalid | Class::Malformed => Retry::No,
        }
    }

    /// Whether only an operator can help: permissions, credentials, quotas.
    #[must_use]
    pub fn needs_operator(&self) -> bool {
        matches!(self.class, Class::Unauthorized { .. } | Class::Credentials | Class::Quota)
    }

    /// The ENIs that EC2 says it does not know, as far as its message names them.
    ///
    /// EC2 writes `The networkInterface ID 'eni-1' does not exist`, with several ids between the
    /// quotes when it misses several.
    pub fn unknown_enis(&self) -> impl Iterator<Item = vpc::EniId> {
        let detail = if self.class == Class::NotFound { &*self.detail } else { "" };
        detail
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
            .filter_map(|word| word.parse::<vpc::EniId>().ok())
    }
}

impl fmt::Display for Ec2Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: ", self.action, self.resource)?;
        match &self.class {
            Class::Throttled => f.write_str("EC2 throttles our requests"),
            Class::Unauthorized { iam_action } => {
                write!(f, "not permitted; allow {iam_action} in the IAM policy of the role the daemon uses")
            }
            Class::Credentials => f.write_str(
                "no valid AWS credentials; check the node's instance profile or the role of the daemon's \
                 service account, and the node's clock",
            ),
            Class::SubnetExhausted => f.write_str("the subnet has too few free addresses"),
            Class::NoFreePrefix if self.action == Action::AssignIpv6Addresses => f.write_str(
                "the subnet has no free /80 for an IPv6 prefix; unassign unused ones in it, or use another \
                 subnet",
            ),
            Class::NoIpv6Block => f.write_str(
                "the subnet has no IPv6 block, which ENABLE_IPv6 needs; associate one with it, or use a subnet \
                 that has one",
            ),
            Class::NoFreePrefix => f.write_str(
                "the subnet has no free block for a prefix; reserve one in it, or turn prefix delegation off",
            ),
            Class::AddressLimit => {
                f.write_str("the ENI would hold more addresses than its instance type allows")
            }
            Class::AttachmentLimit => f.write_str("the instance holds as many ENIs as its type allows"),
            Class::SlotInUse => f.write_str("another ENI has this position"),
            Class::Quota => f.write_str("the account's quota is used up; raise it or delete unused ENIs"),
            Class::NotFound => f.write_str("EC2 does not know it"),
            Class::AlreadyDone => f.write_str("it is done already"),
            Class::Busy => f.write_str("its state does not allow it now"),
            Class::Invalid => f.write_str("EC2 refuses the request"),
            Class::Unavailable => f.write_str("EC2 cannot be reached or fails"),
            Class::Timeout => f.write_str("out of time"),
            Class::AnswerLost => f.write_str("sent, but no answer came; it may be done"),
            Class::Malformed => f.write_str("EC2's answer makes no sense"),
        }?;
        match (&*self.code, &*self.detail) {
            ("", "") => {}
            ("", detail) => write!(f, " ({detail})")?,
            (code, "") => write!(f, " ({code})")?,
            (code, detail) => write!(f, " ({code}: {detail})")?,
        }
        if !self.request_id.is_empty() {
            write!(f, " [request {}]", self.request_id)?;
        }
        Ok(())
    }
}

impl std::error::Error for Ec2Error {}

/// Sorts what EC2 answered.
///
/// Source: Amazon EC2 API reference, "Error codes"; the messages are those EC2 sends today, and
/// are looked at only where one code stands for several things.
fn classify(action: Action, status: u16, code: &str, message: &str) -> Class {
    let says = |text: &str| message.to_ascii_lowercase().contains(text);
    match code {
        "RequestLimitExceeded"
        | "Throttling"
        | "ThrottlingException"
        | "ThrottledException"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "TooManyRequestsException"
        | "SlowDown"
        | "EC2ThrottledException"
        | "PriorRequestNotComplete" => Class::Throttled,
        "UnauthorizedOperation" | "AccessDenied" | "AccessDeniedException" | "UnauthorizedAccess" => {
            Class::Unauthorized { iam_action: denied_action(action, message) }
        }
        "AuthFailure"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "IncompleteSignature"
        | "InvalidAccessKeyId"
        | "InvalidClientTokenId"
        | "InvalidToken"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "RequestExpired"
        | "SignatureDoesNotMatch"
        | "TokenRefreshRequired"
        | "UnrecognizedClientException" => Class::Credentials,
        "InsufficientFreeAddressesInSubnet" => Class::SubnetExhausted,
        "InsufficientCidrBlocks" => Class::NoFreePrefix,
        "PrivateIpAddressLimitExceeded" => Class::AddressLimit,
        "AttachmentLimitExceeded" => Class::AttachmentLimit,
        "NetworkInterfaceLimitExceeded" | "ResourceLimitExceeded" | "ResourceCountLimitExceeded" => {
            Class::Quota
        }
        "InvalidInstanceType" => Class::NotFound,
        "InvalidParameterValue" if action == Action::AttachNetworkInterface && says("device index") => {
            if says("already") || says("in use") { Class::SlotInUse } else { Class::Invalid }
        }
        "InvalidParameterValue" if says("currently in use") => Class::Busy,
        "InvalidParameterValue" | "InvalidParameterCombination"
            if (says("ipv6 cidr") || says("ipv6 block")) && (says("not have") || says("no ipv6")) =>
        {
            Class::NoIpv6Block
        }
        // What EC2 says of a prefix in a subnet that has fewer free addresses than one takes.
        "InvalidParameterValue" if says("sufficient free") => Class::NoFreePrefix,
        "InvalidParameterValue" if says("not assigned to") => Class::NotFound,
        "IncorrectState"
            if action == Action::DetachNetworkInterface && (says("detached") || says("not attached")) =>
        {
            Class::AlreadyDone
        }
        "InvalidNetworkInterface.InUse"
        | "IncorrectState"
        | "IncorrectInstanceState"
        | "InvalidAttachment.InUse"
        | "DependencyViolation" => Class::Busy,
        code if code.to_ascii_lowercase().ends_with("notfound") => {
            if action == Action::DetachNetworkInterface { Class::AlreadyDone } else { Class::NotFound }
        }
        "InternalError" | "InternalFailure" | "Unavailable" | "ServiceUnavailable" => Class::Unavailable,
        _ if status == 429 => Class::Throttled,
        _ if status >= 500 => Class::Unavailable,
        _ => Class::Invalid,
    }
}

/// The permission that is missing: the one that the message names, since creating with tags
/// needs `ec2:CreateTags` as well, else the action's own.
fn denied_action(action: Action, message: &str) -> Box<str> {
    let named = message.split_whitespace().find(|word| word.starts_with("ec2:"));
    let named = named.map(|word| word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()));
    // A message may speak of `ec2:*`, which nobody should be told to allow.
    let named = named.filter(|name| name.contains(':'));
    named.map_or_else(|| format!("ec2:{action}").into(), Into::into)
}

/// The message without the part that only `aws sts decode-authorization-message` can read, which
/// is a thousand characters long.
fn without_encoded_part(message: &str) -> &str {
    message.split("Encoded authorization failure message").next().unwrap_or(message).trim_end()
}

/// At most [`DETAIL_LIMIT`] characters of `text`, in one line.
fn shortened(text: &str) -> String {
    let mut short: String =
        text.trim().chars().take(DETAIL_LIMIT).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.trim().chars().nth(DETAIL_LIMIT).is_some() {
        short.push('…');
    }
    short
}

/// `error` and its causes in one line, without repeating what an outer one says.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let part = error.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        next = error.source();
    }
    text
}
