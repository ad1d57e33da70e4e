//! `rushes quantize --target plain`: quantised graphs for accelerators, computed on the CPU.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use super::lora_branches::first_latent;
use super::loras::{expert, file, on};
use bundle::dtype::WeightType;
use bundle::lora::LoraExpert;
use bundle::manifest::{Bundle, Component};
use bundle::variant::{KernelLibrary, Precision, Target, Variant};
use export::ExportRequest;
use quality::quantize::report::{self, Quality};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Output;
use tests::branched::branched;
use tests::compare::relative_difference;
use tests::program::{event, rushes};
use tests::{edit, golden};

/// A calibrated bundle in `FOLDER/bundle`.
struct Calibrated(tempfile::TempDir);

impl Calibrated {
    fn new(case: &str, targets: &[Target], weights: WeightType) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = edit::copy_of(&golden::case(case).checkpoint());
        if case != "mini" {
            let settings = r#"{"size": "32x32", "frames": 5, "steps": 4}"#;
            std::fs::write(checkpoint.path().join("rushes.json"), settings).unwrap();
        }
        let request = ExportRequest {
            targets: targets.to_vec(),
            weights: Some(weights),
            ..ExportRequest::new(checkpoint.path(), &folder.path().join("bundle"))
        };
        export::export(&request, &mut |_| ()).unwrap();
        std::fs::write(folder.path().join("prompts"), "A red ball bounces on the beach\nA blue square\n")
            .unwrap();
        let calibrated = Self(folder);
        let steps = if case == "mini" { "8" } else { "4" };
        let calibrate =
            ["calibrate", "bundle", "--prompts", "prompts", "--steps", steps, "--progress", "none"];
        let output = calibrated.run(&calibrate);
        assert!(output.status.success(), "{output:?}");
        calibrated
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("bundle")
    }

    fn bundle(&self) -> Bundle {
        Bundle::open(&self.path()).unwrap()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        rushes(self.0.path()).args(arguments).output().unwrap()
    }

    /// Quantises with more arguments and returns the report of this name.
    fn quantize(&self, more: &[&str], name: &str) -> Quality {
        let arguments = ["quantize", "bundle", "--clips", "1", "--sensitivity", "estimated", "--json"];
        let output = self.run(&[&arguments[..], more].concat());
        assert!(output.status.success(), "{more:?}: {output:?}");
        report::read(&self.path()).remove(name).unwrap()
    }

    /// The error of a refused quantisation.
    fn refused(&self, more: &[&str]) -> serde_json::Value {
        let output = self.run(&[&["quantize", "bundle", "--json"], more].concat());
        assert_eq!(output.status.code(), Some(2), "{more:?}: {output:?}");
        event(&output, "error")
    }
}

fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { [path].into() }).collect()
}

/// Every file of a component folder belongs to the bundle: nothing that was written to measure is left over.
fn has_only_its_files(bundle: &Bundle) {
    let named: BTreeSet<PathBuf> = bundle.files().into_iter().map(|file| bundle.path(file)).collect();
    for folder in ["text_encoder", "experts", "decoder"] {
        let found = files(&bundle.path(folder));
        let others: Vec<_> = found.difference(&named).collect();
        assert!(others.is_empty(), "{others:?}");
    }
}

#[test]
fn targets_without_graphs_are_refused_before_any_clip_is_generated() {
    let cpu = Calibrated::new("official-names", &[Target::Cpu], WeightType::F32);
    let before = std::fs::read(cpu.path().join("bundle.json")).unwrap();
    for arguments in [&["--target", "plain"][..], &["--target", "tensorrt"], &["--target", "cpu,plain"]] {
        for scheme in ["int8", "fp8"] {
            let error = cpu.refused(&[&["--scheme", scheme], arguments].concat());
            let text = error.to_string();
            assert!(
                text.contains("--target") && text.contains("no plain graph of the text encoder"),
                "{text}"
            );
            assert!(text.contains("rushes export") && text.contains("--target plain"), "{text}");
        }
    }
    for (scheme, target) in
        [("int8-weights", "plain"), ("bf16", "plain"), ("int8", "cuda"), ("fp8", "cpu,cuda")]
    {
        let error = cpu.refused(&["--scheme", scheme, "--target", target]).to_string();
        assert!(error.contains(&format!("the scheme {scheme} has graphs for cpu")), "{error}");
    }
    let error = cpu.refused(&["--attention", "fp8"]).to_string();
    assert!(error.contains("only fp8 quantises"), "{error}");
    assert_eq!(std::fs::read(cpu.path().join("bundle.json")).unwrap(), before);
}

