//! Programs that receive signals.

use std::path::Path;
use std::process::{Child, Command};

/// The signals that ask a program to end.
pub const SIGNALS: [&str; 3] = ["INT", "TERM", "HUP"];

/// Returns a command that runs `program` in a working folder with these signals ignored, as `nohup` does. The other
/// signals of [`SIGNALS`] have their default action, whatever the test process inherited.
pub fn ignoring(ignored: &[&str], folder: &Path, program: &Path) -> Command {
    let mut command = Command::new("env");
    command.current_dir(folder).env("RUST_BACKTRACE", "0");
    for signal in SIGNALS {
        let action = if ignored.contains(&signal) { "ignore" } else { "default" };
        command.arg(format!("--{action}-signal={signal}"));
    }
    command.arg(program);
    command
}

/// Waits until the program handles a signal. Returns false if it ended before.
///
/// # Panics
/// Panics if the state of the program cannot be read.
pub fn handles(child: &mut Child, signal: &str) -> bool {
    waits_for(child, "SigCgt:", signal)
}

/// Waits until the program ignores a signal. Returns false if it ended before. A program that is started to ignore a
/// signal does not ignore it immediately.
///
/// # Panics
/// Panics if the state of the program cannot be read.
pub fn ignores(child: &mut Child, signal: &str) -> bool {
    waits_for(child, "SigIgn:", signal)
}

/// Waits until a signal is in a mask of `/proc/PID/status`. Returns false if the program ended before.
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
        if child.try_wait().expect("the state of the child").is_some() {
            return false;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// Sends a signal.
///
/// # Panics
/// Panics if `kill` cannot be started.
pub fn send(child: &Child, signal: &str) {
    // `kill` fails if the program has just ended.
    let output = Command::new("kill").arg(format!("-{signal}")).arg(child.id().to_string()).output();
    output.expect("kill");
}
