//! LoRA files of every key family against torch, and files that are refused by name.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::dtype::WeightType;
use bundle::lora::{LoraExpert, LoraUse};
use bundle::manifest::{Bundle, Component};
use bundle::routing::ExpertName;
use export::lora::resolved::LoraProof;
use export::quantized::BundleWeights;
use export::{Error, ExportEvent, ExportReport, ExportRequest, export};
use safetensors::SafeTensors;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tests::compare::{FRAME_BOUND, LATENT_BOUND, largest_difference, relative_difference};
use tests::edit;
use tests::golden::{Tensors, case, compute, folder};

/// The case whose experts the files change.
const CASE: &str = "two-experts";
/// The bound of a merged weight in f32.
const BOUND: f64 = 1e-6;

pub(super) fn file(name: &str) -> PathBuf {
    folder().join("lora").join(name)
}

pub(super) fn on(expert: LoraExpert, path: PathBuf, strength: f32) -> LoraUse {
    LoraUse { expert: Some(expert), file: path, strength }
}

/// Exports the case in f32 with LoRAs. Returns also what they change.
fn exported(out: &Path, loras: &[LoraUse], lenient: bool) -> Result<(ExportReport, Vec<LoraProof>), Error> {
    let checkpoint = edit::copy_of(&case(CASE).checkpoint());
    let request = ExportRequest {
        weights: Some(WeightType::F32),
        loras: loras.to_vec(),
        lora_lenient: lenient,
        ..ExportRequest::new(checkpoint.path(), out)
    };
    let mut proofs = Vec::new();
    let report = export(&request, &mut |event| {
        if let ExportEvent::Lora(proof) = event {
            proofs.push(proof);
        }
    })?;
    Ok((report, proofs))
}

pub(super) fn merged(loras: &[LoraUse]) -> (tempfile::TempDir, ExportReport, Vec<LoraProof>) {
    let folder = tempfile::tempdir().unwrap();
    let (report, proofs) = exported(&folder.path().join("bundle"), loras, false).unwrap();
    (folder, report, proofs)
}

fn refused(lora: &LoraUse) -> String {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    let error = exported(&out, std::slice::from_ref(lora), false).unwrap_err();
    assert!(!out.exists());
    error.to_string()
}

pub(super) fn expert(name: &str) -> Component {
    Component::Expert(ExpertName(name.into()))
}

fn weights(report: &ExportReport, name: &str) -> BundleWeights {
    let bundle = Bundle::open(&report.folder).unwrap();
    let entry = bundle.manifest.component(&expert(name)).unwrap();
    BundleWeights::open(&bundle, entry).unwrap()
}

/// The canonical names of the weights of an expert.
fn names() -> Vec<String> {
    let checkpoint = export::checkpoint::Checkpoint::open(&case(CASE).checkpoint()).unwrap();
    export::checkpoint::inventory::denoiser(&checkpoint.denoiser)
        .into_iter()
        .map(|weight| weight.name)
        .collect()
}

/// The weights that a file changes as torch merges them, by canonical name.
fn expected(reference: &Tensors, family: &str) -> Vec<(String, Vec<f32>)> {
    let named = names().into_iter().filter_map(|name| {
        let values = reference.get(&format!("{family}/{name}"))?.iter().copied().collect();
        Some((name, values))
    });
    named.collect()
}

