//! Bundles with files that changed since they were written, or that cannot be read: the file is named before anything
//! runs, and `rushes inspect --verify` names all such files.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::dtype::WeightType;
use bundle::manifest::{Bundle, Component};
use bundle::quantization::Scheme;
use bundle::variant::{KernelLibrary, Precision, Variant};
use quality::quantize::variant::UnquantizedLayers;
use quality::quantize::{QuantizeOptions, Quantizer};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::LazyLock;
use tempfile::TempDir;
use tests::program::{event, rushes};
use tests::{edit, golden};

/// A case whose heads Rushes kernels support, so that a variant is quantised quickly.
const CASE: &str = "official-names";

struct SharedBundle {
    _folder: TempDir,
    bundle: PathBuf,
}

/// A bundle with a quantised variant.
static SHARED: LazyLock<SharedBundle> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    let request = export::ExportRequest {
        weights: Some(WeightType::F32),
        ..export::ExportRequest::new(&golden::case(CASE).checkpoint(), &bundle)
    };
    export::export(&request, &mut |_| ()).unwrap();
    let mut quantizer =
        Quantizer::open(&bundle, Path::new("none"), QuantizeOptions::new(Scheme::Bf16)).unwrap();
    for entry in Bundle::open(&bundle).unwrap().manifest.components {
        let numerics = quantizer.plan(&entry, &UnquantizedLayers::new()).unwrap().numerics;
        quantizer.write(numerics, None).unwrap();
    }
    quantizer.commit().unwrap();
    drop(quantizer);
    SharedBundle { _folder: folder, bundle }
});

/// A folder with a copy of the shared bundle, `bundle`.
fn copy() -> (TempDir, Bundle) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bundle");
    edit::copy_folder(&SHARED.bundle, &path);
    let bundle = Bundle::open(&path).unwrap();
    (folder, bundle)
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    rushes(folder).args(arguments).output().unwrap()
}

const GENERATE: [&str; 12] = [
    "generate",
    "a fox",
    "--bundle",
    "bundle",
    "--size",
    "48x32",
    "--frames",
    "5",
    "--steps",
    "4",
    "--json",
    "-ofox.gif",
];

/// Runs a command that must refuse the bundle before it does anything. Returns the error.
fn refused(folder: &Path, arguments: &[&str]) -> Value {
    let before = fs::read_dir(folder).unwrap().count();
    let output = run(folder, arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
    assert_eq!(fs::read_dir(folder).unwrap().count(), before, "new files were not removed");
    // No step was planned.
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains("denoise"), "{stderr}");
    event(&output, "error")
}

fn field(error: &Value, field: &str) -> String {
    error[field].as_str().unwrap_or_default().to_owned()
}

/// Weights, graphs and tokenizer of every component, of the export and of the variant.
fn every_file(bundle: &Bundle) -> Vec<String> {
    bundle.files().into_iter().map(str::to_owned).collect()
}

/// Overwrites the second half of a file with zeros; its length does not change.
fn zero_half(path: &Path) {
    let bytes = fs::metadata(path).unwrap().len();
    let file = fs::File::options().write(true).open(path).unwrap();
    let half = usize::try_from(bytes / 2).unwrap();
    file.write_all_at(&vec![0; half], bytes - half as u64).unwrap();
}

