//! Detection of truncated and overwritten files, which demuxers ignore silently.
//!
//! Only the container is checked, not the streams in it. Files of other formats count as complete.

use super::gapless;
use crate::mp4;
use crate::sound::RATE;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

/// Describes the damage of a file and its position. Returns `None` if the file is complete.
///
/// # Errors
/// I/O errors.
pub(super) fn damage(path: &Path) -> io::Result<Option<String>> {
    let mut file = File::open(path)?;
    let mut head = vec![];
    file.by_ref().take(12).read_to_end(&mut head)?;
    let length = file.metadata()?.len();
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    file.rewind()?;
    let mut walk = Walk { file: BufReader::new(file), length, at: 0, ended: false };
    let found = match head.as_slice() {
        [b'R', b'I', b'F', b'F', a, b, c, d, ..] => riff(u32::from_le_bytes([*a, *b, *c, *d]), length),
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => match mp4::top_level(walk.file.get_mut()) {
            Ok(_) => None,
            Err(error) if error.kind() == io::ErrorKind::Other => Some(error.to_string()),
            Err(error) => return Err(error),
        },
        [0x1a, 0x45, 0xdf, 0xa3, ..] => walk.pieces(Walk::element)?,
        [b'O', b'g', b'g', b'S', ..] => walk.pieces(Walk::page)?,
        [0x89, b'P', b'N', b'G', ..] => {
            walk.skip(8)?;
            let damage = walk.pieces(Walk::chunk)?;
            let truncated = (!walk.ended).then(|| format!("it is cut short: its {length} bytes have no end"));
            damage.or(truncated)
        }
        [0xff, 0xd8, 0xff, ..] => walk.picture_end()?,
        [b'I', b'D', b'3', ..] | [0xff, 0xe0..=0xff, ..] => {
            gapless::length(path)?.and_then(|declared| truncation(declared, length))
        }
        [] => Some("it is empty".into()),
        _ => None,
    };
    Ok(found)
}

/// Checks the length in the header of a RIFF file (WAV, AVI, WebP). Programs that cannot seek write 0 or all ones.
fn riff(declared: u32, length: u64) -> Option<String> {
    let declared = u64::from(declared);
    let is_known = declared != 0 && declared != u64::from(u32::MAX);
    if is_known { truncation(declared + 8, length) } else { None }
}

fn truncation(declared: u64, length: u64) -> Option<String> {
    (declared > length).then(|| format!("it is cut short: it has {length} of {declared} bytes"))
}

/// The length of a FLAC in samples at [`RATE`], from its header. `None` for other files and for an unknown length.
///
/// # Errors
/// I/O errors.
pub(super) fn samples(path: &Path) -> io::Result<Option<usize>> {
    let mut head = vec![];
    File::open(path)?.take(26).read_to_end(&mut head)?;
    // `fLaC`, then the header of STREAMINFO, which contains 20 bits of rate, 8 other bits and 36 bits of samples.
    let Some((b"fLaC", info)) = head.split_first_chunk::<4>() else { return Ok(None) };
    let Some(packed) = info.get(14..22).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes)
    else {
        return Ok(None);
    };
    let (rate, samples) = (packed >> 44, packed & ((1 << 36) - 1));
    let known = rate > 0 && samples > 0;
    Ok(known.then(|| usize::try_from(samples * RATE as u64 / rate).unwrap_or(usize::MAX)))
}

/// The result of reading an element of a file.
enum Next {
    Piece,
    End,
    Damage(&'static str),
}

/// Reads a file element by element.
struct Walk {
    file: BufReader<File>,
    length: u64,
    at: u64,
    /// True after the last element.
    ended: bool,
}

impl Walk {
    /// Reads all elements of a file. Describes the first damage.
    fn pieces(&mut self, piece: fn(&mut Self) -> io::Result<Next>) -> io::Result<Option<String>> {
        while self.at < self.length {
            let start = self.at;
            let what = match piece(self) {
                Ok(Next::Piece) if self.at <= self.length => continue,
                Ok(Next::End) => {
                    self.ended = true;
                    return Ok(None);
                }
                Ok(Next::Damage(what)) => what,
                Ok(Next::Piece) => "cut short",
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => "cut short",
                Err(error) => return Err(error),
            };
            return Ok(Some(format!("it is {what} at byte {start} of {}", self.length)));
        }
        Ok(None)
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes)?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        self.at = self.at.saturating_add(bytes);
        match i64::try_from(bytes) {
            Ok(bytes) if self.at <= self.length => self.file.seek_relative(bytes),
            _ => self.file.seek(SeekFrom::End(0)).map(drop),
        }
    }

