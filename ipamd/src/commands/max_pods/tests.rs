//! What the command prints.

use std::borrow::Cow;

use anyhow::anyhow;
use clap::Parser;
use vpc::limits::Hypervisor;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: MaxPodsArgs,
}

/// The command's output with IMDS saying m5.large and EC2 knowing z9.huge alone.
async fn answer(line: &str) -> Result<String> {
    let cli = Cli::try_parse_from(std::iter::once("max-pods").chain(line.split_whitespace()))?;
    let mut out = Vec::new();
    let describe = async |name: &str| match name {
        "z9.huge" => Ok(InstanceLimits {
            enis: 4,
            ipv4_per_eni: 20,
            cards: Cow::Owned(vec![4, 4]),
            default_card: 0,
            vcpus: 64,
            hypervisor: Hypervisor::Nitro,
            is_bare_metal: false,
        }),
        _ => Err(anyhow!("no region")),
    };
    run(&cli.args, async || Ok("m5.large".to_owned()), describe, &mut out).await?;
    Ok(String::from_utf8(out)?)
}

#[tokio::test]
async fn the_answer_is_one_number() {
    for (line, pods) in [
        ("--instance-type t3.large", "35\n"),
        ("--instance-type c5.large --cni-version 1.23.1", "29\n"),
        ("--instance-type-from-imds", "29\n"),
        ("--instance-type t3.small", "11\n"),
        ("--instance-type c5.4xlarge", "234\n"),
        ("--instance-type p5.48xlarge", "100\n"),
        ("--instance-type m5.large --cni-prefix-delegation-enabled", "110\n"),
        ("--instance-type m5.large --cni-prefix-delegation-enabled --cni-version 1.8.0", "29\n"),
        ("--instance-type m5.large --cni-prefix-delegation-enabled --cni-version v1.9.0-eks", "110\n"),
        ("--instance-type m5.large --cni-prefix-delegation-enabled --show-max-allowed", "434\n"),
        ("--instance-type m5.large --cni-custom-networking-enabled", "20\n"),
        ("--instance-type m5.large --cni-max-eni 2", "20\n"),
        ("--instance-type m5.24xlarge --ipv6", "250\n"),
    ] {
        assert_eq!(answer(line).await.unwrap_or_else(|error| panic!("{line}: {error:#}")), pods, "{line}");
    }
}

#[tokio::test]
async fn a_type_that_only_ec2_knows_is_asked_for() {
    assert_eq!(answer("--instance-type z9.huge").await.expect("an answer"), "78\n");
    let line = "--instance-type z9.huge --cni-prefix-delegation-enabled";
    assert_eq!(answer(line).await.expect("an answer"), "250\n");
}

#[tokio::test]
async fn a_type_that_nobody_knows_is_an_error_that_says_how_to_find_out() {
    let error = format!("{:#}", answer("--instance-type m5.lrage").await.expect_err("no such type"));
    for part in ["\"m5.lrage\"", "--instance-type-from-imds", "ec2:DescribeInstanceTypes", "no region"] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[tokio::test]
async fn bad_questions_are_refused() {
    for line in [
        "",
        "--instance-type m5.large --instance-type-from-imds",
        "--instance-type m5.large --cni-max-eni 0",
        "--instance-type m5.large --cni-version new",
        "--instance-type m4.large --ipv6",
        "--all --ipv6 --cni-custom-networking-enabled",
    ] {
        assert!(answer(line).await.is_err(), "{line:?}");
    }
}

#[tokio::test]
async fn explain_ends_with_the_number() {
    let text = answer("--instance-type m5.large --cni-prefix-delegation-enabled --explain")
        .await
        .expect("an answer");
    assert!(text.starts_with("m5.large\n3 ENIs"), "{text}");
    assert!(text.contains("3 x 9 x 16 + 2 on the host's network = 434\n"), "{text}");
    assert!(text.ends_with("max pods: 110\n"), "{text}");
}

#[tokio::test]
async fn all_prints_a_line_for_every_type() {
    let text = answer("--all").await.expect("an answer");
    assert!(text.lines().count() >= 1390, "{} lines", text.lines().count());
    assert!(text.lines().any(|line| line == "m5.large 29"));
    let json = answer("--all --output json").await.expect("an answer");
    let list: Vec<serde_json::Value> = serde_json::from_str(&json).expect("JSON");
    assert_eq!(list.len(), text.lines().count());
}

#[tokio::test]
async fn json_holds_every_figure() {
    let line = "--instance-type m5.large --cni-prefix-delegation-enabled --output json";
    let json: serde_json::Value =
        serde_json::from_str(&answer(line).await.expect("an answer")).expect("JSON");
    assert_eq!(
        json,
        serde_json::json!({
            "instance_type": "m5.large", "max_pods": 110, "enis": 3, "enis_for_pods": 3,
            "slots_per_eni": 9, "uses_prefixes": true, "vcpus": 2, "max_pods_by_addresses": 434,
            "recommended": 110,
        })
    );
}
