//! A folder with an HLS playlist (RFC 8216): fragments of the mp4 muxer, cut at their boxes into one file each.
//!
//! A segment gets its name when it is whole and is listed after that, so that the playlist never names what cannot be
//! read. A clip keeps all its segments; a stream without end keeps the newest.

use super::{Collector, bytes};
use bundle::units::FrameRate;
use gstreamer as gst;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Name of the playlist in its folder.
pub(in crate::media) const PLAYLIST: &str = "index.m3u8";
/// Name of the head that every segment needs.
const HEAD: &str = "init.mp4";
/// Extension of the segments.
const SEGMENT: &str = "m4s";
/// Segments that a stream without end keeps.
const WINDOW: usize = 30;

/// A folder that is being written to. One that is left empty goes.
#[derive(Debug)]
pub(in crate::media) struct HlsFolder(PathBuf);

impl HlsFolder {
    /// Creates the folder if it is not there.
    ///
    /// # Errors
    /// What the system said.
    pub(in crate::media) fn create(folder: &Path) -> io::Result<Self> {
        match fs::create_dir(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => fs::read_dir(folder)?,
        };
        Ok(Self(folder.to_owned()))
    }

    /// Where it is.
    pub(in crate::media) fn path(&self) -> &Path {
        &self.0
    }

    /// Removes what an earlier run left, and only what has its names.
    ///
    /// # Errors
    /// What the system said.
    pub(in crate::media) fn clear(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            let is_ours = path.file_name().is_some_and(|name| name == PLAYLIST || name == HEAD)
                || path.extension().is_some_and(|extension| extension == SEGMENT || extension == "part");
            if is_ours {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Bytes of all its files.
    pub(in crate::media) fn bytes(&self) -> u64 {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.metadata().ok()).map(|found| found.len()).sum()
    }
}

impl Drop for HlsFolder {
    fn drop(&mut self) {
        // Refused by the system unless it is empty.
        let _ = fs::remove_dir(&self.0);
    }
}

/// Cuts a fragmented mp4 into segments and lists them.
#[derive(Debug)]
pub(in crate::media) struct HlsWriter {
    folder: PathBuf,
    rate: FrameRate,
    endless: bool,
    boxes: Boxes,
    /// The boxes of the head or of the segment that is not whole yet.
    waiting: Vec<u8>,
    /// Pictures of that segment.
    pictures: u32,
    /// Number and pictures of the segments that are listed.
    listed: Vec<(usize, u32)>,
    made: usize,
}

impl HlsWriter {
    /// A writer into a folder that is there.
    pub(in crate::media) fn new(folder: &Path, rate: FrameRate, endless: bool) -> Self {
        Self {
            folder: folder.to_owned(),
            rate,
            endless,
            boxes: Boxes::default(),
            waiting: Vec::new(),
            pictures: 0,
            listed: Vec::new(),
            made: 0,
        }
    }

    fn take_box(&mut self, kind: [u8; 4], content: &[u8]) -> io::Result<()> {
        match &kind {
            b"ftyp" | b"styp" | b"sidx" => self.waiting.extend_from_slice(content),
            b"moov" => {
                self.waiting.extend_from_slice(content);
                publish(&self.folder, HEAD, &std::mem::take(&mut self.waiting))?;
            }
            b"moof" => {
                self.pictures += samples(content);
                self.waiting.extend_from_slice(content);
            }
            b"mdat" if self.pictures > 0 => {
                self.waiting.extend_from_slice(content);
                // The muxer begins a fragment at every key frame, and where the picture changes they come close.
                if self.pictures >= self.rate.nominal() {
                    self.close_segment()?;
                }
            }
            // The index at the end, which only a single file needs.
            _ => {}
        }
        Ok(())
    }

    fn close_segment(&mut self) -> io::Result<()> {
        self.made += 1;
        let segment = std::mem::take(&mut self.waiting);
        publish(&self.folder, &segment_name(self.made), &segment)?;
        self.listed.push((self.made, std::mem::take(&mut self.pictures)));
        let gone =
            if self.endless && self.listed.len() > WINDOW { Some(self.listed.remove(0)) } else { None };
        self.list(false)?;
        if let Some((number, _)) = gone {
            fs::remove_file(self.folder.join(segment_name(number)))?;
        }
        Ok(())
    }

    fn list(&self, ended: bool) -> io::Result<()> {
        publish(&self.folder, PLAYLIST, self.playlist(ended).as_bytes())
    }

