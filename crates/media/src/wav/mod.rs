//! WAV files from anybody, and the canonical WAV files that are made of them.
//!
//! [`Wav::decode`] finds the chunks (`chunks`), compares what they claim (`format`) with the limits and with the bytes
//! that are there, and takes the samples as 16-bit numbers. [`Wav::to_bytes`] writes these as a file that has nothing
//! else of the given one, and [`Wav::read`] reads such a file. All of it is Rust: GStreamer never sees given bytes.

mod chunks;
mod error;
mod format;

pub use error::WavError;

use chunks::Chunks;
use format::Format;
use hound::{SampleFormat, WavReader, WavSpec, WavWriter};
use std::io::{Cursor, Read};
use std::path::Path;
use std::time::Duration;

/// The least samples per second.
pub const LOWEST_RATE: u32 = 8_000;
/// The most samples per second.
pub const HIGHEST_RATE: u32 = 192_000;
/// The most channels: left and right.
pub const MOST_CHANNELS: u16 = 2;

/// A sound: interleaved 16-bit samples.
///
/// ```
/// use media::wav::Wav;
/// use std::time::Duration;
///
/// let file = [
///     &b"RIFF\x28\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0"[..], // PCM, one channel
///     &8000_u32.to_le_bytes(), &16_000_u32.to_le_bytes(), &[2, 0, 16, 0], b"data\x04\0\0\0", &[1, 0, 2, 0],
/// ].concat();
/// let wav = Wav::decode(&file, Duration::from_secs(600))?;
/// assert_eq!((wav.rate(), wav.channels(), wav.samples()), (8000, 1, &[1, 2][..]));
/// assert_eq!(wav.to_bytes()?, file);
/// # Ok::<(), media::wav::WavError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wav {
    rate: u32,
    channels: u16,
    samples: Vec<i16>,
}

impl Wav {
    /// Decodes a file: integers of 8, 16, 24 or 32 bits, or floats of 32 bits, in one or two channels, at most `longest`
    /// long.
    ///
    /// # Errors
    /// It is no WAV file, it is cut short or damaged, it has another format, or it is outside the limits.
    pub fn decode(content: &[u8], longest: Duration) -> Result<Self, WavError> {
        let Chunks { format, data } = chunks::find(content)?;
        let Format { rate, channels, header } = Format::checked(format, data.len(), longest)?;
        let reader = WavReader::new(header.as_slice().chain(data)).map_err(damaged)?;
        let WavSpec { sample_format, bits_per_sample, .. } = reader.spec();
        let samples = match sample_format {
            SampleFormat::Int => {
                let samples = reader.into_samples::<i32>().map(|sample| sample.map_err(damaged));
                samples.map(|sample| Ok(of_integer(sample?, bits_per_sample))).collect::<Result<_, _>>()?
            }
            SampleFormat::Float => {
                let samples = reader.into_samples::<f32>().map(|sample| sample.map_err(damaged));
                samples
                    .enumerate()
                    .map(|(index, sample)| of_float(sample?, index))
                    .collect::<Result<_, _>>()?
            }
        };
        Ok(Self { rate, channels, samples })
    }

    /// The canonical file: a header, and 16-bit samples.
    ///
    /// # Errors
    /// There are more samples than a WAV file can have.
    pub fn to_bytes(&self) -> Result<Vec<u8>, WavError> {
        let mut file =
            Cursor::new(Vec::with_capacity(self.samples.len().saturating_mul(2).saturating_add(44)));
        let spec = WavSpec {
            channels: self.channels,
            sample_rate: self.rate,
            bits_per_sample: 16,
            sample_format: SampleFormat::Int,
        };
        let count = u32::try_from(self.samples.len()).ok().filter(|count| *count < u32::MAX / 4);
        let count = count.ok_or_else(|| WavError::Damaged { why: "it has too many samples".to_owned() })?;
        let mut writer = WavWriter::new(&mut file, spec).map_err(damaged)?;
        let mut samples = writer.get_i16_writer(count);
        for sample in &self.samples {
            samples.write_sample(*sample);
        }
        samples.flush().map_err(damaged)?;
        writer.finalize().map_err(damaged)?;
        Ok(file.into_inner())
    }

    /// Reads the first `seconds` of a canonical file.
    ///
    /// # Errors
    /// The file cannot be read, or it is none that [`Self::to_bytes`] writes.
    pub fn read(path: &Path, seconds: f64) -> Result<Self, WavError> {
        let mut reader = WavReader::open(path).map_err(damaged)?;
        let WavSpec { channels, sample_rate: rate, bits_per_sample, sample_format } = reader.spec();
        if (bits_per_sample, sample_format) != (16, SampleFormat::Int) {
            return Err(WavError::Damaged {
                why: "its samples are not those of a canonical file".to_owned(),
            });
        }
        format::check(rate, channels)?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "as many as there are at most"
        )]
        let moments = (seconds * f64::from(rate)).ceil() as usize;
        let most = moments.saturating_mul(usize::from(channels));
        let samples = reader.samples::<i16>().take(most).collect::<Result<Vec<_>, _>>().map_err(damaged)?;
        if samples.is_empty() { Err(WavError::Empty) } else { Ok(Self { rate, channels, samples }) }
    }

    /// Samples per second and channel.
    pub fn rate(&self) -> u32 {
        self.rate
    }

    /// Channels: 1 or 2.
    pub fn channels(&self) -> u16 {
        self.channels
    }

    /// The samples of all channels, those of a moment beside each other.
    pub fn samples(&self) -> &[i16] {
        &self.samples
    }

    /// How long it is.
    pub fn duration(&self) -> Duration {
        let channels = usize::from(self.channels).max(1);
        format::duration((self.samples.len() / channels) as u64, self.rate)
    }
}

fn damaged(error: hound::Error) -> WavError {
    WavError::Damaged { why: error.to_string() }
}

/// The nearest 16-bit sample to an integer of so many bits.
fn of_integer(sample: i32, bits: u16) -> i16 {
    let wide = i64::from(sample) << 32_u16.saturating_sub(bits);
    let nearest = (wide + (1 << 15)) >> 16;
    i16::try_from(nearest).unwrap_or(i16::MAX)
}

/// The nearest 16-bit sample to a float, whose range is -1 to 1.
fn of_float(sample: f32, index: usize) -> Result<i16, WavError> {
    if !sample.is_finite() {
        return Err(WavError::NotFinite { index });
    }
    #[expect(clippy::cast_possible_truncation, reason = "the conversion clamps")]
    let nearest = (sample * 32_768.0).round() as i16;
    Ok(nearest)
}

#[cfg(test)]
pub(crate) mod tests;
