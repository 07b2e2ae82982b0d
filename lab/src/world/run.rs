//! Running commands with a deadline, and the tools `ip` and `nft` in particular.

use std::ffi::OsStr;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use tokio::io::AsyncWriteExt;

use super::place::Place;

/// Long enough for any tool on a busy machine.
pub const TOOL_DEADLINE: Duration = Duration::from_secs(30);

/// A command that has ended.
#[derive(Debug)]
pub struct Ran {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: Vec<u8>,
    /// What it complained about.
    pub stderr: Vec<u8>,
    /// From start to exit, as the parent sees it.
    pub elapsed: Duration,
}

impl Ran {
    /// What it printed, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// What it complained about, as text.
    pub fn complaint(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim().to_owned()
    }
}

/// Runs a command to its end; it is killed when `deadline` passes or the caller gives up.
///
/// # Errors
/// It cannot be started, or the deadline passed. An exit code is no error.
pub async fn finish(mut command: Command, stdin: Option<&[u8]>, deadline: Duration) -> Result<Ran> {
    let label = describe(&command);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    let began = Instant::now();
    let mut child = command.spawn().with_context(|| format!("start {label}"))?;
    let pipe = child.stdin.take();
    let feed = async {
        if let (Some(mut pipe), Some(bytes)) = (pipe, stdin) {
            // A command that ends without reading is judged by its exit code.
            let _ = pipe.write_all(bytes).await;
        }
    };
    let ended = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = tokio::time::timeout(deadline, ended)
        .await
        .map_err(|_| anyhow!("{label} did not end within {deadline:?}"))?
        .with_context(|| format!("wait for {label}"))?;
    let elapsed = began.elapsed();
    Ok(Ran { status: output.status, stdout: output.stdout, stderr: output.stderr, elapsed })
}

fn describe(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    words.join(" ")
}

impl Place {
    /// Runs a command inside and gives what it printed.
    ///
    /// # Errors
    /// It failed; the text holds its complaint.
    pub async fn exec(&self, words: &[&str]) -> Result<String> {
        Ok(self.exec_with(words, None).await?.text())
    }

    /// The same with something on its standard input.
    ///
    /// # Errors
    /// It failed; the text holds its complaint.
    pub async fn exec_with(&self, words: &[&str], stdin: Option<&str>) -> Result<Ran> {
        let (program, arguments) = words.split_first().context("run a command: no words given")?;
        let mut command = self.command(program);
        command.args(arguments);
        let ran = finish(command, stdin.map(str::as_bytes), TOOL_DEADLINE).await?;
        if !ran.status.success() {
            bail!("{} in {}: {} ({})", words.join(" "), self.name(), ran.complaint(), ran.status);
        }
        Ok(ran)
    }

    /// `ip` with these words; its JSON when `-j` is among them, else its lines.
    ///
    /// # Errors
    /// It failed, or printed something else than JSON.
    pub async fn ip(&self, words: &[&str]) -> Result<serde_json::Value> {
        self.tool("ip", words).await
    }

    /// `nft` with these words; its JSON when `-j` is among them, else its lines.
    ///
    /// # Errors
    /// It failed, or printed something else than JSON.
    pub async fn nft(&self, words: &[&str]) -> Result<serde_json::Value> {
        self.tool("nft", words).await
    }

    /// Runs lines of `ip` commands in one process.
    ///
    /// # Errors
    /// The first line that fails, with `ip`'s complaint.
    pub async fn ip_batch(&self, lines: &str) -> Result<()> {
        if !lines.is_empty() {
            self.exec_with(&["ip", "-batch", "-"], Some(lines))
                .await
                .with_context(|| format!("apply in one batch:\n{lines}"))?;
        }
        Ok(())
    }

    /// Loads nft commands as one transaction.
    ///
    /// # Errors
    /// nft's complaint.
    pub async fn nft_load(&self, text: &str) -> Result<()> {
        self.exec_with(&["nft", "-f", "-"], Some(text)).await.with_context(|| format!("load:\n{text}"))?;
        Ok(())
    }

    async fn tool(&self, program: &str, words: &[&str]) -> Result<serde_json::Value> {
        let mut all = vec![program];
        all.extend(words);
        let text = self.exec(&all).await?;
        if !words.contains(&"-j") {
            return Ok(serde_json::Value::String(text));
        }
        // `ip -j` prints nothing where there is nothing.
        if text.trim().is_empty() {
            return Ok(serde_json::Value::Array(Vec::new()));
        }
        serde_json::from_str(&text).with_context(|| format!("read the JSON of {}", all.join(" ")))
    }
}
