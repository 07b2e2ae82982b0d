//! `ipamd max-pods`: how many pods a node of some instance type can address.
//!
//! The answer goes to stdout, as a bare number unless asked for more, so that node set-up
//! scripts can use it; everything else goes to stderr. With single addresses the number is what
//! the addresses allow. With prefixes or IPv6, where addresses are plentiful, it is at most
//! Kubernetes' recommendation of 110 pods, or 250 above 30 vCPUs, unless `--show-max-allowed`.

use std::io::{self, Write};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use vpc::InstanceLimits;
use vpc::limits::max_pods::{MaxPods, PodAddressing};

/// The question; names as in Amazon's max-pods-calculator.sh.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct MaxPodsArgs {
    /// The instance type, such as m5.large
    #[arg(long, value_name = "TYPE")]
    instance_type: Option<String>,
    /// Ask instance metadata for the type of this node
    #[arg(long, conflicts_with = "instance_type")]
    instance_type_from_imds: bool,
    /// The version of the CNI; before 1.9 there are no prefixes
    #[arg(long, value_name = "X.Y.Z", value_parser = version)]
    cni_version: Option<(u32, u32)>,
    /// Pods keep off the primary ENI
    #[arg(long)]
    cni_custom_networking_enabled: bool,
    /// Prefixes of 16 addresses in place of single addresses
    #[arg(long)]
    cni_prefix_delegation_enabled: bool,
    /// Use at most this many ENIs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    cni_max_eni: Option<u16>,
    /// Leave the recommendation of 110 or 250 aside
    #[arg(long)]
    show_max_allowed: bool,
    /// Pods have IPv6 addresses
    #[arg(long)]
    ipv6: bool,
    /// Show the arithmetic
    #[arg(long, conflicts_with = "all")]
    explain: bool,
    /// Answer for every known type
    #[arg(long, conflicts_with_all = ["instance_type", "instance_type_from_imds"])]
    all: bool,
    /// How to print the answer
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Output,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// A number; with --all, a type and a number a line
    #[default]
    Text,
    /// An object with every figure; with --all, an array of them
    Json,
}

/// An answer as JSON.
#[derive(Serialize)]
struct Answer<'a> {
    instance_type: &'a str,
    max_pods: u32,
    enis: u16,
    enis_for_pods: u16,
    slots_per_eni: u16,
    uses_prefixes: bool,
    vcpus: u16,
    /// Absent where the addresses set no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_pods_by_addresses: Option<u32>,
    recommended: u32,
}

/// Answers on `out`. `type_of_this_node` asks instance metadata; `describe` asks
/// DescribeInstanceTypes about a type that the table does not know.
///
/// # Errors
/// Says what is missing and how to find out.
pub(crate) async fn run(
    args: &MaxPodsArgs,
    type_of_this_node: impl AsyncFnOnce() -> Result<String>,
    describe: impl AsyncFnOnce(&str) -> Result<InstanceLimits>,
    out: &mut impl Write,
) -> Result<()> {
    if args.all {
        return args.print_all(out);
    }
    let name = match &args.instance_type {
        Some(name) => name.clone(),
        None if args.instance_type_from_imds => {
            type_of_this_node().await.context("find out this node's instance type")?
        }
        None => bail!("no instance type: give --instance-type TYPE, or --instance-type-from-imds on a node"),
    };
    let described;
    let limits = match InstanceLimits::of(&name) {
        Some(limits) => limits,
        None => {
            described = describe(&name).await.with_context(|| {
                format!(
                    "instance type {name:?} is not in the table of {} types, and DescribeInstanceTypes \
                     could not be asked for it; check the spelling, or run this where EC2 answers: on a node \
                     with --instance-type-from-imds, or with AWS_REGION and credentials that allow \
                     ec2:DescribeInstanceTypes",
                    InstanceLimits::all().len()
                )
            })?;
            &described
        }
    };
    let answer = MaxPods::of(limits, &args.addressing()).with_context(|| name.clone())?;
    args.print_one(&name, &answer, out)?;
    Ok(())
}

impl MaxPodsArgs {
    fn addressing(&self) -> PodAddressing {
        let knows_prefixes = self.cni_version.is_none_or(|version| version >= (1, 9));
        PodAddressing {
            prefixes: self.cni_prefix_delegation_enabled && knows_prefixes,
            custom_networking: self.cni_custom_networking_enabled,
            max_enis: self.cni_max_eni,
            ipv6: self.ipv6,
        }
    }

    fn figure(&self, answer: &MaxPods) -> u32 {
        if self.show_max_allowed { answer.allowed() } else { answer.advised() }
    }

    fn json<'a>(&self, name: &'a str, answer: &MaxPods) -> Answer<'a> {
        Answer {
            instance_type: name,
            max_pods: self.figure(answer),
            enis: answer.enis,
            enis_for_pods: answer.enis_for_pods,
            slots_per_eni: answer.slots_per_eni,
            uses_prefixes: answer.prefixes,
            vcpus: answer.vcpus,
            max_pods_by_addresses: answer.by_addresses,
            recommended: answer.recommended,
        }
    }

    fn print_one(&self, name: &str, answer: &MaxPods, out: &mut impl Write) -> io::Result<()> {
        if self.output == Output::Json {
            serde_json::to_writer(&mut *out, &self.json(name, answer))?;
            return writeln!(out);
        }
        if !self.explain {
            return writeln!(out, "{}", self.figure(answer));
        }
        writeln!(out, "{name}")?;
        if self.cni_prefix_delegation_enabled && !self.addressing().prefixes {
            writeln!(out, "the CNI is older than 1.9, which brought prefixes: single addresses")?;
        }
        write!(out, "{answer}")?;
        if self.show_max_allowed && answer.is_recommendation_applied() && answer.by_addresses.is_some() {
            writeln!(out, "the recommendation is left aside (--show-max-allowed)")?;
        }
        writeln!(out, "max pods: {}", self.figure(answer))
    }

    /// Every type of the table that can address pods as asked.
    fn print_all(&self, out: &mut impl Write) -> Result<()> {
        let addressing = self.addressing();
        if addressing.ipv6 && addressing.custom_networking {
            bail!("custom networking and IPv6 exclude each other");
        }
        // A type that takes no prefixes has no answer for IPv6 and is left out.
        let answers = InstanceLimits::all()
            .filter_map(|(name, limits)| Some((name, MaxPods::of(limits, &addressing).ok()?)));
        match self.output {
            Output::Text => {
                for (name, answer) in answers {
                    writeln!(out, "{name} {}", self.figure(&answer))?;
                }
            }
            Output::Json => {
                let list: Vec<Answer<'_>> = answers.map(|(name, answer)| self.json(name, &answer)).collect();
                serde_json::to_writer(&mut *out, &list)?;
                writeln!(out)?;
            }
        }
        Ok(())
    }
}

/// `1.23.1`, `v1.23.1` or `1.23.1-eksbuild.2` as (1, 23).
fn version(text: &str) -> Result<(u32, u32), String> {
    let mut parts = text.strip_prefix('v').unwrap_or(text).split('.');
    let mut number = || parts.next()?.parse().ok();
    let parsed = number().and_then(|major| Some((major, number()?)));
    parsed.ok_or_else(|| "expected a version such as 1.23.1".to_owned())
}

#[cfg(test)]
mod tests;
