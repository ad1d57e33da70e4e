//! Programs that are asked to end by signals.

use std::path::Path;
use std::process::{Child, Command};

/// The signals that ask a program to end.
pub const SIGNALS: [&str; 3] = ["INT", "TERM", "HUP"];

/// `program` in a working folder with these signals ignored, as `nohup` does, and the others of [`SIGNALS`] as a terminal
/// has them, whatever the test itself was started with.
pub fn ignoring(ignored: &[&str], folder: &Path, program: &Path) -> Command {
    let mut command = Command::new("env");
    command.current_dir(folder).env("RUST_BACKTRACE", "0");
    for signal in SIGNALS {
        let kind = if ignored.contains(&signal) { "ignore" } else { "default" };
        command.arg(format!("--{kind}-signal={signal}"));
    }
    command.arg(program);
    command
}

/// Waits until the program listens to a signal; false when it ended before.
///
/// # Panics
/// The state of the program cannot be read.
pub fn listens(child: &mut Child, signal: &str) -> bool {
    waits_for(child, "SigCgt:", signal)
}

/// Waits until the program ignores a signal; false when it ended before. What was started to ignore one does not at once.
///
/// # Panics
/// The state of the program cannot be read.
pub fn ignores(child: &mut Child, signal: &str) -> bool {
    waits_for(child, "SigIgn:", signal)
}

/// Waits until a signal is in one of the masks of `/proc/PID/status`; false when the program ended before.
fn waits_for(child: &mut Child, mask: &str, signal: &str) -> bool {
    let number = match signal {
        "HUP" => 1,
        "INT" => 2,
        _ => 15,
    };
    loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let found = status.lines().find_map(|line| line.strip_prefix(mask));
        let signals = found.and_then(|found| u64::from_str_radix(found.trim(), 16).ok()).unwrap_or_default();
        if signals & (1 << (number - 1)) != 0 {
            return true;
        }
        if child.try_wait().expect("a child to look at").is_some() {
            return false;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// Sends a signal.
///
/// # Panics
/// There is no `kill`.
pub fn send(child: &Child, signal: &str) {
    // A program that has just ended takes none.
    let sent = Command::new("kill").arg(format!("-{signal}")).arg(child.id().to_string()).output();
    sent.expect("kill");
}

/// Names in a folder, sorted; nothing where there is none.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
