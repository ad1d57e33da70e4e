//! Which files of an HLS folder are ours: those that a playlist with our mark in it names.
//!
//! The playlist of what comes next is written as `index.m3u8.part` before the files that it names, so that even what a
//! killed run leaves is named somewhere. Whatever else has a name that a clip needs is refused; the rest of the folder is
//! nobody's business.

use super::store::PART;
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

/// Name of the playlist in its folder.
pub(crate) const PLAYLIST: &str = "index.m3u8";
/// Name of the head that every segment needs.
pub(super) const HEAD: &str = "init.mp4";
/// How the names of segments end.
pub(super) const SEGMENT: &str = ".m4s";
/// How each of our playlists begins. The second line is a comment to players.
pub(super) const BEGINNING: &str =
    "#EXTM3U\n# Made by Rushes, which replaces this playlist and the files that it names.\n";
/// Before the name of a file that the playlist named until now, in a comment.
pub(super) const WAS: &str = "# Was: ";

/// Longest playlist that is read: a day of segments has 3 MB.
const LONGEST: u64 = 1 << 26;

/// A folder that is being written to. One that was made for this and is left empty goes.
#[derive(Debug)]
pub(crate) struct HlsFolder {
    path: PathBuf,
    lock: Mutex<Locked>,
    made: bool,
}

impl HlsFolder {
    /// Locks the folder, and creates it if it is not there. What an earlier run left stays until [`Self::clear`].
    ///
    /// # Errors
    /// A folder that cannot be created, read or written; another run's lock; what has the name of one of our files and is
    /// not ours.
    pub(crate) fn create(folder: &Path) -> Result<Self, Error> {
        let unwritable = |why: String| Error::unwritable(folder.to_owned(), why);
        let path = resolved(folder).map_err(|error| unwritable(error.to_string()))?;
        let (lock, made) = make_locked(&path).map_err(|refusal| match refusal {
            Refusal::Busy => Error::busy(folder.to_owned(), path.clone()),
            Refusal::Foreign(why) => unwritable(format!("what has this name {why}")),
            Refusal::Io(error) if error.kind() == io::ErrorKind::NotFound => {
                unwritable(format!("the folder {} does not exist", folder_of(&path).display()))
            }
            Refusal::Io(error) => unwritable(format!("the folder cannot be opened: {error}")),
        })?;
        let created = Self { path, lock: Mutex::new(lock), made };
        tempfile::tempfile_in(&created.path)
            .map_err(|error| unwritable(format!("no file can be created in it: {error}")))?;
        let ours = our_files(&created.path).map_err(unwritable)?;
        let uid = made_by(&created.path).map_err(|error| unwritable(error.to_string()))?;
        for name in ours {
            check_replaceable(&created.path.join(&name), uid)
                .map_err(|why| unwritable(format!("{name} in it: {why}")))?;
        }
        Ok(created)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the clip of an earlier run. A folder that somebody removed while it was empty is made again.
    ///
    /// # Errors
    /// Something that is not ours has got one of our names by now, another run has the folder, or what the system said.
    pub(crate) fn clear(&self) -> io::Result<()> {
        if !self.path.exists() {
            let (lock, _) = make_locked(&self.path).map_err(|refusal| match refusal {
                Refusal::Busy => io::Error::other("it was removed, and another run has it now"),
                Refusal::Foreign(why) => io::Error::other(why),
                Refusal::Io(error) => error,
            })?;
            *self.lock() = lock;
        }
        let mut ours = our_files(&self.path).map_err(io::Error::other)?;
        // The playlist goes last: until then it says whose the others are.
        ours.sort_by_key(|name| name.starts_with(PLAYLIST));
        ours.iter().try_for_each(|name| fs::remove_file(self.path.join(name)))
    }

    fn lock(&self) -> MutexGuard<'_, Locked> {
        // Nothing is done in between that could leave it half changed.
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of all our files.
    pub(crate) fn bytes(&self) -> u64 {
        let names = our_files(&self.path).unwrap_or_default();
        names.iter().filter_map(|name| self.path.join(name).metadata().ok()).map(|found| found.len()).sum()
    }
}

impl Drop for HlsFolder {
    fn drop(&mut self) {
        if self.made && self.lock().is_current() {
            // Refused by the system unless it is empty.
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// The user that new files of this process belong to.
fn made_by(folder: &Path) -> io::Result<u32> {
    Ok(tempfile::tempfile_in(folder)?.metadata()?.uid())
}

/// The files that a playlist of ours names, and those playlists themselves.
///
/// # Errors
/// What has one of our names and is not ours, or a folder that cannot be read: the reason.
fn our_files(folder: &Path) -> Result<Vec<String>, String> {
    let unreadable = |error: io::Error| format!("it cannot be read: {error}");
    let mut named = BTreeSet::new();
    for list in [PLAYLIST.to_owned(), format!("{PLAYLIST}{PART}")] {
        let Some(text) = our_playlist(&folder.join(&list)).map_err(unreadable)? else { continue };
        named.extend(names_in(&text).map(str::to_owned));
        named.insert(list);
    }
    let mut ours = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| is_needed(name.strip_suffix(PART).unwrap_or(name)))
        else {
            continue;
        };
        let whole = name.strip_suffix(PART).unwrap_or(name);
        let is_named = named.contains(name) || (whole != PLAYLIST && named.contains(whole));
        if !(is_named && entry.file_type().is_ok_and(|kind| kind.is_file())) {
            return Err(format!("{name} in it was not made by Rushes, and the clip needs that name"));
        }
        ours.push(name.to_owned());
    }
    Ok(ours)
}

/// The text of a playlist, if it is an ordinary file and begins as ours do. What was cut short counts too.
fn our_playlist(path: &Path) -> io::Result<Option<String>> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Ok(found) if !found.is_file() => return Ok(None),
        other => other.map(drop)?,
    }
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(LONGEST).read_to_end(&mut bytes)?;
    let begins = bytes.starts_with(BEGINNING.as_bytes()) || BEGINNING.as_bytes().starts_with(&bytes);
    Ok(begins.then(|| String::from_utf8_lossy(&bytes).into_owned()))
}

