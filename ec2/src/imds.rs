//! The instance metadata service: facts about this instance, by path.
//!
//! The SDK's client keeps the session token and repeats what failed on the way. It speaks
//! IMDSv2 alone, and never through a proxy.

use std::pin::Pin;
use std::time::Duration;

use aws_config::imds::client::Client;
use aws_config::imds::client::error::ImdsError as SdkImdsError;
use aws_config::provider_config::ProviderConfig;

use crate::error::chain;

/// How to reach the instance metadata service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImdsOptions {
    /// Its address, like `http://127.0.0.1:1338`. `None` takes AWS_EC2_METADATA_SERVICE_ENDPOINT,
    /// then the link-local address.
    pub endpoint: Option<String>,
    /// How long one attempt may take to connect, and again to answer. Default 1 s: the service
    /// answers from the host the instance runs on.
    pub attempt_timeout: Duration,
    /// How many times to try at most. Default 3.
    pub attempts: u32,
    /// How long one read may take with all its attempts. Default 5 s.
    pub deadline: Duration,
}

impl Default for ImdsOptions {
    fn default() -> Self {
        Self {
            endpoint: None,
            attempt_timeout: Duration::from_secs(1),
            attempts: 3,
            deadline: Duration::from_secs(5),
        }
    }
}

/// Why instance metadata could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImdsError {
    /// The address of the service is no address.
    #[error(
        "the instance metadata endpoint is {value:?}: expected a URL like http://169.254.169.254 ({detail})"
    )]
    Endpoint {
        /// The address.
        value: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The path holds what a path may not.
    #[error(
        "read {path:?} from instance metadata: expected a path of letters, digits and /:.-_ that begins with /"
    )]
    Path {
        /// The path.
        path: String,
    },
    /// The service answered with an error.
    #[error("read {path} from instance metadata: HTTP status {status}{}", advice(*.status))]
    Status {
        /// The path.
        path: String,
        /// The HTTP status.
        status: u16,
    },
    /// No answer came.
    #[error(
        "read {path} from instance metadata: {detail}; the daemon needs the host's network, or a hop limit of 2, \
         and metadata enabled on the instance"
    )]
    Unreachable {
        /// The path.
        path: String,
        /// What happened.
        detail: String,
    },
}

/// What an operator can do about `status`.
fn advice(status: u16) -> &'static str {
    match status {
        401 | 403 => "; enable the metadata service with session tokens on the instance",
        _ => "",
    }
}

/// What a read of instance metadata comes to: the text, or `None` where there is nothing.
pub type Metadatum<'a> = Pin<Box<dyn Future<Output = Result<Option<String>, ImdsError>> + Send + 'a>>;

/// Where instance metadata comes from. [`Imds`] asks the service; a simulation answers itself.
pub trait Metadata: Send + Sync + 'static {
    /// The text at `path`, like `/latest/meta-data/mac`; `None` where the service has nothing.
    ///
    /// # Errors
    /// [`ImdsError`] if the service does not answer in time, or with an error other than 404.
    fn get<'a>(&'a self, path: &'a str) -> Metadatum<'a>;
}

impl Metadata for Imds {
    fn get<'a>(&'a self, path: &'a str) -> Metadatum<'a> {
        Box::pin(self.get(path))
    }
}

/// The instance metadata service. Cheap to clone; clones share the session token.
#[derive(Debug, Clone)]
pub struct Imds {
    client: Client,
    deadline: Duration,
}

impl Imds {
    /// A client that has sent nothing yet.
    ///
    /// # Errors
    /// [`ImdsError::Endpoint`] if the options name an endpoint that is no URL.
    pub fn new(options: &ImdsOptions) -> Result<Self, ImdsError> {
        let http = aws_smithy_http_client::Builder::new().build_http();
        let mut builder = Client::builder()
            .configure(&ProviderConfig::without_region().with_http_client(http))
            .max_attempts(options.attempts.max(1))
            .connect_timeout(options.attempt_timeout)
            .read_timeout(options.attempt_timeout)
            .operation_attempt_timeout(options.attempt_timeout.saturating_mul(2))
            .operation_timeout(options.deadline);
        if let Some(endpoint) = &options.endpoint {
            let bad =
                |detail: &str| ImdsError::Endpoint { value: endpoint.clone(), detail: detail.to_owned() };
            if !endpoint.starts_with("http://") {
                return Err(bad("it does not begin with http://"));
            }
            builder = builder.endpoint(endpoint).map_err(|error| bad(&error.to_string()))?;
        }
        Ok(Self { client: builder.build(), deadline: options.deadline })
    }

    /// The text at `path`, like `/latest/meta-data/mac`; `None` where the service has nothing.
    ///
    /// # Errors
    /// [`ImdsError`] if the service does not answer in time, or with an error other than 404.
    pub async fn get(&self, path: &str) -> Result<Option<String>, ImdsError> {
        // The SDK's client panics on a path that no URI can hold.
        let is_path = path.starts_with('/')
            && path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/:.-_".contains(&byte));
        if !is_path {
            return Err(ImdsError::Path { path: path.to_owned() });
        }
        let unreachable = |detail: String| ImdsError::Unreachable { path: path.to_owned(), detail };
        // The SDK's deadline does not cover the session token, which it fetches first.
        let Ok(answer) = tokio::time::timeout(self.deadline, self.client.get(path)).await else {
            return Err(unreachable(format!("no answer within {:?}", self.deadline)));
        };
        match answer {
            Ok(text) => Ok(Some(text.into())),
            Err(SdkImdsError::ErrorResponse(answer)) => match answer.response().status().as_u16() {
                404 => Ok(None),
                status => Err(ImdsError::Status { path: path.to_owned(), status }),
            },
            Err(error) => Err(unreachable(chain(&error))),
        }
    }

    pub(crate) fn sdk_client(&self) -> Client {
        self.client.clone()
    }
}
