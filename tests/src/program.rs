//! The binary `rushes`, as a user runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Path of the binary, which cargo builds with the tests.
///
/// # Panics
/// It is not there.
pub fn path() -> PathBuf {
    let test = std::env::current_exe().expect("a path of the test itself");
    let beside = test.ancestors().map(|folder| folder.join("rushes-under-test")).find(|path| path.is_file());
    beside.expect("the program beside the tests")
}

/// A command in a working folder.
pub fn rushes(folder: &Path) -> Command {
    let mut command = Command::new(path());
    command.current_dir(folder).env("RUST_BACKTRACE", "0");
    command
}

/// The help text of a command, given as `["bench", "step"]`.
///
/// # Panics
/// The command prints no help.
pub fn help(command: &[String]) -> String {
    let output = Command::new(path()).args(command).arg("--help").output().expect("the program starts");
    assert!(output.status.success() && output.stderr.is_empty(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).expect("a help text in UTF-8")
}

/// Every command and subcommand, as the help texts list them.
///
/// # Panics
/// A command prints no help.
pub fn commands() -> Vec<Vec<String>> {
    let mut commands = Vec::new();
    let mut unread = vec![Vec::new()];
    while let Some(command) = unread.pop() {
        let help = help(&command);
        let listed = help.split_once("\nCommands:\n").map_or("", |(_, rest)| rest);
        for line in listed.lines().take_while(|line| !line.is_empty()) {
            // A line with more spaces continues a description.
            let name = line.strip_prefix("  ").filter(|line| !line.starts_with(' '));
            let Some(name) = name.and_then(|line| line.split(' ').next()).filter(|name| *name != "help")
            else {
                continue;
            };
            let subcommand = [&command[..], &[name.to_owned()]].concat();
            commands.push(subcommand.clone());
            unread.push(subcommand);
        }
    }
    commands
}

/// The JSON line of an event on standard output.
///
/// # Panics
/// There is none.
pub fn event(output: &Output, event: &str) -> serde_json::Value {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find(|line| line["event"] == event)
        .unwrap_or_else(|| {
            panic!("no `{event}` in:\n{text}\nstandard error:\n{}", String::from_utf8_lossy(&output.stderr))
        })
}

/// Frames of the first stream as ffprobe counts them; none of what it cannot read.
///
/// # Panics
/// There is no ffprobe.
pub fn frames_of(path: &Path) -> usize {
    let probed = Command::new("ffprobe")
        .args(["-v", "fatal", "-count_frames", "-show_entries", "stream=nb_read_frames", "-of", "csv=p=0"])
        .arg(path)
        .output()
        .expect("ffprobe: `make setup` installs it");
    // A playlist lists its stream twice.
    let text = String::from_utf8_lossy(&probed.stdout).into_owned();
    text.split([',', '\n']).find_map(|number| number.trim().parse().ok()).unwrap_or(0)
}
