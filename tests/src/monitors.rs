//! Who watches a node's kernel state for changes.

use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use lab::world::Node;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

use crate::until;

const PATIENCE: Duration = Duration::from_secs(30);

/// `ip monitor` and `nft monitor` on a node, and the lines that they have printed.
#[derive(Debug)]
pub struct Monitors {
    seen: Arc<Mutex<Vec<String>>>,
    _processes: Vec<Child>,
}

impl Monitors {
    /// Starts them and waits until both listen.
    ///
    /// # Errors
    /// They cannot be started, or do not tell of what is done.
    pub async fn start(node: &Node) -> Result<Monitors> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut processes = Vec::new();
        for words in [&["ip", "monitor", "link", "address", "route", "rule"][..], &["nft", "monitor"]] {
            let mut command = node.command(words[0]);
            command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::piped());
            let mut command = tokio::process::Command::from(command);
            let mut process = command.kill_on_drop(true).spawn().context("start a monitor")?;
            let mut lines = BufReader::new(process.stdout.take().context("no output")?).lines();
            let log = seen.clone();
            tokio::spawn(async move {
                while let Ok(Some(line)) = lines.next_line().await {
                    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
                    log.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                }
            });
            processes.push(process);
        }
        let monitors = Monitors { seen, _processes: processes };
        monitors.prove(node).await.context("at the monitors' start")?;
        Ok(monitors)
    }

    /// Makes and removes something harmless until both have told of it, then forgets what they
    /// have told.
    ///
    /// # Errors
    /// One of them tells nothing.
    pub async fn prove(&self, node: &Node) -> Result<()> {
        let told = |count: &dyn Fn(&str) -> bool| self.seen().iter().filter(|it| count(it)).count();
        let mut made = 0;
        until("both monitors listen", PATIENCE, || {
            made += 1;
            async {
                for verb in ["add", "del"] {
                    node.exec(&["ip", "rule", verb, "pref", "30000", "to", "192.0.2.1", "lookup", "main"])
                        .await?;
                }
                for verb in ["add", "delete"] {
                    node.exec(&["nft", verb, "table", "ip", "proof"]).await?;
                }
                let rule = told(&|line| line.starts_with("Deleted 30000:"));
                let table = told(&|line| line == "delete table ip proof");
                Ok(rule > 0 && table > 0)
            }
        })
        .await
        .with_context(|| format!("seen: {:#?}", self.seen()))?;
        // What a monitor told of last may still be on its way; a last sign ends the proof.
        let mark = format!("end-{made}");
        node.exec(&["ip", "rule", "add", "pref", "30001", "to", "192.0.2.2", "lookup", "main"]).await?;
        node.exec(&["ip", "rule", "del", "pref", "30001"]).await?;
        node.exec(&["nft", "add", "table", "ip", &mark]).await?;
        node.exec(&["nft", "delete", "table", "ip", &mark]).await?;
        until("both monitors have told everything", PATIENCE, || async {
            let seen = self.seen();
            let rule = seen.iter().any(|line| line.starts_with("Deleted 30001:"));
            // The packet filter's monitor ends each transaction with its generation.
            let table = seen.iter().position(|line| *line == format!("delete table ip {mark}"));
            Ok(rule && table.is_some_and(|at| seen[at..].iter().any(|it| it.starts_with("# new generation"))))
        })
        .await
        .with_context(|| format!("seen: {:#?}", self.seen()))?;
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clear();
        Ok(())
    }

    /// The lines printed since the proof.
    #[must_use]
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
