//! Coming from amazon-vpc-cni-k8s on a live node, and going back to it.

mod migration_node;
mod migration_v6;
#[path = "../datapath/tests/support/reference.rs"]
mod reference;

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use e2e::look::{self, Dump};
use e2e::{Scenario, binary, find, until};
use lab::cloud::CloudBuilder;
use lab::world::{
    ECHO_PORT, INTERNET_ECHO, INTERNET_ECHO_V6, IPAMD_LOG, Ipamd, IpamdOptions, Lab, Node, Protocol, Ran, at,
    finish,
};
use migration_node::{OldNode, PATIENCE};
use reference::{Reference, content, foreign, leftovers};
use serde_json::Value;

const LEGACY: &str = "iptables-legacy";
const NFT: &str = "iptables-nft";

fn main() {
    e2e::main(vec![
        both_ways("a_node_of_iptables_nft_is_taken_over_and_returned_unnoticed", || old(NFT)),
        both_ways("a_node_of_iptables_legacy_is_taken_over_and_returned_unnoticed", || old(LEGACY))
            .needs(LEGACY),
        both_ways("a_node_with_marks_in_iptables_nft_is_taken_over_and_returned_unnoticed", || Reference {
            marks_in_nftables: false,
            ..old(NFT)
        }),
        both_ways("a_node_without_node_ports_is_taken_over_and_returned_unnoticed", || Reference {
            node_port: false,
            ..old(NFT)
        }),
        both_ways("a_node_with_external_snat_is_taken_over_and_returned_unnoticed", || Reference {
            external_snat: true,
            ..old(NFT)
        }),
        Scenario::new("a_node_with_ipv6_is_taken_over_and_returned_unnoticed", migration_v6::there_and_back)
            .needs(NFT),
        Scenario::new("another_mark_and_prefix_at_the_take_over_interrupt_nobody", other_settings).needs(NFT),
        Scenario::new("after_uninstall_the_reference_may_have_other_options", after_uninstall).needs(NFT),
        Scenario::new("uninstall_refuses_while_the_daemon_serves", uninstall_refuses),
        Scenario::new("after_uninstall_running_pods_of_an_ipv4_cluster_still_reach_ipv6", || {
            egress_stays(IpamdOptions::new().env("ENABLE_V6_EGRESS", true), INTERNET_ECHO_V6.into())
        }),
        Scenario::new("after_uninstall_running_pods_of_an_ipv6_cluster_still_reach_ipv4", || {
            let options = IpamdOptions::new().env("ENABLE_IPv6", true).env("ENABLE_IPv4", false);
            egress_stays(options.env("ENABLE_PREFIX_DELEGATION", true), INTERNET_ECHO.into())
        }),
        Scenario::new("leftovers_of_both_front_ends_go_at_the_next_start", leftovers_go)
            .needs(NFT)
            .needs(LEGACY),
        Scenario::new("a_restart_with_rules_of_others_is_not_seen_by_nft_monitor", a_restart_is_not_seen)
            .needs(NFT),
        Scenario::new("legacy_tables_without_a_tool_are_reported", legacy_without_tools).needs(LEGACY),
        Scenario::new("a_reference_that_is_started_again_is_reported_and_left_alone", a_return_is_reported)
            .needs(NFT),
        Scenario::new("a_kernel_without_nf_tables_ends_the_start_with_its_name", without_nf_tables),
    ]);
}

fn old(iptables: &'static str) -> Reference {
    Reference { excluded: vec!["192.168.7.7/32".to_owned()], ..Reference::new(iptables, "", "10.0.0.0/16") }
}

fn both_ways(name: &str, options: fn() -> Reference) -> Scenario {
    Scenario::new(name, move || there_and_back(options())).needs(NFT)
}

