//! The Xing/LAME tag in the first frame of an MP3: its length, and the silence that the encoder added at both ends.
//! Players skip this silence; GStreamer 1.22 plays it.

use crate::sound::RATE;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Samples per channel, at [`RATE`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Silence {
    pub(super) before: usize,
    pub(super) after: usize,
}

/// The Xing/LAME tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct InfoTag {
    /// Bytes of all frames.
    bytes: Option<u32>,
    silence: Silence,
}

/// The delay of every MP3 decoder in samples.
const DECODER: usize = 529;

/// Reads the silence at both ends of a file. Zero if it is not an MP3 or has no tag.
///
/// # Errors
/// I/O errors.
pub(super) fn silence(path: &Path) -> io::Result<Silence> {
    Ok(info_tag(path)?.map(|(_, tag)| tag.silence).unwrap_or_default())
}

/// The length in bytes of an MP3 according to its tag.
///
/// # Errors
/// I/O errors.
pub(super) fn length(path: &Path) -> io::Result<Option<u64>> {
    Ok(info_tag(path)?.and_then(|(start, tag)| start.checked_add(tag.bytes?.into())))
}

/// The tag of a file, and the position of its first frame.
fn info_tag(path: &Path) -> io::Result<Option<(u64, InfoTag)>> {
    let mut file = File::open(path)?;
    let mut head = vec![];
    file.by_ref().take(10).read_to_end(&mut head)?;
    let start = tag_length(&head);
    file.seek(SeekFrom::Start(start))?;
    let mut frame = vec![];
    file.take(4096).read_to_end(&mut frame)?;
    Ok(parse_info_tag(&frame).map(|tag| (start, tag)))
}

/// The length of an ID3v2 tag at the start of a file.
fn tag_length(head: &[u8]) -> u64 {
    match head {
        [b'I', b'D', b'3', _, _, _, a, b, c, d] => {
            let seven = |byte: &u8| u64::from(byte & 0x7f);
            10 + (seven(a) << 21 | seven(b) << 14 | seven(c) << 7 | seven(d))
        }
        _ => 0,
    }
}

/// Parses the tag of a first frame: `Xing` or `Info`, the name of the encoder, 12 bits of silence before and 12 after.
fn parse_info_tag(frame: &[u8]) -> Option<InfoTag> {
    let [0xff, second, third, fourth, ..] = *frame else { return None };
    // Layer III, and its sample rates.
    let (version, layer) = (second >> 3 & 3, second >> 1 & 3);
    let mono = fourth >> 6 == 3;
    let (rates, side) = match (second >> 5, version, layer) {
        (7, 3, 1) => ([44_100, 48_000, 32_000], if mono { 17 } else { 32 }),
        (7, 2, 1) => ([22_050, 24_000, 16_000], if mono { 9 } else { 17 }),
        _ => return None,
    };
    let rate: usize = *rates.get(usize::from(third >> 2 & 3))?;
    let tag = frame.get(4 + side..)?;
    if !(tag.starts_with(b"Xing") || tag.starts_with(b"Info")) {
        return None;
    }
    let flags = *tag.get(7)?;
    let fields = [4, 4, 100, 4].iter().enumerate().filter(|(bit, _)| flags >> bit & 1 == 1);
    let bytes = tag.get(if flags & 1 == 1 { 12..16 } else { 8..12 }).filter(|_| flags & 2 == 2);
    let bytes = bytes.and_then(|bytes| Some(u32::from_be_bytes(bytes.try_into().ok()?)));
    let encoder = tag.get(8 + fields.map(|(_, bytes)| bytes).sum::<usize>()..)?;
    if ![b"LAME", b"Lavf", b"Lavc"].iter().any(|name| encoder.starts_with(*name)) {
        return Some(InfoTag { bytes, silence: Silence::default() });
    }
    let [a, b, c] = *encoder.get(21..24)? else { return None };
    let (before, after) =
        (usize::from(a) << 4 | usize::from(b >> 4), usize::from(b & 15) << 8 | usize::from(c));
    let resampled = |samples: usize| (samples * RATE + rate / 2) / rate;
    let silence =
        Silence { before: resampled(before + DECODER), after: resampled(after.saturating_sub(DECODER)) };
    Some(InfoTag { bytes, silence })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A first frame of MPEG 1 in stereo with the given fields, at 48 or 44.1 kHz.
    fn frame(rate_bits: u8, flags: u8, encoder: &[u8], before: u16, after: u16) -> Vec<u8> {
        let fields = [4, 4, 100, 4].iter().enumerate().filter(|(bit, _)| flags >> bit & 1 == 1);
        let fields = vec![9; fields.map(|(_, bytes)| bytes).sum()];
        let gap = [
            u8::try_from(before >> 4).unwrap(),
            u8::try_from((before & 15) << 4 | after >> 8).unwrap(),
            u8::try_from(after & 255).unwrap(),
        ];
        let head = [0xff, 0xfb, 0x90 | rate_bits << 2, 0];
        [&head[..], &[0; 32], b"Info", &[0, 0, 0, flags], &fields, encoder, &[0; 12], &gap].concat()
    }

    #[test]
    fn length_and_silence_are_read_from_the_first_frame() {
        let silence = |frame: &[u8]| parse_info_tag(frame).map(|tag| (tag.silence.before, tag.silence.after));
        assert_eq!(silence(&frame(1, 15, b"LAME3.100", 576, 1105)), Some((1105, 576)));
        assert_eq!(silence(&frame(1, 1, b"Lavc59.37", 1105, 100)), Some((1634, 0)));
        assert_eq!(silence(&frame(0, 15, b"LAME3.100", 576, 529)), Some((1203, 0)));
        assert_eq!(silence(&frame(1, 15, b"GOGO3.100", 576, 529)), Some((0, 0)));
        assert_eq!(parse_info_tag(&frame(1, 3, b"LAME3.100", 0, 0)).unwrap().bytes, Some(0x0909_0909));
        assert_eq!(parse_info_tag(&frame(1, 1, b"LAME3.100", 0, 0)).unwrap().bytes, None);
        let whole = frame(1, 15, b"LAME3.100", 576, 1105);
        for length in 0..whole.len() {
            assert!(matches!(silence(&whole[..length]), None | Some((0, 0))), "{length}");
        }
        assert_eq!(silence(b"RIFF....WAVEfmt "), None);
    }

    #[test]
    fn the_length_of_an_id3_tag_is_read() {
        assert_eq!(tag_length(b"ID3\x04\0\0\0\0\x02\x01"), 10 + 257);
        assert_eq!(tag_length(b"\xff\xfb\x90\0\0\0\0\0\0\0"), 0);
    }
}
