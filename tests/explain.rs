//! `ipamd status`, `ipamd why` and `/metrics` on a node: what they say of pods in every situation,
//! and of a daemon that is not there.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{binary, look, scenarios, until};
use lab::cloud::Fault;
use lab::world::{Ipamd, IpamdOptions, Lab, Node, Pod, Ran, at, finish};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    e2e::main(scenarios![
        a_pod_is_explained_from_its_wait_to_its_end,
        a_full_node_says_whom_it_refused_and_why,
        what_ec2_denies_is_told,
        a_daemon_that_is_not_there_is_said_to_be_so,
        figures_are_there_to_scrape_unless_they_are_switched_off,
    ]);
}

async fn asked(node: &Node, words: &[&str]) -> Result<Ran> {
    let mut command = node.command(binary("ipamd")?);
    command.args(words).env_clear();
    finish(command, None, PATIENCE).await
}

/// The text of an answer, with this exit code.
async fn text(node: &Node, words: &[&str], code: i32) -> Result<String> {
    let ran = asked(node, words).await?;
    let said = ran.text();
    ensure!(ran.status.code() == Some(code), "{words:?}: {}: {said}{}", ran.status, ran.complaint());
    eprintln!("$ ipamd {}\n{said}", words.join(" "));
    Ok(said)
}

async fn json(node: &Node, words: &[&str]) -> Result<Value> {
    let ran = asked(node, &[words, &["--output", "json"]].concat()).await?;
    serde_json::from_slice(&ran.stdout).with_context(|| format!("{words:?}: {}", ran.complaint()))
}

fn contains_all(text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(text.contains(part), "no {part:?} in: {text}");
    }
    Ok(())
}

/// A node that can hold three addresses, all in pods' hands.
async fn full() -> Result<(Lab, Ipamd, Vec<Pod>)> {
    let lab = Lab::builder().node("t3.small", "us-west-2a").start().await?;
    let node = &lab.nodes()[0];
    node.install_plugin(None).await?;
    let options = IpamdOptions::new().env("MAX_ENI", 1).env("IP_COOLDOWN_PERIOD", 25);
    let ipamd = node.start_ipamd(&options).await?;
    let mut pods = Vec::new();
    for index in 0..3 {
        pods.push(node.add_pod("default", &format!("web-{index}")).await?);
    }
    Ok((lab, ipamd, pods))
}

async fn a_pod_is_explained_from_its_wait_to_its_end() -> Result<()> {
    let (lab, ipamd, pods) = full().await?;
    let node = &lab.nodes()[0];
    let address = pods[1].address().to_string();
    let eni = pods[1].eni().context("EC2 does not know the address")?;

    let has = text(node, &["why", "default/web-1"], 0).await?;
    contains_all(&has, &[&format!("default/web-1 has {address} since"), &eni, "route table main"])?;
    for subject in ["web-1", &pods[1].container_id()[..8]] {
        ensure!(json(node, &["why", subject]).await?["pods"][0]["holds"][0]["ip"] == address.as_str());
    }
    let by_address = text(node, &["why", &address], 0).await?;
    contains_all(&by_address, &["is default/web-1's since", &eni])?;
    let node_ip = node.primary_ip().to_string();
    contains_all(&text(node, &["why", &node_ip], 0).await?, &["is an ENI's own address"])?;
    contains_all(&text(node, &["why", "192.0.2.1"], 3).await?, &["no address that this node has"])?;
    contains_all(&text(node, &["why", "nobody"], 3).await?, &["no pod nobody is known on this node"])?;

    node.del_pod(&pods[1]).await?;
    let gone = text(node, &["why", "web-1"], 0).await?;
    contains_all(&gone, &[&format!("default/web-1 gave {address} back at"), "the address cools until"])?;
    contains_all(
        &text(node, &["why", &address], 0).await?,
        &["cools after its last pod", "default/web-1 gave it"],
    )?;

    let adding = node.clone();
    let adding = tokio::spawn(async move { adding.add_pod("default", "patient").await });
    until("the pod waits", PATIENCE, || async {
        Ok(json(node, &["status"]).await?["waiting_pods"][0]["pod"]["name"] == "patient")
    })
    .await?;
    let waits = text(node, &["why", "default/patient"], 0).await?;
    contains_all(&waits, &["default/patient waits for an address since", "2 assigned, 0 free, 1 cooling"])?;
    contains_all(
        &text(node, &["status"], 0).await?,
        &["waiting pods\n  default/patient", "the next one that cools"],
    )?;
    let pod = adding.await??;

    ensure!(pod.address().to_string() == address, "{} and not {address}", pod.address());
    let status = json(node, &["status"]).await?;
    ensure!(status["waiting_pods"] == Value::Array(Vec::new()), "{status}");
    ensure!(status["addresses"]["assigned"] == 3 && status["addresses"]["total"] == 3, "{status}");
    ipamd.terminate(PATIENCE).await?;
    lab.shutdown().await
}

