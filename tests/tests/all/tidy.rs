//! Rules of the repository that the compiler does not check: dependencies, the overview, file sizes and unwanted words.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The files that git tracks or would track.
fn files() -> Vec<PathBuf> {
    let output = Command::new("git")
        .current_dir(root())
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .output()
        .expect("git");
    assert!(output.status.success(), "{output:?}");
    let names = String::from_utf8(output.stdout).unwrap();
    names.lines().map(|name| root().join(name)).filter(|path| path.is_file()).collect()
}

/// The workspace crates that a manifest lists under `[dependencies]`.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(manifest).join("Cargo.toml")).unwrap();
    let section = text.split("[dependencies]").nth(1).unwrap_or_default();
    let section = section.split("\n[").next().unwrap_or_default();
    let workspace = [
        "bundle",
        "graph",
        "kernels",
        "prompt",
        "media",
        "export",
        "engines",
        "calibration",
        "runtime",
        "jobs",
        "server",
        "quality",
        "rushes",
        "tests",
        "benches",
    ];
    let names = section.lines().filter_map(|line| line.split(['.', ' ', '=']).next());
    names.filter(|name| workspace.contains(name)).map(str::to_owned).collect()
}

#[test]
fn dependencies_between_crates_have_one_direction() {
    let allowed: [(&str, &[&str]); 12] = [
        ("crates/bundle", &[]),
        ("crates/kernels", &[]),
        ("crates/graph", &["bundle"]),
        ("export", &["bundle", "graph", "kernels"]),
        ("engines", &["bundle", "graph", "kernels"]),
        ("calibration", &["bundle", "engines", "graph", "kernels"]),
        ("runtime", &["bundle", "engines", "kernels", "prompt"]),
        ("crates/prompt", &["bundle"]),
        ("crates/media", &["bundle"]),
        ("crates/jobs", &["bundle", "engines", "media", "runtime"]),
        ("crates/server", &["bundle", "jobs", "media", "prompt", "runtime"]),
        ("crates/quality", &["bundle", "calibration", "engines", "export", "kernels", "prompt", "runtime"]),
    ];
    for (folder, may_use) in allowed {
        for used in dependencies(folder) {
            assert!(may_use.contains(&used.as_str()), "{folder} must not use {used}");
        }
    }
    // Without any dependencies the checks above would always pass.
    assert!(dependencies("runtime").contains("engines"));
}

/// Dependencies that a library user of the pipeline must not have to build.
#[test]
fn the_runtime_has_no_command_line_and_no_gstreamer() {
    let output = Command::new(env!("CARGO"))
        .current_dir(root())
        .args([
            "tree",
            "--offline",
            "--locked",
            "--package",
            "rushes-runtime",
            "--edges",
            "normal",
            "--prefix",
            "none",
        ])
        .output()
        .expect("cargo");
    assert!(output.status.success(), "{output:?}");
    let tree = String::from_utf8(output.stdout).unwrap();
    assert!(tree.contains("rushes-engines"), "{tree}");
    for unwanted in ["clap", "ctrlc", "indicatif", "tracing-subscriber", "gstreamer"] {
        let found = tree.lines().find(|line| line.starts_with(unwanted));
        assert_eq!(found, None);
    }
}

#[test]
fn only_engines_names_onnx_runtimes_crate() {
    for path in files().iter().filter(|path| path.ends_with("Cargo.toml")) {
        let is_engines = path.ends_with("engines/Cargo.toml");
        let text = fs::read_to_string(path).unwrap();
        let uses = text.lines().any(|line| line.starts_with("ort.") || line.starts_with("ort ="));
        let is_root = text.contains("[workspace.dependencies]");
        assert_eq!(uses, is_engines || is_root, "{}", path.display());
    }
}

/// Checks the paths in backticks in ARCHITECTURE.md, and the crates of the workspace.
#[test]
fn the_overview_names_existing_paths_and_every_crate() {
    let overview = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let quoted = overview.split('`').skip(1).step_by(2);
    let mut checked = 0;
    for name in quoted.filter(|name| name.contains('/') && !name.contains([' ', '*', '<', '[', '{'])) {
        if name.ends_with('/') || name.starts_with("target/") {
            continue;
        }
        assert!(root().join(name).exists(), "ARCHITECTURE.md names {name}, which does not exist");
        checked += 1;
    }
    assert!(checked >= 20, "only {checked} paths were checked");
    let workspace = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let members = workspace.split("members = [").nth(1).unwrap().split(']').next().unwrap();
    for member in members.split('"').skip(1).step_by(2) {
        assert!(overview.contains(&format!("`{member}")), "ARCHITECTURE.md does not name {member}");
    }
}

#[test]
fn every_dependency_has_a_reason_in_the_overview() {
    let overview = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let workspace = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let section = workspace.split("[workspace.dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    let names =
        section.lines().filter(|line| !line.contains("path =")).filter_map(|line| line.split(" = ").next());
    for name in names.filter(|name| !name.is_empty()) {
        assert!(overview.contains(&format!("`{name}`")), "ARCHITECTURE.md gives no reason for {name}");
    }
}

#[test]
fn source_files_have_at_most_600_lines() {
    for path in files().iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs")) {
        let lines = fs::read_to_string(path).unwrap().lines().count();
        assert!(lines <= 600, "{} has {lines} lines", path.display());
    }
}

/// Errors of libraries name settings; only the command line has flags.
#[test]
fn texts_of_libraries_name_no_flags() {
    const LIBRARIES: [&str; 11] = [
        "crates/bundle/src",
        "crates/graph/src",
        "crates/jobs/src",
        "crates/media/src",
        "crates/prompt/src",
        "crates/quality/src",
        "crates/server/src",
        "calibration/src",
        "engines/src",
        "export/src",
        "runtime/src",
    ];
    let is_flag = |word: &str| {
        let word = word.trim_start_matches(['"', '`', '(']);
        word == "-o"
            || word.strip_prefix("--").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()))
    };
    let mut checked = 0;
    for path in files() {
        let name = path.strip_prefix(root()).unwrap();
        let is_rust = path.extension().is_some_and(|extension| extension == "rs");
        let is_test = path.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with("tests"));
        if !is_rust || is_test || !LIBRARIES.iter().any(|folder| name.starts_with(folder)) {
            continue;
        }
        checked += 1;
        // It writes a command of the program.
        if name == Path::new("runtime/src/engine_command.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        // Fixes may quote commands of other programs.
        let lines =
            code.lines().filter(|line| !line.trim_start().starts_with("//") && !line.contains("`cargo "));
        for line in lines {
            assert!(!line.split_whitespace().any(is_flag), "{}: {line}", name.display());
        }
    }
    assert!(checked > 150, "only {checked} files were checked");
}

#[test]
fn files_are_small_and_contain_no_unwanted_words() {
    // In two parts, so that this file does not match.
    let unwanted = [
        ["/wo", "rk/"],
        ["/ro", "ot/"],
        ["TO", "DO"],
        ["FIX", "ME"],
        ["todo", "!("],
        ["unimpl", "emented!("],
    ];
    let unwanted = unwanted.map(|parts| parts.concat());
    for path in files() {
        let size = path.metadata().unwrap().len();
        assert!(size < 50_000_000, "{} has {size} bytes", path.display());
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for words in &unwanted {
            assert!(!text.contains(words), "{} contains {words}", path.display());
        }
    }
}
