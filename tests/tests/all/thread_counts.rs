//! `--threads`: any number gives the same clip, at most one thread per core is used, and a lower number is reported.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::path::Path;
use std::process::{Command, Output};
use tests::program::{self, rushes};
use tests::{edit, golden};

/// A folder with a bundle and a prompt file.
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

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_thousand_threads_give_the_same_clip_as_one_and_the_used_number_is_reported() {
    let folder = exported();
    let one = generate(folder.path(), "1", "one.y4m");
    assert!(one.status.success() && !stderr(&one).contains("--threads"), "{one:?}");
    for threads in ["1000", "18446744073709551615"] {
        let many = generate(folder.path(), threads, "many.y4m");
        assert!(many.status.success(), "{many:?}");
        assert!(stderr(&many).contains(&format!("--threads {threads}: ")), "{}", stderr(&many));
        let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
        assert!(read("one.y4m") == read("many.y4m"), "the clip depends on the number of threads");
        std::fs::remove_file(folder.path().join("many.y4m")).unwrap();
    }
}

/// Cores outside the CPU affinity of the process do not count.
#[test]
fn the_cpu_affinity_of_the_process_is_respected() {
    let folder = exported();
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]).arg(program::path()).args(GENERATE).args(["--threads", "2", "-o", "a.y4m"]);
    let output = command.current_dir(folder.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(stderr(&output).contains("--threads 2: 1 are used"), "{}", stderr(&output));
}

#[test]
fn every_command_with_threads_refuses_a_wrong_number() {
    let folder = tempfile::tempdir().unwrap();
    let with_threads: Vec<_> = program::commands()
        .into_iter()
        .filter(|command| program::help(command).contains("--threads"))
        .collect();
    assert!(with_threads.len() >= 9, "{with_threads:?}");
    for command in with_threads {
        for wrong in ["0", "-1", "many", "1.5"] {
            let output = rushes(folder.path()).args(&command).args(["--threads", wrong]).output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{command:?} {wrong}: {output:?}");
            assert!(stderr(&output).contains("--threads cannot be"), "{command:?} {wrong}: {output:?}");
        }
    }
}

#[test]
fn every_command_reports_that_it_uses_fewer_threads() {
    let folder = exported();
    let commands: [&[&str]; 8] = [
        &["calibrate", "bundle", "--prompts", "absent"],
        &["quantize", "absent"],
        &["bench", "generate", "--bundle", "absent"],
        &["bench", "step", "--bundle", "absent"],
        &["bench", "decode", "--bundle", "absent"],
        &["bench", "text", "--bundle", "absent"],
        &["bench", "quality", "--bundle", "absent"],
        &["generate", "fox", "--bundle", "absent"],
    ];
    for command in commands {
        let output = rushes(folder.path()).args(command).args(["--threads", "5000"]).output().unwrap();
        assert!(stderr(&output).contains("--threads 5000: "), "{command:?}: {output:?}");
    }
}
