//! HLS folders, and which of their files Rushes owns: those that a playlist with its header lists.
//!
//! The next playlist is written as `index.m3u8.part` before the files that it lists, so that the files of a killed run
//! are listed too. Another file with a name that a clip needs is an error. All other files are ignored.

use super::store::PART_SUFFIX;
use crate::Error;
use crate::folder_lock::make_locked;
use crate::part_folder::is_numbered;
use bundle::lock::{Locked, Refusal};
use bundle::output_path::{check_replaceable, folder_of, resolved};
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The name of the playlist.
pub(crate) const PLAYLIST: &str = "index.m3u8";
/// The name of the initialization segment.
pub(super) const INIT_SEGMENT: &str = "init.mp4";
/// The extension of segments.
pub(super) const SEGMENT_EXTENSION: &str = ".m4s";
/// The start of each playlist. The second line is a comment.
pub(super) const HEADER: &str =
    "#EXTM3U\n# Made by Rushes, which replaces this playlist and the files that it names.\n";
/// The comment before the name of a segment that the playlist no longer lists.
pub(super) const REMOVED: &str = "# Was: ";

/// The longest playlist that is read. A day of segments has 3 MB.
const MAX_PLAYLIST_BYTES: u64 = 1 << 26;

/// A locked HLS folder. If it was created for this output, it is removed when it is still empty.
#[derive(Debug)]
pub(crate) struct HlsFolder {
    path: PathBuf,
    lock: Mutex<Locked>,
    created: bool,
}

impl HlsFolder {
    /// Locks the folder, and creates it if it does not exist. The clip of an earlier run is kept until [`Self::clear`].
    ///
    /// # Errors
    /// Returns an error if the folder cannot be created, read or written, if another run has locked it, or if another
    /// file has a name that the clip needs.
    pub(crate) fn create(requested: &Path) -> Result<Self, Error> {
        let unwritable = |why: String| Error::unwritable(requested.to_owned(), why);
        let path = resolved(requested).map_err(|error| unwritable(error.to_string()))?;
        let (lock, created) = make_locked(&path).map_err(|refusal| match refusal {
            Refusal::Busy => Error::busy(requested.to_owned(), path.clone()),
            Refusal::Foreign(why) => unwritable(format!("it {why}")),
            Refusal::Io(error) if error.kind() == io::ErrorKind::NotFound => {
                unwritable(format!("the folder {} does not exist", folder_of(&path).display()))
            }
            Refusal::Io(error) => unwritable(format!("the folder cannot be opened: {error}")),
        })?;
        let folder = Self { path, lock: Mutex::new(lock), created };
        tempfile::tempfile_in(&folder.path)
            .map_err(|error| unwritable(format!("no file can be created in it: {error}")))?;
        let files = owned_files(&folder.path).map_err(unwritable)?;
        let uid = file_owner(&folder.path).map_err(|error| unwritable(error.to_string()))?;
        for name in files {
            check_replaceable(&folder.path.join(&name), uid)
                .map_err(|why| unwritable(format!("{name} in it: {why}")))?;
        }
        Ok(folder)
    }

    /// The path of the folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the clip of an earlier run. A folder that was removed meanwhile is created again.
    ///
    /// # Errors
    /// Returns an error if another file has a name that the clip needs, or if another run has locked the folder. I/O
    /// errors.
    pub(crate) fn clear(&self) -> io::Result<()> {
        if !self.path.exists() {
            let (lock, _) = make_locked(&self.path).map_err(|refusal| match refusal {
                Refusal::Busy => io::Error::other("it was removed and created by another run"),
                Refusal::Foreign(why) => io::Error::other(why),
                Refusal::Io(error) => error,
            })?;
            *self.lock() = lock;
        }
        let mut files = owned_files(&self.path).map_err(io::Error::other)?;
        // The playlist is removed last, because it lists the other files.
        files.sort_by_key(|name| name.starts_with(PLAYLIST));
        files.iter().try_for_each(|name| fs::remove_file(self.path.join(name)))
    }

    fn lock(&self) -> MutexGuard<'_, Locked> {
        // The lock is replaced in a single assignment, so it is valid even after a panic.
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of all files of the clip.
    pub(crate) fn bytes(&self) -> u64 {
        let names = owned_files(&self.path).unwrap_or_default();
        names.iter().filter_map(|name| self.path.join(name).metadata().ok()).map(|found| found.len()).sum()
    }
}

