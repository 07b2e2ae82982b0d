//! Being told of links.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where its world is not as expected")]

mod support;

use std::os::fd::AsFd;

use datapath::kernel::inside;
use datapath::monitor::{LinkEvent, LinkMonitor};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use support::Space;

/// Waits until `expected` is among the events.
fn wait_for(monitor: &mut LinkMonitor, expected: &LinkEvent) {
    loop {
        let mut waiting = [PollFd::new(monitor.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut waiting, PollTimeout::from(20_000u16)), Ok(1), "{expected:?} does not come");
        if monitor.events().unwrap().contains(expected) {
            return;
        }
    }
}

#[test]
fn a_link_is_announced_when_it_comes_and_when_it_goes() {
    let space = Space::new();
    let mut monitor = inside(&space.netns, LinkMonitor::open).unwrap().unwrap();
    assert_eq!(monitor.events().unwrap(), []);

    space.run("ip link add eth7 type veth peer name far7");
    wait_for(&mut monitor, &LinkEvent::Present("eth7".to_owned()));

    space.run("ip link del eth7");
    wait_for(&mut monitor, &LinkEvent::Gone("eth7".to_owned()));
}
