//! ENIs that were made for this instance and have no owner.

use super::*;

#[tokio::test]
async fn own_leftovers_are_deleted_after_an_inventory_and_those_of_others_are_not() {
    let world = World::new();
    world.ec2.put(ours("eni-left", 30, None));
    world.ec2.put(EniRecord { description: "somebody's".to_owned(), ..ours("eni-other", 31, None) });
    let mut kept = ours("eni-kept", 32, None);
    kept.tags.insert("node.k8s.amazonaws.com/no_manage".to_owned(), "true".to_owned());
    world.ec2.put(kept);
    let executor = world.executor();
    executor.clear_leftovers().await;
    assert!(world.ec2.calls().is_empty(), "nobody has read EC2");

    executor.read_inventory(Priority::Reconcile).await.unwrap();
    executor.clear_leftovers().await;

    assert_eq!(world.secondary_ids(), ["eni-kept", "eni-other"]);
    world.ec2.calls();
    executor.clear_leftovers().await;
    assert!(world.ec2.calls().is_empty());
}

#[tokio::test]
async fn a_leftover_that_ec2_is_slow_to_delete_holds_up_neither_the_inventory_nor_a_new_eni() {
    let world = World::new();
    world.ec2.put(ours("eni-left", 30, None));
    world.ec2.fail(Action::DeleteNetworkInterface, Fault::DieAfter);
    let executor = Arc::new(world.executor());

    let seen = executor.read_inventory(Priority::Reconcile).await.unwrap();
    let clearing = tokio::spawn({
        let executor = Arc::clone(&executor);
        async move { executor.clear_leftovers().await }
    });
    while !world.ec2.0.lock().unwrap().calls.contains(&"DeleteNetworkInterface") {
        tokio::task::yield_now().await;
    }
    let outcome = run(&executor, allocate()).await;
    let again = run(&executor, Step::ReadInventory).await;

    assert_eq!(seen.len(), 1);
    assert!(matches!(outcome, Outcome::EniAllocated(_)), "{outcome:?}");
    assert!(matches!(&again, Outcome::Inventory(enis) if enis.len() == 2), "{again:?}");
    assert!(!clearing.is_finished());
    clearing.abort();
}

#[tokio::test(start_paused = true)]
async fn an_eni_found_on_its_way_out_is_no_longer_ours_to_use_and_is_deleted() {
    let world = World::new();
    let mut leaving = ours("eni-2", 20, Some(SLOT));
    leaving.attachment.as_mut().unwrap().status = ec2::AttachmentStatus::Detaching;
    world.ec2.put(leaving.clone());
    let executor = world.executor();

    let seen = executor.read_inventory(Priority::Reconcile).await.unwrap();
    world.ec2.put(EniRecord { attachment: None, ..leaving });
    tokio::time::sleep(Duration::from_secs(10)).await;

    assert_eq!(seen.iter().map(|eni| eni.id.as_str()).collect::<Vec<_>>(), ["eni-primary"]);
    assert_eq!(world.secondary_ids(), Vec::<String>::new());
}

#[tokio::test]
async fn an_eni_whose_creation_nobody_confirmed_is_remembered_and_deleted_after_the_next_inventory() {
    let world = World::new();
    world.ec2.fail(Action::CreateNetworkInterface, Fault::LoseAnswer);
    let executor = world.executor();

    let failed = failure(run(&executor, allocate()).await);

    assert_eq!(failed.class, FailureClass::AnswerLost);
    assert_eq!((world.secondary_ids().len(), world.intents().len()), (1, 1));
    let outcome = run(&executor, Step::ReadInventory).await;
    assert!(matches!(&outcome, Outcome::Inventory(enis) if enis.len() == 1), "{outcome:?}");
    executor.clear_leftovers().await;
    assert!(world.secondary_ids().is_empty());
    assert_eq!(world.intents().len(), 1, "EC2 may yet make another");
}
