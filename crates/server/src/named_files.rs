//! Files of the operator that clients name: plain names in one folder, and nothing else.

use std::io;
use std::path::{Path, PathBuf};

/// Returns true if a text is a plain name: ASCII letters, digits and `._-`, and no dot in front.
pub(crate) fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// The file of a plain name in a folder, if there is one. A link is none: it could lead anywhere.
pub(crate) fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let path = Some(name).filter(|name| is_plain(name)).map(|name| folder.join(name))?;
    path.symlink_metadata().is_ok_and(|found| found.is_file()).then_some(path)
}

/// The names of all files in a folder that [`find`] finds, sorted.
///
/// # Errors
/// The folder cannot be read.
pub(crate) fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = folder.read_dir()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = entries.filter(|name| find(folder, name).is_some()).collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_plain_names_of_files_in_the_folder_are_found() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("folder");
        std::fs::create_dir_all(folder.join("inner")).unwrap();
        std::fs::write(scratch.path().join("secret"), "x").unwrap();
        for name in ["b-1.x", "a_2", ".hidden", "ä", "a b"] {
            std::fs::write(folder.join(name), "x").unwrap();
        }
        symlink(scratch.path().join("secret"), folder.join("out")).unwrap();
        symlink("a_2", folder.join("alias")).unwrap();
        symlink("nowhere", folder.join("broken")).unwrap();
        assert_eq!(names(&folder).unwrap(), ["a_2", "b-1.x"]);
        assert_eq!(find(&folder, "a_2"), Some(folder.join("a_2")));
        let absolute = folder.join("a_2");
        for name in [
            "",
            ".",
            "..",
            "../secret",
            absolute.to_str().unwrap(),
            "a_2/",
            "a_2\0",
            "./a_2",
            "a\\b",
            ".hidden",
        ] {
            assert!(!is_plain(name), "{name}");
            assert_eq!(find(&folder, name), None, "{name}");
        }
        for name in ["out", "alias", "broken", "inner", "ä", "a b", "c"] {
            assert_eq!(find(&folder, name), None, "{name}");
        }
        assert!(names(&scratch.path().join("none")).is_err());
    }
}
