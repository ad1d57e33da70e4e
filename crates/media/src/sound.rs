//! Audio samples fitted to the length of a clip: repeated or cut, and faded at both ends. Pure.

use bundle::units::FrameRate;
use std::sync::Arc;

/// Samples per second and channel.
pub(crate) const RATE: usize = 48_000;
/// Channels: left and right.
pub(crate) const CHANNELS: usize = 2;
/// Samples of the fade at each end.
const FADE: usize = RATE / 4;
/// The most samples that an encoder puts into one packet.
const MAX_PACKET_SAMPLES: usize = 1152;

/// Interleaved 16-bit samples of a clip. A clone shares them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sound {
    samples: Arc<[i16]>,
    rate: FrameRate,
}

impl Sound {
    /// Fits the samples of a file to a clip of `frames` at `rate`. Returns `None` if there are no samples.
    pub fn fit(file: &[i16], frames: usize, rate: FrameRate) -> Option<Self> {
        let file = &file[..file.len() - file.len() % CHANNELS];
        if file.is_empty() {
            return None;
        }
        let moments = start_of(frames, rate);
        let fade = FADE.min(moments / 2).max(1);
        let samples = file.iter().cycle().take(moments * CHANNELS).enumerate().map(|(index, sample)| {
            let moment = index / CHANNELS;
            let level = moment.min(moments - 1 - moment).min(fade);
            #[expect(clippy::cast_possible_wrap, reason = "at most a second of samples")]
            let (level, whole) = (level as i64, fade as i64);
            i16::try_from(i64::from(*sample) * level / whole).unwrap_or(*sample)
        });
        Some(Self { samples: samples.collect(), rate })
    }

    /// Returns the little-endian samples of a frame and the number of the first sample. Empty after the end.
    pub fn frame_samples(&self, number: usize) -> (Vec<u8>, usize) {
        let (start, end) = (start_of(number, self.rate), start_of(number + 1, self.rate));
        let all = self.samples.len();
        let samples = &self.samples[(start * CHANNELS).min(all)..(end * CHANNELS).min(all)];
        (samples.iter().flat_map(|sample| sample.to_le_bytes()).collect(), start)
    }

    /// Returns the silence that follows the audio of the first `frames`, and the number of its first sample. An encoder
    /// with a delay returns the last samples only after it has received as many more.
    pub fn silence_after(&self, frames: usize, delay: usize) -> (Vec<u8>, usize) {
        let start = start_of(frames, self.rate).min(self.samples.len() / CHANNELS);
        let silence = if delay == 0 { 0 } else { delay + MAX_PACKET_SAMPLES };
        (vec![0; silence * CHANNELS * size_of::<i16>()], start)
    }
}

/// The first sample of a frame.
fn start_of(number: usize, rate: FrameRate) -> usize {
    usize::try_from(rate.timestamp(number as u64, RATE as u64)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_repeated_cut_and_faded() {
        let rate = FrameRate::try_new(16).unwrap();
        let short = [1000, -1000].repeat(RATE / 3);
        let sound = Sound::fit(&short, 16, rate).unwrap();
        assert_eq!(sound.samples.len(), RATE * CHANNELS);
        assert_eq!((sound.samples[0], sound.samples[RATE * CHANNELS - 1]), (0, 0));
        assert_eq!(sound.samples[RATE..RATE + 4], [1000, -1000, 1000, -1000]);
        assert!(sound.samples[FADE] > 400 && sound.samples[FADE] < 600, "half way through the fade");
        assert_eq!(Sound::fit(&[1], 16, rate), None);
        let one = Sound::fit(&short, 1, rate).unwrap();
        assert_eq!(one.samples.len(), 3000 * CHANNELS);
    }

    #[test]
    fn frames_cover_all_samples_without_a_gap() {
        let rate = FrameRate::try_new(24).unwrap();
        let sound = Sound::fit(&[7; 96], 31, rate).unwrap();
        let bytes: usize = (0..31).map(|number| sound.frame_samples(number).0.len()).sum();
        assert_eq!(bytes, sound.samples.len() * 2);
        assert_eq!(sound.frame_samples(2).1, 4000);
        assert!(sound.frame_samples(31).0.is_empty());
    }
}
