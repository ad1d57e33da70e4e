//! Bundles whose files are not as they were written, or cannot be read: each is named before anything runs, and
//! `rushes inspect --verify` names them all.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use bundle::manifest::{Bundle, Component};
use bundle::quantization::Scheme;
use bundle::variant::{KernelLibrary, Precision};
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

/// Heads that Rushes kernels have kernels for, so that a variant is made in no time.
const CASE: &str = "official-names";

struct SharedBundle {
    _folder: TempDir,
    bundle: PathBuf,
}

/// A bundle with a variant, in files of its own.
static SHARED: LazyLock<SharedBundle> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    let request = export::ExportRequest::new(&golden::case(CASE).checkpoint(), &bundle);
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

/// A copy of the shared bundle, as `bundle` in the folder.
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

/// Runs a command that must refuse the bundle before it does anything.
fn refused(folder: &Path, arguments: &[&str]) -> Value {
    let before = fs::read_dir(folder).unwrap().count();
    let output = run(folder, arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
    assert_eq!(fs::read_dir(folder).unwrap().count(), before, "something was left behind");
    // Nothing was announced: no step was taken.
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!told.contains("denoise"), "{told}");
    event(&output, "error")
}

fn field(error: &Value, field: &str) -> String {
    error[field].as_str().unwrap_or_default().to_owned()
}

/// Weights, graphs and tokenizer: something of every component, of what was exported and of the variant.
fn every_file(bundle: &Bundle) -> Vec<String> {
    bundle.files().into_iter().map(str::to_owned).collect()
}

/// Overwrites the second half of a file with zeros; its length stays.
fn zero_half(path: &Path) {
    let bytes = fs::metadata(path).unwrap().len();
    let file = fs::File::options().write(true).open(path).unwrap();
    let half = usize::try_from(bytes / 2).unwrap();
    file.write_all_at(&vec![0; half], bytes - half as u64).unwrap();
}