async fn a_full_node_says_whom_it_refused_and_why() -> Result<()> {
    let (lab, ipamd, _pods) = full().await?;
    let node = &lab.nodes()[0];
    for _ in 0..2 {
        ensure!(node.add_pod("default", "one-too-many").await.is_err(), "there was room");
    }

    let why = text(node, &["why", "one-too-many"], 0).await?;
    contains_all(
        &why,
        &[
            "default/one-too-many was refused 2 times",
            ": NODE_FULL\n",
            "3 addresses in all",
            "the kubelet tries again",
        ],
    )?;
    let status = text(node, &["status"], 0).await?;
    contains_all(
        &status,
        &[node.instance_id(), "t3.small", "3 assigned, 0 free", "NODE_FULL", "one-too-many", "cannot get"],
    )?;
    let status = json(node, &["status"]).await?;
    let enis = status["enis"].as_array().context("no ENIs")?;
    ensure!(enis.len() == 1 && enis[0]["counts"]["assigned"] == 3, "{status}");
    ensure!(enis[0]["addresses"].as_array().is_some_and(|it| it.len() == 3), "{status}");
    ipamd.terminate(PATIENCE).await?;
    lab.shutdown().await
}

async fn what_ec2_denies_is_told() -> Result<()> {
    let lab = Lab::builder().node("m5.large", "us-west-2a").start().await?;
    let node = &lab.nodes()[0];
    node.install_plugin(None).await?;
    lab.cloud().fault(Fault::on("CreateNetworkInterface").deny());
    lab.cloud().fault(Fault::on("AssignPrivateIpAddresses").deny());
    let ipamd = node.start_ipamd(&IpamdOptions::new()).await?;
    let refused = node.add_pod("default", "web").await.err().context("EC2 gave an address")?;

    let why = text(node, &["why", "web"], 0).await?;
    contains_all(&why, &["was refused 1 time", "PERMISSION_DENIED"])?;
    let status = text(node, &["status"], 0).await?;
    contains_all(&status, &["recent failures\n", "denied", "EC2 budget\n", "AssignPrivateIpAddresses  "])?;
    let failures = json(node, &["status"]).await?["recent_failures"].clone();
    ensure!(
        failures.as_array().is_some_and(|all| all.iter().all(|it| it["class"] == "denied")),
        "{failures}"
    );
    // The pod's event has the same words.
    let message = json(node, &["why", "web"]).await?["pods"][0]["refused"]["message"].clone();
    let message = message.as_str().context("no message")?;
    ensure!(format!("{refused:#}").contains(message), "{refused:#}: expected {message}");
    ipamd.terminate(PATIENCE).await?;
    lab.shutdown().await
}

async fn a_daemon_that_is_not_there_is_said_to_be_so() -> Result<()> {
    let lab = Lab::builder().node("t3.small", "us-west-2a").start().await?;
    let node = &lab.nodes()[0];
    let complaints = async |expected: &str| -> Result<()> {
        for words in [&["status"][..], &["why", "web"]] {
            let ran = asked(node, words).await?;
            let said = ran.complaint();
            ensure!(ran.status.code() == Some(1) && ran.stdout.is_empty(), "{words:?}: {}", ran.status);
            ensure!(said.contains(expected) && said.lines().count() == 1, "{words:?}: {said}");
        }
        Ok(())
    };

    complaints("the node daemon does not run here: there is no socket").await?;
    let ipamd = node.start_ipamd(&IpamdOptions::new()).await?;
    text(node, &["status"], 0).await?;
    ipamd.freeze().await?;
    complaints("accepts connections but has not answered within 5 s").await?;
    ipamd.signal(Signal::SIGCONT)?;
    text(node, &["status"], 0).await?;
    ipamd.kill().await?;
    complaints("the node daemon does not run: nobody listens on").await?;
    lab.shutdown().await
}