#[test]
fn every_family_is_merged_as_torch_merges_it() {
    let reference = Tensors::read(&file("merged.safetensors"));
    let plain = merged(&[]);
    let mut compared = 0;
    for (name, family, expert_name, strength) in [
        ("lightning.safetensors", "lightning", "high_noise", 1.0),
        ("native-without-alpha.safetensors", "native-without-alpha", "high_noise", 1.0),
        ("bare.safetensors", "bare", "high_noise", 1.0),
        ("kohya.safetensors", "kohya", "high_noise", 1.0),
        ("kohya-with-dots.safetensors", "kohya-with-dots", "high_noise", 1.0),
        ("wan-fun.safetensors", "wan-fun", "high_noise", 1.0),
        ("suffix-pairs.safetensors", "suffix-pairs", "high_noise", 1.0),
        ("full-deltas.safetensors", "full-deltas", "high_noise", 1.0),
        ("loha.safetensors", "loha", "high_noise", 1.0),
        ("lokr.safetensors", "lokr", "high_noise", 1.0),
        ("dora.safetensors", "dora", "high_noise", 0.6),
        ("diffusers.safetensors", "diffusers", "high_noise", 1.0),
        ("diffusers.safetensors", "diffusers.2", "low_noise", 1.0),
        ("peft", "peft", "high_noise", 1.0),
    ] {
        let lora = on(expert_name.parse().unwrap(), file(name), strength);
        let (_folder, report, proofs) = merged(&[lora]);
        let (found, before) = (weights(&report, expert_name), weights(&plain.1, expert_name));
        let expected = expected(&reference, family);
        assert!(expected.len() >= 4, "{family}");
        for (weight, expected) in &expected {
            let (_, values) = found.read(weight).unwrap();
            let worst =
                values.iter().zip(expected).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
            assert!(worst <= BOUND, "{family}: {weight} is {worst:e} off");
            compared += 1;
        }
        let changed: BTreeSet<&str> = expected.iter().map(|(weight, _)| weight.as_str()).collect();
        for weight in names() {
            let is_equal = found.read(&weight).unwrap() == before.read(&weight).unwrap();
            assert_eq!(is_equal, !changed.contains(weight.as_str()), "{family}: {weight}");
        }
        // The norm of the changes is that of the difference of the weights.
        let norm: f64 = expected
            .iter()
            .map(|(weight, after)| {
                let (_, before) = before.read(weight).unwrap();
                let squares = after.iter().zip(&before).map(|(a, b)| f64::from(a - b).powi(2));
                squares.sum::<f64>().sqrt()
            })
            .sum();
        let proof = &proofs[0].experts[0];
        let change = proof.change.unwrap();
        assert!((change / norm - 1.0).abs() < 1e-4, "{family}: {change} {norm}");
        assert_eq!(proof.pairs, proof.of_pairs, "{family}");
        assert!(proofs[0].leftover.is_empty());
    }
    let all = SafeTensors::deserialize(&std::fs::read(file("merged.safetensors")).unwrap()).unwrap().len();
    assert_eq!(compared, all, "every tensor of torch is compared");
}

#[test]
fn a_clip_with_merged_loras_equals_that_of_diffusers() {
    let case = case(CASE);
    let loras = [
        on(LoraExpert::HighNoise, file("clip-high.safetensors"), 0.8),
        on(LoraExpert::LowNoise, file("clip-low.safetensors"), 1.0),
    ];
    let (_folder, report, _) = merged(&loras);
    let bundle = Bundle::open(&report.folder).unwrap();
    let onnx = engines::OnnxRuntime::load(None).unwrap();
    let model = runtime::model::Model::new(bundle, onnx, runtime::model::ModelOptions::default()).unwrap();
    let computed = compute(&model, &case, case.reference().latent("noise")).unwrap();
    let (reference, plain) = (Tensors::read(&file("clip.safetensors")), case.reference());
    assert_eq!(computed.latents.len(), case.steps);
    for (step, latent) in computed.latents.iter().enumerate() {
        let name = format!("latents.{step:03}");
        let worst = relative_difference(latent.view(), reference.latent(&name).view());
        assert!(worst <= LATENT_BOUND, "{name} is {worst:e} off");
    }
    let frames =
        |reference: &Tensors| largest_difference(computed.frames.view(), reference.latent("frames").view());
    assert!(frames(&reference) <= FRAME_BOUND, "{}", frames(&reference));
    assert!(frames(&plain) > 20.0 * FRAME_BOUND, "the LoRAs change the clip");
}

/// The experts that a file is applied to: the user decides, then the keys, then the name of the file.
#[test]
fn keys_and_names_of_files_choose_the_expert() {
    let experts = |lora: &LoraUse| {
        let (_folder, report, proofs) = merged(std::slice::from_ref(lora));
        let experts: Vec<String> = proofs[0].experts.iter().map(|proof| proof.expert.0.clone()).collect();
        let recorded = report.manifest.components.iter().filter(|entry| !entry.loras.is_empty());
        assert_eq!(recorded.count(), experts.len());
        experts
    };
    assert_eq!(experts(&LoraUse::new(file("clip-low.safetensors"))), ["low_noise"]);
    assert_eq!(experts(&LoraUse::new(file("clip-high.safetensors"))), ["high_noise"]);
    assert_eq!(experts(&LoraUse::new(file("kohya.safetensors"))), ["high_noise", "low_noise"]);
    assert_eq!(experts(&on(LoraExpert::All, file("clip-low.safetensors"), 1.0)), ["high_noise", "low_noise"]);
    assert_eq!(experts(&LoraUse::new(file("diffusers.safetensors"))), ["high_noise", "low_noise"]);
    assert_eq!(experts(&on(LoraExpert::LowNoise, file("diffusers.safetensors"), 1.0)), ["low_noise"]);
}

