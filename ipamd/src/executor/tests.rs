//! Steps against an EC2 that fails at chosen points, and a process that dies there.

mod fake_ec2;
mod fake_imds;
mod leaks;
mod leftovers;
mod managed;
mod metadata;
mod refusals;
mod repairs;
mod returning;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use datapath::evidence::Evidence;
use ec2::{Action, Class, EniRecord, PaceOptions, eni_description};
use vpc::EniSlot;

use super::*;
use crate::clock::Moment;
use crate::host::fake::FakeHost;
use crate::sidecar::{EniIntent, FILE_NAME};
use fake_ec2::{FakeEc2, Fault, record};
use fake_imds::FakeImds;

const SLOT: EniSlot = EniSlot::new(0, 1);

struct World {
    ec2: FakeEc2,
    imds: FakeImds,
    host: FakeHost,
    directory: tempfile::TempDir,
    /// What was asked of EC2, and how urgently.
    asked: Arc<Mutex<Vec<(Action, Priority)>>>,
}

impl World {
    fn new() -> Self {
        let world = Self {
            ec2: FakeEc2::default(),
            imds: FakeImds::default(),
            host: FakeHost::default(),
            directory: tempfile::tempdir().unwrap(),
            asked: Arc::default(),
        };
        world.ec2.put(EniRecord {
            security_groups: vec!["sg-1".parse().unwrap()],
            ..record("eni-primary", 10, Some(EniSlot::PRIMARY))
        });
        world
    }

    /// A process that starts now on this node.
    fn executor(&self) -> Executor<FakeEc2> {
        self.executor_with(self.options())
    }

    fn options(&self) -> ExecutorOptions {
        ExecutorOptions {
            cluster_name: Some("blue".to_owned()),
            additional_eni_tags: Tags::new(),
            manages_untagged_enis: true,
            discovers_subnets: false,
            is_custom: false,
            access: Ec2Access::Changes,
            cleans_leaked_enis: true,
            family: Family::V4,
            card: 0,
            clock: Clock::system(),
            new_token: || uuid::Uuid::new_v4().to_string(),
        }
    }

    fn executor_with(&self, options: ExecutorOptions) -> Executor<FakeEc2> {
        let (sidecar, _) = self.sidecar();
        let groups = vec!["sg-1".parse().unwrap()];
        let network =
            NetworkFacts { vpc_cidrs: Vec::new(), vpc_ipv6_cidrs: Vec::new(), security_groups: groups };
        let asked = Arc::clone(&self.asked);
        let pace = PaceOptions { attempts: 1, ..PaceOptions::default() };
        Executor::new(
            Paced::observed(self.ec2.clone(), pace, move |attempt| {
                asked.lock().unwrap().push((attempt.action, attempt.priority));
            }),
            FactReader::new(self.imds.clone(), Family::V4),
            instance(),
            Arc::new(RwLock::new(network)),
            self.host.handle(),
            Arc::new(sidecar),
            options,
        )
    }

    fn sidecar(&self) -> (Sidecar, crate::sidecar::Remembered) {
        let path = self.directory.path().join(FILE_NAME);
        Sidecar::open(
            Arc::new(crate::durable::RealDisk),
            path,
            "boot",
            Moment::now(),
            Duration::from_secs(30),
        )
    }

    fn intents(&self) -> BTreeMap<String, EniIntent> {
        self.sidecar().1.intents
    }

    fn secondary_ids(&self) -> Vec<String> {
        let enis = self.ec2.enis();
        enis.iter().map(|record| record.id.to_string()).filter(|id| id != "eni-primary").collect()
    }
}

fn instance() -> InstanceFacts {
    InstanceFacts {
        region: "eu-central-1".to_owned(),
        availability_zone: "eu-central-1a".to_owned(),
        instance: "i-1".parse().unwrap(),
        instance_type: "m5.large".to_owned(),
        primary_eni: "eni-primary".parse().unwrap(),
        primary_mac: "02:00:00:00:00:0a".parse().unwrap(),
        subnet: "subnet-1".parse().unwrap(),
        subnet_cidr: "10.0.1.0/24".parse().unwrap(),
        subnet_ipv6_cidr: None,
        vpc: "vpc-1".parse().unwrap(),
        node_ip: Ipv4Addr::new(10, 0, 1, 10),
        node_ipv6: None,
    }
}

fn ours(id: &str, mac: u8, slot: Option<EniSlot>) -> EniRecord {
    EniRecord {
        description: eni_description(&"i-1".parse().unwrap()),
        tags: Tags::from([
            (INSTANCE_TAG.to_owned(), "i-1".to_owned()),
            (ec2::CLUSTER_TAG.to_owned(), "blue".to_owned()),
            ("eks:eni:owner".to_owned(), "amazon-vpc-cni".to_owned()),
        ]),
        security_groups: vec!["sg-1".parse().unwrap()],
        ..record(id, mac, slot)
    }
}

