//! The programs as a person or a script meets them: answers, mistakes, sizes.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{binary, scenarios};
use lab::world::{IpamdOptions, Lab, Node, Place, Ran, finish};
use serde_json::Value;

/// Long enough for a program that has to ask somebody who does not answer.
const PATIENCE: Duration = Duration::from_secs(90);

fn main() {
    let mut all = scenarios![
        max_pods_knows_the_published_figures,
        max_pods_explains_and_lists,
        max_pods_says_how_to_find_out_about_an_unknown_type,
        a_type_that_only_ec2_knows_is_served,
        mistakes_in_the_settings_are_reported_together,
        odd_arguments_are_refused_without_a_panic,
        a_closed_pipe_is_no_panic,
        the_daemon_stays_below_25_mib,
        the_plugin_is_below_6_mib,
    ];
    all.push(
        e2e::Scenario::new("the_plugin_is_statically_linked", the_plugin_is_statically_linked).needs("ldd"),
    );
    e2e::main(all);
}

/// Runs a program of ours outside of any node.
async fn ran(program: &str, words: &[&str], env: &[(&str, &str)], stdin: Option<&[u8]>) -> Result<Ran> {
    let mut command = Place::here()?.command(binary(program)?);
    command.args(words).env_clear().envs(env.iter().copied());
    finish(command, stdin, PATIENCE).await
}

async fn max_pods(words: &[&str]) -> Result<String> {
    let ran = ran("ipamd", &[&["max-pods"], words].concat(), &[], None).await?;
    ensure!(ran.status.success(), "max-pods {words:?}: {}", ran.complaint());
    Ok(ran.text().trim().to_owned())
}

async fn max_pods_knows_the_published_figures() -> Result<()> {
    let prefixes = "--cni-prefix-delegation-enabled";
    let custom = "--cni-custom-networking-enabled";
    let figures: [(&[&str], &str); 16] = [
        (&["t3.large"], "35"),
        (&["c5.large"], "29"),
        (&["m5.large"], "29"),
        (&["t3.small"], "11"),
        (&["c5.4xlarge"], "234"),
        (&["p5.48xlarge"], "100"),
        (&["m5.large", prefixes], "110"),
        (&["m5.large", prefixes, "--show-max-allowed"], "434"),
        (&["m5.large", prefixes, "--cni-version", "1.8.0"], "29"),
        (&["c5.18xlarge", prefixes], "250"),
        (&["m5.large", custom], "20"),
        (&["m5.large", custom, prefixes], "110"),
        (&["m5.large", "--cni-max-eni", "2"], "20"),
        (&["m5.large", "--cni-max-eni", "1"], "11"),
        (&["m5.large", "--cni-max-eni", "9"], "29"),
        (&["m5.large", "--ipv6"], "110"),
    ];
    for (words, expected) in figures {
        let answer = max_pods(&[&["--instance-type"], words].concat()).await?;
        ensure!(answer == expected, "{words:?}: {answer}, expected {expected}");
    }
    Ok(())
}

async fn max_pods_explains_and_lists() -> Result<()> {
    let explained = max_pods(&["--instance-type", "m5.large", "--explain"]).await?;
    ensure!(explained.lines().count() > 2 && explained.ends_with("max pods: 29"), "{explained}");

    let json = max_pods(&["--instance-type", "m5.large", "--output", "json"]).await?;
    let json: Value = serde_json::from_str(&json)?;
    ensure!(json["max_pods"] == 29 && json["instance_type"] == "m5.large", "{json}");

    let all = max_pods(&["--all"]).await?;
    let lines: Vec<&str> = all.lines().collect();
    ensure!(lines.len() >= 1390, "only {} types", lines.len());
    ensure!(lines.is_sorted(), "the types are not sorted");
    for line in &lines {
        let figure = line.split_once(' ').and_then(|(_, figure)| figure.parse::<u32>().ok());
        ensure!(figure.is_some_and(|it| it > 0), "{line}");
    }
    ensure!(lines.contains(&"m5.large 29") && lines.contains(&"t3.small 11"));

    let list: Vec<Value> = serde_json::from_str(&max_pods(&["--all", "--output", "json"]).await?)?;
    ensure!(list.len() == lines.len(), "{} in JSON, {} as text", list.len(), lines.len());
    Ok(())
}

