//! Where an ENI sits on an instance, and which route table that gives it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// EC2's position of an ENI on a network card, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeviceIndex(pub u16);

/// A network card of an instance, from 0; most types have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NetworkCard(pub u16);

/// A network card and a position on it: where an ENI is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EniSlot {
    /// The card.
    pub card: NetworkCard,
    /// The position on the card.
    pub device: DeviceIndex,
}

impl EniSlot {
    /// Where every instance has its primary ENI.
    pub const PRIMARY: Self = Self::new(0, 0);

    /// The position `device` on network card `card`.
    #[must_use]
    pub const fn new(card: u16, device: u16) -> Self {
        Self { card: NetworkCard(card), device: DeviceIndex(device) }
    }
}

impl fmt::Display for EniSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "card {} device {}", self.card.0, self.device.0)
    }
}

/// The number of a kernel route table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RouteTable(pub u32);

impl RouteTable {
    /// The main table, which serves the primary ENI.
    pub const MAIN: Self = Self(254);

    /// The table of the node's own addresses, which the kernel keeps.
    pub const LOCAL: Self = Self(255);

    /// The table that carries the traffic of the ENI in `slot`.
    ///
    /// Running pods' rules name these numbers, so they are those of every daemon before us.
    #[must_use]
    pub fn of(slot: EniSlot) -> Self {
        let device = u32::from(slot.device.0);
        match (slot.card.0, device) {
            (0, 0) => Self::MAIN,
            (0, _) => Self(device + 1),
            (card, _) => Self(10_000 + 100 * u32::from(card) + device),
        }
    }

    /// Reads the number as the daemon's reply and a stored CNI result carry it: 0 and 1 are
    /// what older releases wrote for the main table.
    #[must_use]
    pub fn from_reply(number: u32) -> Self {
        if number <= 1 { Self::MAIN } else { Self(number) }
    }
}

impl fmt::Display for RouteTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_numbers_are_those_that_running_pods_use() {
        for (card, device, table) in
            [(0, 0, 254), (0, 1, 2), (0, 4, 5), (1, 0, 10_100), (1, 1, 10_101), (2, 3, 10_203)]
        {
            assert_eq!(
                RouteTable::of(EniSlot::new(card, device)),
                RouteTable(table),
                "card {card} device {device}"
            );
        }
    }

    #[test]
    fn a_table_of_zero_or_one_from_older_data_means_main() {
        assert_eq!(RouteTable::from_reply(0), RouteTable::MAIN);
        assert_eq!(RouteTable::from_reply(1), RouteTable::MAIN);
        assert_eq!(RouteTable::from_reply(2), RouteTable(2));
    }
}
