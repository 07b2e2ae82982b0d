//! The plugin as a runtime executes it, against daemons of every temper.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its world should fail at once")]

mod world;

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use proto::node::ReadinessReply;
use proto::rpc::{AddNetworkReply, Refusal, RefusalReason};
use proto::spool::SpooledDel;
use tonic::Status;
use world::{Fake, World};

const CONFIG: &str = r#"{"cniVersion":"0.4.0","name":"aws-cni","type":"aws-cni","mtu":"9001"}"#;

fn config(version: &str, more: &str) -> String {
    format!(r#"{{"cniVersion":"{version}","name":"aws-cni","type":"aws-cni"{more}}}"#)
}

fn refusing(reason: RefusalReason, message: &str) -> Fake {
    let refusal = Refusal { reason: reason.into(), message: message.to_owned(), retry_after_ms: 1500 };
    let reply = AddNetworkReply { refusal: Some(refusal), ..AddNetworkReply::default() };
    Fake { add: Arc::new(move |_| Ok(reply.clone())), ..Fake::giving("10.0.1.31", 1, 2) }
}

fn answering(status: impl Fn() -> Status + Send + Sync + 'static) -> Fake {
    let status = Arc::new(status);
    let again = Arc::clone(&status);
    Fake {
        add: Arc::new(move |_| Err(status())),
        del: Arc::new(move |_| Err(again())),
        ..Fake::giving("10.0.1.31", 1, 2)
    }
}

fn spooled(world: &World) -> Vec<SpooledDel> {
    let Ok(entries) = std::fs::read_dir(world.path("del-spool")) else { return Vec::new() };
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        serde_json::from_slice(&std::fs::read(entry.unwrap().path()).unwrap()).unwrap()
    };
    entries.map(read).collect()
}

#[test]
fn version_is_answered_without_stdin() {
    let Some(world) = World::new() else { return };

    let outcome = world.call("VERSION", &[], "");

    let expected = "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"0.1.0\",\"0.2.0\",\"0.3.0\",\"0.3.1\",\
                    \"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n";
    assert_eq!(outcome.success().stdout, expected);
    let outcome = world.call("", &[], "");
    assert_eq!(outcome.success().stdout, "");
    assert!(outcome.stderr.starts_with("AWS CNI "), "{}", outcome.stderr);
}

