//! Coming from the reference: its rules go, in both front ends of iptables, and others stay.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where its world is not as expected")]

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use datapath::kernel::inside;
use datapath::takeover::{self, Outcome};
use support::Space;
use support::node::Node;
use support::reference::{Reference, content, foreign, leftovers};

const LEGACY: &str = "iptables-legacy";
const NFT: &str = "iptables-nft";

/// The front ends that this machine and its kernel have; tells of the others.
fn front_ends() -> Vec<&'static str> {
    let space = Space::new();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let works = |name: &&str| {
        let is_there = std::env::split_paths(&path).any(|directory| directory.join(name).is_file());
        let works = is_there && space.succeeds(&format!("{name} -t nat -S"));
        if !works {
            eprintln!("skipped: {name} does not work here");
        }
        works
    };
    [LEGACY, NFT].into_iter().filter(works).collect()
}

fn reference(iptables: &'static str) -> Reference {
    Reference {
        excluded: vec!["192.168.7.7/32".to_owned()],
        ..Reference::new(iptables, "10.0.0.10", "10.0.0.0/16")
    }
}

fn script(space: &Space, script: &str) {
    space.feed("sh", script);
}

fn take_over(space: &Space) -> Outcome {
    inside(&space.netns, || takeover::take_over(&BTreeSet::new())).unwrap()
}

/// Takes over, where nothing may fail and nothing may have to stay.
fn take_over_wholly(space: &Space) -> Vec<String> {
    let Outcome { removed, left, failures } = take_over(space);
    assert!(left.is_empty() && failures.is_empty(), "left {left:?}, failures {failures:?}");
    removed
}

fn rules(space: &Space, iptables: &str) -> Vec<String> {
    content(&space.run(&format!("{iptables}-save")))
}

/// What the rules of others look like on a node that the reference has never seen.
fn rules_of_others(iptables: &str) -> Vec<String> {
    let space = Space::new();
    for part in foreign(iptables) {
        script(&space, &part);
    }
    rules(&space, iptables)
}

#[test]
fn whatever_the_references_options_its_rules_go_and_those_of_others_stay() {
    for iptables in front_ends() {
        let others = rules_of_others(iptables);
        assert!(others.len() > 20, "{others:#?}");
        for (node_port, external_snat, marks_in_nftables) in [
            (true, false, false),
            (true, false, true),
            (true, true, false),
            (false, false, false),
            (false, false, true),
            (false, true, false),
        ] {
            let reference = Reference { node_port, external_snat, marks_in_nftables, ..reference(iptables) };
            let space = Space::new();
            let [before, after] = foreign(iptables);
            script(&space, &before);
            script(&space, &reference.script());
            script(&space, &after);
            assert_ne!(rules(&space, iptables), others, "{reference:?}");

            let removed = take_over_wholly(&space);

            assert!(removed.iter().any(|line| line.contains("chain AWS-SNAT-CHAIN-0")), "{removed:?}");
            assert_eq!(rules(&space, iptables), others, "{reference:?}");
            assert!(!space.run("nft list tables").contains("aws-cni"), "{reference:?}");
            assert_eq!(take_over_wholly(&space), Vec::<String>::new(), "{reference:?}");
        }
    }
}

#[test]
fn leftovers_of_older_releases_and_of_another_front_end_go_too() {
    let front_ends = front_ends();
    let space = Space::new();
    for iptables in &front_ends {
        script(&space, &leftovers(iptables));
        script(&space, &reference(iptables).script());
        script(&space, &reference(iptables).egress("CNI-E4-77b8e585a13c64e496587", "e9", "169.254.172.3"));
        script(&space, &reference(iptables).egress("CNI-E6-e335b08ae90730d0a659a", "e9", "fd00::ac:2"));
    }

    take_over_wholly(&space);

    for iptables in &front_ends {
        for tool in [(*iptables).to_owned(), iptables.replace("iptables", "ip6tables")] {
            assert_eq!(rules(&space, &tool), Vec::<String>::new(), "{tool}");
        }
    }
    assert!(!space.run("nft list tables").contains("aws-cni"));
}

#[test]
fn our_own_table_is_not_touched() {
    for iptables in front_ends() {
        let node = Node::new();
        node.converge(&Node::wanted());
        let ours = node.space.run("nft list table ip vpc-cni");
        script(&node.space, &reference(iptables).script());

        take_over_wholly(&node.space);

        assert_eq!(node.space.run("nft list table ip vpc-cni"), ours);
        assert_eq!(node.converge(&Node::wanted()), Vec::<String>::new());
    }
}

#[test]
fn where_there_is_nothing_nothing_is_made() {
    let space = Space::new();
    let names =
        || inside(&space.netns, || std::fs::read_to_string("/proc/thread-self/net/ip_tables_names")).unwrap();
    let before = names().unwrap_or_default();
    assert_eq!(before, "");

    assert_eq!(take_over_wholly(&space), Vec::<String>::new());

    assert_eq!(names().unwrap_or_default(), "");
    assert_eq!(space.run("nft list ruleset"), "");
}

#[test]
fn where_only_others_have_rules_nobody_notices() {
    for iptables in front_ends() {
        let space = Space::new();
        for part in foreign(iptables) {
            script(&space, &part);
        }
        let listed = || (space.run("nft -a list ruleset"), space.run("iptables-legacy-save -c"));
        let without_times = |(ruleset, legacy): (String, String)| {
            let lines = legacy.lines().filter(|line| !line.starts_with('#'));
            (ruleset, lines.map(str::to_owned).collect::<Vec<_>>())
        };
        let before = without_times(listed());
        let monitor = Monitor::start(&space);

        assert_eq!(take_over_wholly(&space), Vec::<String>::new());

        assert_eq!(monitor.stop(), Vec::<String>::new(), "{iptables}");
        assert_eq!(without_times(listed()), before, "{iptables}");
    }
}

