//! A folder with an HLS playlist (RFC 8216): fragments of the mp4 muxer, cut at their boxes into one file each.
//!
//! A segment gets its name when it is whole and is listed after that, so that the playlist never names what cannot be
//! read. A clip keeps all its segments; a stream without end keeps the newest.

use super::hls_folder::{BEGINNING, HEAD, PLAYLIST, SEGMENT, WAS};
use super::store::{PART, Store};
use super::{Collector, bytes};
use bundle::units::FrameRate;
use gstreamer as gst;
use std::fmt::Write;
use std::io;

/// Segments that a stream without end keeps.
const WINDOW: usize = 30;

/// Cuts a fragmented mp4 into segments and lists them.
#[derive(Debug)]
pub(crate) struct HlsWriter {
    store: Box<dyn Store>,
    rate: FrameRate,
    endless: bool,
    boxes: Boxes,
    /// The head, until the first segment is whole.
    head: Option<Vec<u8>>,
    /// The boxes of the head or of the segment that is not whole yet.
    waiting: Vec<u8>,
    /// Pictures of that segment.
    pictures: u32,
    /// Bytes and pictures of that segment whose data have come.
    complete: (usize, u32),
    /// The segments that the playlist names.
    listed: Vec<Segment>,
    /// Number of the segment that has just left the playlist and is still there.
    leaving: Option<usize>,
    made: usize,
}

/// A segment of the playlist.
#[derive(Debug, Clone, Copy)]
struct Segment {
    number: usize,
    pictures: u32,
}

impl HlsWriter {
    /// A writer into a folder that is there.
    pub(crate) fn new(store: Box<dyn Store>, rate: FrameRate, endless: bool) -> Self {
        Self {
            store,
            rate,
            endless,
            boxes: Boxes::default(),
            head: None,
            waiting: Vec::new(),
            pictures: 0,
            complete: (0, 0),
            listed: Vec::new(),
            leaving: None,
            made: 0,
        }
    }

