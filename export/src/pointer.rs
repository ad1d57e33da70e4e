//! Git LFS pointers: the small text files in a repository that was cloned without its large files.

use crate::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The first bytes of pointers of each version.
const BEGINNINGS: [&[u8]; 2] =
    [b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/"];

/// Refuses a file whose content is a pointer.
///
/// # Errors
/// [`Error::LfsPointer`].
pub(crate) fn refuse(path: &Path, content: &[u8]) -> Result<(), Error> {
    if !BEGINNINGS.iter().any(|beginning| content.starts_with(beginning)) {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&content[..content.len().min(1024)]);
    let bytes = text.lines().find_map(|line| line.strip_prefix("size ")?.trim().parse().ok());
    Err(Error::LfsPointer { path: path.to_owned(), bytes })
}

/// [`refuse`] for an open file.
///
/// # Errors
/// Returns an error if the file cannot be read or is a pointer.
pub(crate) fn refuse_file(path: &Path, file: &File) -> Result<(), Error> {
    let mut beginning = [0; 1024];
    let read = file.read_at(&mut beginning, 0).map_err(Error::file("read", path))?;
    refuse(path, &beginning[..read])
}

/// Reads a file of the checkpoint.
///
/// # Errors
/// Returns an error if the file cannot be read or is a pointer.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let content = std::fs::read(path).map_err(Error::file("read", path))?;
    refuse(path, &content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_is_reported_with_the_size_of_the_file() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 16837417\n";
        let error = refuse(Path::new("tokenizer.json"), pointer).unwrap_err();
        insta::assert_snapshot!(error, @"tokenizer.json is a Git LFS pointer, not the file: the repository was cloned without its large files; this one has 16837417 bytes (run `git lfs pull` in the checkpoint's folder, and export again)");
        let truncated = refuse(Path::new("tokenizer.json"), &pointer[..45]).unwrap_err();
        assert!(matches!(truncated, Error::LfsPointer { bytes: None, .. }));
        for other in [&b""[..], b"{}", b"version 1", b"version https://git-lfs"] {
            assert!(refuse(Path::new("x"), other).is_ok());
        }
    }
}
