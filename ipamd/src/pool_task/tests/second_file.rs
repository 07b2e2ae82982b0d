//! A second state file that cannot be written, while the first one can.

use std::fs;

use super::*;
use crate::report::Fault;

async fn faults(world: &World) -> Vec<(String, Fault)> {
    let failures = world.pool.report().await.unwrap().failures;
    failures.into_iter().map(|failure| (failure.action, failure.class)).collect()
}

#[tokio::test]
async fn a_second_file_that_was_not_written_is_told_and_written_later_and_stops_nobody() {
    let mut world = World::new(2, false);
    world.added("a").await;
    let directory = world.directory.path().to_owned();
    fs::remove_dir(&directory).unwrap();

    let del = world.del("a");
    world.write_begins().await;
    world.end_write(true);

    assert!(del.await.unwrap().is_ok());
    let told = ("write the second state file".to_owned(), Fault::State);
    assert_eq!(faults(&world).await, std::slice::from_ref(&told));
    // With nobody asking.
    world.write_begins().await;
    world.end_write(true);
    world.write_begins().await;
    assert_eq!(faults(&world).await, [told], "the same failure is told once");
    fs::create_dir(&directory).unwrap();
    world.end_write(true);
    world.write_begins().await;
    world.end_write(true);
    world.all_taken_in().await;

    let written = fs::read_to_string(directory.join("vpc-cni.json")).unwrap();
    assert!(written.contains(r#""cooling":[{"address":"10.0.1.100","#), "{written}");
}
