//! Paths of outputs: links are resolved, and paths that cannot be replaced are detected early.

use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// Links that are followed before they are treated as a loop.
const MOST_LINKS: usize = 40;
/// The error number for an operation that is not permitted regardless of the file's mode.
const EPERM: i32 = 1;
/// The mode bit of a folder in which only owners can remove and rename files.
const STICKY: u32 = 0o1000;
/// The user id of root, which ignores the sticky bit.
const ROOT: u32 = 0;

/// Resolves a path that is a link, so that its target is written and the link is kept. The target need not exist. The
/// result ends in a name, unless it is the root.
///
/// # Errors
/// Returns an error for a loop of links and for a path such as `..` that does not exist.
pub fn resolved(path: &Path) -> io::Result<PathBuf> {
    // Removes a trailing slash, which would follow a link to a folder.
    let mut path: PathBuf = path.components().collect();
    for _ in 0..MOST_LINKS {
        if !matches!(path.components().next_back(), Some(Component::Normal(_))) {
            return path.canonicalize();
        }
        match path.read_link() {
            Ok(target) => path = folder_of(&path).join(target).components().collect(),
            Err(_no_link) => return Ok(path),
        }
    }
    Err(io::Error::other("its links form a loop"))
}

/// Returns the absolute path without links. Two paths to the same file have the same identity.
///
/// # Errors
/// I/O errors of the folder.
pub fn identity(path: &Path) -> io::Result<PathBuf> {
    let path = resolved(path)?;
    match (path.canonicalize(), path.file_name()) {
        (Ok(found), _) => Ok(found),
        (Err(_), Some(name)) => Ok(folder_of(&path).canonicalize()?.join(name)),
        (Err(error), None) => Err(error),
    }
}

/// Returns the folder of a path.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Checks that a new file of the user `uid` can replace this path.
///
/// # Errors
/// Returns the reason if it cannot.
pub fn check_replaceable(path: &Path, uid: u32) -> Result<(), String> {
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !found.is_file() {
        return Err("this path is not an ordinary file".into());
    }
    if is_mount_point(path) {
        return Err("it is a mount point, which cannot be replaced; mount its folder instead".into());
    }
    let folder = std::fs::metadata(folder_of(path)).ok();
    let keeps_others_out = folder.is_some_and(|folder| {
        folder.mode() & STICKY != 0 && ![ROOT, folder.uid(), found.uid()].contains(&uid)
    });
    if keeps_others_out {
        return Err("it belongs to another user, and only owners replace files in its folder".into());
    }
    // Permissions do not matter for a rename, but an immutable file cannot be replaced.
    match std::fs::OpenOptions::new().append(true).open(path) {
        Err(error) if error.raw_os_error() == Some(EPERM) => Err(format!("it cannot be replaced: {error}")),
        _ => Ok(()),
    }
}

/// Returns true if the path is a mount point.
fn is_mount_point(path: &Path) -> bool {
    let (Ok(path), Ok(mounts)) = (path.canonicalize(), std::fs::read("/proc/self/mountinfo")) else {
        return false;
    };
    mount_points(&mounts).any(|point| point == path)
}

/// Returns the paths of a mount table: the fifth field of each line.
fn mount_points(table: &[u8]) -> impl Iterator<Item = PathBuf> {
    let lines = table.split(|byte| *byte == b'\n');
    lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4).map(unescaped))
}

/// Decodes octal escapes: blanks, line ends and backslashes are written as three octal digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|digits| digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        match digits {
            Some(digits) if *first == b'\\' => {
                let value = digits.iter().fold(0_u8, |value, digit| value.wrapping_mul(8) + (digit - b'0'));
                bytes.push(value);
                rest = &after[3..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_followed_even_to_missing_targets() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("real")).unwrap();
        for (name, target) in
            [("dir", "real"), ("to", "real/clip.mp4"), ("twice", "to"), ("a", "b"), ("b", "a")]
        {
            symlink(target, at(name)).unwrap();
        }
        assert_eq!(resolved(&at("plain.mp4")).unwrap(), at("plain.mp4"));
        assert_eq!(resolved(&at("dir/")).unwrap(), at("real"));
        assert_eq!(resolved(&at("twice")).unwrap(), at("real/clip.mp4"));
        assert_eq!(resolved(Path::new("frames/")).unwrap(), Path::new("frames"));
        assert_eq!(resolved(Path::new("./")).unwrap(), std::env::current_dir().unwrap());
        assert!(resolved(&at("a")).is_err());
        let one = identity(&at("twice")).unwrap();
        for other in ["real/clip.mp4", "dir/clip.mp4", "dir/../real/./clip.mp4"] {
            assert_eq!(identity(&at(other)).unwrap(), one, "{other}");
        }
    }

    #[test]
    fn escapes_in_mount_tables_are_decoded() {
        let table = b"36 35 98:0 / /mnt/a\\040b\\134c rw shared:1 - ext4 /dev/a rw\n37 35 0:5 / / rw - proc proc rw\n";
        let points: Vec<_> = mount_points(table).collect();
        assert_eq!(points, [Path::new("/mnt/a b\\c"), Path::new("/")]);
        assert!(is_mount_point(Path::new("/proc")) && !is_mount_point(Path::new("/proc/self")));
    }

    #[test]
    fn irreplaceable_paths_are_detected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.mp4");
        let uid = std::fs::metadata(folder.path()).unwrap().uid();
        check_replaceable(&path, uid).unwrap();
        std::fs::write(&path, "old").unwrap();
        check_replaceable(&path, uid).unwrap();
        check_replaceable(&path, uid + 1).unwrap();
        let sticky = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
        std::fs::set_permissions(folder.path(), sticky).unwrap();
        check_replaceable(&path, uid).unwrap();
        assert!(check_replaceable(&path, uid + 1).unwrap_err().contains("another user"));
        assert!(check_replaceable(folder.path(), uid).is_err());
    }
}
