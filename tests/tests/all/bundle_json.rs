//! Edited `bundle.json` files: each is opened, or refused with the name of the wrong field, without a crash.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::Diagnose;
use bundle::manifest::Bundle;
use bundle::preview::PreviewKind;
use bundle::units::{ByteCount, Seed};
use engines::WeightMemory;
use engines::residency::{self, Residency};
use runtime::decode::TileSide;
use runtime::memory_plan::{MemorySettings, footprints};
use runtime::plan::{GenerateRequest, GenerationPlan};
use serde_json::{Value, json};
use std::fs;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;
use tests::{golden, program};

/// A bundle whose `bundle.json` is edited.
struct Edited {
    folder: TempDir,
    original: Value,
}

impl Edited {
    /// Exports a golden checkpoint.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let request = export::ExportRequest::new(
            &golden::case("two-experts").checkpoint(),
            &folder.path().join("bundle"),
        );
        export::export(&request, &mut |_| ()).unwrap();
        let text = fs::read(folder.path().join("bundle/bundle.json")).unwrap();
        Self { original: serde_json::from_slice(&text).unwrap(), folder }
    }

    fn bundle(&self) -> PathBuf {
        self.folder.path().join("bundle")
    }

    fn write(&self, text: &str) {
        fs::write(self.bundle().join("bundle.json"), text).unwrap();
    }

    /// Returns the error of opening the bundle with another value at `pointer`.
    fn refused(&self, pointer: &str, value: &Value) -> String {
        let mut changed = self.original.clone();
        *changed.pointer_mut(pointer).unwrap_or_else(|| panic!("no field {pointer}")) = value.clone();
        self.write(&changed.to_string());
        match Bundle::open(&self.bundle()) {
            Ok(_) => panic!("{pointer} = {value} was accepted"),
            Err(error) => {
                assert_eq!(error.report().class.exit_code(), 2, "{error}");
                error.to_string()
            }
        }
    }
}

#[test]
fn zero_negative_and_huge_sizes_are_refused_by_name() {
    let edited = Edited::new();
    let sizes = [
        "/text_encoder/vocabulary",
        "/text_encoder/width",
        "/text_encoder/heads",
        "/text_encoder/head_width",
        "/text_encoder/feed_forward",
        "/text_encoder/layers",
        "/text_encoder/buckets",
        "/text_encoder/max_distance",
        "/denoiser/heads",
        "/denoiser/head_width",
        "/denoiser/layers",
        "/denoiser/feed_forward",
        "/denoiser/in_channels",
        "/denoiser/out_channels",
        "/denoiser/patch/time",
        "/denoiser/patch/height",
        "/denoiser/patch/width",
        "/denoiser/text_width",
        "/denoiser/frequency_width",
        "/vae/base",
        "/vae/latent_channels",
        "/vae/residual_blocks",
        "/vae/multipliers/0",
        "/defaults/frames/value",
        "/defaults/fps/value",
        "/defaults/steps/value",
    ];
    for pointer in sizes {
        let name = pointer
            .trim_start_matches('/')
            .trim_end_matches("/0")
            .trim_end_matches("/value")
            .replace('/', ".");
        for value in [json!(0), json!(16_777_217_u64 << 8), json!(u64::MAX)] {
            let error = edited.refused(pointer, &value);
            // For numbers that do not fit their type the parser reports the line.
            assert!(error.contains(&name) || error.contains("line 1"), "{pointer} = {value}: {error}");
        }
        for value in [json!(-1), json!("NaN"), json!(null), json!([1]), json!({})] {
            edited.refused(pointer, &value);
        }
        // A frame rate may be a fraction.
        if pointer != "/defaults/fps/value" {
            edited.refused(pointer, &json!(1.5));
        }
    }
    assert!(
        edited.refused("/defaults/fps/value", &json!(16_777_216)).contains("frames per second, 1 to 240")
    );
}

