//! Random numbers and PyTorch files for tests and benches: without dependencies, so that every crate can use them in its
//! tests.

pub mod torch_file;

/// A xorshift generator. The same seed gives the same numbers on every machine.
///
/// ```
/// use test_support::Random;
///
/// let values: Vec<f32> = Random::new(7).normal().take(3).collect();
/// assert_eq!(values, Random::new(7).normal().take(3).collect::<Vec<f32>>());
/// ```
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator that begins at `seed`. Zero, which xorshift never leaves, is replaced.
    pub fn new(seed: u64) -> Self {
        Self(if seed == 0 { 0x9E37_79B9_7F4A_7C15 } else { seed })
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// The next number, uniform in -0.5..0.5.
    pub fn uniform(&mut self) -> f32 {
        #[expect(clippy::cast_precision_loss, reason = "24 bits fit an f32")]
        let unit = (self.bits() >> 40) as f32 / (1_u32 << 24) as f32;
        unit - 0.5
    }

    /// The next number, nearly normal: the sum of four uniform ones, with mean 0 and variance 1.
    pub fn next_normal(&mut self) -> f32 {
        (0..4).map(|_| self.uniform()).sum::<f32>() * 3.0_f32.sqrt()
    }

    /// Numbers of [`Self::next_normal`] without end.
    pub fn normal(&mut self) -> impl Iterator<Item = f32> + '_ {
        std::iter::repeat_with(|| self.next_normal())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_stated_mean_and_variance() {
        let mut random = Random::new(0);
        let values: Vec<f32> = random.normal().take(100_000).collect();
        let mean = values.iter().sum::<f32>() / 1e5;
        let variance = values.iter().map(|value| value * value).sum::<f32>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
        assert!((0..1000).all(|_| (-0.5..0.5).contains(&random.uniform())));
    }
}
