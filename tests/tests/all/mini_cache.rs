//! The embedded model's cache: first starts at once, damage, a copy that is being used.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use bundle::lock::ReadLock;
use bundle::stop::Stop;
use rushes::mini::{self, MiniEvent};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tests::asked::names;
use tests::program::path;

fn prepare(cache: &Path) -> (PathBuf, Vec<MiniEvent>) {
    let mut events = Vec::new();
    let folder = mini::prepare(Some(cache), &Stop::new(), &mut |event| events.push(event)).unwrap();
    (folder, events)
}

#[test]
fn first_starts_at_once_all_succeed() {
    let folder = tempfile::tempdir().unwrap();
    let tried = Command::new("unshare").args(["-Urpf", "--mount-proc", "true"]).output();
    let mut runs = Vec::new();
    for run in 0..4 {
        let mut command = Command::new("unshare");
        command.args(["-Urpf", "--mount-proc"]).arg(path());
        if !tried.as_ref().is_ok_and(|output| output.status.success()) {
            command = Command::new(path());
        }
        let started = command
            .current_dir(folder.path())
            .args([
                "generate",
                "fox",
                "--cache-dir",
                "cache",
                "--steps",
                "1",
                "--frames",
                "1",
                "--size",
                "48x32",
            ])
            .args(["-o", &format!("{run}.gif")])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        runs.push(started);
    }
    for run in runs {
        let output = run.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    assert_eq!(names(&folder.path().join("cache")).len(), 1);
}

/// Puts other bytes of the same length in place of those in the middle of a file, which stays another file's link.
fn overwrite(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    let end = (middle + 64).min(bytes.len());
    bytes[middle..end].iter_mut().for_each(|byte| *byte ^= 0x55);
    fs::remove_file(file).unwrap();
    fs::write(file, bytes).unwrap();
}

fn file_in(folder: &Path, end: &str) -> PathBuf {
    let found = names(folder).into_iter().find(|name| name.ends_with(end));
    folder.join(found.unwrap())
}

#[test]
fn damage_of_any_kind_is_repaired() {
    let cache = tempfile::tempdir().unwrap();
    let (bundle, events) = prepare(cache.path());
    assert_eq!(events, []);
    let modified = || fs::metadata(bundle.join("bundle.json")).unwrap().modified().unwrap();
    let made = modified();
    assert_eq!(prepare(cache.path()), (bundle.clone(), vec![]));
    assert_eq!(modified(), made, "it is whole");
    let weights = |component: &str| file_in(&bundle.join(component).join("weights"), ".safetensors");
    let graph = || file_in(&bundle.join("decoder"), ".onnx");
    let damages: [(&str, &dyn Fn()); 8] = [
        ("wrong bytes in weights", &|| overwrite(&weights("decoder"))),
        ("zeros in weights", &|| {
            let file = weights("text_encoder");
            let length = fs::metadata(&file).unwrap().len();
            fs::remove_file(&file).unwrap();
            fs::File::create(&file).unwrap().set_len(length).unwrap();
        }),
        ("wrong bytes in a graph", &|| overwrite(&graph())),
        ("wrong bytes in the tokenizer", &|| overwrite(&bundle.join("tokenizer.json"))),
        ("a graph that is missing", &|| fs::remove_file(graph()).unwrap()),
        ("no bundle.json", &|| fs::write(bundle.join("bundle.json"), "{").unwrap()),
        ("no digests", &|| fs::remove_file(bundle.join("exported.json")).unwrap()),
        ("a file in its place", &|| {
            fs::remove_dir_all(&bundle).unwrap();
            fs::write(&bundle, "a file").unwrap();
        }),
    ];
    for (what, damage) in damages {
        damage();
        assert_eq!(
            prepare(cache.path()),
            (bundle.clone(), vec![MiniEvent::Repairing { folder: bundle.clone() }]),
            "{what}"
        );
        assert_eq!(prepare(cache.path()).1, [], "{what}: it is whole again");
        assert_eq!(names(cache.path()).len(), 1, "{what}");
    }
}

#[test]
fn a_damaged_copy_that_is_used_is_not_removed() {
    let cache = tempfile::tempdir().unwrap();
    let (bundle, _) = prepare(cache.path());
    let used = ReadLock::acquire(&bundle);
    overwrite(&bundle.join("tokenizer.json"));
    assert_eq!(prepare(cache.path()).1.len(), 1);
    assert_eq!(names(cache.path()).len(), 2, "the one that is used is there still");
    drop(used);
    fs::remove_file(bundle.join("exported.json")).unwrap();
    prepare(cache.path());
    assert_eq!(names(cache.path()).len(), 1);
}

#[test]
fn what_is_quantised_later_is_no_damage() {
    let cache = tempfile::tempdir().unwrap();
    let (bundle, _) = prepare(cache.path());
    let manifest = fs::read_to_string(bundle.join("bundle.json")).unwrap();
    fs::write(bundle.join("bundle.json"), manifest.replacen("  ", "   ", 1)).unwrap();
    fs::write(bundle.join("quality.json"), "{}").unwrap();
    assert_eq!(prepare(cache.path()).1, []);
    assert!(bundle.join("quality.json").is_file());
}

#[test]
fn a_stop_leaves_an_empty_cache() {
    let cache = tempfile::tempdir().unwrap();
    let stop = Stop::new();
    stop.request();
    let error = mini::prepare(Some(&cache.path().join("a/b")), &stop, &mut |_| ()).unwrap_err();
    assert!(error.is_cancelled(), "{error}");
    assert_eq!(names(cache.path()), Vec::<String>::new());
}
