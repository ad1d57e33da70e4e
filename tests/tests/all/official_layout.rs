//! Checkpoints in the layout of the official code: the same weights as in the layout of diffusers have the same digests
//! and make the same latents, and what is not supported is refused by name.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::dtype::WeightType;
use bundle::manifest::{Bundle, Component, Manifest};
use bundle::settings::Origin;
use bundle::variant::Target;
use engines::OnnxRuntime;
use export::{ExportReport, ExportRequest};
use runtime::model::{Model, ModelOptions};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use tempfile::TempDir;
use tests::program::{event, rushes};
use tests::{edit, golden, official_layout};

/// A case with official names and a VAE of 16 latent channels, in bf16.
const CASE: &str = "official-names";
const TEXT_ENCODER: &str = "models_t5_umt5-xxl-enc-bf16.pth";
const VAE: &str = "Wan2.1_VAE.pth";

/// A checkpoint in both layouts, in the folders `diffusers` and `official`, which `change` may edit before the second is
/// made.
fn both(change: impl FnOnce(&Path)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let diffusers = folder.path().join("diffusers");
    edit::copy_folder(&golden::case(CASE).checkpoint(), &diffusers);
    change(&diffusers);
    official_layout::convert(&diffusers, &folder.path().join("official"));
    folder
}

fn export(
    folder: &Path,
    layout: &str,
    change: impl FnOnce(&mut ExportRequest),
) -> Result<ExportReport, export::Error> {
    let mut request = ExportRequest::new(&folder.join(layout), &folder.join("bundle"));
    change(&mut request);
    let _ = fs::remove_dir_all(&request.out);
    export::export(&request, &mut |_| ())
}

fn digests(manifest: &Manifest) -> Vec<(String, String)> {
    let entries = manifest.components.iter();
    entries.map(|entry| (entry.component.to_string(), entry.digest.blake3.clone())).collect()
}

/// The bits of text states and latents.
fn bits(bundle: &Path) -> Vec<u32> {
    let case = golden::case(CASE);
    let bundle = Bundle::open(bundle).unwrap();
    let model = Model::new(bundle, OnnxRuntime::load(None).unwrap(), ModelOptions::default()).unwrap();
    let computed = golden::compute(&model, &case, case.reference().latent("noise")).unwrap();
    let values = computed.prompt.iter().chain(computed.latents.iter().flatten());
    values.map(|value| value.to_bits()).collect()
}

#[test]
fn both_layouts_have_the_same_digests_and_latents() {
    let folder = both(|_| ());
    let of_diffusers = export(folder.path(), "diffusers", |_| ()).unwrap();
    let expected = bits(&of_diffusers.folder);
    let found = export(folder.path(), "official", |_| ()).unwrap();
    assert_eq!(digests(&found.manifest), digests(&of_diffusers.manifest));
    assert_eq!(found.written.0, 0, "everything is linked");
    let manifest = &found.manifest;
    assert_eq!(manifest.text_encoder, of_diffusers.manifest.text_encoder);
    assert_eq!(manifest.denoiser, of_diffusers.manifest.denoiser);
    assert_eq!(manifest.routing, of_diffusers.manifest.routing);
    assert_eq!(manifest.vae.multipliers, of_diffusers.manifest.vae.multipliers);
    assert_eq!(manifest.vae.temporal_downsample, of_diffusers.manifest.vae.temporal_downsample);
    assert_eq!(manifest.vae.latents_mean, bundle::catalog::wan21_vae().latents_mean);
    for (component, file) in [(Component::TextEncoder, TEXT_ENCODER), (Component::Decoder, VAE)] {
        let entry = manifest.component(&component).unwrap();
        assert!(entry.weights[0].file.ends_with(&format!("/weights/{file}")), "{:?}", entry.weights);
        assert_eq!(fs::metadata(found.folder.join(&entry.weights[0].file)).unwrap().nlink(), 2);
    }
    assert!(bits(&found.folder) == expected);
    // Converted from the PyTorch files, the values are the same.
    let converted =
        export(folder.path(), "official", |request| request.weights = Some(WeightType::F32)).unwrap();
    assert_eq!(digests(&converted.manifest), digests(manifest));
    assert_eq!(converted.linked.0, 0);
    assert!(bits(&converted.folder) == expected);
    let plain = export(folder.path(), "official", |request| request.targets = vec![Target::Plain]).unwrap();
    assert_eq!(plain.written.0, 0);
}

