//! Shell scripts in their own mount namespace.

use std::path::Path;
use std::process::{Command, Output};

/// Runs a shell script in a working folder, as root of a namespace in which it can mount. `$RUSHES` is the program.
/// Returns `None`, with a line on standard error, if this system does not allow it.
///
/// # Panics
/// Panics if the shell cannot be started.
pub fn with_mounts(folder: &Path, script: &str) -> Option<Output> {
    let possible = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c"])
        .arg("mount -t tmpfs none \"$0\"")
        .arg(folder)
        .output();
    if !possible.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: this system does not allow mounts in a new namespace");
        return None;
    }
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .current_dir(folder)
        .env("RUSHES", super::program::path())
        .env("RUST_BACKTRACE", "0")
        .output();
    Some(output.expect("a shell"))
}
