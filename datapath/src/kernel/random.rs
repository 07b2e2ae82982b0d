//! Random bits for names and link-layer addresses.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use vpc::Mac;

/// Bits that no other process guesses or repeats.
pub(crate) fn random_bits() -> u64 {
    // The keys of a fresh hash state come from the operating system's random numbers.
    RandomState::new().build_hasher().finish()
}

/// A link-layer address that no other link has, by 46 random bits.
pub(crate) fn random_mac() -> Mac {
    let [a, b, c, d, e, f, ..] = random_bits().to_ne_bytes();
    Mac::local_unicast([a, b, c, d, e, f])
}
