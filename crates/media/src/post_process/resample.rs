//! Frames at another rate: each new frame is the one that was shown then, or a blend of its two neighbours in time.

use bundle::units::FrameRate;
use ndarray::Array3;

/// How frames between two frames are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Between {
    /// Both neighbours, weighted by their distance in time.
    Blend,
    /// The earlier one again.
    Repeat,
}

bundle::named!(Between, "--output-fps-by", "method", "blend" => Blend, "repeat" => Repeat);

impl Between {
    /// How the metadata calls it.
    pub fn description(self) -> &'static str {
        match self {
            Self::Blend => "blending",
            Self::Repeat => "repeating",
        }
    }
}

/// Two rates as whole numbers that are to each other as the rates are.
fn ratio(from: FrameRate, to: FrameRate) -> (u64, u64) {
    let ((from, from_seconds), (to, to_seconds)) = (from.fraction(), to.fraction());
    (u64::from(from) * u64::from(to_seconds), u64::from(to) * u64::from(from_seconds))
}

/// Turns frames at one rate into frames at another, as they come.
#[derive(Debug)]
pub(super) struct Resampler {
    from: u64,
    to: u64,
    between: Between,
    previous: Option<Array3<f32>>,
    taken: u64,
    given: u64,
}

impl Resampler {
    /// Nothing has come yet.
    pub(super) fn new(from: FrameRate, to: FrameRate, between: Between) -> Self {
        let (from, to) = ratio(from, to);
        Self { from, to, between, previous: None, taken: 0, given: 0 }
    }

    /// Frames at the new rate that last as long as `frames` at the old, rounded, at least one.
    pub(super) fn count(from: FrameRate, to: FrameRate, frames: usize) -> usize {
        let (from, to) = ratio(from, to);
        let exact = 2 * frames as u128 * u128::from(to) + u128::from(from);
        usize::try_from(exact / (2 * u128::from(from))).unwrap_or(usize::MAX).max(1)
    }

    /// Takes the next frame `[3,H,W]` and gives the new frames that are now known.
    pub(super) fn push(&mut self, frame: Array3<f32>) -> Vec<Array3<f32>> {
        let number = self.taken;
        self.taken += 1;
        let mut out = vec![];
        // New frame k is shown at old frame k·from/to.
        while self.given * self.from <= number * self.to {
            let at = self.given * self.from;
            let (earlier, part) = (at / self.to, at % self.to);
            let made = match &self.previous {
                Some(previous) if earlier < number => match self.between {
                    Between::Repeat => previous.clone(),
                    Between::Blend => {
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
            self.given += 1;
        }
        self.previous = Some(frame);
        out
    }

    /// The new frames that come after the last old one, up to `count` in all.
    pub(super) fn finish(mut self, count: usize) -> Vec<Array3<f32>> {
        let missing = (count as u64).saturating_sub(self.given);
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

    /// What becomes of frames whose colour is their number.
    fn resampled(from: u32, to: u32, frames: usize, between: Between) -> Vec<f32> {
        let mut resampler = Resampler::new(rate(from), rate(to), between);
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
        let blended = resampled(16, 24, 4, Between::Blend);
        let expected = [0.0, 2.0 / 3.0, 4.0 / 3.0, 2.0, 8.0 / 3.0, 3.0];
        assert!(blended.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{blended:?}");
        assert_eq!(resampled(16, 24, 4, Between::Repeat), [0.0, 0.0, 1.0, 2.0, 2.0, 3.0]);
        assert_eq!(resampled(16, 8, 5, Between::Repeat), [0.0, 2.0, 4.0]);
        assert_eq!(resampled(16, 16, 3, Between::Blend), [0.0, 1.0, 2.0]);
    }

    proptest! {
        #[test]
        fn a_clip_keeps_its_length_and_its_order(from in 1_u32..=60, to in 1_u32..=60, frames in 1_usize..60) {
            for between in [Between::Blend, Between::Repeat] {
                let out = resampled(from, to, frames, between);
                prop_assert_eq!(out.len(), Resampler::count(rate(from), rate(to), frames));
                prop_assert!(out.windows(2).all(|pair| pair[0] <= pair[1]));
                prop_assert!(out.iter().all(|value| (0.0..=(frames - 1) as f32).contains(value)));
            }
        }
    }
}
