//! The delays of animation frames, in the units of the format.
//!
//! Browsers and viewers replace a very short delay with 100 ms. If the frame rate is too high for the shortest delay
//! that they honour, frames are dropped evenly, so that the clip keeps its length. Pure.

use crate::{ClipFormat, FileFormat, OutputSpec};

/// The time unit of a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DelayUnit {
    /// Units per second.
    per_second: u64,
    /// The shortest delay in units that players honour.
    shortest: u64,
}

impl DelayUnit {
    /// GIF counts hundredths of a second. Players show 0 and 1 as 10.
    pub(super) const GIF: Self = Self { per_second: 100, shortest: 2 };
    /// WebP counts milliseconds. Players show up to 10 as 100.
    pub(super) const WEBP: Self = Self { per_second: 1000, shortest: 11 };
}

/// The delays of the frames of a clip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Delays {
    unit: DelayUnit,
    /// The frame rate: `rate.0` frames in `rate.1` seconds.
    rate: (u64, u64),
    /// The length of the clip in units, if known.
    length: Option<u64>,
}

impl Delays {
    /// The delays of a clip in an output. Returns `None` unless the format is an animation.
    pub(crate) fn for_output(spec: &OutputSpec, clip: ClipFormat) -> Option<Self> {
        let unit = match spec {
            OutputSpec::File { format: FileFormat::Gif, .. } => DelayUnit::GIF,
            OutputSpec::File { format: FileFormat::WebP, .. } => DelayUnit::WEBP,
            _ => return None,
        };
        Some(Self::new(unit, clip.rate.fraction(), clip.frames))
    }

    /// The delays of `frames` frames at `rate.0 / rate.1` per second.
    pub(super) fn new(unit: DelayUnit, rate: (u32, u32), frames: Option<usize>) -> Self {
        let rate = (u64::from(rate.0).max(1), u64::from(rate.1).max(1));
        // A clip that lasts longer than any file saturates.
        let units = |frames: usize| {
            let exact = frames as u128 * u128::from(rate.1) * u128::from(unit.per_second);
            let (twice, rate) = (exact.saturating_mul(2), u128::from(rate.0));
            u64::try_from((twice.saturating_add(rate)) / (2 * rate)).unwrap_or(u64::MAX)
        };
        let length = frames.map(units);
        Self { unit, rate, length }
    }

    /// The delay of frame `number`. Returns `None` if the frame is dropped.
    pub(super) fn delay(self, number: usize) -> Option<u64> {
        let number = number as u64;
        let start = self.start(number)?;
        let after = match self.is_too_fast() {
            true => {
                let in_tick = (self.rate.0 * self.unit.shortest).div_ceil(self.rate.1 * self.unit.per_second);
                (number + 1..=number + 2 * in_tick).find_map(|next| self.start(next))
            }
            false => self.start(number + 1),
        };
        let end = match (after, self.length) {
            (Some(after), Some(length)) => after.min(length),
            (None, Some(length)) => length,
            (after, None) => after?,
        };
        Some((end - start).max(self.unit.shortest))
    }

    /// The number of shown frames among the first `frames`.
    pub(crate) fn shown(self, frames: usize) -> usize {
        (0..frames).filter(|number| self.start(*number as u64).is_some()).count()
    }

    /// Returns true if the frame rate is too high, so that frames are dropped.
    pub(crate) fn is_too_fast(self) -> bool {
        // The highest rate is per_second / shortest.
        self.rate.0 * self.unit.shortest > self.rate.1 * self.unit.per_second
    }

    /// The shortest delay in milliseconds.
    pub(crate) fn shortest_milliseconds(self) -> u64 {
        self.unit.shortest * 1000 / self.unit.per_second
    }

    /// The start of frame `number`. Returns `None` if the frame is dropped.
    fn start(self, number: u64) -> Option<u64> {
        let Self { unit, rate, length } = self;
        if !self.is_too_fast() {
            return Some(nearest(number * rate.1 * unit.per_second, rate.0));
        }
        // Every `shortest` units the newest frame is shown, unless it is already shown.
        let tick = (number * rate.1 * unit.per_second).div_ceil(rate.0 * unit.shortest);
        let in_time = tick * unit.shortest * rate.0 < (number + 1) * rate.1 * unit.per_second;
        let start = tick * unit.shortest;
        let has_room = length.is_none_or(|length| start.saturating_add(unit.shortest) <= length);
        (in_time && (has_room || number == 0)).then_some(start)
    }
}

