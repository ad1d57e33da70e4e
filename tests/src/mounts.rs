//! Scripts with mounts of their own, which no other process sees and which go with the script.

use std::path::Path;
use std::process::{Command, Output};

/// Runs a shell script in a working folder, as root of a namespace in which it may mount. `$RUSHES` is the program.
/// None, with a line on standard error, where this system does not allow that.
///
/// # Panics
/// The shell cannot be started.
pub fn with_mounts(folder: &Path, script: &str) -> Option<Output> {
    let possible = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c"])
        .arg("mount -t tmpfs none \"$0\"")
        .arg(folder)
        .output();
    if !possible.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: this system lets nobody mount in a namespace of their own");
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