#[test]
fn bundles_record_their_loras_and_their_digests_depend_on_them() {
    let plain = merged(&[]);
    let half = merged(&[on(LoraExpert::HighNoise, file("lightning.safetensors"), 0.5)]);
    let whole = merged(&[on(LoraExpert::HighNoise, file("lightning.safetensors"), 1.0)]);
    let entry = |report: &ExportReport, name: &str| report.manifest.component(&expert(name)).unwrap().clone();
    let digests: BTreeSet<String> =
        [&plain.1, &half.1, &whole.1].map(|report| entry(report, "high_noise").digest.blake3).into();
    assert_eq!(digests.len(), 3);
    assert_eq!(entry(&plain.1, "low_noise"), entry(&half.1, "low_noise"));
    let read = Bundle::open(&half.1.folder).unwrap().manifest;
    let recorded = &read.component(&expert("high_noise")).unwrap().loras[0];
    assert_eq!((recorded.name.as_str(), recorded.strength), ("lightning.safetensors", 0.5));
    assert_eq!((recorded.pairs, recorded.deltas, recorded.skipped), (5, 8, 0));
    let digest = bundle::digest::Digest::of_file(&file("lightning.safetensors")).unwrap().blake3;
    assert_eq!(recorded.digest, digest);
    let full = entry(&whole.1, "high_noise").loras[0].change;
    assert!((recorded.change * 2.0 / full - 1.0).abs() < 1e-6);
}

#[test]
fn strength_0_changes_nothing_and_two_loras_add() {
    let plain = merged(&[]);
    let (_folder, none, proofs) = merged(&[on(LoraExpert::All, file("lightning.safetensors"), 0.0)]);
    assert_eq!(none.manifest.components, plain.1.manifest.components);
    assert!(proofs[0].to_string().ends_with("strength 0, not applied"), "{}", proofs[0]);

    let high = |name: &str| on(LoraExpert::HighNoise, file(name), 1.0);
    let both = merged(&[high("lightning.safetensors"), high("kohya.safetensors")]);
    let (one, other) = (merged(&[high("lightning.safetensors")]), merged(&[high("kohya.safetensors")]));
    let read = |report: &ExportReport, name: &str| weights(report, "high_noise").read(name).unwrap().1;
    for weight in names() {
        let base = read(&plain.1, &weight);
        let parts = read(&one.1, &weight).into_iter().zip(read(&other.1, &weight)).zip(&base);
        for (sum, ((one, other), base)) in read(&both.1, &weight).iter().zip(parts) {
            assert!((sum - (one + other - base)).abs() < 1e-5, "{weight}");
        }
    }
}

/// A changed copy of a file.
fn changed(name: &str, change: impl Fn(&mut edit::Stored)) -> (tempfile::TempDir, LoraUse) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changed.safetensors");
    std::fs::copy(file(name), &path).unwrap();
    edit::rewrite(folder.path(), change);
    (folder, on(LoraExpert::HighNoise, path, 1.0))
}

fn renamed(stored: &mut edit::Stored, from: &str, to: &str) {
    let tensor = stored.remove(from).unwrap_or_else(|| panic!("{from}"));
    stored.insert(to.to_owned(), tensor);
}

#[test]
fn any_renamed_key_is_refused_by_name() {
    let bytes = std::fs::read(file("lightning.safetensors")).unwrap();
    let keys: Vec<String> =
        SafeTensors::deserialize(&bytes).unwrap().names().into_iter().map(str::to_owned).collect();
    for key in keys {
        for other in [key.replacen("blocks", "blokcs", 1), key.replacen("head", "haed", 1), format!("{key}x")]
        {
            if other == key {
                continue;
            }
            let (_folder, lora) = changed("lightning.safetensors", |stored| renamed(stored, &key, &other));
            let error = refused(&lora);
            assert!(error.contains("cannot be applied") && error.contains("changed.safetensors"), "{error}");
            // A renamed factor also leaves its other half without a product; one of them is named.
            let module = key.rsplit_once(".lora_").map_or(other.as_str(), |(module, _)| module);
            assert!(error.contains(&other) || error.contains(module), "{key} to {other}: {error}");
        }
    }
}

