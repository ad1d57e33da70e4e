//! LoRAs that are computed beside the weights: against merged weights, quantised, and in runs that go on or are repeated.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use super::job_bundle::{self, BUNDLE, done, latents, run, stderr};
use super::loras::{expert, file, merged, on};
use bundle::lora::{LoraExpert, LoraUse};
use bundle::manifest::Bundle;
use bundle::variant::{Precision, Target};
use engines::OnnxRuntime;
use export::ExportRequest;
use ndarray::Array4;
use runtime::model::{Model, ModelOptions};
use std::os::unix::fs::MetadataExt;
use tests::branched::branched;
use tests::compare::{FRAME_BOUND, LATENT_BOUND, largest_difference, relative_difference};
use tests::golden::{self, Computed, Tensors, case, compute};
use tests::program::{event, rushes};

/// The bound of latents with a branch to those with merged weights.
const BOUND: f64 = 1e-4;

fn model(bundle: Bundle, precision: Precision) -> Model {
    let options = ModelOptions { precision: Some(precision), ..ModelOptions::default() };
    Model::new(bundle, OnnxRuntime::load(None).unwrap(), options).unwrap()
}

/// The clip of the case with the noise of diffusers.
fn clip(bundle: Bundle, precision: Precision) -> Computed {
    let case = case("two-experts");
    compute(&model(bundle, precision), &case, case.reference().latent("noise")).unwrap()
}

fn last(computed: &Computed) -> &Array4<f32> {
    computed.latents.last().unwrap()
}

#[test]
fn branches_of_every_family_equal_merged_weights() {
    let exported = golden::export(&case("two-experts").checkpoint()).unwrap();
    let plain = clip(exported.model.bundle().clone(), Precision::F32);
    for (index, (name, strength)) in [
        ("lightning.safetensors", 1.0),
        ("native-without-alpha.safetensors", -0.5),
        ("bare.safetensors", 0.25),
        ("kohya.safetensors", 1.0),
        ("kohya-with-dots.safetensors", 0.5),
        ("wan-fun.safetensors", 0.5),
        ("suffix-pairs.safetensors", 0.3),
        ("loha.safetensors", 1.0),
        ("lokr.safetensors", 1.0),
        ("dora.safetensors", 0.6),
        ("diffusers.safetensors", 1.0),
        ("peft", 1.0),
    ]
    .into_iter()
    .enumerate()
    {
        // Two files, so that a decomposed weight is also one that has a change already.
        let loras = [
            on(LoraExpert::All, file("kohya.safetensors"), 0.5),
            LoraUse { expert: None, file: file(name), strength },
        ];
        let folder = exported.folder.path().join(index.to_string());
        let branch = clip(branched(exported.model.bundle(), &loras, &folder).unwrap(), Precision::F32);
        let (_folder, report, _) = merged(&loras);
        let whole = clip(Bundle::open(&report.folder).unwrap(), Precision::F32);
        let (off, changed) = (
            relative_difference(last(&branch).view(), last(&whole).view()),
            relative_difference(last(&branch).view(), last(&plain).view()),
        );
        assert!(off <= BOUND && changed > 100.0 * BOUND, "{name}: {off:e} off, changed by {changed:e}");
    }
}

#[test]
fn a_clip_with_branches_equals_that_of_diffusers_and_leaves_the_base_as_it_is() {
    let exported = golden::export(&case("two-experts").checkpoint()).unwrap();
    let base = exported.model.bundle();
    let before = std::fs::read(base.path("bundle.json")).unwrap();
    let loras = [
        on(LoraExpert::HighNoise, file("clip-high.safetensors"), 0.8),
        on(LoraExpert::LowNoise, file("clip-low.safetensors"), 1.0),
    ];
    let found = branched(base, &loras, &exported.folder.path().join("branched")).unwrap();
    for entry in &base.manifest.components {
        for weights in &entry.weights {
            let links = std::fs::metadata(base.path(&weights.file)).unwrap().ino();
            assert_eq!(
                std::fs::metadata(found.path(&weights.file)).unwrap().ino(),
                links,
                "{}",
                weights.file
            );
        }
    }
    assert!(std::fs::read(base.path("bundle.json")).unwrap() == before);
    let high = found.manifest.component(&expert("high_noise")).unwrap();
    assert!(
        high.loras[0].is_branch && high.digest != base.manifest.component(&high.component).unwrap().digest
    );
    let computed = clip(found, Precision::F32);
    let reference = Tensors::read(&file("clip.safetensors"));
    for (step, latent) in computed.latents.iter().enumerate() {
        let name = format!("latents.{step:03}");
        assert!(relative_difference(latent.view(), reference.latent(&name).view()) <= LATENT_BOUND, "{name}");
    }
    let frames = largest_difference(computed.frames.view(), reference.latent("frames").view());
    assert!(frames <= FRAME_BOUND, "{frames}");
}

