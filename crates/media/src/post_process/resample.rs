//! Frame rate conversion: each new frame is a copy of the old frame at its time, or a blend of its two neighbours.

use bundle::Field;
use bundle::units::FrameRate;
use ndarray::Array3;

/// How frames at a new rate are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Interpolation {
    /// A blend of both neighbours, weighted by their distance in time.
    Blend,
    /// The earlier neighbour.
    Repeat,
}

bundle::named!(Interpolation, Field::Interpolation, "method", "blend" => Blend, "repeat" => Repeat);

impl Interpolation {
    /// The name in the metadata.
    pub fn description(self) -> &'static str {
        match self {
            Self::Blend => "blending",
            Self::Repeat => "repeating",
        }
    }
}

/// The ratio of two rates as integers.
fn ratio(from: FrameRate, to: FrameRate) -> (u64, u64) {
    let ((from, from_seconds), (to, to_seconds)) = (from.fraction(), to.fraction());
    (u64::from(from) * u64::from(to_seconds), u64::from(to) * u64::from(from_seconds))
}

/// Converts a stream of frames to another rate.
#[derive(Debug)]
pub(super) struct Resampler {
    from: u64,
    to: u64,
    interpolation: Interpolation,
    previous: Option<Array3<f32>>,
    /// Old frames so far.
    pushed: u64,
    /// New frames so far.
    returned: u64,
}

impl Resampler {
    /// A resampler before its first frame.
    pub(super) fn new(from: FrameRate, to: FrameRate, interpolation: Interpolation) -> Self {
        let (from, to) = ratio(from, to);
        Self { from, to, interpolation, previous: None, pushed: 0, returned: 0 }
    }

    /// The number of frames at the new rate that last as long as `frames` at the old, rounded, at least one.
    pub(super) fn count(from: FrameRate, to: FrameRate, frames: usize) -> usize {
        let (from, to) = ratio(from, to);
        let exact = 2 * frames as u128 * u128::from(to) + u128::from(from);
        usize::try_from(exact / (2 * u128::from(from))).unwrap_or(usize::MAX).max(1)
    }

    /// Pushes the next frame `[3,H,W]`. Returns the new frames up to its time.
    pub(super) fn push(&mut self, frame: Array3<f32>) -> Vec<Array3<f32>> {
        let number = self.pushed;
        self.pushed += 1;
        let mut out = vec![];
        // New frame k is shown at old frame k·from/to.
        while self.returned * self.from <= number * self.to {
            let at = self.returned * self.from;
            let (earlier, part) = (at / self.to, at % self.to);
            let made = match &self.previous {
                Some(previous) if earlier < number => match self.interpolation {
                    Interpolation::Repeat => previous.clone(),
                    Interpolation::Blend => {
                        #[expect(
                            clippy::cast_precision_loss,
                            reason = "products of a rate and a denominator"
                        )]
                        let weight = part as f32 / self.to as f32;
                        previous * (1.0 - weight) + &frame * weight
                    }
                },
                _ => frame.clone(),
            };
            out.push(made);
            self.returned += 1;
        }
        self.previous = Some(frame);
        out
    }

    /// Returns the new frames after the last old one, up to `count` in total.
    pub(super) fn finish(mut self, count: usize) -> Vec<Array3<f32>> {
        let missing = (count as u64).saturating_sub(self.returned);
        let last = self.previous.take();
        last.map_or(vec![], |last| (0..missing).map(|_| last.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate(per_second: u32) -> FrameRate {
        FrameRate::try_new(per_second).unwrap()
    }

    /// Resamples frames whose colour is their number.
    fn resampled(from: u32, to: u32, frames: usize, interpolation: Interpolation) -> Vec<f32> {
        let mut resampler = Resampler::new(rate(from), rate(to), interpolation);
        let count = Resampler::count(rate(from), rate(to), frames);
        let mut out: Vec<_> =
            (0..frames).flat_map(|n| resampler.push(Array3::from_elem((3, 1, 1), n as f32))).collect();
        out.truncate(count);
        out.extend(resampler.finish(count));
        out.truncate(count);
        out.iter().map(|frame| frame[[0, 0, 0]]).collect()
    }

    #[test]
    fn frames_are_blended_or_repeated() {
        let blended = resampled(16, 24, 4, Interpolation::Blend);
        let expected = [0.0, 2.0 / 3.0, 4.0 / 3.0, 2.0, 8.0 / 3.0, 3.0];
        assert!(blended.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{blended:?}");
        assert_eq!(resampled(16, 24, 4, Interpolation::Repeat), [0.0, 0.0, 1.0, 2.0, 2.0, 3.0]);
        assert_eq!(resampled(16, 8, 5, Interpolation::Repeat), [0.0, 2.0, 4.0]);
        assert_eq!(resampled(16, 16, 3, Interpolation::Blend), [0.0, 1.0, 2.0]);
    }

    proptest! {
        #[test]
        fn resampling_keeps_length_and_order(from in 1_u32..=60, to in 1_u32..=60, frames in 1_usize..60) {
            for interpolation in [Interpolation::Blend, Interpolation::Repeat] {
                let out = resampled(from, to, frames, interpolation);
                prop_assert_eq!(out.len(), Resampler::count(rate(from), rate(to), frames));
                prop_assert!(out.windows(2).all(|pair| pair[0] <= pair[1]));
                prop_assert!(out.iter().all(|value| (0.0..=(frames - 1) as f32).contains(value)));
            }
        }
    }
}