/// The rules of others on a node that the reference has never seen.
async fn rules_of_others(old: &OldNode) -> Result<Vec<String>> {
    let is_own = |line: &&String| {
        // Rules that only resemble the reference's are of others too, and told apart by hand.
        let names = ["AWS-SNAT-CHAIN-", "AWS-CONNMARK-CHAIN-", "\"AWS, CONNMARK\""];
        let marks = line.contains("\"AWS, primary ENI\"") && line.contains("CONNMARK");
        names.iter().any(|name| line.contains(name)) || marks
    };
    Ok(old.rules().await?.into_iter().filter(|line| !is_own(&line)).collect())
}

async fn there_and_back(options: Reference) -> Result<()> {
    let old = OldNode::new(options).await?;
    let acted = there_and_back_with(&old).await;
    e2e::end(old.lab, acted).await
}

async fn there_and_back_with(old: &OldNode) -> Result<()> {
    let node = old.node();
    let external_snat = old.reference.external_snat;
    old.speaks(external_snat).await.context("before the take-over")?;
    let (others, dump) = (rules_of_others(old).await?, Dump::of(node).await?);
    ensure!(old.rules().await?.len() > others.len(), "the reference has no rules: {others:#?}");
    let stream = old.stream().await?;

    let ipamd = node.start_ipamd(&old.options()).await?;
    let told = old.taken_over().await?;
    ensure!(told["left"].as_array().is_some_and(Vec::is_empty), "{told}");
    stream.goes_on().await.context("after the take-over")?;

    let left = old.rules().await?;
    ensure!(left == others, "left {left:#?}\nof others {others:#?}");
    let tables = node.exec(&["nft", "list", "tables"]).await?;
    ensure!(!tables.contains("aws-cni"), "{tables}");
    Dump::of(node).await?.insist_on(&dump).context("links, routes and rules after the take-over")?;
    holds_no_raw(&ipamd)?;
    old.speaks(external_snat).await.context("after the take-over")?;
    // A pod that the reference made goes, with the result that the reference printed.
    let gone = old.on_secondary[1].address();
    old.on_secondary[1].del().await?;
    ensure!(look::allocations(node)?.len() == 4);
    let rules = look::lines(node.place(), &["ip", "rule"]).await?;
    ensure!(!rules.iter().any(|line| line.contains(&gone.to_string())), "{rules:#?}");

    ipamd.terminate(PATIENCE).await?;
    // And one that a reference of long ago made, by its result alone.
    let gone = &old.on_secondary[2];
    let address = gone.address();
    gone.set_result(gone.result().map(as_of_long_ago));
    gone.del().await?;
    let rules = look::lines(node.place(), &["ip", "rule"]).await?;
    ensure!(!rules.iter().any(|line| line.contains(&address.to_string())), "{rules:#?}");

    // The reference makes what it misses, and ours is still there.
    old.run(&old.reference.script()).await?;
    stream.goes_on().await.context("after the return")?;
    let tables = node.exec(&["nft", "list", "tables"]).await?;
    let has_table = old.reference.node_port || !external_snat;
    ensure!(tables.contains("vpc-cni") == has_table, "{tables}");
    let stay: Vec<_> = old.on_primary.iter().chain(&old.on_secondary[..1]).collect();
    old.all_speak(&stay, external_snat).await.context("after the return")?;
    stream.end().await
}

async fn other_settings() -> Result<()> {
    let old = OldNode::new(Reference { mark: 0x40, prefix: "old", ..old(NFT) }).await?;
    old.speaks(false).await.context("before the take-over")?;
    let stream = old.stream().await?;

    let _daemon = old.node().start_ipamd(&IpamdOptions::new().env("MAX_ENI", 2)).await?;
    old.taken_over().await?;

    stream.goes_on().await.context("after the take-over")?;
    old.speaks(false).await.context("after the take-over")?;
    let rules = old.rules().await?;
    ensure!(rules == rules_of_others(&old).await?, "{rules:#?}");
    stream.end().await?;
    old.lab.shutdown().await
}

