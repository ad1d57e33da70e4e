//! The writer of HLS (RFC 8216): splits the stream of the mp4 muxer into segments and lists them in a playlist.
//!
//! A segment is renamed when it is complete and listed after that, so that the playlist lists only complete files. A
//! clip keeps all segments; an endless stream keeps the newest.

use super::hls_folder::{HEADER, INIT_SEGMENT, PLAYLIST, REMOVED, SEGMENT_EXTENSION};
use super::store::{PART_SUFFIX, Store};
use super::{Collector, bytes};
use bundle::units::FrameRate;
use gstreamer as gst;
use std::fmt::Write;
use std::io;

/// The number of segments that an endless stream keeps.
const WINDOW: usize = 30;

/// Splits a fragmented mp4 into segments and lists them.
#[derive(Debug)]
pub(crate) struct HlsWriter {
    store: Box<dyn Store>,
    rate: FrameRate,
    endless: bool,
    boxes: BoxParser,
    /// The initialization segment, until the first segment is complete.
    init_segment: Option<Vec<u8>>,
    /// The boxes of the incomplete segment.
    pending: Vec<u8>,
    /// Frames of the incomplete segment.
    frames: u32,
    /// Bytes and frames of the incomplete segment whose data have arrived.
    complete: (usize, u32),
    /// The listed segments.
    listed: Vec<Segment>,
    /// The number of the segment that is no longer listed and not yet removed.
    unlisted: Option<usize>,
    count: usize,
}

/// A segment of the playlist.
#[derive(Debug, Clone, Copy)]
struct Segment {
    number: usize,
    frames: u32,
}

impl HlsWriter {
    /// A writer into an existing folder.
    pub(crate) fn new(store: Box<dyn Store>, rate: FrameRate, endless: bool) -> Self {
        Self {
            store,
            rate,
            endless,
            boxes: BoxParser::default(),
            init_segment: None,
            pending: Vec::new(),
            frames: 0,
            complete: (0, 0),
            listed: Vec::new(),
            unlisted: None,
            count: 0,
        }
    }

    fn take_box(&mut self, kind: [u8; 4], content: &[u8]) -> io::Result<()> {
        match &kind {
            b"ftyp" | b"styp" | b"sidx" => self.pending.extend_from_slice(content),
            b"moov" => {
                self.pending.extend_from_slice(content);
                self.init_segment = Some(std::mem::take(&mut self.pending));
            }
            b"moof" => {
                self.frames += samples(content);
                self.pending.extend_from_slice(content);
            }
            b"mdat" if self.frames > 0 => {
                self.pending.extend_from_slice(content);
                self.complete = (self.pending.len(), self.frames);
                // The muxer starts a fragment at every key frame. Scene changes add key frames.
                if self.frames >= self.rate.nominal() {
                    self.close_segment()?;
                }
            }
            // The index at the end is only needed in a single file.
            _ => {}
        }
        Ok(())
    }

    /// Writes the segment, then lists it.
    fn close_segment(&mut self) -> io::Result<()> {
        self.count += 1;
        let (bytes, frames) = std::mem::take(&mut self.complete);
        let mut segment = std::mem::take(&mut self.pending);
        segment.truncate(bytes);
        self.frames = 0;
        let mut listed = self.listed.clone();
        listed.push(Segment { number: self.count, frames });
        let full = self.endless && listed.len() > WINDOW;
        let unlisted = full.then(|| listed.remove(0).number);
        // From here on the next playlist lists the files, even if this run is killed.
        self.store.write(&next_playlist(), self.playlist(&listed, unlisted, false).as_bytes())?;
        if let Some(head) = self.init_segment.take() {
            self.store.put(INIT_SEGMENT, &head)?;
        }
        self.store.put(&segment_name(self.count), &segment)?;
        self.store.rename(&next_playlist(), PLAYLIST)?;
        (self.listed, self.unlisted) = (listed, unlisted);
        self.remove_unlisted()
    }

