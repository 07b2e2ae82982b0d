//! What can be turned while a world stands.

use std::time::Duration;

use anyhow::Result;
use ipnet::Ipv4Net;
use lab::cloud::{Ec2Error, Fault};
use lab::world::Lab;
use serde::{Deserialize, Serialize};

/// One thing to turn, and how far.
#[derive(Debug, Clone, clap::Subcommand, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Knob {
    /// How long an EC2 action takes
    Latency {
        /// E.g. `AttachNetworkInterface`; `*` for all others
        action: String,
        /// Milliseconds
        milliseconds: u64,
    },
    /// How long an attached ENI stays `attaching`, without a link on its node
    AttachDelay {
        /// Milliseconds
        milliseconds: u64,
    },
    /// How long a detached ENI stays `detaching`
    DetachDelay {
        /// Milliseconds
        milliseconds: u64,
    },
    /// How old the state is that metadata services show
    ImdsLag {
        /// Milliseconds
        milliseconds: u64,
    },
    /// Have an EC2 action refused
    Refuse {
        /// E.g. `CreateNetworkInterface`; `*` for all
        action: String,
        /// E.g. `RequestLimitExceeded`
        code: String,
        /// Only so many times
        #[arg(long)]
        times: Option<u32>,
    },
    /// Have answers of an EC2 action lost after its work is done
    LoseAnswer {
        /// E.g. `CreateNetworkInterface`; `*` for all
        action: String,
        /// Only so many times
        #[arg(long)]
        times: Option<u32>,
    },
    /// Have nothing go wrong any more
    NoFaults,
    /// Others take addresses of a subnet
    Occupy {
        /// Its id
        subnet: String,
        /// How many they leave
        #[arg(long, default_value_t = 0)]
        leave: u32,
    },
    /// Others take an address of each free /28 of a subnet
    Fragment {
        /// Its id
        subnet: String,
    },
    /// Others give back what they took of a subnet
    Vacate {
        /// Its id
        subnet: String,
    },
    /// Give the VPC one more IPv4 range, with a subnet that is all of it in the first zone
    VpcRange {
        /// E.g. `100.64.0.0/16`
        range: Ipv4Net,
    },
    /// Have a NAT gateway translate what leaves for the internet without a public address
    NatGateway {
        /// `on` or `off`
        #[arg(value_parser = clap::builder::BoolishValueParser::new(), action = clap::ArgAction::Set)]
        is_on: bool,
    },
    /// Set a tag of an ENI, instance or subnet; without a value it goes
    Tag {
        /// Its id
        resource: String,
        /// The tag's key
        key: String,
        /// Its value
        value: Option<String>,
    },
}

impl Knob {
    /// Turns it; gives what to say about that.
    ///
    /// # Errors
    /// There is no such resource.
    pub(super) async fn turn(self, lab: &Lab) -> Result<String> {
        let cloud = lab.cloud();
        let ms = Duration::from_millis;
        let fault = |fault: Fault, times: Option<u32>| {
            cloud.fault(match times {
                Some(times) => fault.times(times),
                None => fault,
            });
        };
        match self {
            Knob::Latency { action, milliseconds } => cloud.set_latency(&action, ms(milliseconds)),
            Knob::AttachDelay { milliseconds } => cloud.set_attach_delay(ms(milliseconds)),
            Knob::DetachDelay { milliseconds } => cloud.set_detach_delay(ms(milliseconds)),
            Knob::ImdsLag { milliseconds } => cloud.set_imds_lag(ms(milliseconds)),
            Knob::Refuse { action, code, times } => {
                let error = Ec2Error::new(code, "This error was asked for.");
                fault(Fault::on(&action).refuse(error), times);
            }
            Knob::LoseAnswer { action, times } => fault(Fault::on(&action).lose_answer(), times),
            Knob::NoFaults => cloud.clear_faults(),
            Knob::Occupy { subnet, leave } => cloud.occupy_subnet(&subnet, leave)?,
            Knob::Fragment { subnet } => cloud.fragment_subnet(&subnet)?,
            Knob::Vacate { subnet } => cloud.vacate_subnet(&subnet)?,
            Knob::VpcRange { range } => {
                let mut ranges = cloud.snapshot().vpc.cidrs.clone();
                ranges.push(range);
                cloud.set_vpc_cidrs(ranges);
                cloud.with(|cloud, now| cloud.add_subnet(now, range, "us-west-2a"));
            }
            Knob::NatGateway { is_on } => lab.fabric().set_nat_gateway(is_on).await?,
            Knob::Tag { resource, key, value } => cloud.set_tag(&resource, &key, value.as_deref())?,
        }
        let snapshot = cloud.snapshot();
        let subnets = snapshot.subnets.values().map(|it| {
            let tags: Vec<_> = it.tags.iter().map(|(key, value)| format!(" {key}={value}")).collect();
            format!("{} {} {}: {} free{}", it.id, it.zone, it.cidr, it.available, tags.concat())
        });
        Ok(subnets.collect::<Vec<_>>().join("\n"))
    }
}