/// A result without the table's number, as it was before release 1.20.
fn as_of_long_ago(mut result: Value) -> Value {
    if let Some(container) = result["interfaces"][1].as_object_mut() {
        container.remove("mac");
    }
    result
}

/// No thread of the daemon has CAP_NET_RAW any more.
fn holds_no_raw(ipamd: &Ipamd) -> Result<()> {
    const NET_RAW: u64 = 1 << 13;
    for thread in std::fs::read_dir(format!("/proc/{}/task", ipamd.pid()))? {
        let status = std::fs::read_to_string(thread?.path().join("status"))?;
        for set in ["CapPrm", "CapEff"] {
            let value = status.lines().find_map(|line| line.strip_prefix(set)?.strip_prefix(":\t"));
            let value = u64::from_str_radix(value.context("no such set")?.trim(), 16)?;
            ensure!(value & NET_RAW == 0, "{status}");
        }
    }
    Ok(())
}

async fn ipamd(node: &Node, arguments: &[&str]) -> Result<Ran> {
    let mut command = node.command(binary("ipamd")?);
    command.args(arguments).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    finish(command, None, PATIENCE).await
}

async fn after_uninstall() -> Result<()> {
    let old = OldNode::new(old(NFT)).await?;
    let daemon = old.node().start_ipamd(&old.options()).await?;
    old.taken_over().await?;
    daemon.terminate(PATIENCE).await?;

    let changed = Reference { external_snat: true, ..old.reference.clone() };
    old.run(&changed.script()).await?;
    // What makes it necessary: our table goes on giving packets the node's address.
    old.speaks(false).await.context("before uninstall")?;

    let ran = ipamd(old.node(), &["uninstall"]).await?;
    ensure!(ran.status.success() && ran.text().starts_with("removed nft table ip vpc-cni\n"), "{ran:?}");

    old.speaks(true).await.context("after uninstall")?;
    let again = ipamd(old.node(), &["uninstall"]).await?;
    ensure!(again.status.success() && again.text().starts_with("nothing to remove"), "{again:?}");
    old.lab.shutdown().await
}

async fn one_node() -> Result<(Lab, Node)> {
    let lab = Lab::builder().node("m5.large", "us-west-2a").start().await?;
    let node = lab.nodes()[0].clone();
    node.install_plugin(None).await?;
    Ok((lab, node))
}

async fn uninstall_refuses() -> Result<()> {
    let (lab, node) = one_node().await?;
    let daemon = node.start_ipamd(&IpamdOptions::new()).await?;

    let ran = ipamd(&node, &["uninstall"]).await?;
    ensure!(
        !ran.status.success() && ran.complaint().contains("would put its tables back at once"),
        "{ran:?}"
    );
    ensure!(node.exec(&["nft", "list", "tables"]).await?.contains("table ip vpc-cni"));

    daemon.terminate(PATIENCE).await?;
    let ran = ipamd(&node, &["uninstall"]).await?;
    ensure!(ran.status.success(), "{ran:?}");
    ensure!(!node.exec(&["nft", "list", "tables"]).await?.contains("vpc-cni"));
    lab.shutdown().await
}

