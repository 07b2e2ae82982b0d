//! The node daemon, and the small commands that belong on a node beside it.
#![forbid(unsafe_code)]

mod app;
mod chain;
mod checkpoint;
mod clock;
mod commands;
mod config;
mod conflist;
mod durable;
mod executor;
mod host;
mod host_file;
mod imds;
mod metrics;
mod pool;
mod pool_task;
mod report;
mod rpc;
mod sidecar;
#[cfg(test)]
mod simulation;
mod spool;
mod stagger;
mod takeover;
mod telemetry;

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use commands::ask::AskArgs;
use commands::init_node::{InitNodeArgs, NodeRoots};
use commands::max_pods::MaxPodsArgs;
use commands::probe::{ProbeArgs, Verdict};
use commands::uninstall::UninstallArgs;
use commands::why::WhyArgs;
use ec2::{Aws, AwsOptions, Imds, ImdsOptions, PaceOptions, Paced, Priority};
use tracing::error;
use vpc::{Family, InstanceLimits, Mac};

use config::Config;
use imds::FactReader;

/// Pod networking for Kubernetes on AWS: the node daemon and its tools
#[derive(Debug, Parser)]
#[command(name = "ipamd", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node daemon; settings come from the environment
    Run,
    /// Prepare the host: install the CNI plugins and set the sysctls that pods need
    InitNode(InitNodeArgs),
    /// Ask a gRPC server for its health, as a kubelet probe
    Probe(ProbeArgs),
    /// Tell how many pods an instance type can have
    MaxPods(MaxPodsArgs),
    /// Show what the node holds, wants and is doing
    Status(AskArgs),
    /// Tell why a pod has its address, or has none
    Why(WhyArgs),
    /// Take our packet filter off this node, before something else serves its pods
    Uninstall(UninstallArgs),
}

fn main() -> ExitCode {
    match Cli::parse_from(arguments(std::env::args_os())).command {
        Command::Run => run(),
        Command::InitNode(args) => finish(block_on(init_node(&args))),
        Command::Probe(args) => {
            match block_on(async { Ok(commands::probe::run(&args, &mut io::stderr()).await) }) {
                Ok(verdict) => ExitCode::from(verdict as u8),
                Err(error) => {
                    report(&error);
                    ExitCode::from(Verdict::CallFailed as u8)
                }
            }
        }
        Command::MaxPods(args) => finish(block_on(max_pods(&args))),
        Command::Status(args) => finish(block_on(commands::status::run(&args, &mut io::stdout()))),
        Command::Why(args) => match block_on(commands::why::run(&args, &mut io::stdout())) {
            Ok(known) => ExitCode::from(known as u8),
            Err(error) => finish(Err(error)),
        },
        Command::Uninstall(args) => finish(block_on(commands::uninstall::run(
            &args,
            datapath::takeover::remove_our_tables,
            &mut io::stdout(),
        ))),
    }
}

/// The arguments, with the subcommand that the program's own name stands for: existing pod specs
/// execute the files of amazon-vpc-cni-k8s by their names.
fn arguments(mut given: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let program = given.next().unwrap_or_default();
    let name = Path::new(&program).file_name().map(|name| name.to_string_lossy().into_owned());
    let command = match name.as_deref() {
        Some("aws-vpc-cni" | "aws-k8s-agent") => "run",
        Some("aws-vpc-cni-init") => "init-node",
        Some("grpc-health-probe") => "probe",
        _ => return std::iter::once(program).chain(given).collect(),
    };
    let head = [program, OsString::from(command)];
    if command == "probe" {
        head.into_iter().chain(commands::probe::double_dashes(given)).collect()
    } else {
        head.into_iter().chain(given).collect()
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn run() -> ExitCode {
    if let Err(error) = telemetry::init(variable) {
        report(&error.into());
        return ExitCode::FAILURE;
    }
    match Config::from_vars(variable).map_err(anyhow::Error::from).and_then(app::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error = format!("{error:#}"), "daemon ends");
            ExitCode::FAILURE
        }
    }
}

async fn init_node(args: &InitNodeArgs) -> anyhow::Result<()> {
    let primary_mac = async || -> anyhow::Result<Mac> {
        Ok(FactReader::new(Imds::new(&ImdsOptions::default())?, Family::V4).instance().await?.primary_mac)
    };
    commands::init_node::run(args, &NodeRoots::of_this_node(), primary_mac, &mut io::stdout()).await
}

async fn max_pods(args: &MaxPodsArgs) -> anyhow::Result<()> {
    let facts = || anyhow::Ok(FactReader::new(Imds::new(&ImdsOptions::default())?, Family::V4));
    let type_of_this_node =
        async || -> anyhow::Result<String> { Ok(facts()?.instance().await?.instance_type) };
    let describe = async |name: &str| -> anyhow::Result<InstanceLimits> {
        let imds = Imds::new(&ImdsOptions::default())?;
        // Off an instance the environment says which region to ask.
        let region = match variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION")) {
            Some(region) => region,
            None => {
                facts()?.instance().await.context("find the region to ask; AWS_REGION is not set")?.region
            }
        };
        let options = AwsOptions { endpoint: variable("AWS_EC2_ENDPOINT"), ..AwsOptions::new(&region) };
        let ec2 = Paced::new(Aws::new(&options, &imds).await, PaceOptions::default());
        Ok(ec2.at(Priority::WaitingPod).describe_instance_type(name).await?)
    };
    commands::max_pods::run(args, type_of_this_node, describe, &mut io::stdout()).await
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("start the async runtime")?.block_on(work)
}

fn finish(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

/// Says on stderr what went wrong, for people who ran a command.
fn report(error: &anyhow::Error) {
    eprintln!("ipamd: {error:#}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(given: &[&str]) -> Command {
        Cli::parse_from(arguments(given.iter().map(OsString::from))).command
    }

    #[test]
    fn the_names_of_the_reference_stand_for_subcommands() {
        assert!(matches!(parsed(&["/app/aws-vpc-cni"]), Command::Run));
        assert!(matches!(parsed(&["./aws-k8s-agent"]), Command::Run));
        assert!(matches!(parsed(&["/init/aws-vpc-cni-init"]), Command::InitNode(_)));
        let probe =
            ["/app/grpc-health-probe", "-addr=unix:///var/run/aws-node/ipamd.sock", "-connect-timeout=5s"];
        assert!(matches!(parsed(&probe), Command::Probe(_)));
    }

    #[test]
    fn under_its_own_name_the_program_takes_subcommands() {
        assert!(matches!(parsed(&["/usr/bin/ipamd", "run"]), Command::Run));
        assert!(Cli::try_parse_from(["ipamd"]).is_err());
    }
}
