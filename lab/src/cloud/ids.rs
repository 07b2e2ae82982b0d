//! Seeded identifiers: the same seed and the same calls give the same names every time.

/// A small deterministic generator (SplitMix64).
///
/// Written out here because the world must replay from its seed for years, across versions of
/// any random-number library.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Starts the sequence that belongs to `seed`.
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`, or 0 when `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next_u64() % bound }
    }

    /// An EC2 identifier: the prefix, a dash, `0` and 16 hexadecimal digits.
    pub fn id(&mut self, prefix: &str) -> String {
        format!("{prefix}-0{:016x}", self.next_u64())
    }

    /// A request id in the shape of a version 4 UUID.
    pub fn uuid(&mut self) -> String {
        let (a, b) = (self.next_u64(), self.next_u64());
        format!(
            "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
            a >> 32,
            (a >> 16) & 0xffff,
            a & 0xfff,
            0x8000 | ((b >> 48) & 0x3fff),
            b & 0xffff_ffff_ffff
        )
    }

    /// A unicast, locally administered MAC address as EC2 gives them (`02:` or `06:` in front).
    pub fn mac(&mut self) -> String {
        let [_, _, a, b, c, d, e, f] = self.next_u64().to_be_bytes();
        let first = if a & 1 == 0 { 0x02 } else { 0x06 };
        format!("{first:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }

    /// `length` characters of an access key or secret: capital letters and digits.
    pub fn key(&mut self, length: usize) -> String {
        const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        (0..length).map(|_| char::from(LETTERS[(self.next_u64() & 31) as usize])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_names() {
        let (mut a, mut b, mut c) = (Dice::new(7), Dice::new(7), Dice::new(8));

        let id = a.id("eni");

        assert_eq!(id, b.id("eni"));
        assert_ne!(id, c.id("eni"));
        assert_eq!(id.len(), "eni-".len() + 17);
        assert_eq!(a.uuid().len(), 36);
        assert_eq!(a.mac().len(), 17);
    }
}
