//! Correction of the encoder delay of the audio track.
//!
//! An audio encoder adds silence at the start, so that sample 0 is decoded some hundred samples late. The edit list of
//! the track contains the start of the audio and its length. The GStreamer muxer writes the list without the delay, so
//! it is corrected when the file is closed. Only numbers change, in place.

use super::boxes::{find, find_all, number, top_level};
use crate::sound::RATE;
use std::fs::OpenOptions;
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Skips the first `delay` samples of the audio, and the audio after the last frame.
///
/// # Errors
/// I/O errors. Returns an error if the index is not as GStreamer writes it.
pub(crate) fn align(path: &Path, delay: usize) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let unknown = || io::Error::other("its index is not as expected");
    let index = top_level(&mut file)?.into_iter().find(|found| found.kind == *b"moov").ok_or_else(unknown)?;
    let mut bytes = vec![0; usize::try_from(index.size).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, index.start)?;
    for (at, number) in changes(&bytes, delay).ok_or_else(unknown)? {
        file.seek(SeekFrom::Start(index.start + at as u64))?;
        file.write_all(&number.to_be_bytes())?;
    }
    Ok(())
}

/// The positions and new values of the numbers of an index that must change.
fn changes(index: &[u8], delay: usize) -> Option<Vec<(usize, u32)>> {
    let all = 0..index.len();
    let tracks = find_all(index, all.clone(), &[b"moov", b"trak"]);
    let track_of = |kind: &[u8; 4]| {
        tracks.iter().find(|track| {
            let handler = find(index, (*track).clone(), &[b"mdia", b"hdlr"]);
            handler.and_then(|handler| index.get(handler)?.get(8..12)) == Some(&kind[..])
        })
    };
    let (pictures, sound) = (track_of(b"vide")?, track_of(b"soun")?);
    let inside =
        |track: &Range<usize>, path: &[&[u8; 4]]| version_0(index, find(index, track.clone(), path)?);

    let movie = version_0(index, find(index, all, &[b"moov", b"mvhd"])?)?;
    let movie_scale = u64::from(number(index, movie.start + 12)?);
    let length = u64::from(number(index, inside(pictures, &[b"tkhd"])?.start + 20)?);
    let media = inside(sound, &[b"mdia", b"mdhd"])?;
    let scale = u64::from(number(index, media.start + 12)?);
    let edits = inside(sound, &[b"edts", b"elst"])?;
    if number(index, edits.start + 4)? != 1 || movie_scale == 0 || scale == 0 {
        return None;
    }
    let delay = (delay as u64).checked_mul(scale)? / RATE as u64;
    // In units of the movie, up to the end of the audio.
    let available = u64::from(number(index, media.start + 16)?).saturating_sub(delay);
    let played = length.min(available.checked_mul(movie_scale)? / scale);
    let (length, played) = (u32::try_from(length).ok()?, u32::try_from(played).ok()?);
    Some(vec![
        (movie.start + 16, length),
        (inside(sound, &[b"tkhd"])?.start + 20, played),
        (edits.start + 8, played),
        (edits.start + 12, u32::try_from(delay).ok()?),
    ])
}

/// Returns the content of a box if it has version 0, with times of 4 bytes.
fn version_0(index: &[u8], content: Range<usize>) -> Option<Range<usize>> {
    (*index.get(content.start)? == 0).then_some(content)
}

#[cfg(test)]
mod tests {
    use super::super::boxes::tests::boxed;
    use super::*;

    fn numbers(numbers: &[u32]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
    }

    /// An index of 8000 units of 1/3200 s of video and of audio samples at 48 kHz, with a version of the edit list.
    fn index(samples: u32, version: u32) -> Vec<u8> {
        let handler = |kind: &[u8; 4]| boxed(b"hdlr", &[&[0; 8][..], kind, &[0; 13]].concat());
        let track = |kind: &[u8; 4], length: u32, edits: Vec<u8>, media: Vec<u8>| {
            let head = boxed(b"tkhd", &numbers(&[7, 0, 0, 1, 0, length, 0, 0]));
            let media = boxed(b"mdia", &[boxed(b"mdhd", &media), handler(kind)].concat());
            boxed(b"trak", &[head, boxed(b"edts", &boxed(b"elst", &edits)), media].concat())
        };
        let movie = boxed(b"mvhd", &numbers(&[0, 0, 0, 3200, 8141, 0x10000]));
        let pictures =
            track(b"vide", 8000, numbers(&[0, 1, 8000, 0, 1 << 16]), numbers(&[0, 0, 0, 1600, 4000, 0]));
        let sound = track(
            b"soun",
            8141,
            numbers(&[version << 24, 1, 8141, 0, 1 << 16]),
            numbers(&[0, 0, 0, 48000, samples, 0]),
        );
        boxed(b"moov", &[movie, pictures, sound].concat())
    }

    #[test]
    fn the_delay_and_the_excess_at_the_end_are_skipped() {
        let index = index(122_112, 0);
        let found = changes(&index, 1105).unwrap();
        let after: Vec<u32> = found.iter().map(|(_, number)| *number).collect();
        assert_eq!(after, [8000, 8000, 8000, 1105]);
        let before: Vec<u32> = found.iter().map(|(at, _)| number(&index, *at).unwrap()).collect();
        assert_eq!(before, [8141, 8141, 8141, 0]);
    }

    #[test]
    fn short_audio_is_played_to_its_end() {
        let after: Vec<u32> = changes(&index(60_000 + 1600, 0), 1600).unwrap().iter().map(|c| c.1).collect();
        assert_eq!(after, [8000, 4000, 4000, 1600]);
        let after: Vec<u32> = changes(&index(100, 0), 1600).unwrap().iter().map(|c| c.1).collect();
        assert_eq!(after, [8000, 0, 0, 1600]);
    }

    #[test]
    fn an_index_of_another_form_is_not_changed() {
        assert_eq!(changes(&index(122_112, 1), 1105), None);
        let whole = index(122_112, 0);
        for length in 0..whole.len() {
            assert_eq!(changes(&whole[..length], 1105), None, "{length}");
        }
    }
}