    /// An element of Matroska or WebM (RFC 8794 §4). Of a master element only the header is read.
    fn element(&mut self) -> io::Result<Next> {
        const MASTERS: [u32; 2] = [0x1853_8067, 0x1f43_b675];
        const OTHERS: [u32; 18] = [
            0x1a45_dfa3,
            0x114d_9b74,
            0x1549_a966,
            0x1654_ae6b,
            0x1c53_bb6b,
            0x1254_c367,
            0x1941_a469,
            0x1043_a770,
            0xec,
            0xbf,
            0xe7,
            0x5854,
            0xa7,
            0xab,
            0xa3,
            0xa0,
            0xa1,
            0xaf,
        ];
        let [first] = self.bytes()?;
        let mut id = u32::from(first);
        for _ in 0..first.leading_zeros().min(3) {
            let [next] = self.bytes()?;
            id = id << 8 | u32::from(next);
        }
        if !MASTERS.contains(&id) && !OTHERS.contains(&id) {
            return Ok(Next::Damage("damaged"));
        }
        let [first] = self.bytes()?;
        let more = first.leading_zeros();
        let mut size = u64::from(first) & (0x7f_u64 >> more);
        for _ in 0..more {
            let [next] = self.bytes()?;
            size = size << 8 | u64::from(next);
        }
        let unknown = size == (1 << (7 * (more + 1))) - 1;
        if MASTERS.contains(&id) {
            let cut = !unknown && self.at.saturating_add(size) > self.length;
            return Ok(if cut { Next::Damage("cut short in the element") } else { Next::Piece });
        }
        self.skip(size).map(|()| Next::Piece)
    }

    /// A page of Ogg (RFC 3533 §6).
    fn page(&mut self) -> io::Result<Next> {
        let head: [u8; 27] = self.bytes()?;
        if !head.starts_with(b"OggS\0") {
            return Ok(Next::Damage("damaged"));
        }
        let mut page = head.to_vec();
        page[22..26].fill(0);
        let mut sizes = 0;
        for _ in 0..head[26] {
            let [size] = self.bytes()?;
            page.push(size);
            sizes += u64::from(size);
        }
        let before = page.len() as u64;
        self.file.by_ref().take(sizes).read_to_end(&mut page)?;
        self.at += sizes;
        let is_whole = page.len() as u64 == before + sizes;
        let sum = u32::from_le_bytes([head[22], head[23], head[24], head[25]]);
        Ok(match is_whole {
            true if checksum(&page) != sum => Next::Damage("damaged"),
            _ => Next::Piece,
        })
    }

    /// A chunk of a PNG.
    fn chunk(&mut self) -> io::Result<Next> {
        let size = u32::from_be_bytes(self.bytes()?);
        let kind: [u8; 4] = self.bytes()?;
        self.skip(u64::from(size) + 4)?;
        let is_last = kind == *b"IEND" && self.at <= self.length;
        Ok(if is_last { Next::End } else { Next::Piece })
    }

    /// Finds the end of a JPEG after its segments, which may contain smaller pictures.
    fn picture_end(&mut self) -> io::Result<Option<String>> {
        let cut = Some(format!("it is cut short: its picture does not end in its {} bytes", self.length));
        self.skip(2)?;
        loop {
            let Ok([0xff, mut kind]) = self.bytes() else { return Ok(cut) };
            // A marker may be preceded by any number of fill bytes.
            while kind == 0xff {
                let Ok([next]) = self.bytes() else { return Ok(cut) };
                kind = next;
            }
            let Ok(size) = self.bytes().map(u16::from_be_bytes) else { return Ok(cut) };
            self.skip(u64::from(size.saturating_sub(2)))?;
            if kind == 0xda {
                break;
            }
        }
        let mut rest = vec![];
        self.file.read_to_end(&mut rest)?;
        Ok(if rest.windows(2).any(|mark| mark == [0xff, 0xd9]) { None } else { cut })
    }
}

