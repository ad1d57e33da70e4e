//! The same weights with other tensor names, files or config keys: the digests are the same, or both names are
//! reported.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::manifest::Component;
use export::ExportRequest;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tests::{edit, golden};

/// A case with sharded experts; every other component is a single file.
const CASE: &str = "two-experts";
const COMPONENTS: [&str; 4] = ["text_encoder", "transformer", "transformer_2", "vae"];

/// The digest of every component of a checkpoint.
fn digests(checkpoint: &Path) -> Vec<(Component, String)> {
    let out = tempfile::tempdir().unwrap();
    let report =
        export::export(&ExportRequest::new(checkpoint, &out.path().join("bundle")), &mut |_| ()).unwrap();
    let digest = |entry: bundle::manifest::ComponentEntry| (entry.component, entry.digest.blake3);
    report.manifest.components.into_iter().map(digest).collect()
}

/// Checks that a change of a copy of a golden checkpoint does not change its digests.
fn same(case: &str, change: impl FnOnce(&Path)) {
    let plain = golden::case(case).checkpoint();
    let copy = edit::copy_of(&plain);
    change(copy.path());
    assert_eq!(digests(copy.path()), digests(&plain));
}

/// Renames every tensor of a component, also in its index.
fn rename(folder: &Path, name: impl Fn(&str) -> String) {
    edit::rewrite(folder, |stored| {
        *stored = std::mem::take(stored).into_iter().map(|(old, tensor)| (name(&old), tensor)).collect();
    });
    change_json(&folder.join("diffusion_pytorch_model.safetensors.index.json"), |index| {
        let map = index["weight_map"].as_object().unwrap();
        index["weight_map"] = map.iter().map(|(old, file)| (name(old), file.clone())).collect();
    });
}

