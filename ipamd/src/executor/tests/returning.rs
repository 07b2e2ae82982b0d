//! What goes back to EC2: only what is still ours, and never without a record.

use super::*;
use crate::pool::Returning;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 77);

fn eni_2() -> EniId {
    "eni-2".parse().unwrap()
}

/// A node with an idle ENI, and a process that knows it.
async fn idle() -> (World, Arc<Executor<FakeEc2>>) {
    let world = World::new();
    world.ec2.put(EniRecord { secondary_ips: vec![ADDRESS], ..ours("eni-2", 20, Some(SLOT)) });
    let executor = Arc::new(world.executor());
    executor.read_inventory(Priority::Reconcile).await.unwrap();
    world.ec2.calls();
    (world, executor)
}

fn unassign() -> Step {
    Step::Unassign { eni: eni_2(), blocks: vec![Block::Ip(ADDRESS)] }
}

fn free() -> Step {
    Step::FreeEni { eni: eni_2() }
}

/// What the next process would know to be on its way back.
fn recorded(world: &World) -> Vec<Option<Vec<Block>>> {
    let returning = world.sidecar().1.returning;
    assert!(returning.iter().all(|it: &Returning| it.eni == eni_2()));
    returning.into_iter().map(|it| it.blocks).collect()
}

#[tokio::test]
async fn an_eni_in_other_hands_by_now_is_neither_detached_nor_deleted() {
    type Edit = fn(&mut EniRecord);
    let edits: [(&str, Edit); 3] = [
        ("its tags", |record| {
            record.tags.insert("node.k8s.amazonaws.com/no_manage".to_owned(), "true".to_owned());
        }),
        ("attached to i-9", |record| {
            record.attachment.as_mut().unwrap().instance = "i-9".parse().unwrap();
        }),
        ("detached", |record| {
            record.attachment = None;
            record.description = "somebody's".to_owned();
        }),
    ];
    for (why, edit) in edits {
        let (world, executor) = idle().await;
        let mut record = world.ec2.enis().into_iter().find(|record| record.id == eni_2()).unwrap();
        edit(&mut record);
        world.ec2.put(record.clone());

        let failed = failure(run(&executor, free()).await);

        // The pool then looks at what there is.
        assert_eq!(failed.class, FailureClass::NotFound, "{why}");
        assert!(failed.message.contains(why), "{}", failed.message);
        assert_eq!(world.ec2.calls(), ["DescribeNetworkInterfaces"], "{why}");
        assert!(world.ec2.enis().contains(&record), "{why}");
        assert!(world.host.log.lock().unwrap().is_empty(), "{why}");
        assert_eq!(recorded(&world), [], "{why}");
    }
}

#[tokio::test]
async fn what_a_killed_process_asked_ec2_to_take_back_is_known_to_the_next() {
    for (action, step, expected) in [
        (Action::UnassignPrivateIpAddresses, unassign(), Some(vec![Block::Ip(ADDRESS)])),
        (Action::DetachNetworkInterface, free(), None),
    ] {
        let (world, executor) = idle().await;
        world.ec2.fail(action, Fault::DieAfter);
        let dying = tokio::spawn(async move { run(&executor, step).await });
        while !world.ec2.0.lock().unwrap().calls.contains(&action.name()) {
            tokio::task::yield_now().await;
        }
        dying.abort();

        assert_eq!(recorded(&world), [expected], "{action}");
    }
}

#[tokio::test]
async fn what_ec2_has_answered_is_no_longer_on_its_way_and_what_it_has_not_is() {
    for (fault, step, expected) in [
        (None, unassign(), 0),
        (Some((Action::UnassignPrivateIpAddresses, Fault::Refuse(Class::Throttled))), unassign(), 0),
        (Some((Action::UnassignPrivateIpAddresses, Fault::LoseAnswer)), unassign(), 1),
        (None, free(), 0),
        (Some((Action::DetachNetworkInterface, Fault::LoseAnswer)), free(), 1),
    ] {
        let (world, executor) = idle().await;
        let name = format!("{fault:?} {step}");
        if let Some((action, Fault::Refuse(class))) = &fault {
            for _ in 0..20 {
                world.ec2.fail(*action, Fault::Refuse(class.clone()));
            }
        } else if let Some((action, fault)) = fault {
            world.ec2.fail(action, fault);
        }
        tokio::time::pause();
        run(&executor, step).await;
        tokio::time::resume();

        executor.forget("whatever is written next").await;
        executor.record("token", None).await.unwrap();
        let sidecar = Arc::clone(&executor.sidecar);
        sidecar.record_pool(&[(ADDRESS.into(), Instant::now())], &[], Moment::now()).unwrap();

        assert_eq!(recorded(&world).len(), expected, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_kernel_is_asked_when_a_request_has_its_turn_and_not_when_it_is_made() {
    for (action, step) in
        [(Action::UnassignPrivateIpAddresses, unassign()), (Action::DetachNetworkInterface, free())]
    {
        let (world, executor) = idle().await;
        world.ec2.fail(action, Fault::Refuse(Class::Throttled));
        let returning = tokio::spawn(async move { run(&executor, step).await });
        while !world.ec2.0.lock().unwrap().calls.contains(&action.name()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }

        let routes = BTreeMap::from([(ADDRESS.into(), "eni123".to_owned())]);
        *world.host.evidence.lock().unwrap() = Evidence { routes, ..Evidence::default() };

        assert_eq!(returning.await.unwrap(), Outcome::InUse(vec![ADDRESS.into()]), "{action}");
        assert_eq!(world.ec2.calls().iter().filter(|call| **call == action.name()).count(), 1);
        assert!(world.ec2.enis().iter().any(|record| record.secondary_ips == [ADDRESS]), "{action}");
    }
}

#[tokio::test]
async fn nothing_goes_back_that_cannot_be_recorded() {
    let (world, executor) = idle().await;
    std::fs::remove_dir_all(world.directory.path()).unwrap();

    for step in [unassign(), free()] {
        let failed = failure(run(&executor, step).await);

        assert_eq!(failed.class, FailureClass::NotDurable);
        assert!(failed.message.contains("eni-2"), "{}", failed.message);
    }

    assert_eq!(world.ec2.calls(), ["DescribeNetworkInterfaces"]);
    assert!(world.host.log.lock().unwrap().is_empty());
}
