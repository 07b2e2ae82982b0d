//! What a line looks like and where it goes.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use super::*;

fn settings(vars: &[(&str, &str)]) -> (LogSettings, Option<String>) {
    LogSettings::from_vars(|name| {
        vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    })
}

/// The lines that `events` leaves in a log file at `level`.
fn logged(level: LevelFilter, events: impl FnOnce()) -> Vec<String> {
    let root = tempfile::tempdir().expect("make a directory");
    let path = root.path().join("made/ipamd.log");
    let file = Some(Outputs::open_file(&path).expect("open"));
    let outputs = Outputs { file, stream: Stream::None };
    tracing::subscriber::with_default(subscriber(level, outputs), events);
    assert_eq!(fs::metadata(&path).expect("stat").permissions().mode() & 0o777, 0o600);
    fs::read_to_string(&path).expect("read").lines().map(str::to_owned).collect()
}

#[test]
fn a_line_has_the_well_known_keys_first_and_the_fields_after_them() {
    let lines = logged(LevelFilter::INFO, || {
        tracing::warn!(target: "ipamd", pod = "default/\"web\"", free = 3, level = "mine", "address {}", "given");
    });
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    assert!(line.starts_with("{\"level\":\"warn\",\"ts\":\""), "{line}");
    let json: Value = serde_json::from_str(line).expect("JSON");
    assert_eq!((&json["level"], &json["msg"]), (&Value::from("warn"), &Value::from("address given")));
    assert_eq!((&json["pod"], &json["free"]), (&Value::from("default/\"web\""), &Value::from(3)));
    assert_eq!(json["level_"], "mine");
    assert!(
        json["caller"].as_str().is_some_and(|caller| caller.starts_with("telemetry/tests.rs:")),
        "{line}"
    );
    let ts = json["ts"].as_str().expect("a time");
    assert_eq!((ts.len(), &ts[10..11], &ts[19..20], &ts[23..]), (24, "T", ".", "Z"), "{ts}");
}

#[test]
fn libraries_stay_quiet_at_debug_and_we_do_not() {
    let lines = logged(LevelFilter::DEBUG, || {
        tracing::debug!(target: "hyper_util::client", "connected");
        tracing::warn!(target: "hyper_util::client", "odd");
        tracing::debug!(target: "ipamd::pool", "planned");
        tracing::trace!(target: "ipamd::pool", "looked");
    });
    assert_eq!(lines.len(), 2, "{lines:?}");
}

#[test]
fn levels_are_read_in_any_case_and_without_one_it_is_info() {
    for (text, level) in [
        ("DEBUG", LevelFilter::DEBUG),
        ("Info", LevelFilter::INFO),
        ("warn", LevelFilter::WARN),
        ("fatal", LevelFilter::ERROR),
        ("", LevelFilter::INFO),
    ] {
        let (settings, warning) = settings(&[("AWS_VPC_K8S_CNI_LOGLEVEL", text)]);
        assert_eq!((settings.level, warning), (level, None), "{text:?}");
    }
    let (settings, warning) = settings(&[("AWS_VPC_K8S_CNI_LOGLEVEL", "loud")]);
    assert_eq!(settings.level, LevelFilter::INFO);
    assert!(warning.is_some_and(|text| text.contains("\"loud\"")));
}

#[test]
fn the_sink_is_a_path_or_a_stream_in_any_case() {
    let sink = |value| settings(&[("AWS_VPC_K8S_CNI_LOG_FILE", value)]).0.sink;
    assert_eq!(sink("STDOUT"), Sink::Stdout);
    assert_eq!(sink("stderr"), Sink::Stderr);
    assert_eq!(sink("/tmp/x.log"), Sink::File("/tmp/x.log".into()));
    assert_eq!(sink(""), Sink::File(DEFAULT_LOG_FILE.into()));
}

#[test]
fn a_file_that_cannot_be_opened_is_a_warning() {
    let root = tempfile::tempdir().expect("make a directory");
    fs::write(root.path().join("file"), "").expect("write");
    let path = root.path().join("file/ipamd.log");
    let (outputs, warning) = Outputs::open(&Sink::File(path));
    assert!(outputs.file.is_none());
    assert!(warning.is_some_and(|text| text.contains("file/ipamd.log") && text.contains("stderr only")));
}

#[test]
fn a_full_file_turns_over_and_the_oldest_goes() {
    let root = tempfile::tempdir().expect("make a directory");
    let path = root.path().join("ipamd.log");
    let mut file = RotatingFile::open(&path, 8, 2).expect("open");
    for line in ["one....\n", "two....\n", "three..\n", "four\n"] {
        file.append(line.as_bytes()).expect("append");
    }
    let read = |name: &str| fs::read_to_string(root.path().join(name)).expect("read");
    assert_eq!(
        (read("ipamd.log"), read("ipamd.log.1"), read("ipamd.log.2")),
        ("four\n".to_owned(), "three..\n".to_owned(), "two....\n".to_owned())
    );
    assert_eq!(fs::read_dir(root.path()).expect("list").count(), 3);
}

#[test]
fn a_reopened_file_is_appended_to() {
    let root = tempfile::tempdir().expect("make a directory");
    let path = root.path().join("ipamd.log");
    for line in ["one\n", "two\n"] {
        RotatingFile::open(&path, 100, 2).expect("open").append(line.as_bytes()).expect("append");
    }
    assert_eq!(fs::read_to_string(&path).expect("read"), "one\ntwo\n");
}