async fn egress_stays(options: IpamdOptions, target: IpAddr) -> Result<()> {
    let cloud = CloudBuilder::two_zones(7).ipv6();
    let lab = Lab::builder().cloud(cloud).node("m5.large", "us-west-2a").start().await?;
    let node = lab.nodes()[0].clone();
    node.install_plugin(None).await?;
    // What `init-node` sets.
    node.place().sysctl("ipv6/conf/all/forwarding", "1")?;
    let own = lab.cloud().snapshot().attached(node.instance_id())[0].ipv6_addresses[0];
    let (table, address): (_, IpAddr) =
        if target.is_ipv4() { ("ip", node.primary_ip().into()) } else { ("ip6", own.into()) };
    let daemon = node.start_ipamd(&options).await?;
    let pod = node.add_pod("default", "web").await?;
    let reaches_it = async || {
        let seen = pod.place().seen(Protocol::Udp, at(target, ECHO_PORT), PATIENCE).await?;
        ensure!(seen.ip() == address, "{target} sees {seen}, not {address}");
        anyhow::Ok(())
    };
    reaches_it().await.context("before uninstall")?;
    daemon.terminate(PATIENCE).await?;

    let ran = ipamd(&node, &["uninstall"]).await?;
    let kept = format!("kept nft table {table} vpc-cni, with its rules for egress alone");
    ensure!(ran.status.success() && ran.text().contains(&kept), "{ran:?}");
    let tables = node.exec(&["nft", "list", "tables"]).await?;
    ensure!(tables == format!("table {table} vpc-cni\n"), "{tables}");
    reaches_it().await.context("after uninstall")?;

    pod.remove().await?;
    drop(pod);
    until("the pod's links are gone", PATIENCE, || async {
        Ok(!node.exec(&["ip", "-o", "link"]).await?.contains(": veth"))
    })
    .await?;
    let again = ipamd(&node, &["uninstall"]).await?;
    ensure!(again.text().starts_with(&format!("removed nft table {table} vpc-cni\n")), "{again:?}");
    lab.shutdown().await
}

async fn leftovers_go() -> Result<()> {
    let (lab, node) = one_node().await?;
    let run = async |script: String| node.place().exec_with(&["sh", "-e"], Some(&script)).await;
    let mut others = Vec::new();
    for iptables in [LEGACY, NFT] {
        let [before, after] = foreign(iptables);
        run(before).await?;
        run(after).await?;
        others.push(content(&node.exec(&[&format!("{iptables}-save")]).await?));
        run(leftovers(iptables)).await?;
        run(Reference { node: node.primary_ip().to_string(), ..old(iptables) }.script()).await?;
    }

    let _daemon = node.start_ipamd(&IpamdOptions::new()).await?;

    for (iptables, others) in [LEGACY, NFT].into_iter().zip(others) {
        until("the reference's rules are gone", PATIENCE, || async {
            Ok(content(&node.exec(&[&format!("{iptables}-save")]).await?) == others)
        })
        .await
        .with_context(|| node.ipamd_output())?;
    }
    lab.shutdown().await
}

/// Says when `nft monitor` would have: every change of the packet filter gives it a new number.
async fn generation(node: &Node) -> Result<String> {
    // The monitor tells the number of the change that the mark makes, and ends.
    let script = "nft monitor >/run/told & monitor=$!\n\
                  for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.1\n\
                  nft add table ip landmark$i; nft delete table ip landmark$i; done\n\
                  n=0; until sed -n '/delete table ip landmark10$/,$p' /run/told | grep -q '^# new generation' \
                  || [ $n -ge 300 ]; do n=$((n+1)); sleep 0.1; done\n\
                  kill $monitor; cat /run/told; rm /run/told";
    let seen = node.exec(&["sh", "-c", script]).await?;
    let last = seen.lines().filter_map(|line| line.strip_prefix("# new generation ")).next_back();
    let number = last.and_then(|line| line.split(' ').next()).context("nft monitor told of no change")?;
    Ok(number.to_owned())
}

async fn a_restart_is_not_seen() -> Result<()> {
    let (lab, node) = one_node().await?;
    for part in foreign(NFT) {
        node.place().exec_with(&["sh", "-e"], Some(&part)).await?;
    }
    let daemon = node.start_ipamd(&IpamdOptions::new().env("MAX_ENI", 1)).await?;
    is_done(&node).await?;
    daemon.terminate(PATIENCE).await?;
    let before: u64 = generation(&node).await?.parse()?;

    let _again = node.start_ipamd(&IpamdOptions::new().env("MAX_ENI", 1)).await?;
    is_done(&node).await?;

    // The marks themselves are twenty changes.
    let after: u64 = generation(&node).await?.parse()?;
    ensure!(after == before + 20, "the restart made {} changes", after - before - 20);
    lab.shutdown().await
}