/// Changes a JSON file, if there is one.
fn change_json(path: &Path, change: impl FnOnce(&mut Value)) {
    let Ok(text) = fs::read(path) else { return };
    let mut value = serde_json::from_slice(&text).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

#[test]
fn prefixes_of_wrapper_modules_are_ignored() {
    let prefixes = [
        "model.diffusion_model.",
        "diffusion_model.",
        "_orig_mod.",
        "module.",
        "model.",
        "module._orig_mod.model.",
    ];
    for case in [CASE, "official-names"] {
        for shift in [0, 2, 4] {
            same(case, |checkpoint| {
                for (index, component) in COMPONENTS.iter().enumerate() {
                    let prefix = prefixes[(index + shift) % prefixes.len()];
                    rename(&checkpoint.join(component), |name| format!("{prefix}{name}"));
                }
            });
        }
    }
    // Blocks that were compiled separately.
    same(CASE, |checkpoint| {
        rename(&checkpoint.join("transformer"), |name| name.replace("blocks.0.", "blocks.0._orig_mod."));
    });
}

#[test]
fn an_encoder_that_was_saved_alone_or_with_its_tokenizer_is_the_same() {
    let encoder = |change: fn(&mut edit::Stored)| {
        same(CASE, |checkpoint| edit::rewrite(&checkpoint.join("text_encoder"), change));
    };
    encoder(|stored| {
        let embedding = stored.remove("shared.weight").unwrap();
        stored.insert("encoder.embed_tokens.weight".into(), embedding);
    });
    encoder(|stored| {
        let embedding = stored.remove("shared.weight").unwrap();
        stored.insert("module.encoder.embed_tokens.weight".into(), embedding);
    });
    encoder(|stored| {
        stored.insert("spiece_model".into(), (safetensors::Dtype::U8, vec![5], b"\x0a\x07pad".to_vec()));
    });
    same(CASE, |checkpoint| fs::write(checkpoint.join("text_encoder/spiece.model"), b"\x0a").unwrap());
}

/// Renames the weight files of a component and its index.
fn rename_files(folder: &Path, index: &str, name: impl Fn(&str) -> String) {
    for path in edit::weight_files(folder) {
        let old = path.file_name().unwrap().to_str().unwrap();
        fs::rename(&path, folder.join(name(old))).unwrap();
    }
    let path = folder.join("diffusion_pytorch_model.safetensors.index.json");
    change_json(&path, |value| {
        for (_, file) in value["weight_map"].as_object_mut().unwrap() {
            *file = name(file.as_str().unwrap()).into();
        }
    });
    if path.exists() {
        fs::rename(path, folder.join(index)).unwrap();
    }
}

#[test]
fn a_variant_in_shards_or_alone_is_read_like_the_plain_set() {
    // The names of current and older versions of diffusers, and of other tools.
    same(CASE, |checkpoint| {
        for component in COMPONENTS {
            let index = "diffusion_pytorch_model.safetensors.index.fp16.json";
            rename_files(&checkpoint.join(component), index, |name| name.replacen("model", "model.fp16", 1));
        }
    });
    same(CASE, |checkpoint| {
        for component in COMPONENTS {
            let index = "diffusion_pytorch_model.fp16.safetensors.index.json";
            rename_files(&checkpoint.join(component), index, |name| {
                name.replace(".safetensors", ".fp16.safetensors")
            });
        }
    });
    // The index of the plain set is present without its shards.
    same(CASE, |checkpoint| {
        let folder = checkpoint.join("transformer_2");
        let plain = folder.join("diffusion_pytorch_model.safetensors.index.json");
        let text = fs::read(&plain).unwrap();
        let index = "diffusion_pytorch_model.safetensors.index.bf16.json";
        rename_files(&folder, index, |name| name.replacen("model", "model.bf16", 1));
        fs::write(plain, text).unwrap();
    });
}

#[test]
fn hidden_files_are_ignored() {
    same(CASE, |checkpoint| {
        for component in COMPONENTS {
            let folder = checkpoint.join(component);
            for name in
                ["._model.safetensors", "._a.safetensors.index.json", ".b.safetensors", "._config.json"]
            {
                fs::write(folder.join(name), b"\x00\x05\x16\x07").unwrap();
            }
        }
        let vae = checkpoint.join("vae");
        fs::rename(vae.join("diffusion_pytorch_model.safetensors"), vae.join("wan.safetensors")).unwrap();
        fs::write(vae.join("._wan.safetensors"), b"\x00\x05\x16\x07").unwrap();
    });
}

/// Writes every setting of the configs that has two names under both.
fn write_both_names(checkpoint: &Path) {
    for part in ["transformer", "transformer_2"] {
        change_json(&checkpoint.join(part).join("config.json"), |config| {
            for (key, other) in
                [("in_channels", "in_dim"), ("out_channels", "out_dim"), ("num_attention_heads", "num_heads")]
            {
                config[other] = config[key].clone();
            }
            let width = |key: &str| config[key].as_u64().unwrap();
            config["dim"] = (width("num_attention_heads") * width("attention_head_dim")).into();
            config["qk_norm"] = true.into();
            config["text_len"] = 512.into();
        });
    }
    change_json(&checkpoint.join("text_encoder/config.json"), |config| {
        config["hidden_size"] = config["d_model"].clone();
        config["num_attention_heads"] = config["num_heads"].clone();
        config["num_hidden_layers"] = config["num_layers"].clone();
    });
    change_json(&checkpoint.join("vae/config.json"), |config| {
        config["temporal_downsample"] = config["temperal_downsample"].clone();
    });
}

#[test]
fn settings_may_have_both_names_and_the_scheduler_may_be_named_in_the_index_only() {
    same(CASE, |checkpoint| {
        write_both_names(checkpoint);
        change_json(&checkpoint.join("scheduler/scheduler_config.json"), |config| {
            config.as_object_mut().unwrap().remove("_class_name").unwrap();
        });
        let path = checkpoint.join("model_index.json");
        let marked = [b"\xEF\xBB\xBF".to_vec(), fs::read(&path).unwrap()].concat();
        fs::write(path, marked).unwrap();
    });
}

#[test]
fn settings_that_differ_under_two_names_are_refused_with_both() {
    for (file, key, value, other) in [
        ("transformer/config.json", "in_dim", json!(36), "in_channels"),
        ("transformer_2/config.json", "dim", json!(1), "attention_head_dim"),
        ("text_encoder/config.json", "num_hidden_layers", json!(99), "num_layers"),
        ("vae/config.json", "temporal_downsample", json!([true]), "temperal_downsample"),
        ("scheduler/scheduler_config.json", "_class_name", json!("DPMSolverMultistepScheduler"), "UniPC"),
    ] {
        let copy = edit::copy_of(&golden::case(CASE).checkpoint());
        write_both_names(copy.path());
        change_json(&copy.path().join(file), |config| config[key] = value);
        let out = copy.path().join("bundle");
        let error =
            export::export(&ExportRequest::new(copy.path(), &out), &mut |_| ()).unwrap_err().to_string();
        let key = if key == "_class_name" { "DPMSolverMultistepScheduler" } else { key };
        assert!(error.contains(key) && error.contains(other), "{error}");
        assert!(!out.exists());
    }
}
