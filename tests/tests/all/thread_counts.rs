//! `--threads`: any number makes the same clip, no more are started than there are cores, and the user is told.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::path::Path;
use std::process::{Command, Output};
use tests::program::{self, rushes};
use tests::{edit, golden};

/// A bundle in an empty folder.
fn exported() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = edit::copy_of(&golden::case("two-experts").checkpoint());
    let request = export::ExportRequest::new(checkpoint.path(), &folder.path().join("bundle"));
    export::export(&request, &mut |_| ()).unwrap();
    std::fs::write(folder.path().join("prompts"), "a fox\n").unwrap();
    folder
}

const GENERATE: [&str; 14] = [
    "generate",
    "fox",
    "--bundle",
    "bundle",
    "--size",
    "32x32",
    "--frames",
    "5",
    "--steps",
    "2",
    "--seed",
    "1",
    "--progress",
    "none",
];

fn generate(folder: &Path, threads: &str, out: &str) -> Output {
    rushes(folder).args(GENERATE).args(["--threads", threads, "-o", out]).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_thousand_threads_make_the_clip_of_one_and_the_user_is_told() {
    let folder = exported();
    let one = generate(folder.path(), "1", "one.y4m");
    assert!(one.status.success() && !said(&one).contains("--threads"), "{one:?}");
    for threads in ["1000", "18446744073709551615"] {
        let many = generate(folder.path(), threads, "many.y4m");
        assert!(many.status.success(), "{many:?}");
        assert!(said(&many).contains(&format!("--threads {threads}: ")), "{}", said(&many));
        let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
        assert!(read("one.y4m") == read("many.y4m"), "the clip depends on the number of threads");
        std::fs::remove_file(folder.path().join("many.y4m")).unwrap();
    }
}

/// Cores that the process may not use do not count.
#[test]
fn the_affinity_of_the_process_is_what_counts() {
    let folder = exported();
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]).arg(program::path()).args(GENERATE).args(["--threads", "2", "-o", "a.y4m"]);
    let output = command.current_dir(folder.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(said(&output).contains("--threads 2: 1 are used"), "{}", said(&output));
}

#[test]
fn every_command_caps_its_threads_and_refuses_none() {
    let folder = exported();
    let commands: [&[&str]; 6] = [
        &["calibrate", "bundle", "--prompts", "absent"],
        &["quantize", "absent"],
        &["bench", "generate", "--bundle", "absent"],
        &["bench", "step", "--bundle", "absent"],
        &["bench", "quality", "--bundle", "absent"],
        &["generate", "fox", "--bundle", "absent"],
    ];
    for command in commands {
        let run = |threads: &str| {
            rushes(folder.path()).args(command).args(["--threads", threads]).output().unwrap()
        };
        for wrong in ["0", "-1", "many", "1.5"] {
            let output = run(wrong);
            assert_eq!(output.status.code(), Some(2), "{command:?} {wrong}: {output:?}");
            assert!(said(&output).contains("--threads cannot be"), "{command:?} {wrong}: {output:?}");
        }
        let output = run("5000");
        assert!(said(&output).contains("--threads 5000: "), "{command:?}: {output:?}");
    }
}