#[test]
fn numbers_that_contradict_each_other_are_refused_by_name() {
    let edited = Edited::new();
    for (pointer, value, named) in [
        ("/denoiser/head_width", json!(13), "denoiser.head_width"),
        ("/denoiser/frequency_width", json!(255), "denoiser.frequency_width"),
        ("/denoiser/in_channels", json!(36), "denoiser.in_channels"),
        ("/denoiser/text_width", json!(33), "denoiser.text_width"),
        ("/denoiser/heads", json!(1 << 23), "denoiser"),
        ("/denoiser/patch/time", json!(2), "denoiser.patch.time"),
        ("/denoiser/epsilon", json!(0.0), "denoiser.epsilon"),
        ("/text_encoder/epsilon", json!(-1e-6), "text_encoder.epsilon"),
        ("/text_encoder/buckets", json!(30), "text_encoder.buckets"),
        ("/text_encoder/max_distance", json!(8), "text_encoder.buckets"),
        ("/vae/multipliers", json!([]), "vae.multipliers"),
        ("/vae/multipliers", json!(vec![1; 40]), "vae.multipliers"),
        ("/vae/temporal_downsample", json!(vec![true; 70]), "vae.temporal_downsample"),
        ("/vae/latents_mean", json!([0.0]), "vae.latents_mean"),
        ("/vae/latents_mean/0", json!(1e300), "number out of range"),
        ("/vae/latents_std/0", json!(0.0), "vae.latents_std"),
        ("/defaults/shift/value", json!(0.0), "defaults.shift"),
        ("/defaults/guidance/value", json!([]), "defaults.guidance"),
        ("/defaults/guidance/value", json!([1e300, 1.0]), "number out of range"),
        ("/defaults/guidance/value", json!([1.0, 1.0, 1.0]), "defaults.guidance"),
        ("/defaults/size/value", json!("0x16"), "0x16"),
        ("/routing", json!([]), "routing"),
        ("/routing/0/from_timestep", json!(-5), "routing"),
        ("/routing/0/expert", json!("../low_noise"), "routing"),
        ("/routing/0/expert", json!("low_noise"), "routing"),
        ("/components/0/digest/blake3", json!("../../x"), "digest"),
        ("/components/1/component", json!("text_encoder"), "components"),
        ("/components/1/component", json!({"expert": "middle"}), "components"),
        ("/components/3/component", json!("preview"), "tiny_decoder"),
        ("/components/0/weights/0/bytes", json!(1), "it has"),
    ] {
        let error = edited.refused(pointer, &value);
        assert!(!named.is_empty() && error.contains(named), "{pointer} = {value}: {error}");
    }
}

/// Paths are opened, linked, and removed when a variant is replaced, so they must stay in the folder of their
/// component.
#[test]
fn paths_that_leave_the_bundle_are_refused() {
    let edited = Edited::new();
    let outside = edited.folder.path().join("outside.onnx");
    fs::write(&outside, "precious").unwrap();
    let absolute = outside.to_string_lossy().into_owned();
    let graph = edited.original["components"][3]["graphs"][0]["file"].as_str().unwrap().to_owned();
    for path in [
        absolute.as_str(),
        "../outside.onnx",
        "decoder/../../outside.onnx",
        "decoder/..",
        "..",
        ".",
        "",
        "/",
        "decoder/\0x",
        "decoder/weights/",
        "tokenizer.json",
        "bundle.json",
        "text_encoder/x.onnx",
        "./decoder/x",
        &format!("experts/{graph}"),
    ] {
        for pointer in ["/components/3/graphs/0/file", "/components/3/weights/0/file"] {
            let error = edited.refused(pointer, &json!(path));
            assert!(error.contains(".file` is"), "{pointer} = {path:?}: {error}");
        }
    }
    let variant = json!([{"precision": "int8", "weights": [{"file": "../outside.onnx", "bytes": 8}],
        "quantized": 1, "kept": 0, "note": null}]);
    let mut changed = edited.original.clone();
    changed["components"][3]["variants"] = variant;
    edited.write(&changed.to_string());
    assert!(Bundle::open(&edited.bundle()).is_err());
    assert_eq!(fs::read_to_string(&outside).unwrap(), "precious");
}

