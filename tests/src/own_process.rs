//! Tests that need a process without other tests, such as measurements of memory.

use std::process::Command;

/// The name of the test that runs alone in this process.
const VARIABLE: &str = "RUSHES_TEST_ALONE";

/// Runs the test `name` in a process of its own and returns false; returns true in that process.
///
/// `name` is the test's path without the crate, as `cargo test` prints it.
///
/// ```no_run
/// # use tests::own_process;
/// // #[test]
/// fn memory_is_given_back() {
///     if own_process::entered("residency::memory_is_given_back") {
///         // measures
///     }
/// }
/// ```
///
/// # Panics
/// The process cannot be started, runs no such test, or the test fails in it.
pub fn entered(name: &str) -> bool {
    if std::env::var_os(VARIABLE).is_some_and(|alone| alone == name) {
        return true;
    }
    let output = Command::new(std::env::current_exe().expect("the path of the test binary"))
        .args(["--exact", name, "--nocapture"])
        .env(VARIABLE, name)
        .output()
        .expect("the test binary starts");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let text = format!("{stdout}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stdout.contains("1 passed"), "{name} in its own process:\n{text}");
    false
}
