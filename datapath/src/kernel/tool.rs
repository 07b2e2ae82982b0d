//! Foreign programs that are run to their end: fed, read, and killed when they take too long.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Between two looks whether a program has ended that has closed what it prints to: it does so as
/// it ends.
const PAUSE: Duration = Duration::from_millis(1);

/// A program that has ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) succeeded: bool,
    pub(crate) printed: Vec<u8>,
    /// What it complained about, on one line.
    pub(crate) complaint: String,
}

/// Runs `program` in the calling thread's namespace; none if it did not end within `deadline`
/// and was killed, with whatever it had started.
///
/// # Errors
/// It cannot be started, or asked whether it has ended.
pub(crate) fn run(
    program: &str,
    arguments: &[&str],
    input: Option<&[u8]>,
    deadline: Duration,
) -> io::Result<Option<Ran>> {
    let deadline = Instant::now() + deadline;
    let mut child = Command::new(program)
        .args(arguments)
        // Messages are told apart by their English texts.
        .env("LC_ALL", "C")
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        let input = input.to_vec();
        // If it ends without reading all, its message says why.
        thread::spawn(move || stdin.write_all(&input));
    }
    let (printed, complaint) = (read_aside(child.stdout.take()), read_aside(child.stderr.take()));
    let ended = end_of(&mut child, [printed, complaint], deadline);
    if !matches!(ended, Ok(Some(_))) {
        // What it has started may hold its pipes, and the threads at them. None of this is waited
        // for: what hangs in the kernel does not die of it.
        let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
        thread::spawn(move || child.wait());
    }
    Ok(ended?.map(|(status, [printed, complaint])| {
        let complaint = String::from_utf8_lossy(&complaint);
        Ran {
            succeeded: status.success(),
            printed,
            complaint: complaint.split_whitespace().collect::<Vec<_>>().join(" "),
        }
    }))
}

/// How a program ended, and what it wrote to its pipes; none if not all is known at `deadline`.
fn end_of(
    child: &mut Child,
    pipes: [Receiver<Vec<u8>>; 2],
    deadline: Instant,
) -> io::Result<Option<(ExitStatus, [Vec<u8>; 2])>> {
    let mut written = [Vec::new(), Vec::new()];
    for (content, pipe) in written.iter_mut().zip(pipes) {
        let Ok(read) = pipe.recv_timeout(deadline.saturating_duration_since(Instant::now())) else {
            return Ok(None);
        };
        *content = read;
    }
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some((status, written)));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(PAUSE);
    }
}

/// Reads to the end in a thread of its own: whoever holds the other end may never let go of it.
fn read_aside(pipe: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut content = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut content);
        }
        let _ = sender.send(content);
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(300);

    fn shell(script: &str, input: Option<&[u8]>, deadline: Duration) -> Option<Ran> {
        run("sh", &["-c", script], input, deadline).unwrap()
    }

    #[test]
    fn what_a_program_reads_prints_and_complains_of_is_its_own() {
        let input = vec![b'x'; 1 << 20];

        let ran = shell("cat; echo a; echo 'b  c' >&2; exit 3", Some(&input), Duration::from_secs(30));

        let Ran { succeeded, printed, complaint } = ran.unwrap();
        assert!(!succeeded);
        assert_eq!(printed, [&input[..], b"a\n"].concat());
        assert_eq!(complaint, "b c");
    }

    #[test]
    fn a_program_that_takes_too_long_is_not_waited_for_whatever_it_holds_or_has_started() {
        for script in [
            // It prints nothing.
            "sleep 600",
            // It has closed what it prints to.
            "exec >&- 2>&-; sleep 600",
            "exec >&-; sleep 600",
            // It is gone, and what it has started holds its pipes, one or both.
            "sleep 600 &",
            "sleep 600 >&- & echo done",
        ] {
            let begun = Instant::now();

            assert!(shell(script, None, SHORT).is_none(), "{script}");

            assert!(begun.elapsed() < Duration::from_secs(20), "{script}");
        }
    }

    #[test]
    fn what_a_killed_program_has_started_is_killed_too() {
        let directory = std::env::temp_dir().join(format!("tool-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join("pid");
        let script = format!("sleep 600 & echo $! >{}; wait", file.display());

        // Time enough to start it.
        assert!(shell(&script, None, Duration::from_secs(5)).is_none());

        let sleeper = std::fs::read_to_string(&file).unwrap();
        let is_there = || {
            let status = std::fs::read_to_string(format!("/proc/{}/stat", sleeper.trim()));
            // One that is dead stays until its parent asks.
            status.is_ok_and(|text| !text.contains(") Z "))
        };
        let begun = Instant::now();
        while is_there() && begun.elapsed() < Duration::from_secs(20) {
            thread::sleep(PAUSE);
        }
        assert!(!is_there(), "process {sleeper} lives on");
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let error = run("no-such-program", &[], None, SHORT).unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
