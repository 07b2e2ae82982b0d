//! `ipamd status`: what the node holds, wants and is doing.
//!
//! As text for people, or as JSON with the keys that `proto/proto/node.proto` documents.

mod render;
#[cfg(test)]
mod tests;

use std::io::Write;

use anyhow::Result;
use proto::node::StatusRequest;

use super::ask::{AskArgs, Output, ask};
use render::render;

/// Asks and prints on `out`.
///
/// # Errors
/// A sentence that says why there is no answer.
pub(crate) async fn run(args: &AskArgs, out: &mut impl Write) -> Result<()> {
    let reply = ask(&args.socket, async |mut client| client.status(StatusRequest {}).await).await?;
    match args.output {
        Output::Text => out.write_all(render(&reply).as_bytes())?,
        Output::Json => {
            serde_json::to_writer_pretty(&mut *out, &reply)?;
            writeln!(out)?;
        }
    }
    Ok(())
}
