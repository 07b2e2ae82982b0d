//! What happens when the tools fail, with tools that fail on purpose.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use super::*;

/// Files of a test's own, gone with this value.
struct Files(PathBuf);

impl Files {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("takeover-{test}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn script(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        // Written by another process: what is open for writing here while a thread forks cannot
        // be executed until that child has gone.
        let text = format!("#!/bin/sh\ncd {}\n{text}\n", self.0.display());
        let write = ["-c", r#"printf %s "$1" >"$2""#, "-", &text, &path];
        assert!(Command::new("sh").args(write).status().unwrap().success());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn front_end(&self, save: &str, restore: &str) -> FrontEnd {
        fs::write(self.path("names"), "nat\nfilter\nraw\n").unwrap();
        FrontEnd::of_files(&self.script("save", save), &self.script("restore", restore), &self.path("names"))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const LISTING: &str = "*nat\n:AWS-SNAT-CHAIN-0 - [0:0]\nCOMMIT\n";

fn clear_with(front_end: &FrontEnd) -> (Result<(), TakeoverError>, Outcome) {
    let mut outcome = Outcome::default();
    (clear(front_end, &BTreeSet::new(), &mut outcome), outcome)
}

#[test]
fn what_has_changed_since_it_was_read_is_read_again() {
    let files = Files::new("changed");
    fs::write(files.path("state"), LISTING).unwrap();
    // Refuses once; then the next listing is empty.
    let restore =
        "if test -e refused; then cat >applied; >state; else >refused; echo line 2 failed >&2; exit 1; fi";

    let (done, outcome) = clear_with(&files.front_end("cat state", restore));

    done.unwrap();
    assert_eq!(outcome.removed, ["iptables-legacy: table nat: chain AWS-SNAT-CHAIN-0"]);
    assert_eq!(fs::read_to_string(files.path("applied")).unwrap(), "*nat\n-X AWS-SNAT-CHAIN-0\nCOMMIT\n");
}

#[test]
fn a_refusal_that_lasts_is_told_after_some_attempts() {
    let files = Files::new("refusal");
    fs::write(files.path("state"), LISTING).unwrap();

    let (done, outcome) =
        clear_with(&files.front_end("cat state", "echo x >>attempts; echo Permission denied >&2; exit 4"));

    assert!(done.unwrap_err().to_string().ends_with("restore: Permission denied"));
    assert_eq!(fs::read_to_string(files.path("attempts")).unwrap().lines().count(), 5);
    assert!(outcome.removed.is_empty());
}

#[test]
fn rules_that_come_back_all_the_time_are_told_and_not_fought_for_ever() {
    let files = Files::new("restless");
    fs::write(files.path("state"), LISTING).unwrap();

    let (done, _) = clear_with(&files.front_end("cat state", "cat >applied"));

    assert_eq!(
        done.unwrap_err().to_string(),
        "remove the rules of amazon-vpc-cni-k8s from iptables-legacy: they changed 5 times meanwhile"
    );
}

#[test]
fn a_listing_that_cannot_be_read_changes_nothing() {
    let files = Files::new("listing");

    let (done, _) = clear_with(&files.front_end("echo nonsense", "cat >applied"));
    assert!(done.unwrap_err().to_string().ends_with("save printed: unexpected line \"nonsense\""));
    let (done, _) = clear_with(&files.front_end("echo you must be root >&2; exit 1", "cat >applied"));
    assert!(done.unwrap_err().to_string().ends_with("save: you must be root"));

    assert!(!fs::exists(files.path("applied")).unwrap());
}

#[test]
fn tables_without_a_tool_are_told() {
    let files = Files::new("tools");
    let presence = |front_end: &FrontEnd| front_end.presence(&BTreeSet::new()).unwrap();
    let whole = files.front_end("true", "true");
    assert_eq!(presence(&whole), Presence::Present);

    let lacking = FrontEnd::of_files("no-such-save", "no-such-restore", &files.path("names"));
    let Presence::Unreadable(text) = presence(&lacking) else { panic!("{:?}", presence(&lacking)) };
    assert!(
        text.starts_with("iptables-legacy has the tables nat, filter, and no-such-save is not here"),
        "{text}"
    );

    // Without tables nobody misses the tools.
    fs::write(files.path("names"), "raw\n").unwrap();
    assert_eq!(presence(&lacking), Presence::Absent);
    fs::remove_file(files.path("names")).unwrap();
    assert_eq!(presence(&lacking), Presence::Absent);
}