async fn status(node: &Node) -> Result<Value> {
    let ran = ipamd(node, &["status", "--output", "json"]).await?;
    serde_json::from_slice(&ran.stdout).with_context(|| ran.complaint())
}

async fn is_done(node: &Node) -> Result<()> {
    until("the take-over is done", PATIENCE, || async {
        Ok(status(node).await?["takeover"]["state"] == "done")
    })
    .await
    .with_context(|| node.ipamd_output())
}

async fn legacy_without_tools() -> Result<()> {
    let (lab, node) = one_node().await?;
    let reference = Reference { node: node.primary_ip().to_string(), ..old(LEGACY) };
    node.place().exec_with(&["sh", "-e"], Some(&reference.script())).await?;
    // An image that has nft and no iptables.
    let tools = "/run/tools";
    let nft = find("nft").context("no nft")?;
    node.exec(&["mkdir", tools]).await?;
    node.exec(&["ln", "-s", &nft.display().to_string(), &format!("{tools}/nft")]).await?;

    let _daemon = node.start_ipamd(&IpamdOptions::new().env("PATH", tools)).await?;
    is_done(&node).await?;

    let ran = ipamd(&node, &["status"]).await?;
    let told = "iptables-legacy has the tables nat, mangle, and iptables-legacy-save is not here";
    ensure!(ran.text().contains(told), "{}", ran.text());
    ensure!(node.read(IPAMD_LOG)?.contains("iptables-legacy-save is not here"));
    lab.shutdown().await
}

async fn a_return_is_reported() -> Result<()> {
    let (lab, node) = one_node().await?;
    let _daemon = node.start_ipamd(&IpamdOptions::new()).await?;
    is_done(&node).await?;
    let reference = Reference { node: node.primary_ip().to_string(), ..old(NFT) };
    node.place().exec_with(&["sh", "-e"], Some(&reference.script())).await?;
    let rules = content(&node.exec(&["iptables-nft-save"]).await?);

    until("the return is told", PATIENCE + PATIENCE, || async {
        let signs = status(&node).await?["takeover"]["signs_of_return"].clone();
        Ok(signs.as_array().is_some_and(|signs| signs.len() == 2))
    })
    .await
    .with_context(|| node.ipamd_output())?;

    ensure!(content(&node.exec(&["iptables-nft-save"]).await?) == rules, "the daemon fights");
    lab.shutdown().await
}

async fn without_nf_tables() -> Result<()> {
    let (lab, node) = one_node().await?;
    node.exec(&["mkdir", "/run/tools"]).await?;
    let options = IpamdOptions::new().env("PATH", "/run/tools:/usr/sbin:/usr/bin:/sbin:/bin");
    // Without anything of it, and without an expression that a rule needs.
    for complaint in [
        "mnl.c:60: Unable to initialize Netlink socket: Protocol not supported",
        "Error: Could not process rule: No such file or directory",
    ] {
        let script = format!(
            "cat >/run/tools/nft <<'END'\n#!/bin/sh\necho '{complaint}' >&2\nexit 1\nEND\n\
             chmod 755 /run/tools/nft\n"
        );
        node.place().exec_with(&["sh", "-e"], Some(&script)).await?;

        let mut daemon = node.spawn_ipamd(&options)?;
        let ended = daemon.wait(PATIENCE).await?;

        ensure!(ended.code() == Some(1), "{ended}");
        let log = node.read(IPAMD_LOG)?;
        let last = log.lines().rfind(|line| line.contains("daemon ends")).context("no last word")?;
        ensure!(last.contains("the kernel has no nf_tables, or not all that is needed of it"), "{last}");
        ensure!(last.contains("CONFIG_NF_TABLES") && last.contains(complaint), "{last}");
    }
    lab.shutdown().await
}