#[test]
fn a_pod_is_wired_checked_and_unwired() {
    let Some(mut world) = World::new() else { return };
    let fake = Fake::giving("10.0.1.31", 1, 2);
    world.serve(&fake);
    let before = world.output("ip rule; ip route show table all");

    let added = world.call("ADD", &[], CONFIG);

    let expected =
        include_str!("../golden/result-0.4.0.json").replace("/var/run/netns/cni-1", "/run/netns/pod");
    assert_eq!(added.success().stdout, expected.trim_end());
    assert!(world.output("ip rule").contains("from 10.0.1.31 lookup 2"));
    assert!(world.output("ip netns exec pod ip address show eth0").contains("inet 10.0.1.31/32"));

    let with_previous = config("0.4.0", &format!(r#","prevResult":{}"#, added.stdout));
    world.call("CHECK", &[], &with_previous).success();
    world.output("ip rule del from 10.0.1.31");
    let (code, message) = world.call("CHECK", &[], &with_previous).error();
    assert_eq!(code, 110, "{message}");
    assert!(message.contains("10.0.1.31"), "{message}");

    assert_eq!(world.call("DEL", &[], &with_previous).success().stdout, "");
    world.output("ip netns del pod; while ip link show enicc21c2d7785 2>/dev/null; do :; done");
    assert_eq!(world.output("ip rule; ip route show table all"), before);
    assert_eq!(fake.seen(), ["ADD abc \"\" deadline=true", "DEL abc PodDeleted"]);
}

#[test]
fn results_are_in_the_version_that_was_asked_for() {
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let Some(mut world) = World::new() else { return };
        world.serve(&Fake::giving("10.0.1.31", 1, 2));

        let outcome = world.call("ADD", &[], &config(version, ""));

        let result: serde_json::Value = serde_json::from_str(&outcome.success().stdout).unwrap();
        assert_eq!(result["cniVersion"], version);
        world.call("DEL", &[], &config(version, &format!(r#","prevResult":{result}"#))).success();
    }
}

#[test]
fn a_failed_wiring_hands_the_address_back() {
    let Some(mut world) = World::new() else { return };
    let fake = Fake::giving("10.0.1.31", 1, 2);
    world.serve(&fake);
    world.output("ip -n pod link add eth0 type veth peer name other");

    let (code, message) = world.call("ADD", &[], CONFIG).error();

    assert_eq!(code, 999);
    let begins = "add command: failed to setup network: SetupPodNetwork: failed to setup veth pair: \
                  failed to setup veth network: file exists";
    assert!(message.starts_with(begins), "{message}");
    assert_eq!(fake.seen().last().unwrap(), "DEL abc SetupNSFailed");
    assert!(!world.output("ip rule").contains("10.0.1.31"));
}

#[test]
fn a_missing_namespace_costs_no_address() {
    let Some(mut world) = World::new() else { return };
    let fake = Fake::giving("10.0.1.31", 1, 2);
    world.serve(&fake);

    let (_, message) = world.call("ADD", &[("CNI_NETNS", "/run/netns/gone")], CONFIG).error();

    let end = "failed to Statfs \"/run/netns/gone\": no such file or directory";
    assert!(message.ends_with(end), "{message}");
    assert_eq!(world.call("ADD", &[("CNI_NETNS", "/proc/self/ns/net")], CONFIG).error().0, 8);
    assert!(fake.seen().is_empty());
}

#[test]
fn a_refusal_reaches_the_runtime_with_its_reason() {
    for (reason, code) in [
        (RefusalReason::NodeFull, 11),
        (RefusalReason::Throttled, 11),
        (RefusalReason::PermissionDenied, 100),
        (RefusalReason::ProvisioningOff, 101),
        (RefusalReason::BadRequest, 102),
    ] {
        let Some(mut world) = World::new() else { return };
        world.serve(&refusing(reason, "29 of 29 addresses are assigned"));

        let error = world.call("ADD", &[], CONFIG).error();

        let message = format!(
            "add cmd: failed to assign an IP address to container: {}: 29 of 29 addresses are assigned; \
             asking again makes sense in 1.5 s",
            reason.as_str_name()
        );
        assert_eq!(error, (code, message));
    }
}

#[test]
fn a_refusal_of_the_reference_has_no_reason() {
    let Some(mut world) = World::new() else { return };
    let add = Arc::new(|_: &_| Ok(AddNetworkReply::default()));
    world.serve(&Fake { add, ..Fake::giving("10.0.1.31", 1, 2) });

    let message = "add cmd: failed to assign an IP address to container".to_owned();
    assert_eq!(world.call("ADD", &[], CONFIG).error(), (11, message));
}

#[test]
fn an_answer_that_makes_no_sense_is_handed_back() {
    for (address, vlan, code) in [("nonsense", 0, 103), ("", 0, 103), ("10.0.1.31", 7, 102)] {
        let Some(mut world) = World::new() else { return };
        let fake = Fake::giving(address, 1, 2);
        let inner = Arc::clone(&fake.add);
        let add = Arc::new(move |request: &_| {
            inner(request).map(|reply| AddNetworkReply { pod_vlan_id: vlan, ..reply })
        });
        let fake = Fake { add, ..fake };
        world.serve(&fake);

        assert_eq!(world.call("ADD", &[], CONFIG).error().0, code);
        assert_eq!(fake.seen().last().unwrap(), "DEL abc SetupNSFailed");
    }
}

#[test]
fn the_version_that_a_daemon_demands_is_sent_to_it() {
    let Some(mut world) = World::new() else { return };
    let fake = Fake::giving("10.0.1.31", 1, 2);
    let inner = Arc::clone(&fake.add);
    let add =
        Arc::new(move |request: &proto::rpc::AddNetworkRequest| match request.client_version.as_str() {
            "v9" => inner(request),
            other => Err(Status::failed_precondition(format!("wrong client version {other:?} (!= \"v9\")"))),
        });
    let fake = Fake { add, ..fake };
    world.serve(&fake);

    world.call("ADD", &[], CONFIG).success();

    assert_eq!(fake.seen(), ["ADD abc \"\" deadline=true", "ADD abc \"v9\" deadline=true"]);
}

#[test]
fn an_absent_daemon_is_waited_for_and_then_reported() {
    let Some(world) = World::new() else { return };

    let outcome = world.call("ADD", &[], CONFIG);

    let message = "add cmd: Error received from AddNetwork gRPC call: rpc error: code = Unavailable desc = \
                   connection error: desc = \"transport: Error while dialing: dial unix \
                   /var/run/aws-node/ipamd.sock: connect: no such file or directory\"";
    assert_eq!(outcome.error(), (11, message.to_owned()));
    assert!(outcome.took > Duration::from_secs(8) && outcome.took < Duration::from_secs(30));
}

#[test]
fn a_daemon_that_dies_mid_call_or_is_not_ready_is_asked_again() {
    let Some(mut world) = World::new() else { return };
    let listener = world.listen();
    let socket = world.path("ipamd.sock");
    let dies = thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        let _ = connection.read(&mut [0; 100]);
        std::fs::remove_file(socket).unwrap();
    });
    let fake = Fake::giving("10.0.1.31", 1, 2);
    let inner = Arc::clone(&fake.add);
    let attempts = AtomicUsize::new(0);
    let not_ready = refusing(RefusalReason::NotReady, "starting").add;
    let add = Arc::new(move |request: &_| match attempts.fetch_add(1, Ordering::Relaxed) {
        0 => not_ready(request),
        _ => inner(request),
    });

    let outcome = thread::scope(|scope| {
        let world = &mut world;
        let (send, receive) = std::sync::mpsc::channel();
        // The restarted daemon listens once the first one is gone.
        scope.spawn(move || {
            dies.join().unwrap();
            send.send(()).unwrap();
        });
        let keeper: &World = world;
        let call = scope.spawn(move || keeper.call("ADD", &[], CONFIG));
        receive.recv().unwrap();
        let runtime = world::start(&world.path("ipamd.sock"), &Fake { add, ..fake });
        let outcome = call.join().unwrap();
        runtime.shutdown_background();
        outcome
    });

    outcome.success();
}

#[test]
fn a_del_without_a_daemon_removes_what_the_result_names_and_leaves_word() {
    let Some(mut world) = World::new() else { return };
    let fake = Fake::giving("10.0.1.31", 1, 2);
    world.serve(&fake);
    let added = world.call("ADD", &[], CONFIG);
    let with_previous = config("0.4.0", &format!(r#","prevResult":{}"#, added.success().stdout));
    std::fs::remove_file(world.path("ipamd.sock")).unwrap();

    world.call("DEL", &[], &with_previous).success();

    assert!(!world.output("ip rule").contains("10.0.1.31"));
    let entries = spooled(&world);
    assert_eq!(entries.len(), 1);
    assert_eq!((entries[0].container_id.as_str(), entries[0].pod_name.as_str()), ("abc", "sample-pod"));
    assert_eq!(entries[0].addresses, ["10.0.1.31".parse::<std::net::IpAddr>().unwrap()]);
}

#[test]
fn a_repeated_del_spares_the_pod_that_has_the_address_now() {
    let Some(mut world) = World::new() else { return };
    let fake = Fake::giving("10.0.1.31", 1, 2);
    let unknown = Status::unknown("1 error occurred:\n\t* datastore: unknown pod\n\n");
    world.serve(&Fake { del: Arc::new(move |_| Err(unknown.clone())), ..fake });
    let added = world.call("ADD", &[], CONFIG);
    let with_previous = config("0.4.0", &format!(r#","prevResult":{}"#, added.success().stdout));

    // The same pod name in a sandbox that is gone, then another pod's old result.
    world.call("DEL", &[("CNI_NETNS", "/run/netns/gone")], &with_previous).success();
    world.call("DEL", &[("CNI_NETNS", "")], &with_previous).success();
    assert!(world.output("ip rule").contains("from 10.0.1.31 lookup 2"));

    world.call("DEL", &[], &with_previous).success();
    assert!(!world.output("ip rule").contains("10.0.1.31"));
    assert!(spooled(&world).is_empty());
}

#[test]
fn a_hung_daemon_keeps_a_del_for_five_seconds() {
    let Some(world) = World::new() else { return };
    let _listener = world.listen();

    let outcome = world.call("DEL", &[], CONFIG);

    outcome.success();
    assert!(outcome.took < Duration::from_secs(20), "{:?}", outcome.took);
    assert_eq!(spooled(&world).len(), 1);
}

#[test]
fn a_daemon_that_speaks_another_language_fails_no_del() {
    let Some(world) = World::new() else { return };
    let listener = world.listen();
    let server = thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        let _ = connection.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });

    world.call("DEL", &[], CONFIG).success();

    server.join().unwrap();
    assert_eq!(spooled(&world).len(), 1);
}

#[test]
fn an_error_of_the_daemon_fails_an_add_and_no_del() {
    let Some(mut world) = World::new() else { return };
    world.serve(&answering(|| Status::internal("disk on fire")));

    let message =
        "add cmd: Error received from AddNetwork gRPC call: rpc error: code = Internal desc = disk on fire";
    assert_eq!(world.call("ADD", &[], CONFIG).error(), (999, message.to_owned()));
    world.call("DEL", &[], CONFIG).success();
}

#[test]
fn an_absent_policy_agent_fails_an_add_and_no_del() {
    let Some(mut world) = World::new() else { return };
    let fake = Fake::giving("10.0.1.31", 1, 2);
    let (add, del) = (Arc::clone(&fake.add), Arc::clone(&fake.del));
    let mode = "standard";
    world.serve(&Fake {
        add: Arc::new(move |request| {
            add(request).map(|reply| AddNetworkReply { network_policy_mode: mode.to_owned(), ..reply })
        }),
        del: Arc::new(move |request| {
            del(request)
                .map(|reply| proto::rpc::DelNetworkReply { network_policy_mode: mode.to_owned(), ..reply })
        }),
        ..fake
    });

    let (code, message) = world.call("ADD", &[], CONFIG).error();

    assert_eq!(code, 999);
    assert!(message.starts_with("add cmd: failed to setup network policy"), "{message}");
    assert!(world.output("ip rule").contains("10.0.1.31"), "the wiring stays for the DEL");
    world.call("DEL", &[], CONFIG).success();
    assert!(!world.output("ip rule").contains("10.0.1.31"));
}

#[test]
fn status_says_whether_an_add_could_be_served() {
    let newest = config("1.1.0", "");
    let Some(world) = World::new() else { return };
    assert_eq!(world.call("STATUS", &[], &newest).error().0, 50);
    for (ready, code) in [(true, 0), (false, 1)] {
        let Some(mut world) = World::new() else { return };
        let node = Some(ReadinessReply { ready, message: "no ENI yet".to_owned() });
        world.serve(&Fake { node, ..Fake::giving("10.0.1.31", 1, 2) });

        let outcome = world.call("STATUS", &[], &newest);

        assert_eq!(outcome.code, code, "{}", outcome.stdout);
        if !ready {
            assert_eq!(outcome.error().0, 50);
            assert!(outcome.error().1.ends_with("no ENI yet"));
        }
    }
}

#[test]
fn gc_tells_the_daemon_what_stays_or_else_removes_rules_that_lead_nowhere() {
    let newest = config("1.1.0", r#","cni.dev/valid-attachments":[{"containerID":"abc","ifname":"eth0"}]"#);
    let Some(mut world) = World::new() else { return };
    let fake = Fake { node: Some(ReadinessReply::default()), ..Fake::giving("10.0.1.31", 1, 2) };
    world.serve(&fake);
    world.call("GC", &[], &newest).success();
    assert_eq!(fake.seen(), ["GC of all but 1"]);

    let Some(mut world) = World::new() else { return };
    world.serve(&Fake::giving("10.0.1.31", 1, 2));
    world.call("ADD", &[], CONFIG).success();
    world.output(
        "ip rule add to 10.0.1.99 lookup main pref 512; ip rule add from 10.0.1.99 lookup 2 pref 1536",
    );
    world.call("GC", &[], &newest).success();
    let rules = world.output("ip rule");
    assert!(!rules.contains("10.0.1.99"), "{rules}");
    assert!(rules.contains("from 10.0.1.31 lookup 2"), "{rules}");
}

#[test]
fn a_call_leaves_one_line_in_the_log_and_needs_no_log() {
    let Some(mut world) = World::new() else { return };
    world.serve(&Fake::giving("10.0.1.31", 1, 2));
    let log = world.path("plugin.log");

    let logged = config("0.4.0", &format!(r#","pluginLogFile":"{}""#, log.display()));
    world.call("ADD", &[], &logged).success();
    world.call("DEL", &[], &config("0.4.0", r#","pluginLogFile":"/nowhere/plugin.log""#)).success();

    let text = std::fs::read_to_string(log).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&line["level"], &line["pod"], &line["address"]),
        (&"info".into(), &"default/sample-pod".into(), &"10.0.1.31".into())
    );
}

/// Run by hand: `cargo test --release -p cni-plugin --test process -- --ignored --nocapture`.
#[test]
#[ignore = "prints how long calls take"]
fn calls_are_fast() {
    let Some(mut world) = World::new() else { return };
    world.serve(&Fake::giving("10.0.1.31", 1, 2));
    let log = world.path("plugin.log");
    let config = config("0.4.0", &format!(r#","pluginLogFile":"{}""#, log.display()));
    for _ in 0..100 {
        world.call("ADD", &[], &config).success();
        world.call("DEL", &[], &config).success();
        world.output("ip -n pod link del eth0");
    }

    let mut times = [Vec::new(), Vec::new()];
    for line in std::fs::read_to_string(log).unwrap().lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        times[usize::from(line["verb"] == "DEL")].push(line["durationMs"].as_f64().unwrap());
    }
    for (verb, mut times) in ["ADD", "DEL"].into_iter().zip(times) {
        times.sort_by(f64::total_cmp);
        eprintln!("{verb}: p50 {:.2} ms, p90 {:.2} ms, in the process", times[50], times[90]);
    }
}
