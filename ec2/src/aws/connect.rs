//! Making the SDK's client: region, endpoint, credentials, HTTP, user agent.

use std::time::Duration;

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::identity::IdentityCache;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_ec2::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_ec2::config::{ConfigBag, Intercept, RuntimeComponents, SharedHttpClient};
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::{Builder, Connector};
use aws_smithy_runtime_api::box_error::BoxError;

use super::Aws;
use super::credentials::Kept;
use crate::Imds;

/// How to reach EC2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsOptions {
    /// The region, like `eu-central-1`.
    pub region: String,
    /// EC2's address, like `https://ec2.example.com`. `None` takes AWS_ENDPOINT_URL_EC2, then
    /// AWS_ENDPOINT_URL, then the address of the region.
    pub endpoint: Option<String>,
    /// How long one HTTP request may take. Default 10 s.
    pub http_timeout: Duration,
    /// What is appended to the user agent, like `amazon-vpc-cni-k8s/v1.23.1`.
    pub user_agent: String,
}

impl AwsOptions {
    /// The defaults in `region`.
    #[must_use]
    pub fn new(region: &str) -> Self {
        Self {
            region: region.to_owned(),
            endpoint: None,
            http_timeout: Duration::from_secs(10),
            user_agent: concat!("amazon-vpc-cni-k8s/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// How long to wait for a TCP connection to EC2.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an unused connection is kept: shorter than EC2 keeps it, so that a change is not
/// lost on a connection that EC2 is just closing.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

impl Aws {
    /// A client of the given region and endpoint, with credentials from the default chain:
    /// environment, profile, web identity, container, the instance's role. Sends nothing to EC2;
    /// HTTPS_PROXY, HTTP_PROXY and NO_PROXY hold for EC2 and STS, and not for instance metadata.
    pub async fn new(options: &AwsOptions, imds: &Imds) -> Self {
        let http = http_client();
        // Repeating is decided by whoever knows what is safe to repeat, not here.
        let retries = RetryConfig::disabled();
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT.min(options.http_timeout))
            .read_timeout(options.http_timeout)
            .operation_attempt_timeout(options.http_timeout)
            .build();
        let provider = ProviderConfig::without_region().with_http_client(http.clone());
        let region = Region::new(options.region.clone());
        let mut credentials =
            DefaultCredentialsChain::builder().configure(provider).imds_client(imds.sdk_client());
        credentials.set_region(Some(region.clone()));
        let credentials = Kept::new(credentials.build().await);
        let base = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http)
            .region(region)
            .retry_config(retries)
            .timeout_config(timeouts)
            .credentials_provider(credentials.clone())
            .identity_cache(IdentityCache::no_cache())
            .load()
            .await;
        let mut config = aws_sdk_ec2::config::Builder::from(&base)
            .interceptor(UserAgent { suffix: printable(&options.user_agent) });
        // The SDK panics on an empty address, and manifests set variables to nothing.
        match options.endpoint.as_deref() {
            Some(endpoint) if !endpoint.is_empty() => config = config.endpoint_url(endpoint),
            _ if endpoint_variable().is_some_and(|url| url.is_empty()) => {
                config.set_endpoint_url(None);
            }
            _ => {}
        }
        Self { client: aws_sdk_ec2::Client::from_conf(config.build()), credentials }
    }
}

/// The variable by which the SDK finds EC2's address, as it is set.
fn endpoint_variable() -> Option<String> {
    ["AWS_ENDPOINT_URL_EC2", "AWS_ENDPOINT_URL"].iter().find_map(|name| std::env::var(name).ok())
}

/// HTTP with TLS by rustls and ring, through the proxy that the environment names.
fn http_client() -> SharedHttpClient {
    Builder::new().build_with_connector_fn(|settings, _| {
        let mut connector = Connector::builder()
            .proxy_config(ProxyConfig::from_env())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(4)
            .tls_provider(Provider::Rustls(CryptoMode::Ring));
        if let Some(settings) = settings {
            connector = connector.connector_settings(settings.clone());
        }
        connector.build()
    })
}

/// What of `text` an HTTP header can hold.
fn printable(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').collect()
}

/// Appends our name to the user agent, as amazon-vpc-cni-k8s does; the SDK's own ways to name an
/// application write it in other forms.
#[derive(Debug)]
struct UserAgent {
    suffix: String,
}

impl Intercept for UserAgent {
    fn name(&self) -> &'static str {
        "UserAgent"
    }

    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let headers = context.request_mut().headers_mut();
        let agent = match headers.get("user-agent") {
            Some(agent) => format!("{agent} {}", self.suffix),
            None => self.suffix.clone(),
        };
        headers.insert("user-agent", agent);
        Ok(())
    }
}
