//! Tags and security groups: only where they differ, and again after a failure.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_repair_that_failed_is_tried_again_later_and_not_at_every_look() {
    let world = World::new();
    let executor = world.executor();
    executor.read_inventory(Priority::Reconcile).await.unwrap();
    world.ec2.calls();
    world.ec2.fail(Action::CreateTags, Fault::Refuse(Class::Invalid));

    executor.put_right().await;
    executor.put_right().await;
    assert_eq!(world.ec2.calls(), ["CreateTags"]);

    tokio::time::sleep(Duration::from_secs(31)).await;
    executor.put_right().await;
    executor.put_right().await;
    assert_eq!(world.ec2.calls(), ["CreateTags"]);
    assert_eq!(world.ec2.enis()[0].tags[INSTANCE_TAG], "i-1");
}

#[tokio::test(start_paused = true)]
async fn security_groups_go_only_to_enis_that_we_made() {
    let world = World::new();
    world.ec2.put(ours("eni-2", 20, Some(SLOT)));
    world
        .ec2
        .put(EniRecord { description: "by hand".to_owned(), ..ours("eni-3", 21, Some(EniSlot::new(0, 2))) });
    world.ec2.put(EniRecord { kind: EniKind::Trunk, ..ours("eni-4", 22, Some(EniSlot::new(0, 3))) });
    let executor = world.executor();
    executor.read_inventory(Priority::Reconcile).await.unwrap();
    executor.put_right().await;
    let groups = vec!["sg-9".parse().unwrap()];
    executor.network.write().unwrap().security_groups.clone_from(&groups);

    executor.follow_security_groups().await;

    let followers: Vec<_> = world.ec2.enis().into_iter().filter(|it| it.security_groups == groups).collect();
    assert_eq!(followers.iter().map(|it| it.id.as_str()).collect::<Vec<_>>(), ["eni-2"]);
}

#[tokio::test(start_paused = true)]
async fn with_custom_networking_enis_keep_the_security_groups_that_they_were_made_with() {
    let world = World::new();
    let own = vec!["sg-pods".parse().unwrap()];
    world.ec2.put(EniRecord { security_groups: own.clone(), ..ours("eni-2", 20, Some(SLOT)) });
    let executor = world.executor_with(ExecutorOptions { is_custom: true, ..world.options() });
    executor.read_inventory(Priority::Reconcile).await.unwrap();

    executor.put_right().await;
    executor.network.write().unwrap().security_groups = vec!["sg-9".parse().unwrap()];
    executor.follow_security_groups().await;

    let kept = world.ec2.enis().into_iter().find(|record| record.id.as_str() == "eni-2").unwrap();
    assert_eq!(kept.security_groups, own);
}

#[tokio::test(start_paused = true)]
async fn a_trunk_is_never_tagged_and_nothing_is_where_changes_are_off() {
    let world = World::new();
    world.ec2.put(EniRecord { kind: EniKind::Trunk, ..record("eni-4", 22, Some(EniSlot::new(0, 3))) });

    for access in [Ec2Access::Reads, Ec2Access::Changes] {
        let executor = world.executor_with(ExecutorOptions { access, ..world.options() });
        executor.read_inventory(Priority::Reconcile).await.unwrap();
        executor.put_right().await;
    }

    let tagged: Vec<_> = world.ec2.enis().into_iter().filter(|it| !it.tags.is_empty()).collect();
    assert_eq!(tagged.iter().map(|it| it.id.as_str()).collect::<Vec<_>>(), ["eni-primary"]);
}

#[tokio::test(start_paused = true)]
async fn those_who_ask_for_the_inventory_together_share_a_read() {
    let world = World::new();
    let executor = world.executor();
    let making = executor.making.read().await;
    let reads = futures::future::join_all((0..8).map(|_| executor.read_inventory(Priority::Reconcile)));

    let (seen, ()) = tokio::join!(reads, async {
        tokio::task::yield_now().await;
        drop(making);
    });

    assert!(seen.iter().all(|enis| enis.as_ref().unwrap().len() == 1));
    // The first has one to itself, and all who came during it share the next.
    assert_eq!(world.ec2.calls().len(), 2);
}
