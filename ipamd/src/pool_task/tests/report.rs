//! What the task tells of itself.

use super::*;
use crate::pool::{AddressReport, AddressState, Block};
use crate::report::{Cause, Fault, Report};

async fn report(world: &World) -> Report {
    world.pool.report().await.unwrap()
}

#[tokio::test]
async fn who_has_an_address_and_who_waits_is_told() {
    let mut world = World::new(1, true);
    let assignment = world.added("has").await;
    let waits = world.add("waits");
    let (_, _end) = world.steps.recv().await.unwrap();
    world.until(|stats| stats.waiting == 1).await;

    let told = report(&world).await;

    let AddressState::Assigned(held) = &told.pool.enis[0].addresses[0].state else { panic!("{told:?}") };
    assert_eq!((held.pod.name.as_str(), held.address), ("has", assignment.address));
    assert_eq!(told.waiting.iter().map(|wait| wait.pod.name.as_str()).collect::<Vec<_>>(), ["waits"]);
    assert_eq!(told.steps.len(), 1);
    assert!(told.steps[0].since.is_some_and(|since| since <= told.at.instant()));
    waits.abort();
}

#[tokio::test]
async fn who_has_an_answer_waits_no_longer() {
    let mut world = World::new(0, true);
    let add = world.add("a");
    let (_, end) = world.steps.recv().await.unwrap();
    end.send(Outcome::Assigned(vec![Block::Ip(Ipv4Addr::new(10, 0, 1, 50))])).unwrap();
    world.write_begins().await;
    world.end_write(true);
    add.await.unwrap().unwrap();

    assert!(report(&world).await.waiting.is_empty());
}

#[tokio::test]
async fn a_refused_pod_is_remembered_with_its_reason() {
    let mut world = World::new(1, false);
    world.added("first").await;
    for _ in 0..2 {
        assert!(world.add("second").await.unwrap().is_err());
    }
    world.pool.not_served(key("odd"), PodName::new("default", "odd"), "not here".to_owned()).await;

    let told = report(&world).await.refusals;

    let told: Vec<_> = told.iter().map(|it| (it.pod.name.as_str(), it.cause, it.times)).collect();
    let off = Cause::Pool(Reason::ProvisioningOff);
    assert_eq!(told, [("second", off, 2), ("odd", Cause::Request, 1)]);
}

#[tokio::test]
async fn a_released_address_is_remembered_and_so_is_a_write_that_failed() {
    let mut world = World::new(2, false);
    let first = world.added("first").await;
    let second = world.added("second").await;
    for (pod, is_durable) in [("first", true), ("second", false)] {
        let del = world.del(pod);
        world.write_begins().await;
        world.end_write(is_durable);
        assert!(del.await.unwrap().is_ok());
    }

    let told = report(&world).await;

    let released: Vec<_> = told.releases.iter().map(|it| it.allocation.address).collect();
    assert_eq!(released, [first.address, second.address]);
    let is_cooling = |it: &AddressReport| matches!(it.state, AddressState::Cooling { .. });
    assert!(told.pool.enis[0].addresses.iter().all(is_cooling));
    assert_eq!(told.failures.iter().map(|it| it.class).collect::<Vec<_>>(), [Fault::State]);
}

#[tokio::test]
async fn a_pod_that_is_refused_since_the_disk_fails_is_remembered_by_name() {
    let mut world = World::new(1, false);
    let add = world.add("a");
    world.write_begins().await;
    world.end_write(false);
    assert!(add.await.unwrap().is_err());

    let told = report(&world).await.refusals;

    assert_eq!(told[0].pod, PodName::new("default", "a"));
    assert_eq!(told[0].cause, Cause::Pool(Reason::StateNotDurable));
}

#[tokio::test]
async fn a_failed_step_is_remembered_with_what_it_was_to_do() {
    let mut world = World::new(0, true);
    let add = world.add("a");
    let (step, end) = world.steps.recv().await.unwrap();
    let message = "EC2 denied it".to_owned();
    let failed = StepFailure { class: FailureClass::Denied, message, retry_after: None };
    end.send(Outcome::Failed(failed)).unwrap();
    assert!(matches!(add.await.unwrap(), Err(AddError::Refused(_))));

    let told = report(&world).await;

    let [failure] = &told.failures[..] else { panic!("{:?}", told.failures) };
    assert_eq!(
        (failure.action.as_str(), failure.message.as_str()),
        (step.to_string().as_str(), "EC2 denied it")
    );
    assert_eq!(failure.class, Fault::Step(FailureClass::Denied));
    assert_eq!(told.refusals[0].cause, Cause::Pool(Reason::PermissionDenied));
    assert!(told.steps.is_empty());
}
