//! What goes over the wire and how answers are read, against a scripted server on loopback.
#![expect(clippy::unwrap_used, reason = "the functions beside the tests are part of them")]

mod answers;
mod changes;
mod failures;
mod imds;
mod reads;
mod server;

use std::time::Duration;

use ec2::{Aws, AwsOptions, Imds, ImdsOptions, PaceOptions, Paced};
use server::{Reply, Seen, Server};

/// Answers as instance metadata with a role does.
fn role_in_metadata(seen: &Seen) -> Reply {
    match (seen.method.as_str(), seen.path.as_str()) {
        ("PUT", "/latest/api/token") => Reply::Text(200, "token".to_owned()),
        ("GET", "/latest/meta-data/iam/security-credentials/") => Reply::Text(200, "node-role".to_owned()),
        ("GET", "/latest/meta-data/iam/security-credentials/node-role") => Reply::Text(
            200,
            r#"{"Code": "Success", "LastUpdated": "2026-01-01T00:00:00Z", "Type": "AWS-HMAC",
                "AccessKeyId": "AKIATEST", "SecretAccessKey": "secret", "Token": "session",
                "Expiration": "2099-01-01T00:00:00Z"}"#
                .to_owned(),
        ),
        _ => Reply::Text(404, "not found".to_owned()),
    }
}

/// A client of the server at `ec2`, with credentials from a metadata service of its own.
async fn aws_at(endpoint: &str) -> Aws {
    aws_that_waits(endpoint, Duration::from_secs(10)).await
}

/// The same, with a patience of its own for an answer.
async fn aws_that_waits(endpoint: &str, http_timeout: Duration) -> Aws {
    let metadata = Server::start(role_in_metadata).await;
    let imds = imds_at(&metadata.url());
    let options = AwsOptions {
        endpoint: Some(endpoint.to_owned()),
        http_timeout,
        user_agent: "amazon-vpc-cni-k8s/v9.8.7".to_owned(),
        ..AwsOptions::new("us-west-2")
    };
    Aws::new(&options, &imds).await
}

fn imds_at(endpoint: &str) -> Imds {
    Imds::new(&ImdsOptions { endpoint: Some(endpoint.to_owned()), ..ImdsOptions::default() }).unwrap()
}

/// A server that answers as `script` says, and the plain client of it.
async fn plain(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> (Server, Aws) {
    let server = Server::start(script).await;
    let aws = aws_at(&server.url()).await;
    (server, aws)
}

/// A server that answers as `script` says, and the paced client of it.
async fn paced(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> (Server, Paced<Aws>) {
    let (server, aws) = plain(script).await;
    (server, Paced::new(aws, PaceOptions::default()))
}

fn id<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}
