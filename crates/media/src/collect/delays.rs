//! When the pictures of an animation are shown, in the units of its format and without times that players distort.
//!
//! Browsers and viewers show a picture whose time is very short for a tenth of a second instead. Where frames come faster
//! than that allows, those are left out between which too little time lies, evenly, so that the clip keeps its length.
//! Pure.

use crate::{ClipFormat, FileFormat, OutputSpec};

/// How a format counts time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clockwork {
    /// Units in a second.
    units: u64,
    /// Fewest units that every player keeps to.
    least: u64,
}

impl Clockwork {
    /// GIF counts hundredths, and 0 and 1 are played as 10.
    pub(super) const GIF: Self = Self { units: 100, least: 2 };
    /// WebP counts milliseconds, and up to 10 are played as 100.
    pub(super) const WEBP: Self = Self { units: 1000, least: 11 };
}

/// The times of the frames of one clip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Delays {
    clock: Clockwork,
    /// Frames in `rate.1` seconds.
    rate: (u64, u64),
    /// Units that the clip lasts; none if its end is not known.
    length: Option<u64>,
}

impl Delays {
    /// The times of a clip in an output; none if its format has none of its own.
    pub(crate) fn of_output(spec: &OutputSpec, clip: ClipFormat) -> Option<Self> {
        let clock = match spec {
            OutputSpec::File { format: FileFormat::Gif, .. } => Clockwork::GIF,
            OutputSpec::File { format: FileFormat::WebP, .. } => Clockwork::WEBP,
            _ => return None,
        };
        Some(Self::new(clock, clip.rate.fraction(), clip.frames))
    }

    /// Times of frames at `rate.0 / rate.1` per second, of which there are `frames`.
    pub(super) fn new(clock: Clockwork, rate: (u32, u32), frames: Option<usize>) -> Self {
        let rate = (u64::from(rate.0).max(1), u64::from(rate.1).max(1));
        let length = frames.map(|frames| nearest(frames as u64 * rate.1 * clock.units, rate.0));
        Self { clock, rate, length }
    }

    /// For how long frame `number` is shown; none if it is left out.
    pub(super) fn of(self, number: usize) -> Option<u64> {
        let number = number as u64;
        let start = self.start(number)?;
        let after = match self.is_too_fast() {
            true => {
                let in_tick = (self.rate.0 * self.clock.least).div_ceil(self.rate.1 * self.clock.units);
                (number + 1..=number + 2 * in_tick).find_map(|next| self.start(next))
            }
            false => self.start(number + 1),
        };
        let end = match (after, self.length) {
            (Some(after), Some(length)) => after.min(length),
            (None, Some(length)) => length,
            (after, None) => after?,
        };
        Some((end - start).max(self.clock.least))
    }

    /// Frames of the first `frames` that are shown.
    pub(crate) fn shown(self, frames: usize) -> usize {
        (0..frames).filter(|number| self.start(*number as u64).is_some()).count()
    }

    /// Whether frames come faster than they can be shown.
    pub(crate) fn is_too_fast(self) -> bool {
        // units / least pictures a second are the most.
        self.rate.0 * self.clock.least > self.rate.1 * self.clock.units
    }

    /// The shortest time that a picture is shown.
    pub(crate) fn least_milliseconds(self) -> u64 {
        self.clock.least * 1000 / self.clock.units
    }

    /// When frame `number` is shown; none if it is left out.
    fn start(self, number: u64) -> Option<u64> {
        let Self { clock, rate, length } = self;
        if !self.is_too_fast() {
            return Some(nearest(number * rate.1 * clock.units, rate.0));
        }
        // Every `least` units the newest frame is shown, if there is a new one.
        let tick = (number * rate.1 * clock.units).div_ceil(rate.0 * clock.least);
        let in_time = tick * clock.least * rate.0 < (number + 1) * rate.1 * clock.units;
        let start = tick * clock.least;
        let has_room = length.is_none_or(|length| start + clock.least <= length);
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

    fn delays(clock: Clockwork, rate: (u32, u32), frames: usize) -> Vec<u64> {
        let delays = Delays::new(clock, rate, Some(frames));
        let found: Vec<u64> = (0..frames).filter_map(|number| delays.of(number)).collect();
        assert_eq!(found.len(), delays.shown(frames));
        found
    }

    #[test]
    fn rates_that_can_be_shown_are_shown_whole() {
        assert_eq!(delays(Clockwork::GIF, (16, 1), 5), [6, 7, 6, 6, 6]);
        assert_eq!(delays(Clockwork::GIF, (50, 1), 3), [2, 2, 2]);
        assert_eq!(delays(Clockwork::WEBP, (60, 1), 4), [17, 16, 17, 17]);
        assert_eq!(delays(Clockwork::GIF, (1, 1), 2), [100, 100]);
    }

    #[test]
    fn faster_ones_leave_frames_out_evenly() {
        // Of 60 frames a second 50: each sixth goes.
        let at_60 = Delays::new(Clockwork::GIF, (60, 1), Some(60));
        let left_out: Vec<usize> = (0..60).filter(|number| at_60.of(*number).is_none()).collect();
        assert_eq!(left_out, [5, 11, 17, 23, 29, 35, 41, 47, 53, 59]);
        assert_eq!(delays(Clockwork::GIF, (60, 1), 60), [2; 50]);
        assert_eq!(delays(Clockwork::GIF, (240, 1), 240), [2; 50]);
        // 7 hundredths are three pictures, the last of them longer.
        assert_eq!(delays(Clockwork::GIF, (100, 1), 7), [2, 2, 3]);
    }

    #[test]
    fn a_clip_shorter_than_the_shortest_time_has_one_picture() {
        for frames in 1..=4 {
            assert_eq!(delays(Clockwork::GIF, (240, 1), frames), [2]);
        }
        assert_eq!(delays(Clockwork::WEBP, (120, 1), 1), [11]);
    }

    proptest! {
        #[test]
        fn no_rate_loses_time_or_gets_a_delay_that_players_distort(
            whole in 1_u32..=240,
            thousandths in prop_oneof![Just((1, 1)), Just((1000, 1001)), (1_u32..=1000).prop_map(|n| (n, 1000))],
            frames in 1_usize..400,
            is_gif in any::<bool>(),
        ) {
            let clock = if is_gif { Clockwork::GIF } else { Clockwork::WEBP };
            let rate = (whole * thousandths.0, thousandths.1);
            let found = delays(clock, rate, frames);
            let exact = frames as f64 * f64::from(rate.1) / f64::from(rate.0) * clock.units as f64;
            let sum = found.iter().sum::<u64>() as f64;
            prop_assert!((sum - exact).abs() <= 0.5001 || found.len() == 1 && sum == clock.least as f64, "{sum} for {exact}");
            prop_assert!(found.iter().all(|delay| *delay >= clock.least));
            let mean = exact / frames as f64;
            let longest = if mean < clock.least as f64 { 2.0 * clock.least as f64 } else { mean + 1.0 };
            prop_assert!(found.iter().all(|delay| (*delay as f64) <= longest), "{found:?}");
            // A frame at a rate that can be shown is never left out.
            prop_assert!(mean < clock.least as f64 || found.len() == frames);
        }
    }
}