#[test]
fn a_bundle_json_that_is_not_usable_is_refused() {
    let edited = Edited::new();
    let path = edited.bundle().join("bundle.json");
    let whole = edited.original.to_string();
    for text in ["", "{", "[]", "null", "\u{feff}{}", &whole[..whole.len() / 2], &format!("{whole}x")] {
        edited.write(text);
        assert!(Bundle::open(&edited.bundle()).is_err(), "{text}");
    }
    edited.write(&format!("{}{}", "[".repeat(1 << 20), "]".repeat(1 << 20)));
    assert!(Bundle::open(&edited.bundle()).is_err());
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(Bundle::open(&edited.bundle()).unwrap_err().to_string().contains("not a regular file"));
    fs::remove_dir(&path).unwrap();
    // Larger than any real one; a sparse file, which takes no disk space.
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    assert!(Bundle::open(&edited.bundle()).unwrap_err().to_string().contains("the maximum"));
}

/// Defaults at the end of their ranges are valid. The clip does not fit, and no command allocates memory for it.
#[test]
fn defaults_that_do_not_fit_in_memory_are_refused_before_anything_is_allocated() {
    let edited = Edited::new();
    let mut changed = edited.original.clone();
    changed["defaults"]["frames"]["value"] = json!(100_000);
    changed["defaults"]["size"]["value"] = json!("16384x16384");
    edited.write(&changed.to_string());
    fs::write(edited.folder.path().join("prompts"), "a fox\n").unwrap();
    for arguments in [
        &["generate", "fox", "--bundle", "bundle", "-o", "fox.gif"][..],
        &["calibrate", "bundle", "--prompts", "prompts"],
        &["calibrate", "bundle", "--preview"],
        &["bench", "generate", "--bundle", "bundle"],
    ] {
        let output = limited(edited.folder.path(), arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{arguments:?}: {stderr}");
        assert!(stderr.contains("are needed"), "{arguments:?}: {stderr}");
    }
}

/// Collects the pointer of every value in a JSON value.
fn pointers(value: &Value, pointer: &str, all: &mut Vec<String>) {
    all.push(pointer.to_owned());
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let name = name.replace('~', "~0").replace('/', "~1");
                pointers(value, &format!("{pointer}/{name}"), all);
            }
        }
        Value::Array(values) => {
            for (index, value) in values.iter().enumerate() {
                pointers(value, &format!("{pointer}/{index}"), all);
            }
        }
        _ => {}
    }
}

/// The number of changes per value.
const KINDS: usize = 18;

/// Returns the text with one of [`KINDS`] changes of the value at `pointer`.
fn mutant(original: &Value, pointer: &str, kind: usize) -> String {
    const MARK: &str = "\"@@\"";
    let nested = format!("{}0{}", "[".repeat(5000), "]".repeat(5000));
    let mut changed = original.clone();
    let value = changed.pointer_mut(pointer).unwrap();
    let old = value.to_string();
    let new = match kind {
        0 => "0".to_owned(),
        1 => "-1".to_owned(),
        2 => "1".to_owned(),
        3 => "4294967296".to_owned(),
        4 => "18446744073709551615".to_owned(),
        5 => "9223372036854775807".to_owned(),
        6 => "1e308".to_owned(),
        7 => "1e-320".to_owned(),
        8 => "\"NaN\"".to_owned(),
        9 => "null".to_owned(),
        10 => "true".to_owned(),
        11 => "\"\"".to_owned(),
        12 => "[]".to_owned(),
        13 => "{}".to_owned(),
        14 => format!("[{old},{old}]"),
        15 => nested,
        16 => "\"../../../../etc/passwd\"".to_owned(),
        // Removed, or present twice.
        _ => {
            let (parent, name) = pointer.rsplit_once('/').unwrap_or_default();
            return match changed.pointer_mut(parent) {
                Some(Value::Object(fields)) if pointer.len().is_multiple_of(2) => {
                    fields.remove(&name.replace("~1", "/").replace("~0", "~"));
                    changed.to_string()
                }
                Some(Value::Array(values)) => {
                    values.remove(name.parse().unwrap());
                    changed.to_string()
                }
                _ => original.to_string().replacen('{', &format!("{{\"{name}\":0,"), 1),
            };
        }
    };
    *value = json!("@@");
    changed.to_string().replacen(MARK, &new, 1)
}

