//! Spreads what every node does over time, so that the nodes of a cluster do not do it together.

use std::time::Duration;

/// A number that depends on the texts alone and looks random: FNV-1a, 64 bits.
pub(crate) fn hash(texts: &[&str]) -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    // A byte that no text has keeps ("a", "b") and ("ab",) apart.
    let bytes = texts.iter().flat_map(|text| text.bytes().chain([0xff]));
    bytes.fold(BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
}

/// How long until the next turn of whoever `name` is, who has one in every `period` of wall-clock
/// time, always at the same point of it. Never zero.
///
/// By the wall clock, so that a restart neither skips a turn nor adds one.
pub(crate) fn until_turn(name: &str, unix_secs: i64, period: Duration) -> Duration {
    let period = i64::try_from(period.as_secs()).unwrap_or(i64::MAX).max(1);
    let phase = i64::try_from(hash(&[name]) >> 1).unwrap_or(0).rem_euclid(period);
    let ahead = (phase - unix_secs).rem_euclid(period);
    let ahead = if ahead == 0 { period } else { ahead };
    Duration::from_secs(u64::try_from(ahead).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_node_has_its_turn_once_in_every_period_whenever_it_starts() {
        let next = |now: i64| now + i64::try_from(until_turn("i-0abc", now, HOUR).as_secs()).unwrap();
        let first = next(1_795_000_000);

        assert_eq!(next(first), first + 3600);
        assert_eq!(next(first - 1), first);
        assert_eq!(next(first + 1), first + 3600);
    }

    #[test]
    fn nodes_have_their_turns_at_different_times() {
        let turns: BTreeSet<_> =
            (0..500).map(|node| until_turn(&format!("i-{node:017x}"), 1_795_000_000, HOUR)).collect();

        assert!(turns.len() > 400, "{}", turns.len());
        assert!(turns.iter().any(|turn| *turn < HOUR / 10) && turns.iter().any(|turn| *turn > HOUR * 9 / 10));
    }
}
