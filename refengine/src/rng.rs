//! SplitMix64 (Steele, Lea, Flood 2014): a seeded generator that gives the same numbers everywhere.

/// The generator's state.
#[derive(Clone, Debug)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// A generator from a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator for a part of a seeded whole, independent of other parts.
    pub fn for_part(seed: u64, part: u64) -> Self {
        let mut mixer = Self(seed ^ part.wrapping_mul(0xd6e8_feb8_6659_fd93));
        Self(mixer.next_u64())
    }

    /// The next 64 bits.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [-1, 1).
    pub fn signed(&mut self) -> f32 {
        ((self.next_u64() >> 40) as f32 / 8_388_608.0) - 1.0
    }

    /// About normal, mean 0 and variance 1: the sum of four uniforms, scaled.
    pub fn normal(&mut self) -> f32 {
        let bits = self.next_u64();
        let sum: f32 = (0..4)
            .map(|part| ((bits >> (16 * part)) & 0xffff) as f32)
            .sum();
        // A uniform over 0..65536 has mean 32767.5 and deviation 65536/sqrt(12); four add up.
        (sum - 4.0 * 32_767.5) / (65_536.0 / 3.0f32.sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_that_of_the_published_generator() {
        let mut rng = SplitMix64::new(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| rng.next_u64()).collect();
        assert_eq!(
            first,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );
    }

    #[test]
    fn normal_numbers_have_mean_zero_and_variance_one() {
        let mut rng = SplitMix64::new(7);
        let values: Vec<f64> = (0..20_000).map(|_| f64::from(rng.normal())).collect();
        let mean = values.iter().sum::<f64>() / 20_000.0;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 20_000.0;
        assert!(
            mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05,
            "{mean} {variance}"
        );
    }
}
