//! The lab's command line.

mod demo;
mod screen;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use self::demo::DemoOptions;
use self::screen::Screen;

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
}

/// Runs the command line.
pub(crate) fn main() -> ExitCode {
    match run(Options::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<bool> {
    match verb {
        Verb::Demo(options) => {
            lab::world::contain()?;
            runtime()?.block_on(demo::run(options, &Screen::new()))
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the async runtime")
}
