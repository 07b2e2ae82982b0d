//! Foreign programs that are run to their end: fed, read, and killed when they take too long.

use std::io::{self, Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// A program that has ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) succeeded: bool,
    pub(crate) printed: Vec<u8>,
    /// What it complained about, on one line.
    pub(crate) complaint: String,
}

/// Runs `program` in the calling thread's namespace; none if it did not end within `deadline`
/// and was killed.
///
/// # Errors
/// It cannot be started.
pub(crate) fn run(
    program: &str,
    arguments: &[&str],
    input: Option<&[u8]>,
    deadline: Duration,
) -> io::Result<Option<Ran>> {
    let mut child = Command::new(program)
        .args(arguments)
        // Messages are told apart by their English texts.
        .env("LC_ALL", "C")
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());

    let (sender, finished) = mpsc::channel();
    let (printed, complaint, is_late) = thread::scope(|scope| {
        let (stdin, stdout, stderr) = pipes;
        scope.spawn(move || {
            // If it ends without reading all, its message says why.
            let _ = stdin.map(|mut stdin| stdin.write_all(input.unwrap_or_default()));
        });
        let complaint = scope.spawn(move || read_all(stderr));
        let printed = scope.spawn(move || {
            let printed = read_all(stdout);
            let _ = sender.send(());
            printed
        });
        let is_late = finished.recv_timeout(deadline).is_err();
        if is_late {
            // The readers end with the pipes.
            let _ = child.kill();
        }
        (printed.join().unwrap_or_default(), complaint.join().unwrap_or_default(), is_late)
    });
    let status = child.wait()?;
    if is_late {
        return Ok(None);
    }
    let complaint = String::from_utf8_lossy(&complaint).split_whitespace().collect::<Vec<_>>().join(" ");
    Ok(Some(Ran { succeeded: status.success(), printed, complaint }))
}

fn read_all(pipe: Option<impl Read>) -> Vec<u8> {
    let mut content = Vec::new();
    if let Some(mut pipe) = pipe {
        let _ = pipe.read_to_end(&mut content);
    }
    content
}