    fn take_box(&mut self, kind: [u8; 4], content: &[u8]) -> io::Result<()> {
        match &kind {
            b"ftyp" | b"styp" | b"sidx" => self.waiting.extend_from_slice(content),
            b"moov" => {
                self.waiting.extend_from_slice(content);
                self.head = Some(std::mem::take(&mut self.waiting));
            }
            b"moof" => {
                self.pictures += samples(content);
                self.waiting.extend_from_slice(content);
            }
            b"mdat" if self.pictures > 0 => {
                self.waiting.extend_from_slice(content);
                self.complete = (self.waiting.len(), self.pictures);
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

    /// Gives the segment its name, then lists it.
    fn close_segment(&mut self) -> io::Result<()> {
        self.made += 1;
        let (bytes, pictures) = std::mem::take(&mut self.complete);
        let mut segment = std::mem::take(&mut self.waiting);
        segment.truncate(bytes);
        self.pictures = 0;
        let mut listed = self.listed.clone();
        listed.push(Segment { number: self.made, pictures });
        let full = self.endless && listed.len() > WINDOW;
        let leaving = full.then(|| listed.remove(0).number);
        // The files that it names are ours from here on, whatever happens.
        self.store.write(&announced(), self.playlist(&listed, leaving, false).as_bytes())?;
        if let Some(head) = self.head.take() {
            self.store.put(HEAD, &head)?;
        }
        self.store.put(&segment_name(self.made), &segment)?;
        self.store.rename(&announced(), PLAYLIST)?;
        (self.listed, self.leaving) = (listed, leaving);
        self.remove_leaving()
    }

    /// Removes the segment that has left the playlist. Somebody may have done that before.
    fn remove_leaving(&mut self) -> io::Result<()> {
        let Some(number) = self.leaving else { return Ok(()) };
        match self.store.remove(&segment_name(number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => {
                self.leaving = None;
                Ok(())
            }
        }
    }

    /// Says that no more segments come. What is not listed goes, and a clip without a segment leaves nothing.
    fn close(&mut self) -> io::Result<()> {
        let last = self.listed.last().map_or(0, |segment| segment.number);
        // Not all of these are there.
        if self.made > last {
            let name = segment_name(self.made);
            let _ = self.store.remove(&format!("{name}{PART}"));
            let _ = self.store.remove(&name);
        }
        if self.listed.is_empty() {
            let names = [format!("{HEAD}{PART}"), HEAD.to_owned(), announced()];
            names.iter().for_each(|name| _ = self.store.remove(name));
            return Ok(());
        }
        self.remove_leaving()?;
        self.store.put(PLAYLIST, self.playlist(&self.listed, None, true).as_bytes())
    }

    fn playlist(&self, listed: &[Segment], leaving: Option<usize>, ended: bool) -> String {
        let seconds = |pictures: u32| f64::from(pictures) / self.rate.per_second();
        let longest = listed.iter().map(|segment| seconds(segment.pictures)).fold(1.0, f64::max);
        let first = listed.first().map_or(0, |segment| segment.number - 1);
        let mut text = format!(
            "{BEGINNING}#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:{}\n#EXT-X-MEDIA-SEQUENCE:{first}\n",
            longest.round()
        );
        if !self.endless {
            text.push_str("#EXT-X-PLAYLIST-TYPE:EVENT\n");
        }
        // Writing into a String cannot fail.
        if let Some(number) = leaving {
            let _ = writeln!(text, "{WAS}{}", segment_name(number));
        }
        let _ = writeln!(text, "#EXT-X-INDEPENDENT-SEGMENTS\n#EXT-X-MAP:URI=\"{HEAD}\"");
        for Segment { number, pictures } in listed {
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
        if self.complete.1 > 0 {
            self.close_segment()?;
        }
        self.close()
    }

    fn give_up(&mut self) {
        // Viewers need not wait for more. The first error is the one worth telling.
        let _ = self.close();
    }
}

fn segment_name(number: usize) -> String {
    format!("{number:05}{SEGMENT}")
}

/// Where the playlist that comes next is written.
fn announced() -> String {
    format!("{PLAYLIST}{PART}")
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

    fn fragment(pictures: u32) -> Vec<u8> {
        let trun = boxed(b"trun", &[&[0; 4][..], &pictures.to_be_bytes()].concat());
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

    /// Files in memory, and a number of operations until there is no room for another.
    #[derive(Debug)]
    struct Failing {
        files: Files,
        left: Arc<AtomicUsize>,
    }

    impl Failing {
        fn count(&self) -> io::Result<()> {
            let one_less = |left: usize| left.checked_sub(1);
            let counted = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
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

    /// Runs a writer whose store fails after so many operations, for good or once. What it leaves, and whether it failed.
    fn failing_after(operations: usize, for_good: bool, endless: bool, stream: &[u8]) -> (Files, bool) {
        let (files, left) = (Files::default(), Arc::new(AtomicUsize::new(operations)));
        let store = Failing { files: Arc::clone(&files), left: Arc::clone(&left) };
        let mut writer = HlsWriter::new(Box::new(store), FrameRate::WAN, endless);
        let taken = writer.take(&gst::Buffer::from_slice(stream.to_vec()));
        let failed = taken.and_then(|()| writer.finish()).is_err();
        if failed {
            left.store(if for_good { 0 } else { 1000 }, Ordering::Relaxed);
            writer.give_up();
        }
        (files, failed)
    }

    /// Whatever fails: the playlist names whole segments without a gap, and the next run may replace all that is left.
    #[test]
    fn a_store_that_fails_anywhere_leaves_a_playlist_of_whole_segments_that_the_next_run_owns() {
        let whole = [fragment(5), fragment(11)].concat();
        for (endless, for_good) in [(false, true), (false, false), (true, true), (true, false)] {
            let stream = stream(if endless { WINDOW + 2 } else { 3 });
            let mut operations = 0;
            loop {
                let (files, failed) = failing_after(operations, for_good, endless, &stream);
                let files = files.lock().unwrap().clone();
                let folder = tempfile::tempdir().unwrap();
                files.iter().for_each(|(name, bytes)| fs::write(folder.path().join(name), bytes).unwrap());
                if let Some(playlist) = files.get(PLAYLIST) {
                    let playlist = String::from_utf8(playlist.clone()).unwrap();
                    let mut next = None;
                    for name in playlist.lines().filter(|line| !line.starts_with('#')) {
                        let number: usize = name.strip_suffix(SEGMENT).unwrap().parse().unwrap();
                        assert!(next.is_none_or(|next| next == number), "{operations}: {playlist}");
                        next = Some(number + 1);
                        assert!(files[name] == whole || files[name] == fragment(8), "{operations}: {name}");
                    }
                    assert!(next.is_some() && files.contains_key(HEAD), "{operations}: {playlist}");
                    assert!(for_good || playlist.ends_with("#EXT-X-ENDLIST\n"), "{operations}: {playlist}");
                } else {
                    assert!(for_good || files.is_empty(), "{operations}: {files:?}");
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
    fn a_fragment_whose_data_did_not_come_is_left_out() {
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
    fn a_stream_is_cut_into_head_and_segments_however_it_comes() {
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
    fn a_stream_without_end_keeps_the_newest() {
        let (folder, playlist) = written(true, WINDOW, 1000);
        assert!(playlist.contains("#EXT-X-MEDIA-SEQUENCE:1\n") && !playlist.contains("EVENT"), "{playlist}");
        assert!(!folder.path().join("00001.m4s").exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), WINDOW + 2);
    }
}
