//! Faulty checkpoints: `rushes export` refuses each with what, why and what to do, and leaves no files.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::manifest::FORMAT;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Output;
use tests::program::{event, rushes};
use tests::{edit, golden};

/// A case with f32 weights and sharded experts.
const SHARDED: &str = "two-experts";

/// Exports a changed copy of a golden checkpoint and returns the error.
fn refused(case: &str, break_it: impl FnOnce(&Path)) -> Value {
    let copy = edit::copy_of(&golden::case(case).checkpoint());
    break_it(copy.path());
    let output = export(copy.path());
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let remaining: Vec<_> = fs::read_dir(copy.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("bundle"))
        .collect();
    assert!(remaining.is_empty(), "not removed: {remaining:?}");
    event(&output, "error")
}

fn export(checkpoint: &Path) -> Output {
    rushes(checkpoint).args(["export", ".", "--out", "bundle", "--json"]).output().unwrap()
}

/// Checks what and why of an error, and that it has a fix.
fn check(error: &Value, what: &str, why: &str) {
    let text = |field: &str| error[field].as_str().unwrap_or_default().to_owned();
    assert!(["bad_input", "damaged"].contains(&text("class").as_str()), "{error}");
    assert!(!what.is_empty() && text("what").contains(what), "{error}");
    assert!(!why.is_empty() && text("why").contains(why), "{error}");
    assert!(!text("fix").is_empty(), "{error}");
}

fn first_weights(folder: &Path) -> std::path::PathBuf {
    edit::weight_files(folder).into_iter().next().unwrap()
}

#[test]
fn a_deleted_shard_is_named() {
    let mut name = String::new();
    let error = refused(SHARDED, |checkpoint| {
        let shard = first_weights(&checkpoint.join("transformer"));
        name = shard.file_name().unwrap().to_string_lossy().into_owned();
        fs::remove_file(shard).unwrap();
    });
    check(&error, &name, "index");
}

#[test]
fn a_truncated_file_is_named_with_both_lengths() {
    let error = refused(SHARDED, |checkpoint| {
        let path = first_weights(&checkpoint.join("transformer_2"));
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(file.metadata().unwrap().len() - 100).unwrap();
    });
    check(&error, "transformer_2", "bytes");
}

#[test]
fn a_tensor_of_the_wrong_shape_is_named_with_both_shapes() {
    let error = refused(SHARDED, |checkpoint| {
        edit::rewrite(&checkpoint.join("vae"), |stored| {
            let (_, shape, bytes) = stored.get_mut("decoder.conv_in.bias").unwrap();
            shape[0] -= 1;
            bytes.truncate(shape[0] * 4);
        });
    });
    check(&error, "decoder.conv_in.bias", "expected");
}

#[test]
fn a_config_that_disagrees_with_its_weights_is_refused() {
    let error = refused(SHARDED, |checkpoint| {
        for part in ["transformer", "transformer_2"] {
            let path = checkpoint.join(part).join("config.json");
            let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            config["ffn_dim"] = (config["ffn_dim"].as_u64().unwrap() + 8).into();
            fs::write(&path, config.to_string()).unwrap();
        }
    });
    check(&error, "ffn", "expected");
}

#[test]
fn a_nan_in_a_weight_is_reported_with_its_name_and_position() {
    for value in [f32::NAN, f32::INFINITY] {
        let error = refused(SHARDED, |checkpoint| {
            edit::rewrite(&checkpoint.join("transformer_2"), |stored| {
                if let Some((_, _, bytes)) = stored.get_mut("blocks.1.ffn.net.2.bias") {
                    bytes[12..16].copy_from_slice(&value.to_le_bytes());
                }
            });
        });
        check(&error, "blocks.1.ffn.net.2.bias", "element 3");
    }
}

#[test]
fn without_verification_digests_are_marked_as_partial() {
    let copy = edit::copy_of(&golden::case(SHARDED).checkpoint());
    let arguments = ["export", ".", "--out", "bundle", "--no-verify", "--json"];
    let output = rushes(copy.path()).args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let inspected = rushes(copy.path()).args(["inspect", "bundle", "--json"]).output().unwrap();
    let components = event(&inspected, "bundle")["bundle"]["components"].clone();
    assert!(components.as_array().unwrap().iter().all(|component| component["digest"]["whole"] == false));
}

#[test]
fn a_file_that_is_not_safetensors_is_named() {
    let error = refused(SHARDED, |checkpoint| {
        fs::write(first_weights(&checkpoint.join("vae")), b"not a header at all").unwrap();
    });
    check(&error, "diffusion_pytorch_model.safetensors", "header");
}

#[test]
fn a_folder_that_is_not_a_checkpoint_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let output = export(folder.path());
    assert_eq!(output.status.code(), Some(2));
    check(&event(&output, "error"), "is not a checkpoint", "no model_index.json");
}

#[test]
fn an_export_never_overwrites() {
    let copy = edit::copy_of(&golden::case(SHARDED).checkpoint());
    fs::create_dir(copy.path().join("bundle")).unwrap();
    fs::write(copy.path().join("bundle/precious"), b"1").unwrap();
    let output = export(copy.path());
    assert_eq!(output.status.code(), Some(2));
    check(&event(&output, "error"), "bundle", "already exists");
    assert_eq!(fs::read(copy.path().join("bundle/precious")).unwrap(), b"1");
}

#[test]
fn weights_are_linked_in_any_format_and_converted_on_request() {
    for case in [SHARDED, "five-latent-frames", "wide-text-heads"] {
        let copy = edit::copy_of(&golden::case(case).checkpoint());
        let exported = event(&export(copy.path()), "exported");
        assert_eq!(exported["written_bytes"], 0, "{case}: {exported}");
        let format = exported["weights"]["text_encoder"].as_str().unwrap().to_owned();
        assert_eq!(exported["weights"]["decoder"], format.as_str(), "{case}: {exported}");
        let other = if format == "bf16" { "f32" } else { "bf16" };
        let arguments = ["export", ".", "--out", "other", "--weights", other, "--json"];
        let converted = event(&rushes(copy.path()).args(arguments).output().unwrap(), "exported");
        assert_eq!(converted["linked_bytes"], 0, "{case}: {converted}");
        assert_eq!(converted["weights"]["text_encoder"], other, "{case}: {converted}");
    }
}

/// A bundle that was damaged after its export is refused when it is opened.
#[test]
fn a_damaged_bundle_is_refused() {
    let copy = edit::copy_of(&golden::case(SHARDED).checkpoint());
    assert!(export(copy.path()).status.success());
    let bundle = copy.path().join("bundle");
    let inspect = || {
        let output = rushes(copy.path()).args(["inspect", "bundle", "--json"]).output().unwrap();
        (output.status.code(), output)
    };
    assert_eq!(inspect().0, Some(0));
    let manifest = fs::read_to_string(bundle.join("bundle.json")).unwrap();
    let format = format!("\"format\": {FORMAT}");
    assert!(manifest.contains(&format), "{manifest}");
    fs::write(bundle.join("bundle.json"), manifest.replace(&format, "\"format\": 99")).unwrap();
    let (code, output) = inspect();
    assert_eq!(code, Some(2));
    check(&event(&output, "error"), "bundle.json", "99");
    fs::write(bundle.join("bundle.json"), &manifest).unwrap();
    let weights = edit::weight_files(&bundle.join("decoder/weights")).remove(0);
    fs::remove_file(&weights).unwrap();
    let (code, output) = inspect();
    assert_eq!(code, Some(2));
    check(&event(&output, "error"), "decoder/weights", "No such file");
}
