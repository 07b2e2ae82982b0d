//! Metadata in EC2's place, and as a hint of what others do.

use std::net::Ipv4Addr;

use super::*;

const SECOND: EniSlot = EniSlot::new(0, 2);

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, last)
}

fn shown(id: &str, mac: u8, slot: EniSlot, ips: &[u8]) -> EniRecord {
    EniRecord { secondary_ips: ips.iter().copied().map(ip).collect(), ..record(id, mac, Some(slot)) }
}

fn imds_only(world: &World) -> Executor<FakeEc2> {
    // Subnet discovery is on by default.
    let options = ExecutorOptions { access: Ec2Access::Nothing, discovers_subnets: true, ..world.options() };
    world.executor_with(options)
}

#[tokio::test(start_paused = true)]
async fn in_imds_only_mode_everything_works_and_ec2_is_never_asked() {
    let world = World::new();
    let prefix: vpc::Prefix = "10.0.1.96/28".parse().unwrap();
    let second = EniRecord { prefixes: vec![prefix], ..shown("eni-2", 20, SLOT, &[30, 31]) };
    world.imds.show(&[shown("eni-primary", 10, EniSlot::PRIMARY, &[40]), second]);
    let executor = imds_only(&world);

    let outcome = run(&executor, Step::ReadInventory).await;

    let Outcome::Inventory(enis) = outcome else { panic!("{outcome:?}") };
    let held: Vec<_> =
        enis.iter().map(|eni| (eni.slot, eni.secondary_ips.clone(), eni.prefixes.clone())).collect();
    assert_eq!(
        held,
        [(SLOT, vec![ip(30), ip(31)], vec![prefix]), (EniSlot::PRIMARY, vec![ip(40)], Vec::new())]
    );
    assert!(enis.iter().all(|eni| eni.is_managed));
    assert_eq!(run(&executor, Step::SetUpEni { eni: "eni-2".parse().unwrap() }).await, Outcome::EniSetUp);
    for step in [
        Step::ReadSubnets,
        allocate(),
        Step::Assign { eni: "eni-2".parse().unwrap(), blocks: Blocks::Ips(1) },
        Step::Unassign { eni: "eni-2".parse().unwrap(), blocks: vec![Block::Ip(ip(30))] },
        Step::FreeEni { eni: "eni-2".parse().unwrap() },
    ] {
        let failed = failure(run(&executor, step).await);
        assert!(failed.message.contains("ENABLE_IMDS_ONLY_MODE"), "{}", failed.message);
    }
    executor.put_right().await;
    executor.resolve_intents(&BTreeMap::new()).await;
    executor.delete_leaked_enis().await;
    executor.sees_changes().await;
    assert!(world.ec2.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn in_imds_only_mode_an_address_that_vanishes_between_two_reads_is_not_believed() {
    let world = World::new();
    world.imds.show(&[shown("eni-primary", 10, EniSlot::PRIMARY, &[40, 41])]);
    let executor = Arc::new(imds_only(&world));
    let reading = tokio::spawn({
        let executor = Arc::clone(&executor);
        async move { executor.read_inventory(Priority::Reconcile).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.imds.show(&[shown("eni-primary", 10, EniSlot::PRIMARY, &[40, 42])]);

    let enis = reading.await.unwrap().unwrap();

    assert_eq!(enis[0].secondary_ips, [ip(40)]);
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_attaches_is_noticed_and_what_we_do_is_not() {
    let world = World::new();
    let primary = shown("eni-primary", 10, EniSlot::PRIMARY, &[]);
    world.imds.show(std::slice::from_ref(&primary));
    let executor = world.executor();
    executor.read_inventory(Priority::Reconcile).await.unwrap();
    let outcome = run(&executor, allocate()).await;
    let Outcome::EniAllocated(eni) = outcome else { panic!("{outcome:?}") };
    let mine = world.ec2.enis().into_iter().find(|it| it.id == eni.id).unwrap();
    world.imds.show(&[primary.clone(), mine.clone()]);
    run(&executor, Step::Assign { eni: eni.id.clone(), blocks: Blocks::Ips(2) }).await;

    // Metadata lags behind the assignment for one look.
    assert!(!executor.sees_changes().await);
    let mine = world.ec2.enis().into_iter().find(|it| it.id == eni.id).unwrap();
    world.imds.show(&[primary.clone(), mine.clone()]);
    assert!(!executor.sees_changes().await);

    world.imds.show(&[primary, mine, shown("eni-9", 90, SECOND, &[])]);
    assert!(executor.sees_changes().await);
    assert!(!executor.sees_changes().await);
}

#[tokio::test(start_paused = true)]
async fn an_eni_that_we_freed_and_metadata_still_shows_is_no_news() {
    let world = World::new();
    let both = [shown("eni-primary", 10, EniSlot::PRIMARY, &[]), ours("eni-2", 20, Some(SLOT))];
    world.ec2.put(both[1].clone());
    world.imds.show(&both);
    let executor = world.executor();
    executor.read_inventory(Priority::Reconcile).await.unwrap();

    assert_eq!(run(&executor, Step::FreeEni { eni: "eni-2".parse().unwrap() }).await, Outcome::EniFreed);

    for _ in 0..3 {
        assert!(!executor.sees_changes().await);
    }
}

#[tokio::test(start_paused = true)]
async fn hints_serve_where_ec2_does_not_answer_and_nothing_is_tagged_by_them() {
    let world = World::new();
    world.imds.show(&[shown("eni-primary", 10, EniSlot::PRIMARY, &[40]), shown("eni-2", 20, SLOT, &[30])]);
    world.ec2.fail(Action::DescribeNetworkInterfaces, Fault::Refuse(Class::Credentials));
    world.ec2.fail(Action::DescribeNetworkInterfaces, Fault::Refuse(Class::Credentials));
    let executor = world.executor();
    assert_eq!(
        executor.read_inventory(Priority::Reconcile).await.unwrap_err().class,
        FailureClass::Credentials
    );
    world.ec2.calls();

    let enis = executor.read_hints().await.unwrap();
    executor.put_right().await;

    assert_eq!(enis.iter().map(|eni| eni.id.as_str()).collect::<Vec<_>>(), ["eni-2", "eni-primary"]);
    assert!(world.ec2.calls().is_empty());
}