#[test]
fn leftover_keys_are_left_out_on_request_and_named() {
    let (_folder, lora) = changed("lightning.safetensors", |stored| {
        renamed(stored, "diffusion_model.blocks.1.diff_m", "diffusion_model.blocks.1.diff_x");
    });
    let folder = tempfile::tempdir().unwrap();
    let (_, proofs) = exported(&folder.path().join("bundle"), &[lora], true).unwrap();
    let line = proofs[0].to_string();
    assert!(line.contains("applied 5 of 5 pairs, 7 deltas"), "{line}");
    assert!(line.ends_with("left out diffusion_model.blocks.1.diff_x"), "{line}");
}

#[test]
fn a_zeroed_pair_changes_the_sum_of_changes() {
    let change = |lora: LoraUse| merged(&[lora]).2[0].experts[0].change.unwrap();
    let whole = change(on(LoraExpert::HighNoise, file("lightning.safetensors"), 1.0));
    let (_folder, zeroed) = changed("lightning.safetensors", |stored| {
        let key = "diffusion_model.blocks.0.self_attn.q.lora_up.weight";
        stored.get_mut(key).unwrap().2.fill(0);
    });
    let zeroed = change(zeroed);
    assert!(zeroed < whole * 0.99, "{zeroed} {whole}");
}

#[test]
fn layers_of_image_models_are_skipped_with_a_count() {
    let (_folder, lora) = changed("lightning.safetensors", |stored| {
        let (dtype, shape, bytes) = stored["diffusion_model.head.head.diff_b"].clone();
        for block in 0..40 {
            for part in ["k_img.diff_b", "v_img.diff_b", "norm_k_img.diff"] {
                let key = format!("diffusion_model.blocks.{block}.cross_attn.{part}");
                stored.insert(key, (dtype, shape.clone(), bytes.clone()));
            }
        }
        stored.insert("diffusion_model.img_emb.proj.1.diff_b".into(), (dtype, shape, bytes));
    });
    let (_bundle, _, proofs) = merged(&[lora]);
    let line = proofs[0].to_string();
    assert!(
        line.ends_with("; skipped 120 (image cross-attention: this model has none), 1 (image embedding: this model has none)"),
        "{line}"
    );
    assert!(line.contains("applied 5 of 5 pairs, 8 deltas, Σ|ΔW| "), "{line}");
}

#[test]
fn loras_for_other_models_are_refused_with_both_sizes() {
    // The checkpoint of this case has 3 heads of 10 and three layers.
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    let export_on = |case_name: &str, lora: LoraUse| {
        let request =
            ExportRequest { loras: vec![lora], ..ExportRequest::new(&case(case_name).checkpoint(), &out) };
        export(&request, &mut |_| ()).unwrap_err().to_string()
    };
    let error = export_on("no-guidance", LoraUse::new(file("bare.safetensors")));
    assert!(
        error.contains("another size") && error.contains("[24, 24]") && error.contains("[30, 30]"),
        "{error}"
    );
    let error = export_on("no-guidance", on(LoraExpert::LowNoise, file("bare.safetensors"), 1.0));
    assert!(error.contains("low_noise") && error.contains("the model has only"), "{error}");
    // Without a word about the expert, a file for high noise is one for the only expert.
    let error = export_on("no-guidance", LoraUse::new(file("clip-high.safetensors")));
    assert!(error.contains("another size"), "{error}");

    let deeper = |stored: &mut edit::Stored| {
        let (from, to) = ("blocks.1.cross_attn.k.lora_up.weight", "blocks.29.cross_attn.k.lora_up.weight");
        renamed(stored, from, to);
    };
    let (_folder, lora) = changed("bare.safetensors", deeper);
    let error = refused(&lora);
    assert!(error.contains("needs 30 blocks, and the model has 2"), "{error}");
}

#[test]
fn damaged_tensors_are_refused_by_key() {
    let key = "blocks.0.self_attn.q.lora_up.weight";
    let (_folder, lora) = changed("bare.safetensors", |stored| {
        // The largest exponent: infinity in f16.
        stored.get_mut(key).unwrap().2[..2].copy_from_slice(&0x7c00_u16.to_le_bytes());
    });
    let error = refused(&lora);
    assert!(error.contains(key) && error.contains("element 0 is inf"), "{error}");
    let (_folder, lora) = changed("bare.safetensors", |stored| {
        let tensor = stored.get_mut(key).unwrap();
        tensor.1 = vec![12, 6];
    });
    let error = refused(&lora);
    assert!(error.contains("ranks differ"), "{error}");
}
