//! The probe against a real health service on a socket of its own.

use clap::Parser;
use tokio::net::UnixListener;
use tonic_health::ServingStatus as Served;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: ProbeArgs,
}

async fn probe(arguments: &[&str]) -> (Verdict, serde_json::Value) {
    let line = std::iter::once("probe").chain(arguments.iter().copied()).map(OsString::from);
    let cli = Cli::try_parse_from(double_dashes(line)).expect("the arguments are good");
    let mut log = Vec::new();
    let verdict = run(&cli.args, &mut log).await;
    (verdict, serde_json::from_slice(&log).expect("one line of JSON"))
}

/// Serves health on `socket` until the task is dropped: the whole serves, `sick` does not.
async fn serve(socket: &std::path::Path) -> tokio::task::JoinHandle<()> {
    let listener = UnixListener::bind(socket).expect("bind");
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter.set_service_status("", Served::Serving).await;
    reporter.set_service_status("sick", Served::NotServing).await;
    let incoming = futures::stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    });
    tokio::spawn(async move {
        let server = tonic::transport::Server::builder().add_service(service);
        server.serve_with_incoming(incoming).await.expect("serve");
    })
}

#[tokio::test]
async fn the_exit_code_says_what_the_service_says() {
    let root = tempfile::tempdir().expect("make a directory");
    let socket = root.path().join("ipamd.sock");
    let server = serve(&socket).await;
    let address = format!("unix://{}", socket.display());
    let equals = format!("-addr={address}");

    let (verdict, line) = probe(&["-addr", &address, "-connect-timeout", "5s", "-rpc-timeout=5s"]).await;
    assert_eq!((verdict, &line["msg"]), (Verdict::Serving, &json!("status: SERVING")));
    let (verdict, line) = probe(&[&equals, "--service", "sick", "-v"]).await;
    assert_eq!((verdict, &line["msg"]), (Verdict::NotServing, &json!("status: NOT_SERVING")));
    assert_eq!(line["service"], "sick");
    let (verdict, line) = probe(&["--addr", &address, "-service", "stranger"]).await;
    assert_eq!(verdict, Verdict::CallFailed, "{line}");
    server.abort();
}

#[tokio::test]
async fn an_absent_daemon_is_no_connection_after_the_time_allowed() {
    let root = tempfile::tempdir().expect("make a directory");
    let address = format!("unix://{}/absent.sock", root.path().display());
    let (verdict, line) = probe(&["-addr", &address, "-connect-timeout", "120ms"]).await;
    assert_eq!(verdict, Verdict::NoConnection, "{line}");
    assert!(line["msg"].as_str().is_some_and(|text| text.contains("absent.sock")), "{line}");
}

#[tokio::test]
async fn a_daemon_that_accepts_and_says_nothing_fails_the_call_in_time() {
    let root = tempfile::tempdir().expect("make a directory");
    let socket = root.path().join("mute.sock");
    let _listener = UnixListener::bind(&socket).expect("bind");
    let address = format!("unix://{}", socket.display());
    let (verdict, line) = probe(&["-addr", &address, "-rpc-timeout", "100ms"]).await;
    assert_eq!(verdict, Verdict::CallFailed, "{line}");
}

#[tokio::test]
async fn an_address_that_is_none_is_a_bad_argument() {
    for address in ["unix://", "ipamd.sock"] {
        assert_eq!(probe(&["-addr", address]).await.0, Verdict::BadArguments, "{address}");
    }
}

#[test]
fn durations_are_gos() {
    for (text, milliseconds) in [("1s", 1000), ("500ms", 500), ("1m30s", 90_000), ("1.5s", 1500), ("0", 0)] {
        assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
    }
    for text in ["", "5", "s", "1x", "-1s", "1e9h", "99999h", "1.2.3s"] {
        assert!(duration(text).is_err(), "{text:?}");
    }
}

#[test]
fn the_default_is_the_daemons_own_socket() {
    let cli = Cli::try_parse_from(["probe"]).expect("no arguments are needed");
    assert_eq!(cli.args.addr, "unix:///var/run/aws-node/ipamd.sock");
}
