//! AWS resource identifiers, one type each, so that a subnet cannot be passed for an ENI.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not the identifier it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not {kind}: expected {prefix:?} followed by letters and digits")]
pub struct IdError {
    kind: &'static str,
    prefix: &'static str,
    value: String,
}

macro_rules! resource_id {
    ($name:ident, $prefix:literal, $kind:literal) => {
        #[doc = concat!("The identifier of ", $kind, ", like `", $prefix, "0123456789abcdef0`.")]
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// The identifier as EC2 writes it.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let is_id = text.strip_prefix($prefix).is_some_and(|rest| {
                    !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
                });
                if is_id {
                    Ok(Self(text.into()))
                } else {
                    Err(IdError { kind: $kind, prefix: $prefix, value: text.to_owned() })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

resource_id!(EniId, "eni-", "a network interface");
resource_id!(SubnetId, "subnet-", "a subnet");
resource_id!(VpcId, "vpc-", "a VPC");
resource_id!(InstanceId, "i-", "an instance");
resource_id!(SecurityGroupId, "sg-", "a security group");
resource_id!(AttachmentId, "eni-attach-", "a network interface attachment");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_reads_and_prints_as_ec2_writes_it() {
        let id: EniId = "eni-06cad4a268d116ece".parse().unwrap();

        assert_eq!(id.to_string(), "eni-06cad4a268d116ece");
    }

    #[test]
    fn an_identifier_of_another_kind_is_refused_by_name_and_value() {
        let error = "subnet-1".parse::<EniId>().unwrap_err();

        assert_eq!(
            error.to_string(),
            r#""subnet-1" is not a network interface: expected "eni-" followed by letters and digits"#
        );
    }

    #[test]
    fn an_identifier_holds_nothing_that_could_end_a_query_or_a_log_line() {
        for text in ["", "eni-", "eni-1 ", "eni-1\n", "eni-a&b", "eni-é"] {
            assert!(text.parse::<EniId>().is_err(), "{text:?}");
        }
    }
}