    /// Removes the segment that is no longer listed. It may already have been removed by another process.
    fn remove_unlisted(&mut self) -> io::Result<()> {
        let Some(number) = self.unlisted else { return Ok(()) };
        match self.store.remove(&segment_name(number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => {
                self.unlisted = None;
                Ok(())
            }
        }
    }

    /// Ends the playlist. Files that are not listed are removed, and all files of a clip without a segment.
    fn close(&mut self) -> io::Result<()> {
        let last = self.listed.last().map_or(0, |segment| segment.number);
        // Not all of these exist.
        if self.count > last {
            let name = segment_name(self.count);
            let _ = self.store.remove(&format!("{name}{PART_SUFFIX}"));
            let _ = self.store.remove(&name);
        }
        if self.listed.is_empty() {
            let names = [format!("{INIT_SEGMENT}{PART_SUFFIX}"), INIT_SEGMENT.to_owned(), next_playlist()];
            names.iter().for_each(|name| _ = self.store.remove(name));
            return Ok(());
        }
        self.remove_unlisted()?;
        self.store.put(PLAYLIST, self.playlist(&self.listed, None, true).as_bytes())
    }

    fn playlist(&self, listed: &[Segment], unlisted: Option<usize>, ended: bool) -> String {
        let seconds = |frames: u32| f64::from(frames) / self.rate.per_second();
        let longest = listed.iter().map(|segment| seconds(segment.frames)).fold(1.0, f64::max);
        let first = listed.first().map_or(0, |segment| segment.number - 1);
        let mut text = format!(
            "{HEADER}#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:{}\n#EXT-X-MEDIA-SEQUENCE:{first}\n",
            longest.round()
        );
        if !self.endless {
            text.push_str("#EXT-X-PLAYLIST-TYPE:EVENT\n");
        }
        // Writing into a String cannot fail.
        if let Some(number) = unlisted {
            let _ = writeln!(text, "{REMOVED}{}", segment_name(number));
        }
        let _ = writeln!(text, "#EXT-X-INDEPENDENT-SEGMENTS\n#EXT-X-MAP:URI=\"{INIT_SEGMENT}\"");
        for Segment { number, frames } in listed {
            let _ = writeln!(text, "#EXTINF:{:.6},\n{}", seconds(*frames), segment_name(*number));
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
        if self.complete.1 > 0 {
            self.close_segment()?;
        }
        self.close()
    }

    fn abort(&mut self) {
        // Ends the playlist for viewers. Only the first error is reported.
        let _ = self.close();
    }
}

fn segment_name(number: usize) -> String {
    format!("{number:05}{SEGMENT_EXTENSION}")
}

/// The part file of the playlist.
fn next_playlist() -> String {
    format!("{PLAYLIST}{PART_SUFFIX}")
}

/// Splits a stream into mp4 boxes.
#[derive(Debug, Default)]
struct BoxParser(Vec<u8>);

impl BoxParser {
    fn add(&mut self, piece: &[u8]) {
        self.0.extend_from_slice(piece);
    }

    /// The type and the bytes of the next complete box.
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
            return Err(io::Error::other("the muxer wrote a box without a length"));
        }
        if self.0.len() < size {
            return Ok(None);
        }
        let rest = self.0.split_off(size);
        Ok(Some((kind, std::mem::replace(&mut self.0, rest))))
    }
}

