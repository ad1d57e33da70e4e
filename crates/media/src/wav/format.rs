//! What the header of a WAV file claims, compared with limits before anything is decoded.

use super::{HIGHEST_RATE, LOWEST_RATE, MOST_CHANNELS, WavError};
use std::time::Duration;

/// Numbers of formats (`mmreg.h`).
const INTEGERS: u16 = 1;
const FLOATS: u16 = 3;
const EXTENSIBLE: u16 = 0xFFFE;
/// Bytes of the chunk of a plain format, and of `WAVEFORMATEXTENSIBLE`.
const PLAIN: usize = 16;
const EXTENDED: usize = 40;
/// Where `WAVEFORMATEXTENSIBLE` has the bits of a sample that are used, and the number of its format.
const USED_BITS: std::ops::Range<usize> = 18..20;
const SUB_FORMAT: usize = 24;

/// The format of a file, within the limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Format {
    /// Samples per second and channel.
    pub(super) rate: u32,
    /// Channels.
    pub(super) channels: u16,
    /// The beginning of a file that has this format and no other chunk, up to the samples.
    pub(super) header: Vec<u8>,
}

impl Format {
    /// Reads the chunk `fmt ` of a file with so many bytes of samples.
    ///
    /// # Errors
    /// The format is another one, contradicts the samples, or is outside the limits.
    pub(super) fn checked(chunk: &[u8], data: usize, longest: Duration) -> Result<Self, WavError> {
        let damaged = |why: &str| WavError::Damaged { why: why.to_owned() };
        let plain = chunk.first_chunk::<PLAIN>().ok_or_else(|| damaged("`fmt` is too short"))?;
        let [t, g, c, h, r0, r1, r2, r3, _, _, _, _, a, l, b, i] = *plain;
        let (tag, channels) = (u16::from_le_bytes([t, g]), u16::from_le_bytes([c, h]));
        let rate = u32::from_le_bytes([r0, r1, r2, r3]);
        let (block, bits) = (u16::from_le_bytes([a, l]), u16::from_le_bytes([b, i]));
        let mut kept = plain.to_vec();
        let mut kind = tag;
        if tag == EXTENSIBLE {
            kept = chunk.get(..EXTENDED).ok_or_else(|| damaged("`fmt` is too short"))?.to_vec();
            kind = u16::from_le_bytes([kept[SUB_FORMAT], kept[SUB_FORMAT + 1]]);
            // The used bits are the upper ones, and `hound` would take the lower ones.
            kept[USED_BITS].fill(0);
        }
        match (kind, bits) {
            (INTEGERS, 8 | 16 | 24 | 32) | (FLOATS, 32) => {}
            (INTEGERS | FLOATS, _) => return Err(WavError::Bits { found: bits }),
            _ => return Err(WavError::Format { name: name(kind) }),
        }
        check(rate, channels)?;
        if channels.checked_mul(bits / 8) != Some(block) {
            return Err(damaged("`block_align` is not that of its channels and bits"));
        }
        let moments = data / usize::from(block);
        let whole = moments.checked_mul(usize::from(block)).filter(|whole| *whole == data);
        let whole = whole.ok_or_else(|| damaged("`data` ends within a sample"))?;
        if moments == 0 {
            return Err(WavError::Empty);
        }
        let found = duration(moments as u64, rate);
        if found > longest {
            return Err(WavError::Duration { found, most: longest });
        }
        let header = header(&kept, whole).ok_or_else(|| damaged("`data` is too long"))?;
        Ok(Self { rate, channels, header })
    }
}

/// Compares rate and channels with the limits.
///
/// # Errors
/// One is outside of them.
pub(super) fn check(rate: u32, channels: u16) -> Result<(), WavError> {
    if !(1..=MOST_CHANNELS).contains(&channels) {
        return Err(WavError::Channels { found: channels });
    }
    if !(LOWEST_RATE..=HIGHEST_RATE).contains(&rate) {
        return Err(WavError::Rate { found: rate });
    }
    Ok(())
}

/// The time that so many samples of a channel take.
pub(super) fn duration(moments: u64, rate: u32) -> Duration {
    let rate = u64::from(rate).max(1);
    let nanoseconds = (moments % rate) * 1_000_000_000 / rate;
    Duration::from_secs(moments / rate).saturating_add(Duration::from_nanos(nanoseconds))
}

/// The beginning of a file with this chunk `fmt ` and so many bytes of samples.
fn header(format: &[u8], data: usize) -> Option<Vec<u8>> {
    let (size, data) = (u32::try_from(format.len()).ok()?, u32::try_from(data).ok()?);
    // `WAVE` and the names and sizes of both chunks.
    let all = size.checked_add(data)?.checked_add(4 + 8 + 8)?;
    let parts = [b"RIFF", &all.to_le_bytes()[..], b"WAVEfmt ", &size.to_le_bytes(), format, b"data"];
    Some([&parts.concat()[..], &data.to_le_bytes()].concat())
}

/// A format by its name, where it is a usual one.
fn name(tag: u16) -> String {
    let known = match tag {
        0x02 | 0x11 => "ADPCM",
        0x06 => "A-law",
        0x07 => "mu-law",
        0x31 => "GSM",
        0x50 | 0x55 => "MP3",
        0xFF | 0x1600..=0x1602 => "AAC",
        0x0161..=0x0163 => "WMA",
        0x2000 => "AC-3",
        0xF1AC => "FLAC",
        _ => return format!("number {tag:#06x}"),
    };
    known.to_owned()
}
