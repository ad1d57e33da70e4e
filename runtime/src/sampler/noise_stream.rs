//! The stream of random numbers of a clip: the initial noise, then the fresh noise of solvers that add some.

use super::noise::TorchGenerator;
use bundle::units::Seed;
use serde::{Deserialize, Serialize};

/// The position in a stream of random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RandomPosition {
    /// The seed of the stream.
    pub seed: Seed,
    /// How many values were drawn. The noise of a clip is the first `C·T·h·w` values; a solver that adds noise draws as
    /// many in each step.
    pub drawn: u64,
}

/// Draws tensors of equal size, one after another, as PyTorch's CPU generator does for the seed.
///
/// A stream is determined by its position: one that is made [`at`](Self::at) a position goes on with the same values as
/// one that was drawn from up to there.
///
/// # Examples
/// ```
/// use bundle::units::Seed;
/// use runtime::sampler::{NoiseStream, torch_normal};
///
/// let mut stream = NoiseStream::new(Seed(7));
/// let noise = stream.draw(64);
/// assert_eq!(noise, torch_normal(Seed(7), 64));
/// let mut resumed = NoiseStream::at(stream.position());
/// assert_eq!(resumed.draw(64), stream.draw(64));
/// ```
#[derive(Debug, Clone)]
pub struct NoiseStream {
    position: RandomPosition,
    /// The generator at the position; made when values are first drawn.
    generator: Option<TorchGenerator>,
}

impl PartialEq for NoiseStream {
    fn eq(&self, other: &Self) -> bool {
        self.position == other.position
    }
}

impl NoiseStream {
    /// The stream of a seed before its first value.
    pub fn new(seed: Seed) -> Self {
        Self::at(RandomPosition { seed, drawn: 0 })
    }

    /// The stream at a position. `drawn` is a multiple of the size of its tensors. Draws nothing.
    pub fn at(position: RandomPosition) -> Self {
        Self { position, generator: None }
    }

    /// The position.
    pub fn position(&self) -> RandomPosition {
        self.position
    }

    /// Draws a tensor of `count` normal values. All tensors of a stream have the same size.
    pub fn draw(&mut self, count: usize) -> Vec<f32> {
        let RandomPosition { seed, drawn } = self.position;
        let generator = self.generator.get_or_insert_with(|| {
            let mut generator = TorchGenerator::new(seed);
            let tensors = drawn.checked_div(count as u64).unwrap_or_default();
            (0..tensors).for_each(|_| generator.skip(count));
            generator
        });
        self.position.drawn = drawn.saturating_add(count as u64);
        generator.normal(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::torch_normal;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_stream_goes_on_from_its_position(
            seed in any::<u64>(), count in 1_usize..70, before in 0_usize..5, after in 1_usize..4,
        ) {
            let mut stream = NoiseStream::new(Seed(seed));
            for _ in 0..before {
                stream.draw(count);
            }
            let mut resumed = NoiseStream::at(stream.position());
            prop_assert_eq!(&resumed, &stream);
            for _ in 0..after {
                prop_assert_eq!(resumed.draw(count), stream.draw(count));
            }
            prop_assert_eq!(stream.position().drawn, (count * (before + after)) as u64);
        }

        #[test]
        fn whole_blocks_are_one_sequence(seed in any::<u64>(), blocks in 1_usize..5) {
            let mut stream = NoiseStream::new(Seed(seed));
            let parts = [stream.draw(16 * blocks), stream.draw(16 * blocks)].concat();
            prop_assert_eq!(parts, torch_normal(Seed(seed), 32 * blocks));
        }
    }

    /// Values of PyTorch 2.15: three calls of `torch.randn(3, generator=g)`, and two of `torch.randn(17, generator=g)`.
    #[test]
    fn later_tensors_are_those_of_pytorch() {
        let close = |found: &[f32], expected: &[f32]| {
            assert_eq!(found.len(), expected.len());
            assert!(
                found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6),
                "{found:?} is not {expected:?}"
            );
        };
        SMALL_AND_LARGE.iter().for_each(|(count, tensors)| {
            let mut stream = NoiseStream::new(Seed(5));
            for expected in *tensors {
                close(&stream.draw(*count)[..3], expected);
            }
        });
    }

    const SMALL_AND_LARGE: [(usize, &[[f32; 3]]); 2] = [
        (
            3,
            &[
                [-0.486_780_76, -0.603_821_6, -0.558_096_23],
                [0.667_524_3, -0.197_415_1, 1.942_783_5],
                [-1.401_702, -0.762_557_15, 0.631_213_4],
            ],
        ),
        (17, &[[1.842_329_9, 1.222_025_3, -0.336_449_35], [-0.732_388_7, 0.216_234_73, 1.089_808_7]]),
    ];
}