/// The port of the metrics.
const METRICS: u16 = 61_678;

/// What the node's daemon answers over HTTP, head and body.
async fn got(node: &Node, path: &str) -> Result<(String, String)> {
    let mut stream = node.place().connect(at(node.primary_ip(), METRICS), PATIENCE).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: node\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no end of head: {answer}"))?;
    Ok((head.to_ascii_lowercase(), body.to_owned()))
}

/// The value of each of the node's metrics, by name and labels.
async fn scraped(node: &Node) -> Result<BTreeMap<String, f64>> {
    let (head, body) = got(node, "/metrics").await?;
    ensure!(head.starts_with("http/1.1 200 ok"), "{head}: {body}");
    ensure!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    let samples = body.lines().filter(|line| !line.starts_with('#'));
    let samples = samples.map(|line| {
        let (name, value) = line.rsplit_once(' ').with_context(|| format!("no value in {line:?}"))?;
        Ok((name.to_owned(), value.parse()?))
    });
    samples.collect()
}

async fn figures_are_there_to_scrape_unless_they_are_switched_off() -> Result<()> {
    let lab = Lab::builder().node("m5.large", "us-west-2a").start().await?;
    let node = &lab.nodes()[0];
    node.install_plugin(None).await?;
    let ipamd = node.start_ipamd(&IpamdOptions::new()).await?;
    let pods = look::add_pods(node, "web", 3).await?;
    // The primary ENI and a warm one.
    until("the node is filled", PATIENCE, || async {
        Ok(scraped(node).await?.get("awscni_total_ip_addresses") == Some(&18.0))
    })
    .await?;

    let told = scraped(node).await?;
    for (name, value) in [
        ("awscni_assigned_ip_addresses", 3.0),
        ("awscni_eni_allocated", 2.0),
        ("awscni_eni_max", 3.0),
        ("awscni_ip_max", 27.0),
        ("awscni_total_ipv4_prefixes", 0.0),
        ("vpc_cni_addresses{state=\"assigned\"}", 3.0),
        ("vpc_cni_network_repairs_total{kind=\"rule\"}", 0.0),
        ("vpc_cni_network_faulty", 0.0),
        ("vpc_cni_waiting_pods", 0.0),
    ] {
        ensure!(told.get(name) == Some(&value), "{name}: expected {value} in {told:#?}");
    }
    let eni = pods[0].eni().context("EC2 does not know the address")?;
    let on_eni = told.get(&format!("awscni_assigned_ip_per_eni{{eni=\"{eni}\"}}"));
    ensure!(on_eni == Some(&3.0), "{eni}: {told:#?}");
    ensure!(told.keys().any(|name| name.starts_with("vpc_cni_subnet_free_addresses{")), "{told:#?}");
    ensure!(got(node, "/").await?.0.starts_with("http/1.1 404"), "there is something at /");

    let address = pods[0].address().to_string();
    node.exec(&["ip", "rule", "del", "pref", "512", "to", &address, "lookup", "main"]).await?;
    until("the repair is counted", PATIENCE, || async {
        Ok(scraped(node).await?.get("vpc_cni_network_repairs_total{kind=\"rule\"}") == Some(&1.0))
    })
    .await?;
    ipamd.terminate(PATIENCE).await?;

    let ipamd = node.start_ipamd(&IpamdOptions::new().env("DISABLE_METRICS", true)).await?;
    // By then a daemon that serves metrics does.
    node.add_pod("default", "another").await?;
    let connected = node.place().connect(at(node.primary_ip(), METRICS), PATIENCE).await;
    ensure!(connected.is_err(), "metrics are served though they are off");
    ipamd.terminate(PATIENCE).await?;
    lab.shutdown().await
}