#[test]
fn a_difference_of_a_whole_matrix_is_refused_with_the_command_that_merges_it() {
    let exported = golden::export(&case("two-experts").checkpoint()).unwrap();
    let lora = LoraUse::new(file("full-deltas.safetensors"));
    let out = exported.folder.path().join("branched");
    let error = branched(exported.model.bundle(), &[lora], &out).unwrap_err().to_string();
    assert!(error.contains("blocks.0.attn1.to_v.weight") && error.contains("rushes export"), "{error}");
}

#[test]
fn graphs_of_every_target_have_branches() {
    let (folder, bundle) = golden::export_for_all_targets("two-experts", bundle::dtype::WeightType::Bf16);
    let loras = [LoraUse::new(file("clip-low.safetensors"))];
    let found = branched(&bundle, &loras, &folder.path().join("branched")).unwrap();
    let low = found.manifest.component(&expert("low_noise")).unwrap();
    for target in Target::ALL {
        let graph = low.graphs.iter().find(|graph| graph.variant.target == target).unwrap();
        let model = graph::Model::read(&found.path(&graph.file)).unwrap();
        let files = model.external_data();
        assert!(files.iter().any(|data| data.location.contains("lora.")), "{target}: {files:?}");
    }
    // Branches in bf16 weights on the CPU.
    let (merged, plain) = (
        {
            let checkpoint = case("two-experts").checkpoint();
            let out = folder.path().join("merged");
            let request = ExportRequest { loras: loras.to_vec(), ..ExportRequest::new(&checkpoint, &out) };
            export::export(&request, &mut |_| ()).unwrap();
            clip(Bundle::open(&out).unwrap(), Precision::F32)
        },
        clip(bundle, Precision::Bf16),
    );
    let branch = clip(found, Precision::Bf16);
    let off = |computed: &Computed| relative_difference(last(computed).view(), last(&merged).view());
    assert!(off(&branch) < 0.2 * off(&plain), "{} {}", off(&branch), off(&plain));
}

/// The first latent of the shared bundle, and that of other bundles from the same noise.
pub(super) fn first_latent(bundle: Bundle, precision: Precision) -> Array4<f32> {
    let model = model(bundle, precision);
    let mut pipeline = runtime::pipeline::Pipeline::new(&model);
    let start = job_bundle::start(&pipeline, &job_bundle::request("a boat", 3));
    let (mut job, events) = runtime::job::Job::new(&pipeline, start);
    loop {
        job.advance(&mut pipeline).unwrap();
        for event in events.try_iter() {
            if let runtime::job::JobEvent::Step { done, .. } = event {
                return (*done.latent).clone();
            }
        }
    }
}

#[test]
fn quantised_models_with_a_branch_are_nearer_to_merged_weights() {
    let folder = tempfile::tempdir().unwrap();
    let base = Bundle::open(&BUNDLE.1).unwrap();
    // The changes of LoHa are smaller than the error of quantisation at strength 1.
    for (name, strength) in [("lightning.safetensors", 1.0), ("loha.safetensors", 4.0)] {
        let loras = [on(LoraExpert::HighNoise, file(name), strength)];
        // In f32 a branch equals merged weights, as another test shows.
        let found = branched(&base, &loras, &folder.path().join(name)).unwrap();
        let reference = first_latent(found.clone(), Precision::F32);
        let error = |bundle: &Bundle| {
            relative_difference(first_latent(bundle.clone(), Precision::Int8).view(), reference.view())
        };
        let (with, without) = (error(&found), error(&base));
        let decibels = 20.0 * (without / with).log10();
        assert!(decibels >= 6.0, "{name}: {with:e} {without:e}, {decibels:.1} dB");
    }
}

#[test]
fn a_variant_that_is_quantised_with_a_lora_has_its_changes() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("bundle");
    tests::edit::copy_folder(&BUNDLE.1, &copy);
    let lora = format!("high={}", file("lightning.safetensors").display());
    let quantize =
        ["quantize", "bundle", "--clips", "1", "--sensitivity", "estimated", "--kernels", "onnxruntime"];
    let output = rushes(folder.path()).args(quantize).args(["--lora", &lora]).output().unwrap();
    assert!(
        output.status.success() && stderr(&output).contains("applied 5 of 5 pairs, 8 deltas"),
        "{output:?}"
    );
    let (base, found) = (Bundle::open(&BUNDLE.1).unwrap(), Bundle::open(&copy).unwrap());
    let variant = |bundle: &Bundle| {
        let entry = bundle.manifest.component(&expert("high_noise")).unwrap();
        entry.variants.iter().find(|variant| variant.precision == Precision::Int8).unwrap().clone()
    };
    let note = variant(&found).note.unwrap();
    assert!(note.contains("LoRA lightning.safetensors@1 ("), "{note}");
    assert_ne!(variant(&found).weights, variant(&base).weights);
    let loras = [on(LoraExpert::HighNoise, file("lightning.safetensors"), 1.0)];
    let branch = branched(&base, &loras, &folder.path().join("branch")).unwrap();
    let reference = first_latent(branch, Precision::F32);
    let error = |bundle: &Bundle| {
        relative_difference(first_latent(bundle.clone(), Precision::Int8).view(), reference.view())
    };
    let decibels = 20.0 * (error(&base) / error(&found)).log10();
    assert!(decibels >= 6.0, "{decibels:.1} dB");
    // The exported graphs are as they were.
    let exported = |bundle: &Bundle| first_latent(bundle.clone(), Precision::F32);
    assert_eq!(exported(&found), exported(&base));
}