/// The same bundle with its plain graphs in INT8 as those for the CPU.
fn plain_on_cpu(bundle: &Bundle) -> Bundle {
    let mut bundle = bundle.clone();
    for entry in &mut bundle.manifest.components {
        let is_int8 = |precision| precision == Precision::Int8;
        entry
            .graphs
            .retain(|graph| !is_int8(graph.variant.precision) || graph.variant.target == Target::Plain);
        entry.variants.retain(|variant| !is_int8(variant.precision) || variant.is_for(Target::Plain));
        for graph in entry.graphs.iter_mut().filter(|graph| is_int8(graph.variant.precision)) {
            graph.variant.target = Target::Cpu;
        }
        for variant in entry.variants.iter_mut().filter(|variant| is_int8(variant.precision)) {
            variant.targets = vec![Target::Cpu];
        }
    }
    bundle
}

#[test]
fn loras_change_the_quantised_models_of_both_targets() {
    let both = Calibrated::new("two-experts", &[Target::Cpu, Target::Plain], WeightType::F32);
    let arguments = ["--target", "cpu,plain", "--kernels", "onnxruntime"];
    both.quantize(&arguments, "int8");
    let weights = |bundle: &Bundle, target| {
        let variant = Variant { target, ..Variant::cpu(Precision::Int8, KernelLibrary::OnnxRuntime) };
        bundle.manifest.component(&expert("high_noise")).unwrap().weight_files_of(variant).to_vec()
    };
    let base = both.bundle();

    // Beside the weights: the graphs of each target read the factors from a file that belongs to their weights.
    let lora = on(LoraExpert::HighNoise, file("lightning.safetensors"), 1.0);
    let found = branched(&base, std::slice::from_ref(&lora), &both.0.path().join("branched")).unwrap();
    for target in [Target::Cpu, Target::Plain] {
        let (before, after) = (weights(&base, target), weights(&found, target));
        assert!(after.starts_with(&before) && after.len() == before.len() + 1, "{target}: {after:?}");
        let variant = Variant { target, ..Variant::cpu(Precision::Int8, KernelLibrary::OnnxRuntime) };
        let entry = found.manifest.component(&expert("high_noise")).unwrap();
        let graph = entry.graph(bundle::manifest::Part::Whole, variant).unwrap();
        let files = graph::Model::read(&found.path(&graph.file)).unwrap().external_data();
        let own = Path::new(&after[before.len()].file).file_name().unwrap().to_str().unwrap();
        assert!(files.iter().any(|data| data.location.ends_with(own)), "{target}: {own} {files:?}");
    }
    assert_ne!(weights(&found, Target::Cpu).last(), weights(&found, Target::Plain).last());
    let reference = first_latent(found.clone(), Precision::F32);
    let error = |bundle: &Bundle, target: Target| {
        // ONNX Runtime computes plain graphs in f32 on the CPU.
        let bundle = if target == Target::Plain { plain_on_cpu(bundle) } else { bundle.clone() };
        relative_difference(first_latent(bundle, Precision::Int8).view(), reference.view())
    };
    // The next quantisation removes the files of this one.
    let (on_cpu, in_plain) = (error(&base, Target::Cpu), error(&base, Target::Plain));
    let nearer = |changed: &Bundle, target: Target| {
        let before = if target == Target::Plain { in_plain } else { on_cpu };
        20.0 * (before / error(changed, target)).log10()
    };
    let decibels = nearer(&found, Target::Plain);
    println!("plain graphs with a branch: {decibels:.1} dB nearer");
    assert!(decibels >= 6.0, "{decibels:.1} dB");

    // Merged into the variants of both targets.
    let lora = lora.to_string();
    both.quantize(&[&arguments[..], &["--lora", &lora]].concat(), "int8");
    let merged = both.bundle();
    for target in [Target::Cpu, Target::Plain] {
        assert_ne!(weights(&base, target), weights(&merged, target));
        let decibels = nearer(&merged, target);
        println!("merged, {target}: {decibels:.1} dB nearer");
        assert!(decibels >= 6.0, "{target}: {decibels:.1} dB");
    }
    has_only_its_files(&merged);
}

