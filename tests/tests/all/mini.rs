//! The embedded model: a copied program generates a clip without the repository and without a download.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tests::program;
use tests::program::event;

/// The ONNX Runtime library that `make setup` installs in the target folder.
fn onnxruntime() -> PathBuf {
    let program = program::path();
    let target = program.ancestors().map(|folder| folder.join("onnxruntime")).find(|folder| folder.is_dir());
    let folder = target.expect("target/onnxruntime: `make setup` fills it");
    let mut libraries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    libraries.find(|path| path.to_string_lossy().contains("libonnxruntime.so")).expect("the library")
}

fn generate(program: &Path, folder: &Path) -> Output {
    Command::new(program)
        .current_dir(folder)
        .env_clear()
        .arg("generate")
        .arg("A red ball bounces on the beach")
        .args(["--steps", "2", "--json", "--cache-dir", "cache", "-o", "clip.mp4", "--onnxruntime"])
        .arg(onnxruntime())
        .output()
        .unwrap()
}

#[test]
fn a_copied_program_generates_a_clip_and_exports_its_model_once() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("rushes");
    fs::copy(program::path(), &copy).unwrap();
    let output = generate(&copy, folder.path());
    assert!(output.status.success(), "{output:?}");
    assert!(folder.path().join("clip.mp4").metadata().unwrap().len() > 0);
    let bundles = || {
        let entries = fs::read_dir(folder.path().join("cache")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    let [bundle] = &bundles()[..] else { panic!("{:?}", bundles()) };
    let written = fs::metadata(bundle.join("bundle.json")).unwrap().modified().unwrap();
    let output = generate(&copy, folder.path());
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs::metadata(bundle.join("bundle.json")).unwrap().modified().unwrap(), written);
    let done = event(&output, "done");
    assert_eq!((&done["steps"], &done["model"]), (&2.into(), &"mini".into()));

    // A damaged bundle in the cache is exported again.
    fs::remove_file(bundle.join("tokenizer.json")).unwrap();
    let output = generate(&copy, folder.path());
    assert!(output.status.success(), "{output:?}");
    assert!(bundle.join("tokenizer.json").is_file());
    assert_eq!(bundles().len(), 1);
}

#[test]
fn without_a_cache_folder_the_error_names_the_flag() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(program::path())
        .current_dir(folder.path())
        .env_clear()
        .args(["generate", "a ball", "--json"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(event(&output, "error")["fix"].as_str().unwrap().contains("--cache-dir"));
}