/// `generate` on the shared bundle.
const CLIP: [&str; 11] =
    ["generate", "a boat", "--seed", "3", "--steps", "4", "--size", "32x32", "--frames", "5", "--json"];

fn clip_with<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [&CLIP[..], arguments].concat()
}

#[test]
fn strength_0_gives_the_bits_of_a_clip_without_the_lora() {
    let folder = tempfile::tempdir().unwrap();
    let path = file("lightning.safetensors");
    let lora = |strength: &str| format!("{}@{strength}", path.display());
    let plain = done(folder.path(), &clip_with(&["-o", "a.mkv"]));
    let zero = done(folder.path(), &clip_with(&["-o", "b.mkv", "--lora", &lora("0")]));
    assert_eq!(latents(&plain), latents(&zero));
    let whole = done(folder.path(), &clip_with(&["-o", "c.mkv", "--lora", &lora("1")]));
    assert_ne!(latents(&plain), latents(&whole));
    let again = done(folder.path(), &clip_with(&["-o", "d.mkv", "--lora", &lora("1")]));
    assert_eq!(latents(&whole), latents(&again));
}

#[test]
fn repeated_clips_and_runs_that_go_on_need_the_same_lora() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    std::fs::copy(file("lightning.safetensors"), path.join("style.safetensors")).unwrap();
    let lora = ["--lora", "high=style.safetensors@0.5"];
    let made = done(path, &clip_with(&[&["-o", "a.mkv", "--job-dir", "whole"], &lora[..]].concat()));
    let stopped = ["-o", "b.mkv", "--job-dir", "job", "--stop-after", "2"];
    done(path, &clip_with(&[&stopped[..], &lora[..]].concat()));

    let resume = ["generate", "--resume", "job", "-o", "c.mkv", "--json"];
    let like = ["generate", "--like", "a.mkv", "-o", "d.mkv", "--json"];
    let verify = ["verify", "a.mkv", "--json"];
    for command in [&resume[..], &like, &verify] {
        let refused = run(path, command);
        let text = format!("{}{}", String::from_utf8_lossy(&refused.stdout), stderr(&refused));
        assert_eq!(refused.status.code(), Some(2), "{text}");
        assert!(text.contains("style.safetensors") && text.contains("0.5"), "{command:?}: {text}");
    }
    let verified = event(&done(path, &[&verify[..], &lora].concat()), "verified");
    assert_eq!(verified["same"], true);
    let repeated = done(path, &[&like[..], &lora].concat());
    assert_eq!(latents(&repeated), latents(&made));
    let resumed = done(path, &[&resume[..], &lora].concat());
    assert_eq!(latents(&resumed).last(), latents(&made).last());

    // Another file of the same name.
    std::fs::copy(file("kohya.safetensors"), path.join("style.safetensors")).unwrap();
    let stopped = ["generate", "--resume", "whole", "-o", "e.mkv", "--json"];
    let refused = run(path, &[&stopped[..], &lora].concat());
    let text = format!("{}{}", String::from_utf8_lossy(&refused.stdout), stderr(&refused));
    assert!(text.contains("the file of this name is another one"), "{text}");
    std::fs::remove_file(path.join("style.safetensors")).unwrap();
    let refused = run(path, &[&stopped[..], &lora].concat());
    let text = format!("{}{}", String::from_utf8_lossy(&refused.stdout), stderr(&refused));
    assert!(text.contains("style.safetensors"), "{text}");
}

#[test]
fn inspection_says_what_a_file_contains_and_what_of_it_applies() {
    let folder = tempfile::tempdir().unwrap();
    let path = file("lightning.safetensors");
    let path = path.to_str().unwrap();
    let output = rushes(folder.path()).args(["lora", "inspect", path]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for part in ["native", "LoRA (5)", "full deltas (", "0.125 (5)", "4 (5)", "all, because", "f32 ("] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let output = run(folder.path(), &["lora", "inspect", path, "--json"]);
    let value = event(&output, "lora");
    assert_eq!(value["model"]["experts"][0]["pairs"], 5, "{value}");
    let high = file("clip-high.safetensors");
    let output = run(folder.path(), &["lora", "inspect", high.to_str().unwrap()]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("high_noise, by the name of the file"), "{text}");
    assert!(text.contains("applied 23 of 23 pairs, 6 deltas, Σ|ΔW| "), "{text}");
    // A key that nothing explains fails the command, after everything was printed.
    let changed = folder.path().join("x.safetensors");
    std::fs::copy(file("bare.safetensors"), &changed).unwrap();
    tests::edit::rewrite(folder.path(), |stored| {
        let tensor = stored.values().next().unwrap().clone();
        stored.insert("blocks.0.self_attn.z.diff_b".into(), tensor);
    });
    let output = run(folder.path(), &["lora", "inspect", "x.safetensors"]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("not applied   blocks.0.self_attn.z.diff_b"), "{text}");
}
