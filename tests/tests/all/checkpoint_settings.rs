//! How `rushes export` reads a checkpoint's scheduler, tokenizer, Git LFS pointers and folder name.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use tests::program::{event, rushes};
use tests::{edit, golden};

const SCHEDULER: &str = "scheduler/scheduler_config.json";

fn export(folder: &Path, checkpoint: &Path, more: &[&str]) -> Output {
    rushes(folder).arg("export").arg(checkpoint).args(["--out", "bundle"]).args(more).output().unwrap()
}

/// Exports a changed copy of a golden checkpoint, which must be refused and leave no files. Returns the error.
fn refused(case: &str, change: impl FnOnce(&Path)) -> Value {
    let copy = edit::copy_of(&golden::case(case).checkpoint());
    change(copy.path());
    let folder = tempfile::tempdir().unwrap();
    let output = export(folder.path(), copy.path(), &["--json"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    event(&output, "error")
}

fn message(error: &Value) -> String {
    ["what", "why", "fix"].map(|part| error[part].as_str().unwrap().to_owned()).join(" | ")
}

fn set(checkpoint: &Path, file: &str, key: &str, value: Value) {
    let path = checkpoint.join(file);
    let text = fs::read_to_string(&path).unwrap().replace("-Infinity", "\"-Infinity\"");
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

#[test]
fn a_scheduler_setting_that_is_not_supported_is_refused_with_the_supported_value() {
    // The cases have UniPC, DPM-Solver and Euler.
    for (case, key, value, expected) in [
        ("two-experts", "final_sigmas_type", json!("sigma_min"), "\"zero\""),
        ("two-experts", "disable_corrector", json!([0, 1]), "[]"),
        ("two-experts", "predict_x0", json!(false), "true"),
        ("two-experts", "brand_new", json!(1), "no such key"),
        ("moving-clip", "thresholding", json!(true), "false"),
        ("four-steps", "stochastic_sampling", json!("yes"), "false"),
        ("four-steps", "invert_sigmas", json!(true), "false"),
        ("four-steps", "shift_terminal", json!(0.1), "null"),
    ] {
        let error = refused(case, |checkpoint| set(checkpoint, SCHEDULER, key, value));
        let text = message(&error);
        for part in [key, SCHEDULER, &format!("expected {expected}"), "rushes.json"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

#[test]
fn a_scheduler_of_an_unknown_class_is_refused_unless_rushes_json_names_a_sampler() {
    let use_class = |checkpoint: &Path, class: &str| {
        set(checkpoint, SCHEDULER, "_class_name", json!(class));
        set(checkpoint, "model_index.json", "scheduler", json!(["diffusers", class]));
    };
    for class in ["LCMScheduler", "FlowMatchHeunDiscreteScheduler", "DDIMScheduler"] {
        let text = message(&refused("two-experts", |checkpoint| use_class(checkpoint, class)));
        assert!(text.contains(class) && text.contains("UniPCMultistepScheduler"), "{text}");
    }
    let copy = edit::copy_of(&golden::case("two-experts").checkpoint());
    use_class(copy.path(), "LCMScheduler");
    fs::write(copy.path().join("rushes.json"), json!({ "sampler": "euler", "shift": 4.0 }).to_string())
        .unwrap();
    let output = export(copy.path(), copy.path(), &["--json"]);
    let exported = event(&output, "exported");
    assert_eq!(exported["defaults"]["sampler"], json!({ "value": "euler", "from": "checkpoint" }));
    assert!(exported["defaults"]["notes"][0].as_str().unwrap().contains("LCMScheduler"));

    // The class of the official code is UniPC on the official schedule; it receives the shift at run time.
    let copy = edit::copy_of(&golden::case("two-experts").checkpoint());
    use_class(copy.path(), "FlowUniPCMultistepScheduler");
    set(copy.path(), SCHEDULER, "shift", json!(1.0));
    let defaults = event(&export(copy.path(), copy.path(), &["--json"]), "exported")["defaults"].clone();
    assert_eq!(defaults["sampler"], json!({ "value": "unipc", "from": "scheduler_config" }));
    assert_eq!(defaults["schedule"], json!({ "value": "official", "from": "scheduler_config" }));
    assert_eq!(defaults["shift"]["from"], "fallback");
}

/// Every file in a folder and its subfolders.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn every_git_lfs_pointer_is_named_with_the_command_that_downloads_it() {
    let plain = golden::case("two-experts").checkpoint();
    // These two files are not read.
    let unread = ["tokenizer/special_tokens_map.json", "tokenizer/tokenizer_config.json"];
    for file in files(&plain) {
        let name = file.strip_prefix(&plain).unwrap();
        if unread.iter().any(|unread| name == Path::new(unread)) {
            continue;
        }
        let error = refused("two-experts", |checkpoint| {
            let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 16837417\n";
            fs::write(checkpoint.join(name), pointer).unwrap();
        });
        let text = message(&error);
        assert!(text.contains(name.to_str().unwrap()) && text.contains("git lfs pull"), "{text}");
    }
}

#[test]
fn a_tokenizer_that_cannot_be_used_is_refused() {
    const TOKENIZER: &str = "tokenizer/tokenizer.json";
    let whole = fs::read(golden::case("two-experts").checkpoint().join(TOKENIZER)).unwrap();
    let write = |content: &[u8]| {
        message(&refused("two-experts", |checkpoint| fs::write(checkpoint.join(TOKENIZER), content).unwrap()))
    };
    assert!(write(b"").contains("empty"));
    assert!(write(&whole[..whole.len() / 2]).contains(TOKENIZER));
    assert!(write(b"{}").contains(TOKENIZER));
    assert!(write(b"<!DOCTYPE html><title>401</title>").contains(TOKENIZER));
    // An added token whose id has no row in the encoder.
    let mut beyond: Value = serde_json::from_slice(&whole).unwrap();
    let token = json!({
        "id": 100_000, "content": "<new>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true,
    });
    beyond["added_tokens"].as_array_mut().unwrap().push(token);
    // The tokenizer numbers unknown added tokens sequentially, so the vocabulary is made too long as well.
    for number in 0..1000 {
        beyond["model"]["vocab"].as_array_mut().unwrap().push(json!([format!("▁beyond{number}"), -20.0]));
    }
    let text = write(beyond.to_string().as_bytes());
    assert!(text.contains("has the id") && text.contains("rows"), "{text}");
}

#[test]
fn a_hub_snapshot_has_the_name_of_its_repository_and_defaults_have_an_origin() {
    let folder = tempfile::tempdir().unwrap();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let snapshot = folder.path().join("hub/models--Some-Org--Small.Model-2/snapshots").join(commit);
    edit::copy_folder(&golden::case("two-experts").checkpoint(), &snapshot);
    let output = export(folder.path(), &snapshot, &[]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("Some-Org/Small.Model-2: defaults"), "{text}");
    for line in
        ["steps      40 (built in)", "shift      5 (scheduler config)", "sampler    unipc (scheduler config)"]
    {
        assert!(text.contains(line), "{text}");
    }
    let inspected = rushes(folder.path()).args(["inspect", "bundle", "--json"]).output().unwrap();
    assert_eq!(event(&inspected, "bundle")["bundle"]["model"], "Some-Org/Small.Model-2");
}