/// The samples of a `moof` box: the sum of the counts of its `trun` boxes.
fn samples(boxed: &[u8]) -> u32 {
    let mut inner = BoxParser(boxed.get(8..).unwrap_or_default().to_vec());
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
    use super::super::hls_folder::HlsFolder;
    use super::super::store::FolderStore;
    use super::*;
    use std::collections::BTreeMap;
    use std::fs;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    fn boxed(kind: &[u8; 4], content: &[u8]) -> Vec<u8> {
        [&(content.len() as u32 + 8).to_be_bytes()[..], kind, content].concat()
    }

    fn fragment(frames: u32) -> Vec<u8> {
        let trun = boxed(b"trun", &[&[0; 4][..], &frames.to_be_bytes()].concat());
        let traf = boxed(b"traf", &[boxed(b"tfhd", &[0; 4]), trun].concat());
        let moof = boxed(b"moof", &[boxed(b"mfhd", &[0; 8]), traf].concat());
        [moof, boxed(b"mdat", b"pictures")].concat()
    }

    fn stream(fragments: usize) -> Vec<u8> {
        gst::init().unwrap();
        let head = [boxed(b"ftyp", b"iso6"), boxed(b"moov", &[0; 20])].concat();
        let second = [fragment(5), fragment(11)].concat();
        [head, second.repeat(fragments), fragment(8)].concat()
    }

    fn written(endless: bool, fragments: usize, step: usize) -> (tempfile::TempDir, String) {
        let stream = stream(fragments);
        let folder = tempfile::tempdir().unwrap();
        let mut writer =
            HlsWriter::new(Box::new(FolderStore(folder.path().to_owned())), FrameRate::WAN, endless);
        for piece in stream.chunks(step) {
            writer.take(&gst::Buffer::from_slice(piece.to_vec())).unwrap();
        }
        writer.finish().unwrap();
        let playlist = fs::read_to_string(folder.path().join(PLAYLIST)).unwrap();
        (folder, playlist)
    }

    type Files = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

    /// Files in memory, and the number of operations until the store is full.
    #[derive(Debug)]
    struct Failing {
        files: Files,
        operations_left: Arc<AtomicUsize>,
    }

    impl Failing {
        fn count(&self) -> io::Result<()> {
            let one_less = |operations_left: usize| operations_left.checked_sub(1);
            let counted = self.operations_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
            counted.map(drop).map_err(|_none_left| io::Error::from(io::ErrorKind::StorageFull))
        }
    }

    impl Store for Failing {
        fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
            self.count()?;
            self.files.lock().unwrap().insert(name.into(), content.into());
            Ok(())
        }

        fn rename(&self, from: &str, to: &str) -> io::Result<()> {
            self.count()?;
            let content = self.files.lock().unwrap().remove(from).ok_or(io::ErrorKind::NotFound)?;
            self.files.lock().unwrap().insert(to.into(), content);
            Ok(())
        }

        fn remove(&self, name: &str) -> io::Result<()> {
            self.count()?;
            self.files.lock().unwrap().remove(name).map(drop).ok_or(io::ErrorKind::NotFound.into())
        }
    }

    /// Runs a writer whose store fails after a number of operations, permanently or once. Returns the files and whether
    /// the writer failed.
    fn failing_after(operations: usize, permanently: bool, endless: bool, stream: &[u8]) -> (Files, bool) {
        let (files, operations_left) = (Files::default(), Arc::new(AtomicUsize::new(operations)));
        let store = Failing { files: Arc::clone(&files), operations_left: Arc::clone(&operations_left) };
        let mut writer = HlsWriter::new(Box::new(store), FrameRate::WAN, endless);
        let taken = writer.take(&gst::Buffer::from_slice(stream.to_vec()));
        let failed = taken.and_then(|()| writer.finish()).is_err();
        if failed {
            operations_left.store(if permanently { 0 } else { 1000 }, Ordering::Relaxed);
            writer.abort();
        }
        (files, failed)
    }

    /// After a failure of any operation the playlist lists complete segments without a gap, and the next run can remove
    /// all files.
    #[test]
    fn after_any_failure_the_playlist_lists_complete_segments_that_the_next_run_can_remove() {
        let whole = [fragment(5), fragment(11)].concat();
        for (endless, permanently) in [(false, true), (false, false), (true, true), (true, false)] {
            let stream = stream(if endless { WINDOW + 2 } else { 3 });
            let mut operations = 0;
            loop {
                let (files, failed) = failing_after(operations, permanently, endless, &stream);
                let files = files.lock().unwrap().clone();
                let folder = tempfile::tempdir().unwrap();
                files.iter().for_each(|(name, bytes)| fs::write(folder.path().join(name), bytes).unwrap());
                if let Some(playlist) = files.get(PLAYLIST) {
                    let playlist = String::from_utf8(playlist.clone()).unwrap();
                    let mut next = None;
                    for name in playlist.lines().filter(|line| !line.starts_with('#')) {
                        let number: usize = name.strip_suffix(SEGMENT_EXTENSION).unwrap().parse().unwrap();
                        assert!(next.is_none_or(|next| next == number), "{operations}: {playlist}");
                        next = Some(number + 1);
                        assert!(files[name] == whole || files[name] == fragment(8), "{operations}: {name}");
                    }
                    assert!(next.is_some() && files.contains_key(INIT_SEGMENT), "{operations}: {playlist}");
                    assert!(
                        permanently || playlist.ends_with("#EXT-X-ENDLIST\n"),
                        "{operations}: {playlist}"
                    );
                } else {
                    assert!(permanently || files.is_empty(), "{operations}: {files:?}");
                }
                HlsFolder::create(folder.path()).unwrap().clear().unwrap();
                assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{operations}");
                if !failed {
                    break;
                }
                operations += 1;
            }
            assert!(operations > 12, "{operations}");
        }
    }

    #[test]
    fn a_fragment_without_data_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer =
            HlsWriter::new(Box::new(FolderStore(folder.path().to_owned())), FrameRate::WAN, false);
        let stream = stream(0);
        writer.take(&gst::Buffer::from_slice([&stream[..], &fragment(5)[..40]].concat())).unwrap();
        let moof = fragment(5).len() - 16;
        writer.take(&gst::Buffer::from_slice(fragment(5)[40..moof].to_vec())).unwrap();
        writer.finish().unwrap();
        assert_eq!(fs::read(folder.path().join("00001.m4s")).unwrap(), fragment(8));
    }

    #[test]
    fn a_stream_is_split_into_segments_for_any_buffer_size() {
        for step in [1, 7, 1000] {
            let (folder, playlist) = written(false, 1, step);
            insta::allow_duplicates! { insta::assert_snapshot!(playlist, @r#"
            #EXTM3U
            # Made by Rushes, which replaces this playlist and the files that it names.
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
    fn an_endless_stream_keeps_the_newest_segments() {
        let (folder, playlist) = written(true, WINDOW, 1000);
        assert!(playlist.contains("#EXT-X-MEDIA-SEQUENCE:1\n") && !playlist.contains("EVENT"), "{playlist}");
        assert!(!folder.path().join("00001.m4s").exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), WINDOW + 2);
    }
}
