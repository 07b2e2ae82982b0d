//! EC2's errors: a code, a sentence and the HTTP status they travel with.

use std::borrow::Cow;

/// An error as EC2 answers it.
///
/// Source: EC2 API Reference, "Error codes for the Amazon EC2 API".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Ec2Error {
    /// The code that clients compare, e.g. `InvalidNetworkInterfaceID.NotFound`.
    pub code: Cow<'static, str>,
    /// The sentence beside it.
    pub message: String,
    /// The HTTP status: 400 for most, 401 or 403 for credentials, 5xx for the server's own.
    pub status: u16,
}

impl Ec2Error {
    /// An error with the status that EC2 uses for `code`.
    pub fn new(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Ec2Error {
        let code = code.into();
        let status = status_of(&code);
        Ec2Error { code, message: message.into(), status }
    }

    pub(crate) fn invalid_value(message: impl Into<String>) -> Ec2Error {
        Ec2Error::new("InvalidParameterValue", message)
    }

    pub(crate) fn combination(message: impl Into<String>) -> Ec2Error {
        Ec2Error::new("InvalidParameterCombination", message)
    }

    pub(crate) fn missing(parameter: &str) -> Ec2Error {
        Ec2Error::new("MissingParameter", format!("The request must contain the parameter {parameter}"))
    }

    /// The answer that a caller without the right IAM policy gets.
    pub fn unauthorized(action: &str) -> Ec2Error {
        Ec2Error::new(
            "UnauthorizedOperation",
            format!(
                "You are not authorized to perform this operation. The caller's policy does not \
                 allow ec2:{action}."
            ),
        )
    }

    /// The answer of an empty token bucket.
    pub fn throttled() -> Ec2Error {
        Ec2Error::new("RequestLimitExceeded", "Request limit exceeded.")
    }

    /// The answer to a session whose time is over, as EC2 words it.
    pub fn request_expired() -> Ec2Error {
        Ec2Error::new("RequestExpired", "Request has expired.")
    }

    /// The answer to an access key that nobody issued.
    pub fn auth_failure() -> Ec2Error {
        Ec2Error::new("AuthFailure", "AWS was not able to validate the provided access credentials")
    }
}

fn status_of(code: &str) -> u16 {
    match code {
        "AuthFailure" => 401,
        "UnauthorizedOperation" | "MissingAuthenticationToken" | "OptInRequired" | "Blocked" => 403,
        "InternalError" | "InternalFailure" => 500,
        "RequestLimitExceeded" | "Unavailable" | "ServiceUnavailable" | "InsufficientInstanceCapacity" => 503,
        _ => 400,
    }
}