/// `nft monitor` in a namespace, with everything that it prints.
struct Monitor<'a> {
    space: &'a Space,
    process: Child,
    lines: mpsc::Receiver<String>,
}

impl<'a> Monitor<'a> {
    fn start(space: &'a Space) -> Self {
        let mut process = space.spawn("nft monitor");
        let output = process.stdout.take().unwrap();
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let monitor = Self { space, process, lines };
        // It listens once it tells of a change; what was changed until then it may miss.
        loop {
            monitor.mark("start");
            if monitor.lines.recv_timeout(Duration::from_millis(50)).is_ok() {
                break;
            }
        }
        monitor.mark("before");
        monitor.until("before");
        monitor
    }

    fn mark(&self, name: &str) {
        self.space.run(&format!("nft add table ip {name}"));
        self.space.run(&format!("nft delete table ip {name}"));
    }

    /// The lines up to the transaction that removes the table `mark`.
    fn until(&self, mark: &str) -> Vec<String> {
        let next =
            || self.lines.recv_timeout(Duration::from_secs(20)).expect("nft monitor tells of every change");
        let removal = format!("delete table ip {mark}");
        let lines = std::iter::from_fn(|| Some(next()).filter(|line| *line != removal)).collect();
        // Its last line.
        assert!(next().starts_with("# new generation"));
        lines
    }

    /// What it printed since the start.
    fn stop(mut self) -> Vec<String> {
        self.mark("after");
        let mut lines = self.until("after");
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        let mark = lines.iter().position(|line| line == "add table ip after").unwrap();
        lines.truncate(mark);
        lines
    }
}

#[test]
fn a_chain_that_somebody_else_uses_is_emptied_and_reported() {
    for iptables in front_ends() {
        let space = Space::new();
        script(&space, &reference(iptables).script());
        script(&space, &format!("{iptables} -t nat -A POSTROUTING -d 192.0.2.1 -j AWS-SNAT-CHAIN-0"));

        let first = take_over(&space);
        let again = take_over(&space);

        assert!(first.failures.is_empty() && again.failures.is_empty(), "{first:?} {again:?}");
        assert_eq!(again.removed, Vec::<String>::new());
        assert_eq!(first.left, again.left);
        assert!(
            again.left[0].contains("-A POSTROUTING -d 192.0.2.1/32 -j AWS-SNAT-CHAIN-0"),
            "{:?}",
            again.left
        );
        assert_eq!(
            rules(&space, iptables),
            ["nat :AWS-SNAT-CHAIN-0 - [0:0]", "nat -A POSTROUTING -d 192.0.2.1/32 -j AWS-SNAT-CHAIN-0"]
        );
    }
}

#[test]
fn egress_that_has_no_substitute_stays() {
    for iptables in front_ends() {
        let space = Space::new();
        let (kept, gone) = ("CNI-E4-77b8e585a13c64e496587", "CNI-E4-5740307710ebfd5fb24f5");
        script(&space, &reference(iptables).egress(kept, "e9", "169.254.172.3"));
        script(&space, &reference(iptables).egress(gone, "containerId-123", "169.254.172.4"));

        space.run("ip link add one type veth peer name other");
        space.run("ip link set one up");
        for address in ["169.254.172.3", "169.254.171.255", "10.0.0.9"] {
            space.run(&format!("ip route add {address} dev one"));
        }

        let addresses = takeover::pods_with_egress(&mut space.netlink()).unwrap();
        assert_eq!(addresses, BTreeSet::from(["169.254.172.3".parse().unwrap()]));
        let outcome = inside(&space.netns, || takeover::take_over(&addresses)).unwrap();

        assert!(outcome.failures.is_empty(), "{outcome:?}");
        let rules = rules(&space, iptables);
        assert!(rules.iter().all(|line| line.contains(kept)), "{rules:#?}");
        assert_eq!(rules.len(), 4, "{rules:#?}");
    }
}

#[test]
fn somebody_who_changes_rules_all_the_time_loses_none() {
    for iptables in front_ends() {
        let space = Space::new();
        script(&space, &foreign(iptables)[0]);
        script(&space, &reference(iptables).script());
        script(&space, &leftovers(iptables));
        let stop = AtomicBool::new(false);

        thread::scope(|scope| {
            let changes = scope.spawn(|| {
                let mut made = 0;
                while !stop.load(Ordering::Relaxed) {
                    // At the head, so that the numbers of all rules change.
                    let rule = format!("--wait -t nat -I PREROUTING 1 -d 192.0.2.{made} -j RETURN");
                    space.run(&format!("{iptables} {rule}"));
                    made += 1;
                }
                made
            });
            take_over_wholly(&space);
            stop.store(true, Ordering::Relaxed);
            let made = changes.join().unwrap();

            let rules = rules(&space, iptables);
            let theirs = rules.iter().filter(|line| line.contains("-d 192.0.2."));
            assert_eq!(theirs.count(), made, "{rules:#?}");
            assert!(!rules.iter().any(|line| line.contains("AWS")), "{rules:#?}");
        });
    }
}

#[test]
fn a_daemon_of_the_reference_that_comes_back_is_seen() {
    let space = Space::new();
    let signs = || inside(&space.netns, takeover::signs_of_return).unwrap().unwrap();
    assert_eq!(signs(), Vec::<String>::new());
    if !front_ends().contains(&NFT) {
        return;
    }

    script(&space, &reference(NFT).script());

    assert_eq!(signs(), ["nft table ip aws-cni", "iptables chain AWS-SNAT-CHAIN-0 in table nat"]);
    take_over_wholly(&space);
    assert_eq!(signs(), Vec::<String>::new());
}
