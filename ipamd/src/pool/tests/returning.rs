//! What the process before asked EC2 to take back.

use super::super::*;
use super::world::*;

fn restored(enis: Vec<vpc::Eni>, blocks: Option<Vec<Block>>) -> World {
    let mut world = World::new(settings(2, 2), enis);
    world.run();
    let device = u16::from(blocks.is_none());
    let returning = Returning { eni: eni_id(device), blocks, until: world.now + 60 * SECOND };
    let journal = Journal { returning: vec![returning], ..Journal::default() };
    world.pool.restore(journal, &KernelView::default(), world.now);
    world
}

fn look(world: &mut World, enis: &[vpc::Eni]) -> Vec<Step> {
    let mut others = Vec::new();
    for (id, step) in world.plan() {
        match step {
            Step::ReadInventory => world.finish(id, Outcome::Inventory(enis.to_vec())),
            step => others.push(step),
        }
    }
    others
}

#[test]
fn an_address_that_may_yet_leave_is_given_to_nobody_until_a_later_look_shows_that_it_stayed() {
    let enis = [eni(0, &[1, 2]), eni(1, &[11])];
    let mut world = restored(enis.to_vec(), Some(vec![Block::Ip(ip(1))]));

    world.pool.observe(enis.to_vec(), world.now);
    assert_eq!(world.added("a"), address(2));
    assert_eq!(world.added("b"), address(11));
    assert!(matches!(world.add("c"), Answer::Parked(_)));

    world.pass(61 * SECOND);
    look(&mut world, &enis);
    let answers = world.pool.settle(world.now);
    assert_eq!(answers[0].1.as_ref().unwrap().address, address(1));
}

#[test]
fn an_eni_that_may_yet_leave_serves_nobody_until_a_later_look_shows_that_it_stayed() {
    let enis = [eni(0, &[1]), eni(1, &[11, 12])];
    let mut world = restored(enis.to_vec(), None);

    world.pool.observe(enis.to_vec(), world.now);
    assert_eq!(world.added("a"), address(1));
    assert_eq!(world.pool.stats().free, 0);

    world.pass(61 * SECOND);
    look(&mut world, &enis);
    assert!(world.steps().contains(&Step::SetUpEni { eni: eni_id(1) }), "its rule may have gone");
}

#[test]
fn an_eni_that_left_is_forgotten() {
    let mut world = restored(vec![eni(0, &[1]), eni(1, &[11, 12])], None);

    world.pass(61 * SECOND);
    look(&mut world, &[eni(0, &[1])]);

    assert_eq!(world.pool.stats().enis, 1);
}