fn allocate() -> Step {
    let subnet = "subnet-1".parse().unwrap();
    Step::AllocateEni { slot: SLOT, subnet, security_groups: None, blocks: Blocks::Ips(3) }
}

async fn run(executor: &Executor<FakeEc2>, step: Step) -> Outcome {
    executor.run(step, Urgency::PodsWait).await
}

fn failure(outcome: Outcome) -> StepFailure {
    match outcome {
        Outcome::Failed(failure) => failure,
        other => panic!("the step did not fail: {other:?}"),
    }
}

#[tokio::test]
async fn a_new_eni_takes_three_calls_and_is_tagged_described_and_tied_to_its_instance() {
    let world = World::new();

    let outcome = run(&world.executor(), allocate()).await;

    let Outcome::EniAllocated(eni) = outcome else { panic!("{outcome:?}") };
    assert_eq!(
        world.ec2.calls(),
        ["CreateNetworkInterface", "AttachNetworkInterface", "ModifyNetworkInterfaceAttribute"]
    );
    assert_eq!((eni.slot, eni.secondary_ips.len(), eni.is_managed), (SLOT, 3, true));
    let made = world.ec2.enis().into_iter().find(|record| record.id == eni.id).unwrap();
    assert!(made.was_made_for(&"i-1".parse().unwrap()));
    assert_eq!(made.tags[ec2::CLUSTER_TAG], "blue");
    assert!(made.tags[ec2::CREATED_AT_TAG].ends_with('Z'), "{:?}", made.tags);
    assert!(made.attachment.unwrap().delete_on_termination);
    assert_eq!(made.security_groups, ["sg-1".parse().unwrap()]);
    assert!(world.intents().is_empty());
}

#[tokio::test]
async fn an_eni_that_cannot_be_attached_is_deleted_and_forgotten() {
    for class in [Class::AttachmentLimit, Class::SlotInUse, Class::Invalid] {
        let world = World::new();
        world.ec2.fail(Action::AttachNetworkInterface, Fault::Refuse(class.clone()));

        failure(run(&world.executor(), allocate()).await);

        assert!(world.secondary_ids().is_empty(), "{class:?}");
        assert!(world.intents().is_empty(), "{class:?}");
    }
}

#[tokio::test]
async fn a_lost_answer_to_attach_is_resolved_by_looking() {
    let world = World::new();
    world.ec2.fail(Action::AttachNetworkInterface, Fault::LoseAnswer);

    let outcome = run(&world.executor(), allocate()).await;

    assert!(matches!(outcome, Outcome::EniAllocated(_)), "{outcome:?}");
    assert!(world.intents().is_empty());
}

#[tokio::test]
async fn wherever_the_process_dies_the_next_one_uses_or_deletes_the_eni() {
    for (action, survives) in [
        (Action::CreateNetworkInterface, false),
        (Action::AttachNetworkInterface, true),
        (Action::ModifyNetworkInterfaceAttribute, true),
    ] {
        let world = World::new();
        world.ec2.fail(action, Fault::DieAfter);
        let executor = Arc::new(world.executor());
        let dying = tokio::spawn({
            let executor = Arc::clone(&executor);
            async move { run(&executor, allocate()).await }
        });
        while !world.ec2.0.lock().unwrap().calls.contains(&action.name()) {
            tokio::task::yield_now().await;
        }
        dying.abort();
        assert!(dying.await.unwrap_err().is_cancelled());
        assert_eq!(world.intents().len(), 1, "{action}");

        let next = world.executor();
        let seen = next.read_inventory(Priority::Reconcile).await.unwrap();
        next.put_right().await;
        next.resolve_intents(&world.intents()).await;

        assert_eq!(seen.len(), 1 + usize::from(survives), "{action}");
        assert_eq!(world.secondary_ids().len(), usize::from(survives), "{action}");
        assert!(world.intents().is_empty(), "{action}");
        let ties: Vec<_> = world
            .ec2
            .enis()
            .into_iter()
            .filter(|record| record.id.as_str() != "eni-primary")
            .map(|record| record.attachment.unwrap().delete_on_termination)
            .collect();
        assert!(ties.iter().all(|is_tied| *is_tied), "{action}");
    }
}

#[tokio::test]
async fn nothing_is_asked_of_ec2_if_the_intent_cannot_be_recorded() {
    let world = World::new();
    let executor = world.executor();
    std::fs::remove_dir_all(world.directory.path()).unwrap();

    let failed = failure(run(&executor, allocate()).await);

    assert_eq!(failed.class, FailureClass::NotDurable);
    assert!(world.ec2.calls().is_empty());
}

