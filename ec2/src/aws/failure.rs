//! The SDK's failures in our words.

use std::error::Error;
use std::fmt::Display;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::operation::RequestId;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use crate::error::chain;
use crate::{Action, Class, Ec2Error};

/// What `error` means for `action` on `resource`.
pub(super) fn of<E>(action: Action, resource: &dyn Display, error: &SdkError<E, HttpResponse>) -> Ec2Error
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    SdkError<E, HttpResponse>: RequestId,
{
    let request_id = error.request_id();
    let failure = match error {
        SdkError::ServiceError(answer) => {
            let status = answer.raw().status().as_u16();
            let code = answer.err().code().unwrap_or_default();
            let message = answer.err().message().unwrap_or_default();
            if status < 400 {
                Ec2Error::new(action, resource, Class::Malformed, &causes(error))
            } else if code.is_empty() {
                Ec2Error::answered(action, resource, status, "", &format!("HTTP status {status}"))
            } else {
                Ec2Error::answered(action, resource, status, code, message)
            }
        }
        SdkError::ResponseError(answer) => {
            let status = answer.raw().status().as_u16();
            if status >= 400 {
                Ec2Error::answered(action, resource, status, "", &format!("HTTP status {status}"))
            } else {
                Ec2Error::new(action, resource, Class::Malformed, &causes(error))
            }
        }
        SdkError::TimeoutError(_) => {
            Ec2Error::new(action, resource, lost(action, Class::Timeout), &causes(error))
        }
        SdkError::DispatchFailure(failure) if was_not_sent(error) => {
            let class = if failure.is_user() { Class::Invalid } else { Class::Unavailable };
            Ec2Error::new(action, resource, class, &causes(error))
        }
        _ if find::<CredentialsError>(error).is_some() => {
            Ec2Error::new(action, resource, Class::Credentials, &causes(error))
        }
        SdkError::DispatchFailure(failure) => {
            let class = if failure.is_timeout() { Class::Timeout } else { Class::Unavailable };
            Ec2Error::new(action, resource, lost(action, class), &causes(error))
        }
        // The request could not be built: nothing was sent.
        _ => Ec2Error::new(action, resource, Class::Invalid, &causes(error)),
    };
    failure.with_request_id(request_id)
}

/// A read without an answer changed nothing; a change may have happened.
fn lost(action: Action, read: Class) -> Class {
    if action.is_read() { read } else { Class::AnswerLost }
}

/// Whether the request never left: no connection was made.
fn was_not_sent(error: &(dyn Error + 'static)) -> bool {
    find::<hyper_util::client::legacy::Error>(error)
        .is_some_and(hyper_util::client::legacy::Error::is_connect)
}

/// The first error of type `T` in the chain of `error`.
fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// The causes of `error`, in one line.
fn causes(error: &(dyn Error + 'static)) -> String {
    chain(error.source().unwrap_or(error))
}
