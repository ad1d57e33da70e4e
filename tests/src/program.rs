//! The program `rushes`, as a user runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The path of the program, which cargo builds with the tests.
///
/// # Panics
/// Panics if it does not exist.
pub fn path() -> PathBuf {
    let test = std::env::current_exe().expect("the path of the test");
    let program = test.ancestors().map(|folder| folder.join("rushes-under-test")).find(|path| path.is_file());
    program.expect("the program in a folder of the tests")
}

/// A command that runs the program in a working folder.
pub fn rushes(folder: &Path) -> Command {
    let mut command = Command::new(path());
    command.current_dir(folder).env("RUST_BACKTRACE", "0");
    command
}

/// The help text of a command, given as `["bench", "step"]`.
///
/// # Panics
/// Panics if the command prints no help.
pub fn help(command: &[String]) -> String {
    let output = Command::new(path()).args(command).arg("--help").output().expect("the program starts");
    assert!(output.status.success() && output.stderr.is_empty(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).expect("a help text in UTF-8")
}

/// Every command and subcommand, as the help texts list them.
///
/// # Panics
/// Panics if a command prints no help.
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
/// Panics if there is none.
pub fn event(output: &Output, event: &str) -> serde_json::Value {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find(|line| line["event"] == event)
        .unwrap_or_else(|| {
            panic!("no `{event}` in:\n{text}\nstandard error:\n{}", String::from_utf8_lossy(&output.stderr))
        })
}

/// The number of frames of the first stream, counted by ffprobe; 0 if it cannot read the file.
///
/// # Panics
/// Panics if there is no ffprobe.
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
