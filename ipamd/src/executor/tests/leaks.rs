//! ENIs that somebody left behind, and which of them are ours to delete.

use super::*;

/// Unattached, made for another instance of this cluster, and old unless `created_at` says otherwise.
fn left_behind(id: &str, mac: u8, created_at: &str) -> EniRecord {
    EniRecord {
        description: eni_description(&"i-gone".parse().unwrap()),
        tags: Tags::from([
            (INSTANCE_TAG.to_owned(), "i-gone".to_owned()),
            (ec2::CLUSTER_TAG.to_owned(), "blue".to_owned()),
            (ec2::CREATED_AT_TAG.to_owned(), created_at.to_owned()),
        ]),
        ..record(id, mac, None)
    }
}

const LONG_AGO: &str = "2026-01-01T00:00:00Z";

fn retagged(record: EniRecord, key: &str, value: Option<&str>) -> EniRecord {
    let mut tags = record.tags;
    tags.remove(key);
    tags.extend(value.map(|value| (key.to_owned(), value.to_owned())));
    EniRecord { tags, ..record }
}

#[tokio::test(start_paused = true)]
async fn what_nodes_of_this_cluster_left_behind_is_deleted_and_nothing_else() {
    let world = World::new();
    world.ec2.put(left_behind("eni-gone", 30, LONG_AGO));
    world.ec2.put(left_behind("eni-young", 31, &jiff::Timestamp::now().to_string()));
    world.ec2.put(left_behind("eni-odd", 32, "yesterday"));
    world.ec2.put(retagged(left_behind("eni-unstamped", 33, ""), ec2::CREATED_AT_TAG, None));
    world.ec2.put(retagged(left_behind("eni-green", 34, LONG_AGO), ec2::CLUSTER_TAG, Some("green")));
    world.ec2.put(retagged(left_behind("eni-nobodys", 35, LONG_AGO), ec2::CLUSTER_TAG, None));
    let foreign =
        EniRecord { description: "a load balancer".to_owned(), ..left_behind("eni-lb", 36, LONG_AGO) };
    world.ec2.put(foreign);
    world.ec2.put(EniRecord { ..ours("eni-2", 20, Some(SLOT)) });

    world.executor().delete_leaked_enis().await;

    let kept = ["eni-2", "eni-green", "eni-lb", "eni-nobodys", "eni-odd", "eni-unstamped", "eni-young"];
    assert_eq!(world.secondary_ids(), kept);
    let stamped: Vec<_> =
        world.ec2.enis().into_iter().filter(|it| it.id.as_str() == "eni-unstamped").collect();
    assert!(stamped[0].tags[ec2::CREATED_AT_TAG].ends_with('Z'), "{:?}", stamped[0].tags);
    let calls = world.ec2.calls();
    assert_eq!(
        calls,
        ["DescribeNetworkInterfaces", "CreateTags", "DescribeNetworkInterfaces", "DeleteNetworkInterface"]
    );
}

#[tokio::test(start_paused = true)]
async fn an_eni_that_is_attached_while_it_is_watched_is_kept() {
    let world = World::new();
    world.ec2.put(left_behind("eni-late", 30, LONG_AGO));
    let executor = Arc::new(world.executor());
    let cleaning = tokio::spawn({
        let executor = Arc::clone(&executor);
        async move { executor.delete_leaked_enis().await }
    });
    tokio::time::sleep(Duration::from_secs(10)).await;
    let attached = record("eni-late", 30, Some(SLOT)).attachment;
    world.ec2.put(EniRecord { attachment: attached, ..left_behind("eni-late", 30, LONG_AGO) });

    cleaning.await.unwrap();

    assert_eq!(world.secondary_ids(), ["eni-late"]);
}

#[tokio::test(start_paused = true)]
async fn without_a_cluster_name_only_what_was_made_for_this_instance_is_deleted() {
    let world = World::new();
    world.ec2.put(retagged(left_behind("eni-gone", 30, LONG_AGO), ec2::CLUSTER_TAG, None));
    let own = retagged(ours("eni-own", 31, None), ec2::CREATED_AT_TAG, Some(LONG_AGO));
    world.ec2.put(retagged(own.clone(), ec2::CLUSTER_TAG, None));
    world.ec2.put(EniRecord { id: "eni-xblue".parse().unwrap(), ..own });

    let options = ExecutorOptions { cluster_name: None, ..world.options() };
    world.executor_with(options).delete_leaked_enis().await;

    assert_eq!(world.secondary_ids(), ["eni-gone", "eni-xblue"]);
}

#[tokio::test(start_paused = true)]
async fn nobody_cleans_where_changes_or_cleaning_are_switched_off() {
    let world = World::new();
    world.ec2.put(left_behind("eni-gone", 30, LONG_AGO));
    for options in [
        ExecutorOptions { cleans_leaked_enis: false, ..world.options() },
        ExecutorOptions { access: Ec2Access::Reads, ..world.options() },
        ExecutorOptions { access: Ec2Access::Nothing, ..world.options() },
    ] {
        world.executor_with(options).delete_leaked_enis().await;
    }

    assert!(world.ec2.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_eni_that_ec2_would_not_delete_is_deleted_later_and_then_costs_no_more_calls() {
    let world = World::new();
    world.ec2.fail(Action::AttachNetworkInterface, Fault::Refuse(Class::AttachmentLimit));
    for _ in 0..5 {
        world.ec2.fail(Action::DeleteNetworkInterface, Fault::Refuse(Class::Unavailable));
    }
    let executor = world.executor();
    failure(run(&executor, allocate()).await);
    assert_eq!((world.secondary_ids().len(), world.intents().len()), (1, 1));

    tokio::time::advance(EC2_SETTLES).await;
    executor.clear_leftovers().await;

    assert_eq!((world.secondary_ids().len(), world.intents().len()), (0, 0));
    world.ec2.calls();
    executor.clear_leftovers().await;
    assert!(world.ec2.calls().is_empty());
}
