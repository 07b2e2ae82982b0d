//! Which foreign programs this crate runs: the packet filter's, and nothing for what netlink can do.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where its source is not as expected"
)]

use std::fs;
use std::path::{Path, PathBuf};

/// Every file below `directory` that is not a test's alone, with its text.
fn sources(directory: &Path) -> Vec<(PathBuf, String)> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| {
        if path.is_dir() { sources(&path) } else { vec![(path.clone(), fs::read_to_string(path).unwrap())] }
    });
    files.filter(|(path, _)| !path.ends_with("tests.rs")).collect()
}

#[test]
fn no_program_is_run_but_nft_and_the_tools_of_iptables() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut runners, mut callers) = (Vec::new(), Vec::new());
    for (path, text) in sources(&root) {
        let name = path.strip_prefix(&root).unwrap().display().to_string();
        let lines = || text.lines().map(str::trim).filter(|line| !line.starts_with("//"));
        if lines().any(|line| ["process::", "exec", "Command::"].iter().any(|word| line.contains(word))) {
            runners.push(name.clone());
        }
        callers.extend(
            lines().filter(|line| line.contains("tool::run(")).map(|line| (name.clone(), line.to_owned())),
        );
        for tool in
            lines().filter_map(|line| line.strip_prefix("save: \"").or(line.strip_prefix("restore: \"")))
        {
            assert!(tool.starts_with("iptables-") || tool.starts_with("ip6tables-"), "{name}: {tool}");
        }
    }
    callers.sort();

    assert_eq!(runners, ["kernel/tool.rs"]);
    assert_eq!(
        callers,
        [
            ("kernel/nft.rs", r#"let ran = tool::run("nft", arguments, input, DEADLINE);"#),
            // Its callers give the tools of a front end.
            ("takeover/tools.rs", "let ran = tool::run(tool, arguments, input, DEADLINE);"),
        ]
        .map(|(file, line)| (file.to_owned(), line.to_owned()))
    );
}