impl Drop for HlsFolder {
    fn drop(&mut self) {
        if self.created && self.lock().is_current() {
            // The system removes it only if it is empty.
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// The owner of new files of this process.
fn file_owner(folder: &Path) -> io::Result<u32> {
    Ok(tempfile::tempfile_in(folder)?.metadata()?.uid())
}

/// The files of a clip in a folder: its playlists and the files that they list.
///
/// # Errors
/// Returns the reason if another file has a name that the clip needs, or if the folder cannot be read.
fn owned_files(folder: &Path) -> Result<Vec<String>, String> {
    let unreadable = |error: io::Error| format!("it cannot be read: {error}");
    let mut listed = BTreeSet::new();
    for playlist in [PLAYLIST.to_owned(), format!("{PLAYLIST}{PART_SUFFIX}")] {
        let Some(text) = owned_playlist(&folder.join(&playlist)).map_err(unreadable)? else { continue };
        listed.extend(listed_files(&text).map(str::to_owned));
        listed.insert(playlist);
    }
    let mut owned = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name();
        let Some(name) =
            name.to_str().filter(|name| is_needed(name.strip_suffix(PART_SUFFIX).unwrap_or(name)))
        else {
            continue;
        };
        let final_name = name.strip_suffix(PART_SUFFIX).unwrap_or(name);
        let is_listed = listed.contains(name) || (final_name != PLAYLIST && listed.contains(final_name));
        if !(is_listed && entry.file_type().is_ok_and(|kind| kind.is_file())) {
            return Err(format!("{name} in it was not written by Rushes, and the clip needs that name"));
        }
        owned.push(name.to_owned());
    }
    Ok(owned)
}

/// The text of a playlist, if it is a regular file that starts with the header. A truncated header counts too.
fn owned_playlist(path: &Path) -> io::Result<Option<String>> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Ok(found) if !found.is_file() => return Ok(None),
        other => other.map(drop)?,
    }
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_PLAYLIST_BYTES).read_to_end(&mut bytes)?;
    let has_header = bytes.starts_with(HEADER.as_bytes()) || HEADER.as_bytes().starts_with(&bytes);
    Ok(has_header.then(|| String::from_utf8_lossy(&bytes).into_owned()))
}

/// The files that a playlist lists, if they have names of a clip.
fn listed_files(playlist: &str) -> impl Iterator<Item = &str> {
    let names = playlist.lines().filter_map(|line| {
        let map = line.strip_prefix("#EXT-X-MAP:URI=\"").and_then(|rest| rest.strip_suffix('"'));
        map.or_else(|| line.strip_prefix(REMOVED)).or_else(|| (!line.starts_with('#')).then_some(line))
    });
    names.filter(|name| is_media(name))
}

/// Returns true if a clip may need this name.
fn is_needed(name: &str) -> bool {
    name == PLAYLIST || is_media(name)
}