#[tokio::test]
async fn an_eni_is_freed_by_detaching_and_deleting_it_until_ec2_lets_it_go() {
    let world = World::new();
    world.ec2.put(ours("eni-2", 20, Some(SLOT)));
    world.ec2.fail(Action::DeleteNetworkInterface, Fault::Refuse(Class::Busy));
    let executor = world.executor();
    executor.read_inventory(Priority::Reconcile).await.unwrap();

    let outcome = run(&executor, Step::FreeEni { eni: "eni-2".parse().unwrap() }).await;

    assert_eq!(outcome, Outcome::EniFreed);
    assert!(world.secondary_ids().is_empty());
    assert_eq!(*world.host.log.lock().unwrap(), ["forget 10.0.1.20"]);
}

#[tokio::test]
async fn what_the_kernel_uses_is_not_returned() {
    let world = World::new();
    let address = Ipv4Addr::new(10, 0, 1, 77);
    world.ec2.put(EniRecord { secondary_ips: vec![address], ..ours("eni-2", 20, Some(SLOT)) });
    *world.host.evidence.lock().unwrap() =
        Evidence { routes: BTreeMap::from([(address.into(), "eni123".to_owned())]), ..Evidence::default() };
    let executor = world.executor();
    executor.read_inventory(Priority::Reconcile).await.unwrap();
    world.ec2.calls();
    let eni: EniId = "eni-2".parse().unwrap();

    let unassigned =
        run(&executor, Step::Unassign { eni: eni.clone(), blocks: vec![Block::Ip(address)] }).await;
    let freed = run(&executor, Step::FreeEni { eni }).await;

    let in_use = Outcome::InUse(vec![address.into()]);
    assert_eq!((unassigned, freed), (in_use.clone(), in_use));
    assert_eq!(world.ec2.calls(), ["DescribeNetworkInterfaces"]);
    assert_eq!(world.secondary_ids(), ["eni-2"]);
}

#[tokio::test]
async fn the_inventory_is_as_urgent_as_those_who_wait_for_it() {
    let world = World::new();
    let executor = world.executor();

    executor.run(Step::ReadInventory, Urgency::Warmth).await;
    executor.run(Step::ReadInventory, Urgency::PodsWait).await;

    let read = Action::DescribeNetworkInterfaces;
    assert_eq!(*world.asked.lock().unwrap(), [(read, Priority::Reconcile), (read, Priority::WaitingPod)]);
}

#[tokio::test]
async fn an_eni_that_is_right_costs_no_call_and_one_that_is_not_is_put_right() {
    let world = World::new();
    let mut right = ours("eni-2", 20, Some(SLOT));
    right.attachment.as_mut().unwrap().delete_on_termination = true;
    world.ec2.put(right);
    let executor = world.executor();
    executor.read_inventory(Priority::Reconcile).await.unwrap();
    world.ec2.calls();

    executor.put_right().await;
    assert_eq!(world.ec2.calls(), ["CreateTags"]);
    executor.put_right().await;
    assert!(world.ec2.calls().is_empty());

    executor.network.write().unwrap().security_groups = vec!["sg-2".parse().unwrap()];
    executor.put_right().await;
    assert_eq!(world.ec2.calls(), ["ModifyNetworkInterfaceAttribute"]);
    let followed = world.ec2.enis().into_iter().find(|record| record.id.as_str() == "eni-2").unwrap();
    assert_eq!(followed.security_groups, ["sg-2".parse().unwrap()]);
}

#[tokio::test]
async fn an_eni_that_the_operator_keeps_from_us_is_seen_but_not_managed() {
    let world = World::new();
    let tags = Tags::from([("node.k8s.amazonaws.com/no_manage".to_owned(), "true".to_owned())]);
    world.ec2.put(EniRecord { tags, ..record("eni-2", 20, Some(SLOT)) });

    let seen = world.executor().read_inventory(Priority::Reconcile).await.unwrap();

    let foreign = seen.iter().find(|eni| eni.id.as_str() == "eni-2").unwrap();
    assert!(!foreign.is_managed);
}

#[tokio::test]
async fn failures_say_what_class_they_are_of_and_what_ec2_said() {
    for (class, expected) in [
        (Class::Throttled, FailureClass::Throttled),
        (Class::Unauthorized { iam_action: "ec2:AssignPrivateIpAddresses".into() }, FailureClass::Denied),
        (Class::Credentials, FailureClass::Credentials),
        (Class::SubnetExhausted, FailureClass::SubnetExhausted),
        (Class::AddressLimit, FailureClass::LimitReached),
        (Class::AnswerLost, FailureClass::AnswerLost),
    ] {
        let world = World::new();
        let executor = world.executor();
        for _ in 0..20 {
            world.ec2.fail(Action::AssignPrivateIpAddresses, Fault::Refuse(class.clone()));
        }

        let at = executor.ec2.at(Priority::WaitingPod).within(Duration::from_millis(100));
        let eni = "eni-primary".parse().unwrap();
        let error = executor.assign(&at, &eni, Blocks::Ips(2)).await.unwrap_err();

        assert_eq!(error.class, expected, "{error}");
        assert!(error.message.starts_with("AssignPrivateIpAddresses"), "{error}");
    }
}
