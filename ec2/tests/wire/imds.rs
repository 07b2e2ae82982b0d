//! Instance metadata.

use std::time::{Duration, Instant};

use ec2::{Imds, ImdsError, ImdsOptions};

use crate::imds_at;
use crate::server::{Reply, Seen, Server};

fn metadata(seen: &Seen) -> Reply {
    match (seen.method.as_str(), seen.path.as_str()) {
        ("PUT", "/latest/api/token") => Reply::Text(200, "token".to_owned()),
        ("GET", "/latest/meta-data/mac") => Reply::Text(200, "02:7d:5c:01:02:03".to_owned()),
        ("GET", "/broken") => Reply::Text(500, "oops".to_owned()),
        ("GET", "/forbidden") => Reply::Text(403, "no".to_owned()),
        _ => Reply::Text(404, "not found".to_owned()),
    }
}

#[tokio::test]
async fn one_session_token_serves_many_reads() {
    let server = Server::start(metadata).await;
    let imds = imds_at(&server.url());

    for _ in 0..3 {
        assert_eq!(imds.get("/latest/meta-data/mac").await.unwrap().as_deref(), Some("02:7d:5c:01:02:03"));
    }

    let seen = server.seen();
    assert_eq!(seen.iter().filter(|seen| seen.method == "PUT").count(), 1);
    let tokens: Vec<_> =
        seen[1..].iter().map(|seen| seen.headers["x-aws-ec2-metadata-token"].as_str()).collect();
    assert_eq!(tokens, ["token"; 3]);
}

#[tokio::test]
async fn a_path_that_is_not_there_is_nothing_and_no_error() {
    let server = Server::start(metadata).await;

    assert_eq!(imds_at(&server.url()).get("/latest/meta-data/ipv6").await.unwrap(), None);
}

#[tokio::test]
async fn an_error_names_path_and_status_after_a_few_tries() {
    let server = Server::start(metadata).await;
    let imds = imds_at(&server.url());

    let broken = imds.get("/broken").await.unwrap_err();
    let forbidden = imds.get("/forbidden").await.unwrap_err();

    assert_eq!(broken.to_string(), "read /broken from instance metadata: HTTP status 500");
    assert_eq!(forbidden, ImdsError::Status { path: "/forbidden".to_owned(), status: 403 });
    assert_eq!(server.seen().iter().filter(|seen| seen.path == "/broken").count(), 3);
}

#[tokio::test]
async fn a_service_that_is_not_there_is_reported_with_what_to_check() {
    let imds = imds_at(&Server::start(metadata).await.stop().await);

    let error = imds.get("/latest/meta-data/mac").await.unwrap_err();

    let text = error.to_string();
    assert!(text.starts_with("read /latest/meta-data/mac from instance metadata: "), "{text}");
    assert!(text.contains("refused") && text.contains("hop limit"), "{text}");
}

#[tokio::test]
async fn a_service_that_hangs_costs_no_more_than_the_deadline() {
    let server = Server::start(|_| Reply::Silence).await;
    let options = ImdsOptions {
        endpoint: Some(server.url()),
        deadline: Duration::from_millis(700),
        attempt_timeout: Duration::from_millis(200),
        ..ImdsOptions::default()
    };
    let start = Instant::now();

    let error = Imds::new(&options).unwrap().get("/latest/meta-data/mac").await.unwrap_err();

    assert!(matches!(error, ImdsError::Unreachable { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_path_or_address_that_is_none_is_refused_and_no_panic() {
    let imds = imds_at("http://127.0.0.1:1");
    for path in ["", "mac", "/a b", "/a\r\nx: y", "/\u{e9}", "/a?b", "/<"] {
        assert!(matches!(imds.get(path).await, Err(ImdsError::Path { .. })), "{path:?}");
    }
    for endpoint in ["", "169.254.169.254", "https://169.254.169.254", "http://a b"] {
        let options = ImdsOptions { endpoint: Some(endpoint.to_owned()), ..ImdsOptions::default() };
        assert!(matches!(Imds::new(&options), Err(ImdsError::Endpoint { .. })), "{endpoint:?}");
    }
}
