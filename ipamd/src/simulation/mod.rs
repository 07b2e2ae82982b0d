//! The daemon in a simulated world: real pool, real steps, real files and real pacing, under a
//! clock that stands still while anybody works, with an EC2, a disk and a kernel in memory.
//!
//! From a seed comes a [`scenario::Scenario`]: pods, faults, kills. [`play`] lives through it
//! while [`oracle::Oracle`], which knows the truth about every node, judges each event. The same
//! seed gives the same run to the last line of its trace.

mod aws;
mod boot;
mod chance;
mod checks;
mod churn;
mod disk;
mod draw;
mod imds;
mod kernel;
mod life;
mod node;
mod oracle;
mod others;
mod play;
mod pod;
mod run;
mod scenario;
mod shrink;
mod violation;
mod world;

/// The zone of every node.
const ZONE: &str = "us-west-2a";