fn is_media(name: &str) -> bool {
    name == INIT_SEGMENT || is_numbered(name.as_ref(), SEGMENT_EXTENSION)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::Diagnose;

    const CLIP: [&str; 4] = [PLAYLIST, INIT_SEGMENT, "00001.m4s", "00002.m4s"];

    /// A folder with a clip of two segments.
    fn clip() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let segments = "#EXT-X-MAP:URI=\"init.mp4\"\n#EXTINF:1,\n00001.m4s\n#EXTINF:1,\n00002.m4s\n";
        fs::write(folder.path().join(PLAYLIST), format!("{HEADER}{segments}")).unwrap();
        CLIP[1..].iter().for_each(|name| fs::write(folder.path().join(name), "clip").unwrap());
        folder
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn why(folder: &Path) -> String {
        HlsFolder::create(folder).unwrap_err().report().why
    }

    #[test]
    fn only_listed_files_are_removed() {
        let folder = clip();
        let foreign = [
            "movie.mkv.part",
            "lecture.m4s",
            "0001.m4s",
            "master.m3u8",
            "init.mp4.bak",
            "note",
            "00001.m4s.bak",
        ];
        foreign.iter().for_each(|name| fs::write(folder.path().join(name), "mine").unwrap());
        fs::create_dir(folder.path().join("old.m4s")).unwrap();
        std::os::unix::fs::symlink("note", folder.path().join("linked.part")).unwrap();
        let hls = HlsFolder::create(folder.path()).unwrap();
        assert_eq!(
            names(folder.path()).len(),
            CLIP.len() + foreign.len() + 2,
            "the clip is kept until the next one starts"
        );
        let playlist = fs::metadata(folder.path().join(PLAYLIST)).unwrap().len();
        assert_eq!(hls.bytes(), playlist + 12);
        hls.clear().unwrap();
        assert_eq!(names(folder.path()).len(), foreign.len() + 2);
        assert!(foreign.iter().all(|name| fs::read(folder.path().join(name)).unwrap() == b"mine"));
        drop(hls);
        assert!(folder.path().exists());
    }

    #[test]
    fn another_file_with_a_name_of_the_clip_is_refused() {
        let taken =
            ["index.m3u8", "init.mp4", "00001.m4s", "123456.m4s", "00003.m4s.part", "index.m3u8.part"];
        for name in taken {
            for kind in ["file", "folder", "link"] {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join(name);
                match kind {
                    "file" => fs::write(&path, "mine").unwrap(),
                    "folder" => fs::create_dir(&path).unwrap(),
                    _ => std::os::unix::fs::symlink("elsewhere", &path).unwrap(),
                }
                let why = why(folder.path());
                assert_eq!(
                    why,
                    format!("{name} in it was not written by Rushes, and the clip needs that name"),
                    "{kind}"
                );
                assert_eq!(names(folder.path()), [name]);
            }
        }
        // Listed, but not a regular file.
        let folder = clip();
        fs::remove_file(folder.path().join("00002.m4s")).unwrap();
        std::os::unix::fs::symlink(folder.path().join(INIT_SEGMENT), folder.path().join("00002.m4s"))
            .unwrap();
        assert!(why(folder.path()).starts_with("00002.m4s in it"));
        // A segment that is not listed.
        let folder = clip();
        fs::write(folder.path().join("00003.m4s"), "mine").unwrap();
        let error = why(folder.path());
        assert!(error.starts_with("00003.m4s in it"), "{error}");
        assert_eq!(names(folder.path()).len(), 5);
    }

    #[test]
    fn files_outside_the_folder_are_not_listed() {
        let text = format!(
            "{HEADER}../note\n/etc/passwd\nnote\nindex.m3u8\n#EXT-X-MAP:URI=\"movie.mp4\"\n# Was: a/00001.m4s\n"
        );
        assert_eq!(listed_files(&text).count(), 0);
        let text = format!("{HEADER}#EXT-X-MAP:URI=\"init.mp4\"\n# Was: 00001.m4s\n#EXTINF:1,\n00002.m4s\n");
        assert_eq!(listed_files(&text).collect::<Vec<_>>(), ["init.mp4", "00001.m4s", "00002.m4s"]);
    }

    #[test]
    fn the_next_playlist_lists_the_files_of_a_killed_run() {
        for cut in [0, 9, HEADER.len(), usize::MAX] {
            let folder = clip();
            let next =
                format!("{HEADER}#EXT-X-MAP:URI=\"init.mp4\"\n# Was: 00001.m4s\n00002.m4s\n00003.m4s\n");
            let next = &next[..next.len().min(cut)];
            fs::write(folder.path().join("index.m3u8.part"), next).unwrap();
            if cut == usize::MAX {
                fs::write(folder.path().join("00003.m4s.part"), "half").unwrap();
            }
            let hls = HlsFolder::create(folder.path()).unwrap();
            hls.clear().unwrap();
            assert_eq!(names(folder.path()), Vec::<String>::new());
        }
    }

    #[test]
    fn a_second_run_is_refused_and_an_existing_folder_is_kept() {
        let parent = tempfile::tempdir().unwrap();
        let at = |name: &str| parent.path().join(name);
        let first = HlsFolder::create(&at("live")).unwrap();
        for _ in 0..2 {
            assert!(why(&at("live")).contains("another run"));
        }
        fs::remove_dir(at("live")).unwrap();
        first.clear().unwrap();
        assert!(why(&at("live")).contains("another run"));
        assert!(at("live").is_dir());
        drop(first);
        assert!(!at("live").exists());
        fs::create_dir(at("live")).unwrap();
        std::os::unix::fs::symlink("live", at("link")).unwrap();
        std::os::unix::fs::symlink("new", at("dangling")).unwrap();
        let first = HlsFolder::create(&at("link")).unwrap();
        assert!(why(&at("live")).contains("another run"));
        drop(first);
        assert!(at("live").is_dir());
        let created = HlsFolder::create(&at("dangling")).unwrap();
        assert_eq!(created.path(), at("new"));
        drop(created);
        fs::write(at("file"), "").unwrap();
        assert_eq!(why(&at("file")), "it is not a folder");
        assert!(why(&at("no/live")).ends_with("no does not exist"));
        // Not even root creates files here.
        assert!(why("/proc/self".as_ref()).starts_with("no file can be created in it: "));
    }
}
