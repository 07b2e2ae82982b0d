//! What can go wrong between us and EC2.

use std::time::{Duration, Instant};

use ec2::{Aws, AwsOptions, Class, Ec2, EniQuery, Imds, Priority, Retry};

use crate::answers::refusal;
use crate::server::{Reply, Seen, Server};
use crate::{aws_at, aws_that_waits, id, imds_at, paced, plain, role_in_metadata};

fn attached() -> EniQuery {
    EniQuery::AttachedTo(id("i-0aa"))
}

#[tokio::test]
async fn ec2s_refusal_keeps_its_code_message_and_request_id() {
    let (_server, aws) = plain(|_| {
        refusal(400, "PrivateIpAddressLimitExceeded", "Number of private addresses will exceed limit.")
    })
    .await;

    let error = aws.assign_ips(&id("eni-01"), 3).await.unwrap_err();

    assert_eq!(error.code(), Some("PrivateIpAddressLimitExceeded"));
    assert_eq!(
        error.to_string(),
        "AssignPrivateIpAddresses of 3 secondary IPs to eni-01: the ENI would hold more addresses than its instance \
         type allows (PrivateIpAddressLimitExceeded: Number of private addresses will exceed limit.) \
         [request ea966190-f9aa-478e-9ede-example]"
    );
}

#[tokio::test]
async fn an_error_page_that_is_no_xml_is_sorted_by_its_status() {
    for (status, class) in [(503, Class::Unavailable), (429, Class::Throttled), (404, Class::Invalid)] {
        let (_server, aws) = plain(move |_| Reply::Text(status, "<html>sorry</html>".to_owned())).await;

        let error = aws.describe_enis(&attached(), None).await.unwrap_err();

        assert_eq!(error.class(), &class, "{error}");
        assert!(error.to_string().contains(&status.to_string()), "{error}");
    }
}

#[tokio::test]
async fn an_answer_that_is_no_xml_is_malformed_and_a_change_may_have_happened() {
    let (_server, aws) = plain(|_| Reply::Text(200, "certainly!".to_owned())).await;

    let read = aws.describe_enis(&attached(), None).await.unwrap_err();
    let change = aws.assign_ips(&id("eni-01"), 1).await.unwrap_err();

    assert_eq!((read.class(), read.may_have_happened()), (&Class::Malformed, false), "{read}");
    assert_eq!((change.class(), change.retry()), (&Class::Malformed, Retry::AfterReading), "{change}");
}

#[tokio::test]
async fn a_connection_that_is_refused_sent_nothing() {
    let endpoint = Server::start(|_| Reply::Close).await.stop().await;
    let aws = aws_at(&endpoint).await;

    let error = aws.assign_ips(&id("eni-01"), 1).await.unwrap_err();

    assert_eq!((error.class(), error.may_have_happened()), (&Class::Unavailable, false), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn a_connection_that_breaks_may_have_brought_a_change_but_not_a_read() {
    let (server, aws) = plain(|_| Reply::Close).await;

    let read = aws.describe_enis(&attached(), None).await.unwrap_err();
    let change = aws.assign_ips(&id("eni-01"), 1).await.unwrap_err();

    assert_eq!((read.class(), read.retry()), (&Class::Unavailable, Retry::Soon), "{read}");
    assert_eq!((change.class(), change.retry()), (&Class::AnswerLost, Retry::AfterReading), "{change}");
    assert_eq!(server.seen().len(), 2, "the SDK must not repeat by itself");
}

#[tokio::test]
async fn silence_ends_with_the_http_timeout() {
    let server = Server::start(|_: &Seen| Reply::Silence).await;
    let aws = aws_that_waits(&server.url(), Duration::from_millis(500)).await;
    let start = Instant::now();

    let read = aws.describe_enis(&attached(), None).await.unwrap_err();
    let change = aws.assign_ips(&id("eni-01"), 1).await.unwrap_err();

    assert_eq!(read.class(), &Class::Timeout, "{read}");
    assert_eq!(change.class(), &Class::AnswerLost, "{change}");
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn an_assignment_whose_answer_was_lost_is_not_sent_again() {
    let (server, client) = paced(|_| Reply::Close).await;

    let error = client.at(Priority::WaitingPod).assign_ips(&id("eni-01"), 5).await.unwrap_err();

    assert_eq!(error.class(), &Class::AnswerLost);
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn throttling_is_waited_out() {
    let served = std::sync::atomic::AtomicU32::new(0);
    let (server, client) = paced(move |_| {
        if served.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0 {
            refusal(503, "RequestLimitExceeded", "Request limit exceeded.")
        } else {
            crate::answers::enis(&[], None)
        }
    })
    .await;

    client.at(Priority::Reconcile).attached_enis(&id("i-0aa"), &[]).await.unwrap();

    assert_eq!(server.seen().len(), 2);
}

/// The client of an EC2 that counts, with credentials only from `imds`.
async fn aws_with(imds: &Imds, server: &Server) -> Aws {
    let options = AwsOptions { endpoint: Some(server.url()), ..AwsOptions::new("us-west-2") };
    Aws::new(&options, imds).await
}

#[tokio::test]
async fn missing_credentials_are_named_and_nothing_is_sent() {
    // The default chain looks at the environment first, so this says nothing where it has keys.
    if std::env::var_os("AWS_ACCESS_KEY_ID").is_some() {
        return;
    }
    let server = Server::start(|_| Reply::Close).await;
    let without_role = Server::start(|seen| match seen.method.as_str() {
        "PUT" => Reply::Text(200, "token".to_owned()),
        _ => Reply::Text(404, "not found".to_owned()),
    })
    .await;
    let absent = Server::start(|_| Reply::Close).await.stop().await;
    let broken_role = Server::start(|seen| match seen.path.as_str() {
        "/latest/meta-data/iam/security-credentials/node-role" => {
            Reply::Text(200, r#"{"Code": "AssumeRoleUnauthorizedAccess"}"#.to_owned())
        }
        _ => role_in_metadata(seen),
    })
    .await;

    for url in [without_role.url(), absent, broken_role.url()] {
        let aws = aws_with(&imds_at(&url), &server).await;

        let error = aws.assign_ips(&id("eni-01"), 1).await.unwrap_err();

        assert_eq!(error.class(), &Class::Credentials, "{url}: {error}");
        assert!(error.needs_operator() && !error.may_have_happened());
        assert!(error.to_string().contains("check the node's instance profile"), "{error}");
    }
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn an_endpoint_that_is_no_url_is_an_error_and_no_panic() {
    for endpoint in ["ec2.example.com", "http://", "not a url", "http://[::1"] {
        let aws = aws_at(endpoint).await;

        let error = aws.describe_enis(&attached(), None).await.unwrap_err();

        assert!(matches!(error.class(), Class::Invalid | Class::Unavailable), "{endpoint:?}: {error}");
    }
}
