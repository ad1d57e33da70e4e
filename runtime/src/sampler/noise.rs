//! The initial noise, the same as from PyTorch's CPU generator for the same seed.
//!
//! PyTorch has two algorithms, one for small tensors and one for others; both are implemented. Logarithm, sine and
//! cosine are computed in f64, so a seed gives the same noise on every machine. PyTorch computes them in f32 with
//! results that depend on the instruction set; compared with its AVX2 and AVX-512 builds some values differ by one unit
//! in the last place.

use bundle::units::Seed;
use rand_mt::Mt;
use std::f64::consts::TAU;

/// PyTorch fills tensors of at least this many values in blocks of this size.
const BLOCK: usize = 16;

/// Returns `count` normal values, equal to `torch.randn(count, generator=torch.Generator("cpu").manual_seed(seed))`.
///
/// A latent `[C,T,h,w]` uses them in row-major order. The generator uses the lower 32 bits of the seed.
pub fn torch_normal(seed: Seed, count: usize) -> Vec<f32> {
    TorchGenerator::new(seed).normal(count)
}

/// PyTorch's CPU generator.
#[derive(Debug, Clone)]
pub(super) struct TorchGenerator {
    twister: Mt,
    /// The second value of a pair of which a small tensor took the first. PyTorch keeps it for the next one.
    second: Option<f32>,
}

impl TorchGenerator {
    /// The generator after `manual_seed`.
    pub(super) fn new(seed: Seed) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "PyTorch does the same")]
        Self { twister: Mt::new(seed.0 as u32), second: None }
    }

    /// The next values of `torch.randn(count)`.
    pub(super) fn normal(&mut self, count: usize) -> Vec<f32> {
        if count < BLOCK { self.one_by_one(count) } else { in_blocks(&mut self.twister, count) }
    }

    /// Draws as [`Self::normal`] does, without computing the values.
    pub(super) fn skip(&mut self, count: usize) {
        if count < BLOCK {
            self.one_by_one(count);
            return;
        }
        let again = if count.is_multiple_of(BLOCK) { 0 } else { BLOCK };
        for _ in 0..count.saturating_add(again) {
            self.twister.next_u32();
        }
    }

    /// Box-Muller in f64; each pair of uniform values gives two normal values.
    fn one_by_one(&mut self, count: usize) -> Vec<f32> {
        let mut next = || {
            if let Some(second) = self.second.take() {
                return second;
            }
            let (angle, radius) = (TAU * uniform_f64(&mut self.twister), uniform_f64(&mut self.twister));
            let radius = (-2.0 * (-radius).ln_1p()).sqrt();
            #[expect(clippy::cast_possible_truncation, reason = "noise is f32")]
            let [first, second] = [(radius * angle.cos()) as f32, (radius * angle.sin()) as f32];
            self.second = Some(second);
            first
        };
        (0..count).map(|_| next()).collect()
    }
}

/// Fills everything with uniform values, then converts each block to normal values. For an incomplete last block the
/// last 16 values are drawn again, replacing the existing ones.
fn in_blocks(generator: &mut Mt, count: usize) -> Vec<f32> {
    let mut values: Vec<f32> = (0..count).map(|_| uniform_f32(generator)).collect();
    values.chunks_exact_mut(BLOCK).for_each(to_normal);
    if !count.is_multiple_of(BLOCK) {
        let last = &mut values[count - BLOCK..];
        last.fill_with(|| uniform_f32(generator));
        to_normal(last);
    }
    values
}

/// Box-Muller on a block of uniform values: the first half are radii, the second angles.
fn to_normal(block: &mut [f32]) {
    let (radii, angles) = block.split_at_mut(BLOCK / 2);
    for (first, second) in radii.iter_mut().zip(angles) {
        #[expect(clippy::cast_possible_truncation, reason = "PyTorch rounds to f32 in these places")]
        let (radius, angle) =
            ((-2.0 * f64::from(1.0 - *first).ln()).sqrt() as f32, f64::from(TAU as f32 * *second));
        #[expect(clippy::cast_possible_truncation, reason = "noise is f32")]
        let (sin, cos) = (angle.sin() as f32, angle.cos() as f32);
        (*first, *second) = (radius * cos, radius * sin);
    }
}

