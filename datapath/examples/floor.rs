//! How long the kernel objects of a pod take, without daemon, plugin process or runtime.
//!
//! Makes two namespaces of its own, adds and deletes a pod in them over and over, and prints
//! percentiles. Takes the number of rounds, 1000 unless given, and of other pods on the node, 0
//! unless given. Run it as root, or with `unshare --map-root-user`.
#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::error::Error;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use datapath::kernel::{Netlink, Netns, inside};
use datapath::pod;
use datapath::wanted::{PodInterface, PodNetwork};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;
use vpc::{PodName, RouteTable};

const DEFAULT_ROUNDS: u32 = 1000;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u32>());
    let rounds = arguments.next().transpose()?.unwrap_or(DEFAULT_ROUNDS);
    let others = arguments.next().transpose()?.unwrap_or(0);

    let host = fresh_netns()?;
    // The plugin runs in the host's namespace, so this does too.
    inside(&host, || measure(&host, rounds, others).map_err(|error| error.to_string()))??;
    Ok(())
}

fn measure(host: &Netns, rounds: u32, others: u32) -> Result<(), Box<dyn Error>> {
    let mut neighbours = Vec::new();
    for number in 0..others {
        let netns = fresh_netns()?;
        pod::add(&pod_network(1_000_000 + number), host, &netns)?;
        neighbours.push(netns);
    }
    let (mut added, mut deleted) = (Vec::new(), Vec::new());
    for number in 0..rounds {
        let netns = fresh_netns()?;
        let wanted = pod_network(number);

        let start = Instant::now();
        pod::add(&wanted, host, &netns)?;
        added.push(start.elapsed());

        let addresses: Vec<_> = wanted.interfaces.iter().map(|one| (one.address, one.table)).collect();
        let start = Instant::now();
        pod::delete(&mut Netlink::open()?, &addresses)?;
        deleted.push(start.elapsed());
    }
    report("add", added);
    report("delete", deleted);
    Ok(())
}

fn pod_network(number: u32) -> PodNetwork {
    let pod = PodName::new("bench", &format!("pod-{number}"));
    let [_, second, third, fourth] = number.to_be_bytes();
    let interface = PodInterface {
        host_veth: vpc::host_veth("eni", &pod, 0),
        container_interface: "eth0".to_owned(),
        nic: 0,
        address: [10, second, third, fourth].into(),
        table: RouteTable(2),
        mtu: 9001,
    };
    PodNetwork { pod, interfaces: vec![interface] }
}

/// A namespace that ends with its last descriptor.
fn fresh_netns() -> Result<Netns, Box<dyn Error>> {
    let (sender, receiver) = mpsc::channel();
    let (opened, is_opened) = mpsc::channel::<()>();
    let maker = thread::spawn(move || -> Result<(), nix::Error> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        // The thread stays until the namespace has been opened through it.
        let _ = sender.send(format!("/proc/{}/task/{}/ns/net", std::process::id(), gettid()));
        let _ = is_opened.recv();
        Ok(())
    });
    let Ok(path) = receiver.recv() else {
        return Err(match maker.join() {
            Ok(Err(error)) => format!("make a network namespace: {error}; run as root").into(),
            _ => "make a network namespace: its thread ended".into(),
        });
    };
    let netns = Netns::open(Path::new(&path))?;
    let _ = opened.send(());
    let _ = maker.join();
    Ok(netns)
}

fn report(name: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| {
        let index = (times.len() * percent / 100).min(times.len().saturating_sub(1));
        times.get(index).copied().unwrap_or_default().as_secs_f64() * 1000.0
    };
    println!(
        "{name:<7} p50 {:.3} ms  p90 {:.3} ms  p99 {:.3} ms  ({} rounds)",
        at(50),
        at(90),
        at(99),
        times.len()
    );
}