#[test]
fn variants_of_both_targets_are_added_and_replaced_independently() {
    let both = Calibrated::new("official-names", &[Target::Cpu, Target::Plain], WeightType::Bf16);
    let has = |precision: Precision| {
        let manifest = both.bundle().manifest;
        [Target::Cpu, Target::Plain]
            .map(|target| manifest.precisions(target, KernelLibrary::Rushes).contains(&precision))
    };
    both.quantize(&["--target", "plain"], "int8-plain");
    assert_eq!(has(Precision::Int8), [false, true]);
    has_only_its_files(&both.bundle());
    both.quantize(&["--kernels", "onnxruntime"], "int8");
    assert_eq!(has(Precision::Int8), [true, true]);
    let first = both.bundle();
    // The numbers and the weights of the targets are different files, and one does not replace the other.
    assert!(
        first.path("quantization.int8.json").is_file()
            && first.path("quantization.int8-plain.json").is_file()
    );
    assert!(first.path("quality.html").is_file() && first.path("quality.plain.html").is_file());
    for entry in first.manifest.components.iter().filter(|entry| entry.component.is_quantizable()) {
        let weights = |target| {
            let variant = Variant { target, ..Variant::cpu(Precision::Int8, KernelLibrary::OnnxRuntime) };
            entry.weight_files_of(variant)[0].file.clone()
        };
        assert_ne!(weights(Target::Cpu), weights(Target::Plain), "{}", entry.component);
    }
    both.quantize(&["--target", "cpu,plain", "--kernels", "onnxruntime", "--ranges", "extremes"], "int8");
    let second = both.bundle();
    assert_eq!(second.files().len(), first.files().len());
    assert_ne!(second.files(), first.files());
    has_only_its_files(&second);

    // E4M3 has the same numbers for both targets, and only experts unless more is asked for.
    let quality = both.quantize(&["--scheme", "fp8"], "fp8");
    assert_eq!(quality.targets, [Target::Cpu, Target::Plain]);
    assert_eq!(has(Precision::Fp8), [true, true]);
    let layers = |quality: &Quality| -> Vec<usize> {
        quality.components.iter().map(|component| component.layers.len()).collect()
    };
    let [text, .., decoder] = layers(&quality)[..] else { panic!("{quality:?}") };
    assert_eq!((text, decoder), (0, 0));
    let all = both.quantize(
        &["--scheme", "fp8", "--components", "text_encoder,experts,decoder", "--target", "plain"],
        "fp8-plain",
    );
    assert!(all.components.iter().all(|component| component.layers.len() + component.kept.len() > 0));
    // The limit of the decoder holds for random weights too: layers are kept until it does.
    assert!(all.clips.iter().all(|clip| clip.decoder_psnr >= 35.0), "{:?}", all.clips);
    assert_eq!(has(Precision::Fp8), [true, true]);
    has_only_its_files(&both.bundle());
    // Only the decoder: the other components keep their exported weights.
    let decoder = both.quantize(&["--target", "plain", "--components", "decoder"], "int8-plain");
    let [text, experts @ .., decoder] = &layers(&decoder)[..] else { panic!("{decoder:?}") };
    assert!(*text == 0 && experts.iter().all(|layers| *layers == 0) && *decoder > 0);
    has_only_its_files(&both.bundle());
}

/// The plain graphs of an f32 bundle are computed by ONNX Runtime's CPU provider as they are.
#[test]
fn mini_in_plain_int8_and_fp8_gives_nearly_the_same_clip() {
    for (weights, schemes) in [(WeightType::F32, &["int8"][..]), (WeightType::Bf16, &["int8", "fp8"])] {
        let mini = Calibrated::new("mini", &[Target::Cpu, Target::Plain], weights);
        let everything = ["--components", "text_encoder,experts,decoder"];
        for scheme in schemes {
            let name = format!("{scheme}-plain");
            let arguments = [&["--scheme", scheme, "--target", "plain"][..], &everything].concat();
            let quality = mini.quantize(&arguments, &name);
            println!("{name} of mini in {weights}: {:.1} dB; {:?}", quality.psnr, notes(&quality));
            assert!(quality.psnr >= 30.0, "{name}: {} dB", quality.psnr);
            for clip in &quality.clips {
                assert!(clip.text_cosine >= 0.999, "{name}: token cosine {}", clip.text_cosine);
                assert!(clip.decoder_psnr >= 35.0, "{name}: decoder {} dB", clip.decoder_psnr);
            }
            // Both experts, each in three noise bins.
            assert_eq!(quality.noise.len(), 6, "{:?}", quality.noise);
            assert!(quality.noise.iter().all(|bin| bin.steps > 0 && bin.relative_error > 0.0));
            for component in &quality.components {
                let share = component.share.as_ref().map_or(0.0, |share| share.ratio());
                assert!(share > 0.5, "{name}: {} has {share} of its work in 8 bits", component.component);
            }
        }
        let bundle = mini.bundle();
        has_only_its_files(&bundle);
        for entry in &bundle.manifest.components {
            let ratio = match entry.component {
                Component::Expert(_) => 0.65,
                Component::Decoder => 0.75,
                _ => continue,
            };
            let ratio = if weights == WeightType::F32 { ratio / 2.0 } else { ratio };
            let variant = Variant {
                target: Target::Plain,
                ..Variant::cpu(Precision::Int8, KernelLibrary::OnnxRuntime)
            };
            let own = entry.variant(variant).unwrap().weight_bytes().0 as f64;
            let share = own / entry.weight_bytes().0 as f64;
            assert!(share <= ratio, "{}: {share} of the exported weights", entry.component);
        }
    }
}

fn notes(quality: &Quality) -> Vec<String> {
    let note = |component: &report::ComponentQuality| {
        let note = component.note.clone().unwrap_or_default();
        let all = component.layers.len() + component.kept.len();
        format!("{}: {} of {all} layers, {note}", component.component, component.layers.len())
    };
    quality.components.iter().map(note).collect()
}