/// The checksum of an Ogg page: CRC-32 of the polynomial 04c11db7, most significant bit first.
fn checksum(page: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut sum = (index as u32) << 24;
            let mut bit = 0;
            while bit < 8 {
                sum = if sum >> 31 == 1 { sum << 1 ^ 0x04c1_1db7 } else { sum << 1 };
                bit += 1;
            }
            table[index] = sum;
            index += 1;
        }
        table
    };
    page.iter().fold(0, |sum, byte| sum << 8 ^ TABLE[usize::from((sum >> 24) as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damage_of(bytes: &[u8]) -> Option<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        damage(file.path()).unwrap()
    }

    fn chunk(kind: &[u8], content: &[u8]) -> Vec<u8> {
        [&u32::try_from(content.len()).unwrap().to_be_bytes()[..], kind, content, b"crc!"].concat()
    }

    fn page(content: &[u8]) -> Vec<u8> {
        let mut page =
            [b"OggS\0".as_slice(), &[0; 21], &[1, u8::try_from(content.len()).unwrap()], content].concat();
        let sum = checksum(&page);
        page[22..26].copy_from_slice(&sum.to_le_bytes());
        page
    }

    /// A small file of each format.
    fn files() -> Vec<(&'static str, Vec<u8>)> {
        let matroska = [
            &[0x1a, 0x45, 0xdf, 0xa3, 0x82, 1, 2][..],
            &[0x18, 0x53, 0x80, 0x67, 0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[0x1f, 0x43, 0xb6, 0x75, 0x8b, 0xe7, 0x81, 0, 0xa3, 0x40, 5, 1, 2, 3, 4, 5],
        ];
        let boxed = |kind: &[u8], content: &[u8]| {
            [&u32::try_from(content.len() + 8).unwrap().to_be_bytes()[..], kind, content].concat()
        };
        vec![
            ("WAV", [b"RIFF".as_slice(), &16_u32.to_le_bytes(), b"WAVEfmt 12345678"].concat()),
            ("mp4", [boxed(b"ftyp", b"isom"), boxed(b"mdat", b"1234")].concat()),
            ("Matroska", matroska.concat()),
            ("Ogg", [page(b"first"), page(b"second")].concat()),
            ("PNG", [b"\x89PNG\r\n\x1a\n".to_vec(), chunk(b"IDAT", b"1234"), chunk(b"IEND", b"")].concat()),
            ("JPEG", b"\xff\xd8\xff\xe1\x00\x04\xff\xd9\xff\xda\x00\x02data\xff\xd9".to_vec()),
        ]
    }

    #[test]
    fn truncated_files_are_damaged_and_complete_files_are_not() {
        for (name, file) in files() {
            assert_eq!(damage_of(&file), None, "{name}");
            for length in 13..file.len() {
                // A file that ends between two elements is complete.
                let between = match name {
                    "Ogg" => length == page(b"first").len(),
                    "Matroska" => length == 19,
                    _ => false,
                };
                assert!(between || damage_of(&file[..length]).is_some(), "{name} of {length} bytes");
            }
        }
        assert_eq!(damage_of(b"").as_deref(), Some("it is empty"));
        assert_eq!(damage_of(b"a note"), None, "other formats are not checked");
    }

    #[test]
    fn overwritten_elements_are_reported_with_their_position() {
        let file = |wanted: &str| files().into_iter().find(|(name, _)| *name == wanted).unwrap().1;
        let (matroska, ogg) = (file("Matroska"), file("Ogg"));
        let overwritten = |mut file: Vec<u8>, at: usize| {
            file[at..at + 4].fill(0);
            damage_of(&file)
        };
        assert_eq!(overwritten(matroska, 27).as_deref(), Some("it is damaged at byte 27 of 35"));
        assert_eq!(overwritten(ogg.clone(), 28).as_deref(), Some("it is damaged at byte 0 of 67"));
        assert_eq!(overwritten(ogg, 33).as_deref(), Some("it is damaged at byte 33 of 67"));
    }

    #[test]
    fn a_missing_riff_length_is_ignored() {
        assert_eq!(riff(0, 100), None);
        assert_eq!(riff(u32::MAX, 100), None);
        assert_eq!(riff(92, 100), None);
        assert_eq!(riff(93, 100).as_deref(), Some("it is cut short: it has 100 of 101 bytes"));
    }

    #[test]
    fn the_checksum_is_that_of_ogg() {
        // CRC-32 of the same polynomial without inversions, of the standard check string.
        assert_eq!(checksum(b"123456789"), 0x89a1_897f);
    }
}
