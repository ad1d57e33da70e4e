//! The tools that make input files and read outputs back.

use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs a command that must succeed.
pub(crate) fn run(command: &mut Command) -> Output {
    let output =
        command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; `make setup` installs it"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Runs a command that must succeed without messages. Returns its standard output.
pub(crate) fn run_silent(command: &mut Command) -> Vec<u8> {
    let output = run(command);
    assert!(output.stderr.is_empty(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// An ffprobe command that decodes every frame and prints streams and format as JSON.
pub(crate) fn ffprobe(input: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("ffprobe");
    command.args(["-v", "error", "-count_frames", "-show_streams", "-show_format", "-of", "json"]).arg(input);
    command
}

/// The streams and the format of a file or address, as ffprobe reads them.
pub(crate) fn probe(input: impl AsRef<OsStr>) -> Value {
    serde_json::from_slice(&run(&mut ffprobe(input)).stdout).unwrap()
}

/// A number that ffprobe prints as a string.
pub(crate) fn seconds(value: &Value) -> f64 {
    value.as_str().unwrap_or_else(|| panic!("{value}")).parse().unwrap()
}

/// A file that ffmpeg makes from one of its test sources.
pub(crate) fn generated(folder: &Path, name: &str, source: &str, options: &[&str]) -> PathBuf {
    let path = folder.join(name);
    let arguments = ["-v", "error", "-y", "-f", "lavfi", "-i", source];
    run(Command::new("ffmpeg").args(arguments).args(options).arg(&path));
    path
}

/// The report of webpinfo, which must find no error.
pub(crate) fn webpinfo(path: &Path) -> String {
    let report = String::from_utf8(run(Command::new("webpinfo").arg(path)).stdout).unwrap();
    assert!(report.contains("No error detected"), "{report}");
    report
}

/// Milliseconds for which each frame of a WebP is shown, from a report of webpinfo.
pub(crate) fn webp_delays(report: &str) -> Vec<u64> {
    let delays = report.lines().filter_map(|line| line.trim().strip_prefix("Duration: "));
    delays.map(|number| number.parse().unwrap()).collect()
}
