//! The cache of the embedded model: concurrent first runs, damage, and a bundle that is in use.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::lock::ReadLock;
use bundle::manifest::Bundle;
use bundle::stop::Stop;
use bundle::variant::{KernelLibrary, Precision, Target};
use rushes::mini::{self, MiniEvent, MiniForm};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tests::folder::names;
use tests::program::path;

fn prepare(cache: &Path) -> (PathBuf, Vec<MiniEvent>) {
    let mut events = Vec::new();
    let folder =
        mini::prepare(Some(cache), &MiniForm::cpu(), &Stop::new(), &mut |event| events.push(event)).unwrap();
    (folder, events)
}

#[test]
fn concurrent_first_runs_all_succeed() {
    let folder = tempfile::tempdir().unwrap();
    let tried = Command::new("unshare").args(["-Urpf", "--mount-proc", "true"]).output();
    let has_namespaces = tried.is_ok_and(|output| output.status.success());
    if !has_namespaces {
        eprintln!("skipped in part: this system does not allow new process namespaces");
    }
    let mut runs = Vec::new();
    for run in 0..4 {
        let mut command = Command::new("unshare");
        command.args(["-Urpf", "--mount-proc"]).arg(path());
        if !has_namespaces {
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
    let models = names(&folder.path().join("cache")).into_iter().filter(|name| name.starts_with("mini-"));
    assert_eq!(models.count(), 1);
}

/// Replaces a file by a copy with other bytes in the middle. Files that were linked to it do not change.
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
fn every_kind_of_damage_is_repaired() {
    let cache = tempfile::tempdir().unwrap();
    let (bundle, events) = prepare(cache.path());
    assert_eq!(events, []);
    let modified = || fs::metadata(bundle.join("bundle.json")).unwrap().modified().unwrap();
    let written = modified();
    assert_eq!(prepare(cache.path()), (bundle.clone(), vec![]));
    assert_eq!(modified(), written, "an intact bundle is not exported again");
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
        assert_eq!(prepare(cache.path()).1, [], "{what}: the bundle is intact again");
        assert_eq!(names(cache.path()).len(), 1, "{what}");
    }
}

#[test]
fn a_damaged_bundle_that_is_in_use_is_not_removed() {
    let cache = tempfile::tempdir().unwrap();
    let (bundle, _) = prepare(cache.path());
    let in_use = ReadLock::acquire(&bundle);
    overwrite(&bundle.join("tokenizer.json"));
    assert_eq!(prepare(cache.path()).1.len(), 1);
    assert_eq!(names(cache.path()).len(), 2, "the bundle in use is kept");
    drop(in_use);
    fs::remove_file(bundle.join("exported.json")).unwrap();
    prepare(cache.path());
    assert_eq!(names(cache.path()).len(), 1);
}

#[test]
fn files_that_are_added_later_are_not_damage() {
    let cache = tempfile::tempdir().unwrap();
    let (bundle, _) = prepare(cache.path());
    let manifest = fs::read_to_string(bundle.join("bundle.json")).unwrap();
    fs::write(bundle.join("bundle.json"), manifest.replacen("  ", "   ", 1)).unwrap();
    fs::write(bundle.join("quality.json"), "{}").unwrap();
    assert_eq!(prepare(cache.path()).1, []);
    assert!(bundle.join("quality.json").is_file());
}

#[test]
fn each_form_has_a_folder_with_graphs_for_its_targets_and_the_cpu() {
    let cache = tempfile::tempdir().unwrap();
    let (cpu, _) = prepare(cache.path());
    let of_cpu = cpu.file_name().unwrap().to_string_lossy().into_owned();
    for (target, precision, end) in [
        (Target::Plain, Precision::F32, "-plain-f32"),
        (Target::Plain, Precision::Bf16, "-plain-bf16"),
        (Target::Cuda, Precision::Bf16, "-cuda-bf16"),
    ] {
        let form = MiniForm::new([target, Target::Cpu], precision).unwrap();
        let folder = mini::prepare(Some(cache.path()), &form, &Stop::new(), &mut |_| ()).unwrap();
        assert_eq!(folder.file_name().unwrap().to_string_lossy(), format!("{of_cpu}{end}"));
        let manifest = Bundle::open(&folder).unwrap().manifest;
        for target in [target, Target::Cpu] {
            assert_eq!(
                manifest.precisions(target, KernelLibrary::OnnxRuntime),
                [precision],
                "{end}: {target}"
            );
        }
    }
    assert_eq!(names(cache.path()).len(), 4);
    let variant = Bundle::open(&cpu).unwrap().manifest.precisions(Target::Plain, KernelLibrary::OnnxRuntime);
    assert!(variant.is_empty(), "the form for the CPU has graphs for the CPU only");
}

#[test]
fn a_stop_leaves_an_empty_cache() {
    let cache = tempfile::tempdir().unwrap();
    let stop = Stop::new();
    stop.request();
    let error =
        mini::prepare(Some(&cache.path().join("a/b")), &MiniForm::cpu(), &stop, &mut |_| ()).unwrap_err();
    assert!(error.is_cancelled(), "{error}");
    assert_eq!(names(cache.path()), Vec::<String>::new());
}