/// `a / b`, rounded.
fn nearest(a: u64, b: u64) -> u64 {
    (2 * a + b) / (2 * b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn delays(unit: DelayUnit, rate: (u32, u32), frames: usize) -> Vec<u64> {
        let delays = Delays::new(unit, rate, Some(frames));
        let found: Vec<u64> = (0..frames).filter_map(|number| delays.delay(number)).collect();
        assert_eq!(found.len(), delays.shown(frames));
        found
    }

    #[test]
    fn no_frame_is_dropped_at_a_supported_rate() {
        assert_eq!(delays(DelayUnit::GIF, (16, 1), 5), [6, 7, 6, 6, 6]);
        assert_eq!(delays(DelayUnit::GIF, (50, 1), 3), [2, 2, 2]);
        assert_eq!(delays(DelayUnit::WEBP, (60, 1), 4), [17, 16, 17, 17]);
        assert_eq!(delays(DelayUnit::GIF, (1, 1), 2), [100, 100]);
    }

    #[test]
    fn frames_are_dropped_evenly_at_a_higher_rate() {
        // 50 of 60 frames per second: every sixth is dropped.
        let at_60 = Delays::new(DelayUnit::GIF, (60, 1), Some(60));
        let dropped: Vec<usize> = (0..60).filter(|number| at_60.delay(*number).is_none()).collect();
        assert_eq!(dropped, [5, 11, 17, 23, 29, 35, 41, 47, 53, 59]);
        assert_eq!(delays(DelayUnit::GIF, (60, 1), 60), [2; 50]);
        assert_eq!(delays(DelayUnit::GIF, (240, 1), 240), [2; 50]);
        // 0.07 s are three pictures, the last one longer.
        assert_eq!(delays(DelayUnit::GIF, (100, 1), 7), [2, 2, 3]);
    }

    #[test]
    fn a_clip_shorter_than_the_shortest_delay_has_one_picture() {
        for frames in 1..=4 {
            assert_eq!(delays(DelayUnit::GIF, (240, 1), frames), [2]);
        }
        assert_eq!(delays(DelayUnit::WEBP, (120, 1), 1), [11]);
    }

    proptest! {
        #[test]
        fn the_length_is_kept_and_delays_are_honoured_at_every_rate(
            whole in 1_u32..=240,
            thousandths in prop_oneof![Just((1, 1)), Just((1000, 1001)), (1_u32..=1000).prop_map(|n| (n, 1000))],
            frames in 1_usize..400,
            is_gif in any::<bool>(),
        ) {
            let unit = if is_gif { DelayUnit::GIF } else { DelayUnit::WEBP };
            let rate = (whole * thousandths.0, thousandths.1);
            let found = delays(unit, rate, frames);
            let exact = frames as f64 * f64::from(rate.1) / f64::from(rate.0) * unit.per_second as f64;
            let sum = found.iter().sum::<u64>() as f64;
            prop_assert!((sum - exact).abs() <= 0.5001 || found.len() == 1 && sum == unit.shortest as f64, "{sum} for {exact}");
            prop_assert!(found.iter().all(|delay| *delay >= unit.shortest));
            let mean = exact / frames as f64;
            let longest = if mean < unit.shortest as f64 { 2.0 * unit.shortest as f64 } else { mean + 1.0 };
            prop_assert!(found.iter().all(|delay| (*delay as f64) <= longest), "{found:?}");
            // No frame is dropped at a supported rate.
            prop_assert!(mean < unit.shortest as f64 || found.len() == frames);
        }
    }

    #[test]
    fn a_clip_that_lasts_longer_than_any_file_saturates() {
        for unit in [DelayUnit::GIF, DelayUnit::WEBP] {
            let delays = Delays::new(unit, (1, u32::MAX), Some(usize::MAX));
            assert_eq!(delays.length, Some(u64::MAX));
            assert!(delays.delay(3).is_some());
        }
    }
}
