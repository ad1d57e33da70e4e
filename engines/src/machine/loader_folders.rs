//! The folders that the system's loader searches.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Searched after those of `ld.so.conf`.
const DEFAULT: [&str; 6] =
    ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"];

/// The folders that the loader searches in this process, in order.
pub(super) fn of_process() -> Vec<PathBuf> {
    folders(std::env::var_os("LD_LIBRARY_PATH").as_deref(), Path::new("/etc/ld.so.conf"))
}

/// Those of `LD_LIBRARY_PATH`, of the file `ld.so.conf` with what it includes, and the default ones.
fn folders(variable: Option<&OsStr>, configuration: &Path) -> Vec<PathBuf> {
    let of_variable =
        variable.map(OsStr::as_bytes).unwrap_or_default().split(|byte| matches!(byte, b':' | b';'));
    let of_variable = of_variable.filter(|folder| !folder.is_empty());
    let mut found: Vec<PathBuf> =
        of_variable.map(|folder| PathBuf::from(OsStr::from_bytes(folder))).collect();
    // A file may include others, which include no further ones in practice; the depth keeps a circle from going on.
    read(configuration, 4, &mut found);
    found.extend(DEFAULT.map(PathBuf::from));
    found
}

fn read(file: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(text) = std::fs::read_to_string(file) else { return };
    for line in text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()) {
        match line.strip_prefix("include") {
            Some(pattern) if depth > 0 => {
                included(pattern.trim()).iter().for_each(|file| read(file, depth - 1, found));
            }
            Some(_) => {}
            None if line.starts_with('/') => found.push(line.into()),
            None => {}
        }
    }
}

/// The files of a pattern such as `/etc/ld.so.conf.d/*.conf`, by name. The folder is not a pattern.
fn included(pattern: &str) -> Vec<PathBuf> {
    let Some((folder, name)) = pattern.rsplit_once('/') else { return Vec::new() };
    let Some((start, end)) = name.split_once('*') else { return vec![pattern.into()] };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
            name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
        })
        .collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_the_variable_come_before_those_of_the_configuration() {
        let root = tempfile::tempdir().unwrap();
        let parts = root.path().join("conf.d");
        std::fs::create_dir(&parts).unwrap();
        std::fs::write(parts.join("b.conf"), "/opt/b/lib\n").unwrap();
        std::fs::write(parts.join("a.conf"), "# a comment\n/opt/a/lib # TensorRT\n\n").unwrap();
        std::fs::write(parts.join("c.txt"), "/opt/c/lib\n").unwrap();
        let file = root.path().join("ld.so.conf");
        let text = format!("include {0}/*.conf\ninclude {1}\n/opt/own\n", parts.display(), file.display());
        std::fs::write(&file, text).unwrap();
        let found = folders(Some(OsStr::new("/first:;/second")), &file);
        let found: Vec<&str> = found.iter().filter_map(|folder| folder.to_str()).collect();
        assert_eq!(found[..4], ["/first", "/second", "/opt/a/lib", "/opt/b/lib"]);
        assert!(found.contains(&"/opt/own") && !found.contains(&"/opt/c/lib"), "{found:?}");
        assert_eq!(found[found.len() - DEFAULT.len()..], DEFAULT);
    }

    #[test]
    fn without_a_configuration_the_default_folders_remain() {
        let found = folders(None, Path::new("/nowhere/ld.so.conf"));
        assert_eq!(found, DEFAULT.map(PathBuf::from));
    }
}
