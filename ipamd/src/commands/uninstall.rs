//! `ipamd uninstall`: takes our packet filter off a node that somebody else will serve.
//!
//! Everything else that a node has of us amazon-vpc-cni-k8s has too, under the same names and
//! numbers, and pods live on it. Our tables it does not know: they would go on doing what our
//! options said when its own have changed. What pods need that reach the other family through the
//! node stays while they run: amazon-vpc-cni-k8s translates for such a pod only if it made it.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use datapath::takeover::{Departure, DepartureError, KeptTable};
use proto::node::StatusRequest;

use super::ask::{AskError, ask};

/// What stands in the way, and what does not.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct UninstallArgs {
    /// The node daemon's socket
    #[arg(long, value_name = "PATH", default_value = proto::IPAMD_SOCKET)]
    socket: PathBuf,
    /// Go on although a daemon serves; ours puts the tables back at once
    #[arg(long)]
    force: bool,
}

/// What stays, and what to do next.
const LEFT: &str = "\
left, since the pods of this node live on it: the ENIs with their addresses and route tables, the pods'
  links and routes, and the rules of priorities 512, 1024, 1535, 1536 and 32765
next: start amazon-vpc-cni-k8s, which knows all of that as its own. Until a daemon runs, new connections
  of pods to the outside leave with the pods' own addresses, so do not wait. For a CNI of another kind,
  drain the node and replace it
";

/// Removes our tables by means of `remove`, and tells on `out` what is gone and what is not.
///
/// # Errors
/// A daemon of ours serves; or the packet filter refuses.
pub(crate) async fn run(
    args: &UninstallArgs,
    remove: impl FnOnce() -> Result<Departure, DepartureError>,
    out: &mut impl Write,
) -> Result<()> {
    if !args.force {
        insist_on_absence(args).await?;
    }
    let Departure { removed, kept } =
        remove().context("remove our packet filter, which needs CAP_NET_ADMIN")?;
    if removed.is_empty() && kept.is_empty() {
        writeln!(out, "nothing to remove: this node has no table of ours")?;
    }
    for table in removed {
        writeln!(out, "removed {table}")?;
    }
    for table in &kept {
        out.write_all(stays(table).as_bytes())?;
    }
    out.write_all(LEFT.as_bytes())?;
    Ok(())
}

fn stays(table: &KeptTable) -> String {
    let KeptTable { name, family, pods } = table;
    let pods: Vec<String> = pods.iter().map(ToString::to_string).collect();
    format!(
        "kept {name}, with its rules for egress alone: by it running pods reach {family} with the node's\n  \
         address, which amazon-vpc-cni-k8s sees to only for pods that it made. It misleads no other packet. Once\n  \
         these pods are gone, run uninstall again to remove it: {}\n",
        pods.join(", ")
    )
}

/// A daemon of the reference may serve: it is who comes after us, and it leaves our tables alone.
async fn insist_on_absence(args: &UninstallArgs) -> Result<()> {
    let answer = ask(&args.socket, async |mut client| client.status(StatusRequest {}).await).await;
    match answer {
        Err(AskError::NoSocket(_) | AskError::NobodyListens(_) | AskError::NotOurs(_)) => Ok(()),
        Ok(_) => bail!(
            "the node daemon serves on {:?} and would put its tables back at once. Stop it first, by deleting \
             the DaemonSet or replacing its image; --force goes on all the same",
            args.socket
        ),
        Err(error) => Err(error).context(
            "nobody can tell whether our daemon still serves, which would put its tables back; --force goes on \
             all the same",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use datapath::kernel::NftError;
    use vpc::Family;

    use super::*;

    fn args(socket: PathBuf, force: bool) -> UninstallArgs {
        UninstallArgs { socket, force }
    }

    async fn said(args: &UninstallArgs, removed: &[&str]) -> Result<String> {
        let removed = removed.iter().map(|line| (*line).to_owned()).collect();
        said_of(args, Departure { removed, kept: Vec::new() }).await
    }

    async fn said_of(args: &UninstallArgs, departure: Departure) -> Result<String> {
        let mut out = Vec::new();
        run(args, || Ok(departure), &mut out).await?;
        Ok(String::from_utf8(out)?)
    }

    #[tokio::test]
    async fn what_went_and_what_stays_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let args = args(directory.path().join("ipamd.sock"), false);

        let text = said(&args, &["nft table ip vpc-cni"]).await.unwrap();
        assert!(
            text.starts_with("removed nft table ip vpc-cni\nleft, since the pods of this node live"),
            "{text}"
        );
        assert!(text.contains("\nnext: start amazon-vpc-cni-k8s"), "{text}");

        let again = said(&args, &[]).await.unwrap();
        assert!(again.starts_with("nothing to remove"), "{again}");
    }

    #[tokio::test]
    async fn a_table_that_pods_need_is_told_with_them() {
        let directory = tempfile::tempdir().unwrap();
        let args = args(directory.path().join("ipamd.sock"), false);
        let pods = ["169.254.172.3", "169.254.172.9"].map(|address| address.parse().unwrap());
        let table =
            KeptTable { name: "nft table ip vpc-cni".to_owned(), family: Family::V4, pods: pods.into() };

        let text = said_of(&args, Departure { removed: Vec::new(), kept: vec![table] }).await.unwrap();

        assert!(text.starts_with("kept nft table ip vpc-cni, with its rules for egress alone"), "{text}");
        assert!(
            text.contains("run uninstall again to remove it: 169.254.172.3, 169.254.172.9\nleft"),
            "{text}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_may_be_ours_stands_in_the_way_unless_forced() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("ipamd.sock");
        let _hangs = UnixListener::bind(&socket).unwrap();

        let refused = said(&args(socket.clone(), false), &["x"]).await.unwrap_err();

        assert!(
            refused.to_string().starts_with("nobody can tell whether our daemon still serves"),
            "{refused}"
        );
        assert!(said(&args(socket, true), &["x"]).await.unwrap().starts_with("removed x\n"));
    }

    #[tokio::test]
    async fn a_refusal_of_the_packet_filter_is_passed_on() {
        let directory = tempfile::tempdir().unwrap();
        let refused = || {
            Err(DepartureError::Filter(NftError::Refused {
                action: "delete an nft table",
                message: "Operation not permitted".to_owned(),
            }))
        };

        let args = args(directory.path().join("ipamd.sock"), false);
        let error = run(&args, refused, &mut Vec::new()).await.unwrap_err();

        assert_eq!(
            format!("{error:#}"),
            "remove our packet filter, which needs CAP_NET_ADMIN: delete an nft table: Operation not permitted"
        );
    }
}