/// A uniform value in 0..1 from the low 24 bits of one draw.
#[expect(clippy::cast_precision_loss, reason = "24 bits are exact")]
fn uniform_f32(generator: &mut Mt) -> f32 {
    (generator.next_u32() & 0x00ff_ffff) as f32 / (1_u32 << 24) as f32
}

/// A uniform value in 0..1 from the low 53 bits of two draws; the first is the upper word.
#[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
fn uniform_f64(generator: &mut Mt) -> f64 {
    let (high, low) = (u64::from(generator.next_u32()), u64::from(generator.next_u32()));
    (((high << 32) | low) & ((1 << 53) - 1)) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks the first values, and the last ones, of a draw.
    #[track_caller]
    fn assert_drawn(seed: u64, count: usize, first: &[f32], last: &[f32]) {
        let drawn = torch_normal(Seed(seed), count);
        assert_eq!(drawn.len(), count);
        let ends = drawn.iter().zip(first).chain(drawn[count - last.len()..].iter().zip(last));
        for (found, expected) in ends {
            let unit = f32::EPSILON * expected.abs().max(0.5);
            assert!(
                (found - expected).abs() <= unit,
                "seed {seed}, {count} values: {found} is not {expected}"
            );
        }
    }

    #[test]
    fn small_tensors_match_pytorch() {
        assert_drawn(0, 1, &[1.540_996_1], &[]);
        assert_drawn(0, 2, &[1.540_996_1, -0.293_428_9], &[]);
        assert_drawn(
            0,
            15,
            &[1.540_996_1, -0.293_428_9, -2.178_789_4],
            &[0.182_036_49, -0.856_674_6, 1.100_604_2, -1.071_187_4],
        );
    }

    #[test]
    fn complete_blocks_match_pytorch() {
        #[rustfmt::skip]
        assert_drawn(0, 16, &[
            -1.125_839_8, -1.152_360_2, -0.250_578_58, -0.433_878_8, 0.848_710_36, 0.692_009_15, -0.316_012_77,
            -2.115_219_4, 0.322_274_92, -1.263_334_8, 0.349_983_2, 0.308_133_93, 0.119_841_51, 1.237_657_9,
            1.116_777_2, -0.247_278_15,
        ], &[]);
    }

    #[test]
    fn an_incomplete_block_is_drawn_again() {
        #[rustfmt::skip]
        assert_drawn(0, 17, &[
            -1.125_839_8, -1.695_931_2, 0.566_650_6, 0.793_508_35, 0.598_839_46, -1.555_095_1,
        ], &[0.183_477_94, 1.389_366_2, 1.586_334_2, 0.946_298_36, -0.843_676_75, 0.931_826_6]);
        #[rustfmt::skip]
        assert_drawn(42, 40, &[1.926_915_3, 1.487_284_1, 0.900_717_2, -2.105_521, 0.678_418_46, -1.234_544_9], &[
            0.049_905_386, 2.266_718, 1.178_951, -0.434_454_4, -1.386_365_5, -1.286_215_5,
        ]);
        #[rustfmt::skip]
        assert_drawn(1_234_567, 1000, &[-1.462_022_2, -0.282_395_87, 2.455_863_2, 1.610_924_1, 0.362_932_77], &[
            0.179_409_73, 0.153_847_14, 0.155_147_87, -0.189_224_66, 0.206_844_9, 0.420_335,
        ]);
    }

    #[test]
    fn the_upper_half_of_a_seed_is_ignored() {
        let upper_bits = (1 << 63) + 5;
        assert_drawn(upper_bits, 3, &[-0.486_780_76, -0.603_821_6, -0.558_096_2], &[]);
        assert_eq!(torch_normal(Seed((1 << 32) + 7), 16), torch_normal(Seed(7), 16));
        assert_drawn(7, 16, &[-0.820_134_5, 0.395_631_16, 0.898_908_5, -1.388_403_9], &[1.090_165_1]);
    }

    #[test]
    fn moments_are_those_of_a_normal_distribution() {
        let drawn = torch_normal(Seed(3), 100_000);
        let moment = |power| drawn.iter().map(|x| f64::from(*x).powi(power)).sum::<f64>() / 1e5;
        assert!(moment(1).abs() < 0.01 && (moment(2) - 1.0).abs() < 0.02 && (moment(4) - 3.0).abs() < 0.15);
        assert!(torch_normal(Seed(3), 0).is_empty());
    }
}