async fn max_pods_says_how_to_find_out_about_an_unknown_type() -> Result<()> {
    let words = ["max-pods", "--instance-type", "z9.imaginary"];
    let nobody = [
        ("AWS_REGION", "us-west-2"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_ENDPOINT_URL_EC2", "http://127.0.0.1:9"),
    ];

    let ran = ran("ipamd", &words, &nobody, None).await?;

    ensure!(ran.status.code() == Some(1), "{}", ran.status);
    ensure!(ran.stdout.is_empty(), "{}", ran.text());
    let complaint = ran.complaint();
    for part in ["z9.imaginary", "--instance-type-from-imds", "ec2:DescribeInstanceTypes", "AWS_REGION"] {
        ensure!(complaint.contains(part), "no {part} in: {complaint}");
    }
    Ok(())
}

async fn on_node(node: &Node, words: &[&str]) -> Result<String> {
    let mut command = node.command(binary("ipamd")?);
    command.args(words).env_clear().envs(node.ipamd_env());
    let ran = finish(command, None, PATIENCE).await?;
    ensure!(ran.status.success(), "ipamd {words:?}: {}", ran.complaint());
    Ok(ran.text().trim().to_owned())
}

async fn a_type_that_only_ec2_knows_is_served() -> Result<()> {
    let lab = Lab::builder().node("x9lab.large", "us-west-2a").start().await?;
    let node = &lab.nodes()[0];

    // Five ENIs with six addresses for pods each, and two pods that need none.
    let answer = on_node(node, &["max-pods", "--instance-type-from-imds"]).await?;
    ensure!(answer == "32", "{answer}");
    let one_eni = on_node(node, &["max-pods", "--instance-type-from-imds", "--cni-max-eni", "1"]).await?;
    ensure!(one_eni == "8", "{one_eni}");

    node.install_plugin(None).await?;
    let ipamd = node.start_ipamd(&IpamdOptions::new()).await?;
    // More than the primary ENI takes.
    for index in 0..8 {
        let pod = node.add_pod("default", &format!("web-{index}")).await?;
        ensure!(pod.eni().is_some(), "EC2 does not know {}", pod.address());
    }
    ipamd.terminate(PATIENCE).await?;
    lab.shutdown().await
}

async fn mistakes_in_the_settings_are_reported_together() -> Result<()> {
    let mistakes = [
        ("WARM_ENI_TARGET", "lots", "expected a whole number"),
        ("AWS_VPC_ENI_MTU", "70000", "expected a whole number"),
        ("AWS_VPC_K8S_CNI_EXTERNALSNAT", "maybe", "expected true or false"),
        ("ENABLE_POD_ENI", "true", "security groups for pods"),
        ("AWS_VPC_K8S_CNI_VETHPREFIX", "toolong", "expected"),
        ("ADDITIONAL_ENI_TAGS", "{", "expected"),
        ("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", "10.0.0.0/8,nonsense", "expected"),
        ("IP_COOLDOWN_PERIOD", "-3", "expected a whole number"),
    ];
    let mut env: Vec<_> = mistakes.iter().map(|(name, value, _)| (*name, *value)).collect();
    env.push(("AWS_VPC_K8S_CNI_LOG_FILE", "stderr"));
    // Even this one does not hide the others.
    env.push(("AWS_VPC_K8S_CNI_LOGLEVEL", "loud"));

    let ran = ran("ipamd", &["run"], &env, None).await?;

    ensure!(ran.status.code() == Some(1), "{}", ran.status);
    let lines: Vec<Value> = ran
        .complaint()
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("read the log line {line:?}")))
        .collect::<Result<_>>()?;
    let said = lines.iter().find_map(|line| line["error"].as_str()).context("no line has an error")?;
    for (name, value, expected) in mistakes {
        let line = said.lines().find(|line| line.contains(name));
        let line = line.with_context(|| format!("{name} is not reported in: {said}"))?;
        ensure!(line.contains(&format!("{value:?}")) && line.contains(expected), "{line}");
    }
    let level = lines.iter().filter_map(|line| line["msg"].as_str()).find(|it| it.contains("\"loud\""));
    ensure!(level.is_some_and(|it| it.contains("expected debug")), "{lines:?}");
    Ok(())
}