#[test]
fn every_file_of_a_bundle_has_a_digest_and_an_unchanged_bundle_is_verified() {
    let (folder, bundle) = copy();
    let digests = &bundle.manifest.digests;
    assert_eq!(digests.keys().cloned().collect::<Vec<_>>(), every_file(&bundle));
    assert!(digests.values().all(|digest| digest.whole.is_some()));
    // Including graphs and weights of the variant.
    let expert =
        bundle.manifest.components.iter().find(|entry| matches!(entry.component, Component::Expert(_)));
    let variant = expert.unwrap().variant(Variant::cpu(Precision::Bf16, KernelLibrary::Rushes)).unwrap();
    assert!(digests.contains_key(&variant.weights[0].file));
    let output = run(folder.path(), &["inspect", "bundle", "--verify", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let verified = event(&output, "verified");
    assert_eq!(verified["whole"], digests.len());
    assert_eq!(
        (&verified["damaged"], &verified["unknown"]),
        (&serde_json::json!([]), &serde_json::json!([]))
    );
}

#[test]
fn zeros_in_any_file_are_detected_on_opening_and_all_files_are_named_by_verify() {
    let (folder, bundle) = copy();
    let files = every_file(&bundle);
    for file in &files {
        let path = bundle.path(file);
        let whole = fs::read(&path).unwrap();
        zero_half(&path);
        let error = Bundle::open(&bundle.folder).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains("damaged"), "{file}: {error}");
        fs::write(&path, whole).unwrap();
    }
    for file in &files {
        zero_half(&bundle.path(file));
    }
    let output = run(folder.path(), &["inspect", "bundle", "--verify", "--json"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let damaged = event(&output, "verified")["damaged"].clone();
    let named: Vec<&str> =
        damaged.as_array().unwrap().iter().filter_map(|one| one["file"].as_str()).collect();
    assert_eq!(named, files);
    assert!(field(&event(&output, "error"), "why").contains(&files[0]));
}

#[test]
fn every_command_refuses_a_damaged_bundle_with_a_fix() {
    let (folder, bundle) = copy();
    fs::write(folder.path().join("prompts"), "a fox\n").unwrap();
    let decoder = bundle.manifest.component(&Component::Decoder).unwrap();
    zero_half(&bundle.path(&decoder.weights[0].file));
    for arguments in [
        &GENERATE[..],
        &["calibrate", "bundle", "--prompts", "prompts", "--json"],
        &["calibrate", "bundle", "--preview", "--json"],
        &["quantize", "bundle", "--scheme", "bf16", "--json"],
        &["inspect", "bundle", "--json"],
        &["inspect", "bundle", "--verify", "--json"],
        &["bench", "generate", "--bundle", "bundle", "--json"],
        &["bench", "quality", "--bundle", "bundle", "--json"],
        &["bench", "step", "--bundle", "bundle", "--json"],
        &["bench", "decode", "--bundle", "bundle", "--json"],
        &["bench", "text", "--bundle", "bundle", "--json"],
    ] {
        let error = refused(folder.path(), arguments);
        let message = error.to_string();
        assert!(
            message.contains("decoder/weights/")
                && field(&error, "fix").contains("export the checkpoint again"),
            "{message}"
        );
        assert_eq!((&error["class"], &error["exit_code"]), (&"damaged".into(), &2.into()), "{message}");
    }
}

/// A few bytes outside the samples of the sampled digest are detected by `--verify` only.
#[test]
fn a_change_between_the_samples_is_detected_by_verify() {
    let (folder, bundle) = copy();
    let encoder = bundle.manifest.component(&Component::TextEncoder).unwrap();
    let file = &encoder.weights[0].file;
    // A larger file, of which not everything is sampled: a valid file with one more tensor.
    edit::rewrite(bundle.path(file).parent().unwrap(), |stored| {
        stored.insert("unused".into(), (safetensors::Dtype::U8, vec![400_000], vec![7; 400_000]));
    });
    let mut manifest = bundle.manifest.clone();
    manifest.digests.remove(file);
    let bytes = fs::metadata(bundle.path(file)).unwrap().len();
    for entry in &mut manifest.components {
        entry
            .weights
            .iter_mut()
            .filter(|weights| weights.file == *file)
            .for_each(|weights| weights.bytes.0 = bytes);
    }
    export::digests::complete(&bundle.folder, &mut manifest, &export::digests::Known::new()).unwrap();
    bundle::manifest::write(&bundle.folder, &manifest).unwrap();
    let verify = || run(folder.path(), &["inspect", "bundle", "--verify", "--json"]);
    assert!(verify().status.success());
    let sampled = bundle::file_digest::sampled_ranges(bytes);
    let between = sampled.windows(2).find(|pair| pair[0].end < pair[1].start).unwrap()[0].end;
    let opened = fs::File::options().write(true).open(bundle.path(file)).unwrap();
    opened.write_all_at(&[0x55], between).unwrap();
    assert!(Bundle::open(&bundle.folder).is_ok());
    let output = verify();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(event(&output, "verified")["damaged"][0]["file"], file.as_str());
}

#[test]
fn a_bundle_without_digests_still_opens_and_verify_names_the_files_without_one() {
    let (folder, bundle) = copy();
    let mut manifest = bundle.manifest.clone();
    manifest.digests.clear();
    bundle::manifest::write(&bundle.folder, &manifest).unwrap();
    let output = run(folder.path(), &["inspect", "bundle", "--verify", "--json"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(event(&output, "verified")["unknown"].as_array().unwrap().len(), every_file(&bundle).len());
    // Without verification, linked files have no digest over every byte, and written files have one.
    let checkpoint = golden::case("two-experts").checkpoint();
    let request = export::ExportRequest {
        verify: false,
        ..export::ExportRequest::new(&checkpoint, &folder.path().join("quick"))
    };
    let quick = export::export(&request, &mut |_| ()).unwrap().manifest;
    let unknown: Vec<_> = quick.digests.iter().filter(|(_, digest)| digest.whole.is_none()).collect();
    assert!(!unknown.is_empty() && unknown.iter().all(|(file, _)| file.contains("/weights/")), "{unknown:?}");
    assert_eq!(quick.digests.len(), quick.files().len() + 1);
}

#[test]
fn preview_maps_and_calibrations_are_verified_by_their_own_digests() {
    let (folder, bundle) = copy();
    for (file, text) in [("preview/map.json", "{}"), ("calibration.json", "{}")] {
        fs::create_dir_all(bundle.path("preview")).unwrap();
        fs::write(bundle.path(file), text).unwrap();
        let output = run(folder.path(), &["inspect", "bundle", "--verify", "--json"]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert_eq!(event(&output, "verified")["damaged"][0]["file"], file);
        fs::remove_file(bundle.path(file)).unwrap();
    }
}

/// ONNX Runtime would refuse these weights only when it opens the decoder, after all steps.
#[test]
fn unusable_weights_of_every_component_are_refused_before_the_first_step() {
    for component in 0..4 {
        let (folder, bundle) = copy();
        let entry = &bundle.manifest.components[component];
        let file = bundle.path(&entry.weights[0].file);
        let weights = file.parent().unwrap().to_owned();
        let elsewhere = folder.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        let (moved, moved_file) = (elsewhere.join("weights"), elsewhere.join("file"));

        // The folder is a link to outside the bundle.
        fs::rename(&weights, &moved).unwrap();
        symlink(&moved, &weights).unwrap();
        let error = refused(folder.path(), &GENERATE);
        assert!(field(&error, "why").contains("ONNX Runtime reads no weights outside"), "{error}");
        fs::remove_file(&weights).unwrap();
        fs::rename(&moved, &weights).unwrap();

        // One file is a link to outside the bundle.
        fs::rename(&file, &moved_file).unwrap();
        symlink(&moved_file, &file).unwrap();
        let error = refused(folder.path(), &GENERATE);
        assert!(field(&error, "what").contains("/weights/"), "{error}");
        fs::remove_file(&file).unwrap();

        // A missing file, and a dangling link.
        let error = refused(folder.path(), &GENERATE);
        assert!(field(&error, "what").contains("/weights/"), "{error}");
        symlink("nowhere", &file).unwrap();
        refused(folder.path(), &GENERATE);
        fs::remove_file(&file).unwrap();

        // A folder in its place, and a pipe without a writer.
        fs::create_dir(&file).unwrap();
        let error = refused(folder.path(), &GENERATE);
        assert!(field(&error, "why").contains("not a regular file"), "{error}");
        fs::remove_dir(&file).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
        refused(folder.path(), &GENERATE);
        fs::remove_file(&file).unwrap();

        // A link inside the bundle is accepted.
        fs::rename(&moved_file, weights.join("other")).unwrap();
        symlink("other", &file).unwrap();
        if component == 3 {
            let output = run(folder.path(), &GENERATE);
            assert!(output.status.success(), "{output:?}");
        } else {
            Bundle::open(&bundle.folder).unwrap();
        }
    }
}

#[test]
fn a_file_without_read_permission_is_refused_before_the_first_step() {
    let (folder, bundle) = copy();
    // Root can read every file, so root runs the command as another user.
    let set_mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    set_mode(folder.path(), 0o755);
    let is_root = fs::metadata("/proc/self").unwrap().permissions().mode() > 0
        && std::process::Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    let files =
        bundle.manifest.components.iter().flat_map(|entry| [&entry.weights[0].file, &entry.graphs[0].file]);
    for file in files {
        let path = bundle.path(file);
        set_mode(&path, 0o000);
        let mut command = rushes(folder.path());
        command.args(["inspect", "bundle", "--json"]);
        if is_root {
            command.uid(65_534).gid(65_534);
        }
        let output = command.output().unwrap();
        set_mode(&path, 0o644);
        assert_eq!(output.status.code(), Some(2), "{file}: {output:?}");
        let error = event(&output, "error");
        assert!(field(&error, "what").contains(file) && field(&error, "why").contains("denied"), "{error}");
    }
}

/// A missing component would otherwise be noticed only after the steps.
#[test]
fn a_missing_component_or_graph_is_refused_before_the_first_step() {
    let (folder, bundle) = copy();
    let without = |change: &dyn Fn(&mut bundle::manifest::Manifest)| {
        let mut manifest = bundle.manifest.clone();
        change(&mut manifest);
        bundle::manifest::write(&bundle.folder, &manifest).unwrap();
        refused(folder.path(), &GENERATE).to_string()
    };
    let message =
        without(&|manifest| manifest.components.retain(|entry| entry.component != Component::Decoder));
    assert!(message.contains("lacks the decoder"), "{message}");
    let message = without(&|manifest| manifest.components.remove(1).graphs.clear());
    assert!(message.contains("expert"), "{message}");
    let message = without(&|manifest| {
        let decoder = manifest.components.iter_mut().find(|entry| entry.component == Component::Decoder);
        decoder.unwrap().graphs.retain(|graph| graph.part != bundle::manifest::Part::Next);
    });
    assert!(message.contains("the decoder"), "{message}");
}