#[test]
fn settings_that_the_layout_does_not_state_are_reported() {
    let folder = both(|_| ());
    let found = export(folder.path(), "official", |_| ()).unwrap();
    let defaults = &found.manifest.defaults;
    assert_eq!((defaults.sampler.from, defaults.schedule.from), (Origin::OfficialCode, Origin::OfficialCode));
    assert_eq!(defaults.shift.from, Origin::Fallback);
    let shown = rushes(folder.path()).args(["inspect", "bundle"]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    for line in ["sampler    unipc (official code)", "schedule   official (official code)", "boundary 0.875"]
    {
        assert!(shown.contains(line), "no `{line}` in:\n{shown}");
    }
    fs::write(folder.path().join("official/rushes.json"), r#"{"shift": 4.0, "sampler": "euler"}"#).unwrap();
    let found = export(folder.path(), "official", |_| ()).unwrap();
    let defaults = &found.manifest.defaults;
    assert_eq!((defaults.shift.value.0, defaults.sampler.from), (4.0, Origin::Checkpoint));
}

#[test]
fn the_files_of_a_single_expert_are_at_the_top() {
    let folder = both(|diffusers| fs::remove_dir_all(diffusers.join("transformer_2")).unwrap());
    let found = export(folder.path(), "official", |_| ()).unwrap();
    assert_eq!(found.manifest.routing.routes().len(), 1);
    let index = folder.path().join("diffusers/model_index.json");
    let mut value: Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    value["boundary_ratio"] = Value::Null;
    value["transformer_2"] = Value::Null;
    fs::write(&index, value.to_string()).unwrap();
    let of_diffusers = export(folder.path(), "diffusers", |_| ()).unwrap();
    assert_eq!(digests(&found.manifest), digests(&of_diffusers.manifest));
}

#[test]
fn every_byte_of_a_linked_pytorch_file_is_checked() {
    let folder = both(|_| ());
    export(folder.path(), "official", |_| ()).unwrap();
    let verify = || rushes(folder.path()).args(["inspect", "bundle", "--verify", "--json"]).output().unwrap();
    let value = event(&verify(), "verified");
    assert_eq!((&value["unknown"], &value["damaged"]), (&json!([]), &json!([])), "{value}");
    assert_eq!(value["whole"], value["files"]);
    let path = folder.path().join("official").join(VAE);
    let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let length = file.metadata().unwrap().len();
    for at in [length / 2, length - 1, 40] {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        assert_eq!(verify().status.code(), Some(2), "byte {at}");
        file.write_all_at(&byte, at).unwrap();
    }
    assert!(verify().status.success());
}

/// Exports a changed official checkpoint with the program and returns the error.
fn refused(change: impl FnOnce(&Path)) -> String {
    let folder = both(|_| ());
    change(&folder.path().join("official"));
    let output =
        rushes(folder.path()).args(["export", "official", "--out", "bundle", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(!folder.path().join("bundle").exists());
    let error = event(&output, "error");
    assert!(!error["fix"].as_str().unwrap_or_default().is_empty(), "{error}");
    error.to_string()
}

/// Changes a key of the configs of both experts.
fn set(checkpoint: &Path, key: &str, value: &Value) {
    for expert in ["high_noise_model", "low_noise_model"] {
        let path = checkpoint.join(expert).join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[key] = value.clone();
        fs::write(&path, config.to_string()).unwrap();
    }
}

#[test]
fn other_models_are_refused_by_name() {
    for (key, value, named) in [
        ("model_type", "i2v", "model_type = i2v"),
        ("model_type", "i2v", "Wan2.2-I2V-A14B"),
        ("model_type", "ti2v", "TI2V-5B"),
        ("model_type", "vace", "model_type = vace"),
        ("_class_name", "VaceWanModel", "_class_name = VaceWanModel"),
    ] {
        let error = refused(|checkpoint| {
            set(checkpoint, key, &value.into());
            // Another model has other files, too.
            fs::remove_file(checkpoint.join(VAE)).unwrap();
        });
        assert!(error.contains(named), "{named}: {error}");
    }
    let error = refused(|checkpoint| set(checkpoint, "in_dim", &36.into()));
    assert!(error.contains("in_channels = 36"), "{error}");
    let error = refused(|checkpoint| set(checkpoint, "dim", &Value::Null));
    assert!(error.contains("it has no dim"), "{error}");
    let error = refused(|checkpoint| {
        fs::rename(checkpoint.join(VAE), checkpoint.join("Wan2.2_VAE.pth")).unwrap();
    });
    assert!(error.contains("the Wan2.2 VAE") && error.contains("TI2V-5B"), "{error}");
}

#[test]
fn missing_files_and_several_of_them_are_named() {
    for file in [
        TEXT_ENCODER,
        VAE,
        "google/umt5-xxl/tokenizer.json",
        "low_noise_model/config.json",
        "high_noise_model",
    ] {
        let error = refused(|checkpoint| {
            let path = checkpoint.join(file);
            if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
        });
        assert!(error.contains(file), "{file}: {error}");
    }
    let error = refused(|checkpoint| {
        fs::copy(checkpoint.join(TEXT_ENCODER), checkpoint.join("models_t5_other.pth")).unwrap();
    });
    assert!(error.contains("models_t5_other.pth") && error.contains(TEXT_ENCODER), "{error}");
    let error = refused(|checkpoint| {
        let tokenizer = checkpoint.join("google/umt5-xxl");
        fs::rename(tokenizer.join("tokenizer.json"), tokenizer.join("spiece.model")).unwrap();
    });
    assert!(error.contains("spiece.model is not read in its place"), "{error}");
    let error = refused(|checkpoint| {
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
        fs::write(checkpoint.join(VAE), pointer).unwrap();
    });
    assert!(error.contains("Git LFS pointer"), "{error}");
    let error = refused(|checkpoint| {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../export/src/checkpoint/torch_file/data");
        fs::copy(data.join("refused-legacy.pth"), checkpoint.join(VAE)).unwrap();
    });
    assert!(error.contains("before 1.6") && error.contains("torch.save(torch.load("), "{error}");
}

/// Writes the text encoder again with other names.
fn rename_text_encoder(checkpoint: &Path, name: impl Fn(&str) -> String) {
    let original = golden::case(CASE).checkpoint().join("text_encoder/model.safetensors");
    official_layout::write_torch(&original, &checkpoint.join(TEXT_ENCODER), |stored| {
        name(&official_layout::text_encoder_name(stored))
    });
}

#[test]
fn missing_and_unexpected_weights_are_named() {
    let error = refused(|checkpoint| {
        rename_text_encoder(checkpoint, |name| match name {
            "blocks.1.attn.q.weight" => "blocks.1.attn.x.weight".into(),
            "norm.weight" => "norm.bias".into(),
            other => other.to_owned(),
        });
    });
    let attention = "encoder.block.1.layer.0.SelfAttention.q.weight";
    for named in ["2 missing", attention, "encoder.final_layer_norm.weight", "2 unexpected", "norm.bias"] {
        assert!(error.contains(named), "{named}: {error}");
    }
    let error = refused(|checkpoint| {
        rename_text_encoder(checkpoint, |name| name.replace("blocks.1.norm2", "blocks.1.norm3"));
    });
    assert!(error.contains("blocks.1.norm3.weight") && error.contains("1 missing"), "{error}");
}