/// The files that a playlist names, if they have names of ours.
fn names_in(playlist: &str) -> impl Iterator<Item = &str> {
    let names = playlist.lines().filter_map(|line| {
        let map = line.strip_prefix("#EXT-X-MAP:URI=\"").and_then(|rest| rest.strip_suffix('"'));
        map.or_else(|| line.strip_prefix(WAS)).or_else(|| (!line.starts_with('#')).then_some(line))
    });
    names.filter(|name| is_media(name))
}

/// Whether a clip may need this name.
fn is_needed(name: &str) -> bool {
    name == PLAYLIST || is_media(name)
}

fn is_media(name: &str) -> bool {
    name == HEAD || is_numbered(name.as_ref(), SEGMENT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::Diagnose;

    const OURS: [&str; 4] = [PLAYLIST, HEAD, "00001.m4s", "00002.m4s"];

    /// A folder with a clip of ours: two segments, one that is on its way, and one that has just left the list.
    fn clip() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let segments = "#EXT-X-MAP:URI=\"init.mp4\"\n#EXTINF:1,\n00001.m4s\n#EXTINF:1,\n00002.m4s\n";
        fs::write(folder.path().join(PLAYLIST), format!("{BEGINNING}{segments}")).unwrap();
        OURS[1..].iter().for_each(|name| fs::write(folder.path().join(name), "clip").unwrap());
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
    fn only_what_our_playlist_names_goes() {
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
            OURS.len() + foreign.len() + 2,
            "it stays until the clip begins"
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
    fn what_has_one_of_our_names_and_is_not_ours_is_refused_by_name() {
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
                    format!("{name} in it was not made by Rushes, and the clip needs that name"),
                    "{kind}"
                );
                assert_eq!(names(folder.path()), [name]);
            }
        }
        // Named by our playlist, and yet no file of ours.
        let folder = clip();
        fs::remove_file(folder.path().join("00002.m4s")).unwrap();
        std::os::unix::fs::symlink(folder.path().join(HEAD), folder.path().join("00002.m4s")).unwrap();
        assert!(why(folder.path()).starts_with("00002.m4s in it"));
        // A segment too many.
        let folder = clip();
        fs::write(folder.path().join("00003.m4s"), "mine").unwrap();
        let error = why(folder.path());
        assert!(error.starts_with("00003.m4s in it"), "{error}");
        assert_eq!(names(folder.path()).len(), 5);
    }

    #[test]
    fn a_playlist_cannot_name_what_lies_elsewhere() {
        let text = format!(
            "{BEGINNING}../note\n/etc/passwd\nnote\nindex.m3u8\n#EXT-X-MAP:URI=\"movie.mp4\"\n# Was: a/00001.m4s\n"
        );
        assert_eq!(names_in(&text).count(), 0);
        let text =
            format!("{BEGINNING}#EXT-X-MAP:URI=\"init.mp4\"\n# Was: 00001.m4s\n#EXTINF:1,\n00002.m4s\n");
        assert_eq!(names_in(&text).collect::<Vec<_>>(), ["init.mp4", "00001.m4s", "00002.m4s"]);
    }

    #[test]
    fn what_a_killed_run_left_is_named_by_the_playlist_that_came_next() {
        for cut in [0, 9, BEGINNING.len(), usize::MAX] {
            let folder = clip();
            let next =
                format!("{BEGINNING}#EXT-X-MAP:URI=\"init.mp4\"\n# Was: 00001.m4s\n00002.m4s\n00003.m4s\n");
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
    fn a_second_run_is_refused_and_a_folder_that_was_there_stays() {
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
        let made = HlsFolder::create(&at("dangling")).unwrap();
        assert_eq!(made.path(), at("new"));
        drop(made);
        fs::write(at("file"), "").unwrap();
        assert_eq!(why(&at("file")), "what has this name is not a folder");
        assert!(why(&at("no/live")).ends_with("no does not exist"));
        // Not even root creates files here.
        assert!(why("/proc/self".as_ref()).starts_with("no file can be created in it: "));
    }
}
