//! `ipamd why`: which address a pod has and since when, or what it waits for, or why it got none.
//!
//! Exit codes: 0 something is known, 1 the daemon gave no answer, 3 nothing is known or the name
//! fits several pods. (2 is for arguments that make no sense.)

mod render;
#[cfg(test)]
mod tests;

use std::io::Write;

use anyhow::Result;
use proto::node::{WhyReply, WhyRequest};

use super::ask::{AskArgs, Output, ask};
use render::render;

/// The question.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct WhyArgs {
    /// A pod as NAMESPACE/NAME or NAME, the beginning of a container id, or an IPv4 address
    #[arg(value_name = "POD")]
    subject: String,
    #[command(flatten)]
    ask: AskArgs,
}

/// Whether there was something to tell; the process's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Known {
    Yes = 0,
    /// Nothing, or too many pods of one name.
    No = 3,
}

/// Asks and prints on `out`.
///
/// # Errors
/// A sentence that says why there is no answer.
pub(crate) async fn run(args: &WhyArgs, out: &mut impl Write) -> Result<Known> {
    let question = WhyRequest { subject: args.subject.clone() };
    let reply = ask(&args.ask.socket, async |mut client| client.why(question).await).await?;
    match args.ask.output {
        Output::Text => out.write_all(render(&args.subject, &reply).as_bytes())?,
        Output::Json => {
            serde_json::to_writer_pretty(&mut *out, &reply)?;
            writeln!(out)?;
        }
    }
    Ok(known(&reply))
}

fn known(reply: &WhyReply) -> Known {
    let is_known = match &reply.address {
        Some(address) => address.state != "unknown" || address.released.is_some(),
        None => reply.pods.len() == 1,
    };
    if is_known { Known::Yes } else { Known::No }
}