async fn odd_arguments_are_refused_without_a_panic() -> Result<()> {
    let long = "x".repeat(100_000);
    let odd: [&[&str]; 17] = [
        &[],
        &[""],
        &["--"],
        &["run", "now"],
        &["max-pods"],
        &["max-pods", "--instance-type", ""],
        &["max-pods", "--instance-type", "m5.large", "--cni-max-eni", "0"],
        &["max-pods", "--instance-type", "m5.large", "--cni-max-eni", "99999999999"],
        &["max-pods", "--instance-type", "m5.large", "--cni-version", "…"],
        &["max-pods", "--all", "--explain"],
        &["probe", "--addr", "nowhere:no port", "--connect-timeout", "1s"],
        &["init-node", "--cni-bin-dir", &long],
        &["status", "--socket", "/dev/null"],
        &["status", "--output", "xml"],
        &["why"],
        &["why", "", "--socket", &long],
        &["why", "default/web", "shop/web"],
    ];
    // Nobody listens there, so that no question waits for an answer.
    let env = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9"), ("AWS_REGION", "us-west-2")];
    for words in odd {
        let shown: Vec<_> = words.iter().map(|it| it.chars().take(40).collect::<String>()).collect();
        let ran = ran("ipamd", words, &env, None).await.with_context(|| format!("{shown:?}"))?;
        ensure!(!ran.status.success(), "ipamd {shown:?} succeeded: {}", ran.text());
        decent(&ran).with_context(|| format!("ipamd {shown:?}"))?;
        ensure!(!ran.complaint().is_empty(), "ipamd {shown:?} says nothing");
    }
    for (words, stdin) in
        [(&["--help"][..], &b""[..]), (&[], b""), (&["ADD"], b"{"), (&["\u{7f}"], &[0xff; 4096])]
    {
        let ran = ran("aws-cni", words, &[], Some(stdin)).await?;
        decent(&ran).with_context(|| format!("aws-cni {words:?}"))?;
        if !ran.status.success() {
            let said: Value = serde_json::from_slice(&ran.stdout).context("standard output is no JSON")?;
            ensure!(said["code"].is_u64() && said["msg"].is_string(), "{said}");
        }
    }
    Ok(())
}

/// Ended by itself, with a code of its own choice.
fn decent(ran: &Ran) -> Result<()> {
    let complaint = ran.complaint();
    ensure!(!complaint.contains("panicked"), "{complaint}");
    ensure!(ran.status.code().is_some_and(|code| code != 101), "{}: {complaint}", ran.status);
    Ok(())
}

async fn a_closed_pipe_is_no_panic() -> Result<()> {
    let mut command = Command::new("sh");
    command.args(["-c", "\"$0\" max-pods --all | head -n 1"]).arg(binary("ipamd")?);

    let ran = finish(command, None, PATIENCE).await?;

    ensure!(ran.text().lines().count() == 1, "{}", ran.text());
    decent(&ran)
}

async fn the_daemon_stays_below_25_mib() -> Result<()> {
    let lab = Lab::builder().node("m5.large", "us-west-2a").start().await?;
    let node = &lab.nodes()[0];
    node.install_plugin(None).await?;
    let ipamd = node.start_ipamd(&IpamdOptions::new()).await?;
    let mut pods = Vec::new();
    for index in 0..24 {
        pods.push(node.add_pod("default", &format!("web-{index}")).await?);
    }

    let resident = ipamd.resident_kib()?;

    eprintln!("ipamd with {} pods: {resident} KiB resident", pods.len());
    ensure!(resident < 25 * 1024, "{resident} KiB");
    ipamd.terminate(PATIENCE).await?;
    lab.shutdown().await
}

async fn the_plugin_is_below_6_mib() -> Result<()> {
    let path = binary("aws-cni")?;
    let bytes = std::fs::metadata(&path)?.len();
    eprintln!("aws-cni: {bytes} bytes");
    ensure!(bytes < 6 * 1024 * 1024, "{}: {bytes} bytes", path.display());
    Ok(())
}

async fn the_plugin_is_statically_linked() -> Result<()> {
    let mut command = Command::new("ldd");
    command.arg(binary("aws-cni")?);

    let ran = finish(command, None, PATIENCE).await?;

    let said = format!("{}{}", ran.text(), ran.complaint());
    let is_static = said.contains("statically linked") || said.contains("not a dynamic executable");
    ensure!(is_static, "ldd: {said}");
    Ok(())
}