#[test]
fn every_file_of_a_bundle_has_a_digest_and_a_whole_bundle_is_verified() {
    let (folder, bundle) = copy();
    let digests = &bundle.manifest.digests;
    assert_eq!(digests.keys().cloned().collect::<Vec<_>>(), every_file(&bundle));
    assert!(digests.values().all(|digest| digest.whole.is_some()));
    // Graphs and weights of the variant are among them.
    let expert =
        bundle.manifest.components.iter().find(|entry| matches!(entry.component, Component::Expert(_)));
    let variant = expert.unwrap().variant(Precision::Bf16, KernelLibrary::Rushes).unwrap();
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
fn zeros_in_any_file_are_found_on_opening_and_all_are_named_by_verify() {
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
fn every_command_refuses_a_damaged_bundle_and_says_what_to_do() {
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
        let said = error.to_string();
        assert!(
            said.contains("decoder/weights/") && field(&error, "fix").contains("export the checkpoint again"),
            "{said}"
        );
    }
}

/// A few bytes where the sampled digest does not look are found by `--verify` alone.
#[test]
fn a_change_between_the_samples_is_found_by_verify() {
    let (folder, bundle) = copy();
    let encoder = bundle.manifest.component(&Component::TextEncoder).unwrap();
    let file = &encoder.weights[0].file;
    // Longer, so that not all of it is sampled: as a valid file with one more tensor.
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
    let sampled = bundle::file_digest::sampled_places(bytes);
    let between = sampled.windows(2).find(|pair| pair[0].end < pair[1].start).unwrap()[0].end;
    let opened = fs::File::options().write(true).open(bundle.path(file)).unwrap();
    opened.write_all_at(&[0x55], between).unwrap();
    assert!(Bundle::open(&bundle.folder).is_ok());
    let output = verify();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(event(&output, "verified")["damaged"][0]["file"], file.as_str());
}

#[test]
fn a_bundle_without_digests_still_opens_and_verify_says_what_it_does_not_know() {
    let (folder, bundle) = copy();
    let mut manifest = bundle.manifest.clone();
    manifest.digests.clear();
    bundle::manifest::write(&bundle.folder, &manifest).unwrap();
    let output = run(folder.path(), &["inspect", "bundle", "--verify", "--json"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(event(&output, "verified")["unknown"].as_array().unwrap().len(), every_file(&bundle).len());
    // What is linked without being read is not known either; what is written is.
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

/// What ONNX Runtime would refuse when it opens the decoder, after every step.
#[test]
fn weights_that_cannot_be_used_are_found_before_the_first_step_in_every_component() {
    for component in 0..4 {
        let (folder, bundle) = copy();
        let entry = &bundle.manifest.components[component];
        let file = bundle.path(&entry.weights[0].file);
        let weights = file.parent().unwrap().to_owned();
        let elsewhere = folder.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        let (moved, moved_file) = (elsewhere.join("weights"), elsewhere.join("file"));

        // A link that leads outside, of the whole folder.
        fs::rename(&weights, &moved).unwrap();
        symlink(&moved, &weights).unwrap();
        let error = refused(folder.path(), &GENERATE);
        assert!(field(&error, "why").contains("ONNX Runtime reads no weights from outside"), "{error}");
        fs::remove_file(&weights).unwrap();
        fs::rename(&moved, &weights).unwrap();

        // Of one file.
        fs::rename(&file, &moved_file).unwrap();
        symlink(&moved_file, &file).unwrap();
        let error = refused(folder.path(), &GENERATE);
        assert!(field(&error, "what").contains("/weights/"), "{error}");
        fs::remove_file(&file).unwrap();

        // A file that is missing, and a link that leads nowhere.
        let error = refused(folder.path(), &GENERATE);
        assert!(field(&error, "what").contains("/weights/"), "{error}");
        symlink("nowhere", &file).unwrap();
        refused(folder.path(), &GENERATE);
        fs::remove_file(&file).unwrap();

        // A folder in its place, and a pipe, which nobody would ever write to.
        fs::create_dir(&file).unwrap();
        let error = refused(folder.path(), &GENERATE);
        assert!(field(&error, "why").contains("no file"), "{error}");
        fs::remove_dir(&file).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
        refused(folder.path(), &GENERATE);
        fs::remove_file(&file).unwrap();

        // A link that stays inside is as good as a file.
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
fn a_file_that_may_not_be_read_is_found_before_the_first_step() {
    let (folder, bundle) = copy();
    // The superuser may read everything, so somebody else runs the command then.
    let everybody = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    everybody(folder.path(), 0o755);
    let is_root = fs::metadata("/proc/self").unwrap().permissions().mode() > 0
        && std::process::Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    let files =
        bundle.manifest.components.iter().flat_map(|entry| [&entry.weights[0].file, &entry.graphs[0].file]);
    for file in files {
        let path = bundle.path(file);
        everybody(&path, 0o000);
        let mut command = rushes(folder.path());
        command.args(["inspect", "bundle", "--json"]);
        if is_root {
            command.uid(65_534).gid(65_534);
        }
        let output = command.output().unwrap();
        everybody(&path, 0o644);
        assert_eq!(output.status.code(), Some(2), "{file}: {output:?}");
        let error = event(&output, "error");
        assert!(field(&error, "what").contains(file) && field(&error, "why").contains("denied"), "{error}");
    }
}

/// A part that the bundle lacks altogether would be missed after the steps as well.
#[test]
fn a_component_or_graph_that_is_absent_is_found_before_the_first_step() {
    let (folder, bundle) = copy();
    let without = |change: &dyn Fn(&mut bundle::manifest::Manifest)| {
        let mut manifest = bundle.manifest.clone();
        change(&mut manifest);
        bundle::manifest::write(&bundle.folder, &manifest).unwrap();
        refused(folder.path(), &GENERATE).to_string()
    };
    let said = without(&|manifest| manifest.components.retain(|entry| entry.component != Component::Decoder));
    assert!(said.contains("the decoder"), "{said}");
    let said = without(&|manifest| manifest.components.remove(1).graphs.clear());
    assert!(said.contains("expert"), "{said}");
    let said = without(&|manifest| {
        let decoder = manifest.components.iter_mut().find(|entry| entry.component == Component::Decoder);
        decoder.unwrap().graphs.retain(|graph| graph.part != bundle::manifest::Part::Next);
    });
    assert!(said.contains("the decoder"), "{said}");
}