/// Runs the steps of a command before it opens a graph, in this process.
fn open_and_plan(bundle: &Path) -> Result<(), String> {
    let bundle = Bundle::open(bundle).map_err(|error| error.to_string())?;
    let request = GenerateRequest::new("a fox", Seed(1));
    let plan = GenerationPlan::new(&bundle.manifest, &request).map_err(|error| error.to_string())?;
    for weights in [WeightMemory::Prepacked, WeightMemory::Mapped] {
        for preview in [PreviewKind::Rgb, PreviewKind::Tiny, PreviewKind::Full] {
            let stride = bundle.manifest.vae.stride();
            for tile in [None, TileSide::try_new(8, stride).ok()] {
                let needed = footprints(
                    &bundle.manifest,
                    &plan,
                    &MemorySettings { preview, tile, ..MemorySettings::plain(weights) },
                );
                let _ = residency::plan(Residency::Auto, &needed, |_| Some(ByteCount(1 << 34)));
            }
        }
    }
    bundle.preview_map().map(drop).map_err(|error| error.to_string())
}

/// Runs a command with 8 GB of address space.
fn limited(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("bash");
    command.args(["-c", "ulimit -v 8000000; exec \"$0\" \"$@\""]).arg(program::path());
    command.args(arguments).current_dir(folder).output().unwrap()
}

/// Runs a command, and checks that it ends with a regular exit code.
fn run(folder: &Path, arguments: &[&str], mutant: &str) {
    let output = limited(folder, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let ended = matches!(output.status.code(), Some(0 | 2 | 3));
    assert!(
        ended && !stderr.contains("panicked"),
        "{arguments:?} on {mutant}: {:?}, {stderr}",
        output.status
    );
}

/// Opens every `stride`th mutant in this process, and runs commands on every `commands_every`th of these.
fn fuzz(stride: usize, commands_every: usize) -> usize {
    let edited = Edited::new();
    let mut all = Vec::new();
    pointers(&edited.original, "", &mut all);
    assert_eq!(open_and_plan(&edited.bundle()), Ok(()));
    let mut tried = 0;
    let (mut refused, mut accepted) = (0, 0);
    for number in (0..all.len() * KINDS).step_by(stride) {
        let (pointer, kind) = (&all[number / KINDS], number % KINDS);
        let name = format!("mutant {number}: {pointer} kind {kind}");
        edited.write(&mutant(&edited.original, pointer, kind));
        let planned = std::panic::catch_unwind(AssertUnwindSafe(|| open_and_plan(&edited.bundle())));
        match planned {
            Ok(Ok(())) => accepted += 1,
            Ok(Err(_)) => refused += 1,
            Err(_) => panic!("{name} panicked"),
        }
        if tried % commands_every == 0 {
            run(edited.folder.path(), &["inspect", "bundle"], &name);
            run(edited.folder.path(), &["inspect", "bundle", "--verify", "--json"], &name);
            let generate =
                ["generate", "fox", "--bundle", "bundle", "--size", "32x32", "--frames", "1", "--steps", "1"];
            run(
                edited.folder.path(),
                &[&generate[..], &["-o", "fox.gif", "--progress", "none"]].concat(),
                &name,
            );
        }
        tried += 1;
    }
    // Changes of names and other texts are accepted.
    assert!(refused > accepted, "{refused} refused, {accepted} accepted");
    tried
}

#[test]
fn a_sample_of_mutants_is_opened_or_refused() {
    let tried = fuzz(83, 8);
    assert!((40..=120).contains(&tried), "{tried}");
}

#[test]
#[ignore = "minutes; `make test-long` runs it"]
fn a_thousand_mutants_are_opened_or_refused() {
    let tried = fuzz(5, 1);
    assert!(tried >= 1000, "{tried}");
}
