//! The daemon dies and comes back while traffic runs.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::world::{Ipamd, IpamdOptions, Pod, traffic};

/// Traffic before the kill and after the return.
const MARGIN: Duration = Duration::from_millis(700);
/// How long the node stays without its daemon.
const ABSENCE: Duration = Duration::from_millis(500);

/// Runs streams from `from` to `to` while the daemon of `to`'s node is killed and started again.
/// Gives the new daemon and what was found.
pub(super) async fn under_traffic(
    from: &Pod,
    to: &Pod,
    ipamd: Ipamd,
    options: &IpamdOptions,
    pods: &[Pod],
) -> (Result<Ipamd>, Result<String>) {
    let before: Vec<_> = pods.iter().map(Pod::address).collect();
    let restart = async {
        tokio::time::sleep(MARGIN).await;
        let killed = ipamd.kill().await;
        tokio::time::sleep(ABSENCE).await;
        let again = to.node().start_ipamd(options).await;
        tokio::time::sleep(MARGIN).await;
        killed.and(again)
    };
    let (restarted, delivered) = traffic::undisturbed_by(from, to, restart).await;
    let verdict = async {
        let delivered = delivered?;
        for (pod, address) in pods.iter().zip(before) {
            let now = address_inside(pod).await?;
            ensure!(now == address, "{} had {address} and now has {now}", pod.label());
        }
        Ok(format!(
            "{} datagrams without a gap, {} TCP exchanges without a retransmission, \
             {} addresses unchanged",
            delivered.datagrams,
            delivered.exchanges,
            pods.len()
        ))
    };
    (restarted, verdict.await)
}

/// The address that the pod's own eth0 holds.
async fn address_inside(pod: &Pod) -> Result<Ipv4Addr> {
    let shown = pod.place().ip(&["-j", "-4", "addr", "show", "eth0"]).await?;
    let text = shown[0]["addr_info"][0]["local"].as_str().unwrap_or_default();
    text.parse().with_context(|| format!("{} has no address on eth0: {shown}", pod.label()))
}
