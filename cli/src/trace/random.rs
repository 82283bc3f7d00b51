//! Pseudo-random numbers that are the same everywhere, in order or by position: SplitMix64, by
//! Steele, Lea and Flood.

/// What SplitMix64 adds to its state for each number.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The generator, started at a seed.
pub(crate) struct SplitMix64(u64);

impl SplitMix64 {
    /// The generator of `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// A number from 0 up to but not including 1, in steps of 2^-53.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// The `n`th number, from 0, of the generator started at `seed`.
pub(super) fn nth(seed: u64, n: u64) -> u64 {
    mix(seed.wrapping_add(STEP.wrapping_mul(n.wrapping_add(1))))
}

/// The seed of sequence `id` of a `family`, unrelated to those of its neighbours.
pub(super) fn key(family: u64, id: u64) -> u64 {
    mix(family ^ mix(id))
}

/// Scrambles all 64 bits.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published sequence for the seed 1234567.
    #[test]
    fn splitmix_is_splitmix() {
        let expected =
            [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431];
        let mut rng = SplitMix64::new(1234567);
        assert_eq!(expected.map(|_| rng.next()), expected);
        assert_eq!([0, 1, 2, 3].map(|n| nth(1234567, n)), expected);
    }

    #[test]
    fn unit_stays_below_one() {
        let mut rng = SplitMix64::new(0);
        assert!((0..1000).map(|_| rng.unit()).all(|x| (0.0..1.0).contains(&x)));
    }
}