    fn playlist(&self, ended: bool) -> String {
        let seconds = |pictures: u32| f64::from(pictures) / self.rate.per_second();
        let longest = self.listed.iter().map(|(_, pictures)| seconds(*pictures)).fold(1.0, f64::max);
        let first = self.listed.first().map_or(0, |(number, _)| number - 1);
        let mut text = format!(
            "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:{}\n#EXT-X-MEDIA-SEQUENCE:{first}\n",
            longest.round()
        );
        if !self.endless {
            text.push_str("#EXT-X-PLAYLIST-TYPE:EVENT\n");
        }
        // Writing into a String cannot fail.
        let _ = writeln!(text, "#EXT-X-INDEPENDENT-SEGMENTS\n#EXT-X-MAP:URI=\"{HEAD}\"");
        for (number, pictures) in &self.listed {
            let _ = writeln!(text, "#EXTINF:{:.6},\n{}", seconds(*pictures), segment_name(*number));
        }
        if ended {
            text.push_str("#EXT-X-ENDLIST\n");
        }
        text
    }
}

impl Collector for HlsWriter {
    fn take(&mut self, buffer: &gst::BufferRef) -> io::Result<()> {
        self.boxes.add(&bytes(buffer)?);
        while let Some((kind, content)) = self.boxes.next()? {
            self.take_box(kind, &content)?;
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        if self.pictures > 0 {
            self.close_segment()?;
        }
        self.list(true)
    }
}

fn segment_name(number: usize) -> String {
    format!("{number:05}.{SEGMENT}")
}

/// Writes a file under its name only when it is whole.
fn publish(folder: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let part = folder.join(format!("{name}.part"));
    let written = fs::write(&part, content).and_then(|()| fs::rename(&part, folder.join(name)));
    if written.is_err() {
        // What cannot be removed is seen by its name to be no finished file.
        let _ = fs::remove_file(&part);
    }
    written
}

/// The boxes of an mp4 that comes in pieces.
#[derive(Debug, Default)]
struct Boxes(Vec<u8>);

impl Boxes {
    fn add(&mut self, piece: &[u8]) {
        self.0.extend_from_slice(piece);
    }

    /// The next whole box: its kind, and all its bytes.
    fn next(&mut self) -> io::Result<Option<([u8; 4], Vec<u8>)>> {
        let Some([s0, s1, s2, s3, kind @ ..]) = self.0.first_chunk::<8>().copied() else { return Ok(None) };
        let size = match u32::from_be_bytes([s0, s1, s2, s3]) {
            1 => match self.0.get(8..16).and_then(|large| large.first_chunk::<8>()) {
                Some(large) => usize::try_from(u64::from_be_bytes(*large)).unwrap_or(usize::MAX),
                None => return Ok(None),
            },
            size => size as usize,
        };
        if size < 8 {
            return Err(io::Error::other("the muxer gave a box without a length"));
        }
        if self.0.len() < size {
            return Ok(None);
        }
        let rest = self.0.split_off(size);
        Ok(Some((kind, std::mem::replace(&mut self.0, rest))))
    }
}

/// Samples of a `moof` box: the counts of its `trun` boxes.
fn samples(boxed: &[u8]) -> u32 {
    let mut inner = Boxes(boxed.get(8..).unwrap_or_default().to_vec());
    let mut count = 0;
    while let Ok(Some((kind, content))) = inner.next() {
        count += match &kind {
            b"traf" => samples(&content),
            b"trun" => {
                content.get(12..).and_then(|rest| rest.first_chunk()).copied().map_or(0, u32::from_be_bytes)
            }
            _ => 0,
        };
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boxed(kind: &[u8; 4], content: &[u8]) -> Vec<u8> {
        [&(content.len() as u32 + 8).to_be_bytes()[..], kind, content].concat()
    }

    fn fragment(pictures: u32) -> Vec<u8> {
        let trun = boxed(b"trun", &[&[0; 4][..], &pictures.to_be_bytes()].concat());
        let traf = boxed(b"traf", &[boxed(b"tfhd", &[0; 4]), trun].concat());
        let moof = boxed(b"moof", &[boxed(b"mfhd", &[0; 8]), traf].concat());
        [moof, boxed(b"mdat", b"pictures")].concat()
    }

    fn written(endless: bool, fragments: usize, step: usize) -> (tempfile::TempDir, String) {
        gst::init().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let head = [boxed(b"ftyp", b"iso6"), boxed(b"moov", &[0; 20])].concat();
        let second = [fragment(5), fragment(11)].concat();
        let stream = [head, second.repeat(fragments), fragment(8)].concat();
        let mut writer = HlsWriter::new(folder.path(), FrameRate::WAN, endless);
        for piece in stream.chunks(step) {
            writer.take(&gst::Buffer::from_slice(piece.to_vec())).unwrap();
        }
        writer.finish().unwrap();
        let playlist = fs::read_to_string(folder.path().join(PLAYLIST)).unwrap();
        (folder, playlist)
    }

    #[test]
    fn a_stream_is_cut_into_head_and_segments_however_it_comes() {
        for step in [1, 7, 1000] {
            let (folder, playlist) = written(false, 1, step);
            insta::allow_duplicates! { insta::assert_snapshot!(playlist, @r#"
            #EXTM3U
            #EXT-X-VERSION:7
            #EXT-X-TARGETDURATION:1
            #EXT-X-MEDIA-SEQUENCE:0
            #EXT-X-PLAYLIST-TYPE:EVENT
            #EXT-X-INDEPENDENT-SEGMENTS
            #EXT-X-MAP:URI="init.mp4"
            #EXTINF:1.000000,
            00001.m4s
            #EXTINF:0.500000,
            00002.m4s
            #EXT-X-ENDLIST
            "#); }
            assert_eq!(fs::read(folder.path().join("00002.m4s")).unwrap(), fragment(8));
        }
    }

    #[test]
    fn a_stream_without_end_keeps_the_newest() {
        let (folder, playlist) = written(true, WINDOW, 1000);
        assert!(playlist.contains("#EXT-X-MEDIA-SEQUENCE:1\n") && !playlist.contains("EVENT"), "{playlist}");
        assert!(!folder.path().join("00001.m4s").exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), WINDOW + 2);
    }
}
