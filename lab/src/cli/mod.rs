//! The lab's command line.

mod bursts;
mod calls;
mod demo;
mod ec2;
mod families;
mod screen;
mod standing;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use self::bursts::BurstOptions;
use self::calls::CallOptions;
use self::demo::DemoOptions;
use self::ec2::Ec2Args;
use self::families::FamilyOptions;
use self::screen::Screen;
use self::standing::{EraseArgs, Knob, PodVerb, ServiceArgs, UpOptions};

/// A world without AWS: EC2, its metadata service, and a VPC of network namespaces.
#[derive(Debug, Parser)]
#[command(name = "lab", version)]
struct Options {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Two nodes, their daemons and pods; shows who reaches whom, and what is left at the end.
    Demo(DemoOptions),
    /// Many pods at once on fresh nodes: how long they wait, and what EC2 is asked.
    Bursts(BurstOptions),
    /// What a daemon asks of EC2 in typical histories, beside what the reference asks.
    Calls(CallOptions),
    /// How long a pod's ADD and DEL take with an IPv6 address, beside an IPv4 one.
    Families(FamilyOptions),
    /// Make a world that stands until `lab down`.
    Up(UpOptions),
    /// Pods of the standing world.
    #[command(subcommand)]
    Pod(PodVerb),
    /// Turn something of the standing world: how slow EC2 is, what goes wrong, what others take.
    #[command(subcommand)]
    Turn(Knob),
    /// Do to a node's network what a firewall's reload or systemd-networkd does.
    Erase(EraseArgs),
    /// Have the nodes serve a service as kube-proxy does.
    Service(ServiceArgs),
    /// Run a command inside of the standing world.
    Exec {
        /// A node, `vpc`, `internet`, `premises`, or `pod:NAME`.
        target: String,
        /// The command.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Serve EC2 and one instance's metadata service alone, until interrupted.
    Ec2(Ec2Args),
    /// What stands.
    Status,
    /// End the standing world.
    Down,
}

/// Runs the command line.
pub(crate) fn main() -> ExitCode {
    match run(Options::parse().command) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Demo(options) => {
            lab::world::contain()?;
            let is_good = runtime()?.block_on(demo::run(options, &Screen::new()))?;
            return Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Verb::Bursts(options) => {
            lab::world::contain()?;
            let is_good = runtime()?.block_on(bursts::run(options, &Screen::new()))?;
            return Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Verb::Calls(options) => {
            lab::world::contain()?;
            let is_good = runtime()?.block_on(calls::run(options, &Screen::new()))?;
            return Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Verb::Families(options) => {
            lab::world::contain()?;
            runtime()?.block_on(families::run(options, &Screen::new()))?;
        }
        Verb::Exec { target, command } => return standing::exec(&target, &command),
        Verb::Up(options) => standing::up(options)?,
        Verb::Pod(verb) => standing::pod(verb)?,
        Verb::Turn(knob) => standing::turn(knob)?,
        Verb::Erase(args) => standing::erase(args)?,
        Verb::Service(args) => standing::service(args)?,
        Verb::Ec2(args) => runtime()?.block_on(ec2::run(args))?,
        Verb::Status => standing::status()?,
        Verb::Down => standing::down()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the async runtime")
}
