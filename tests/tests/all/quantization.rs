//! Calibration and quantised variants of small models and of the embedded model.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::dtype::WeightType;
use bundle::manifest::{Bundle, Component, ComponentEntry, Part};
use bundle::quantization::Scheme;
use bundle::stop::Stop;
use bundle::units::Seed;
use bundle::variant::{KernelLibrary, Precision, Target, Variant};
use calibration::integer_share::{Share, StepRows, integer_share, positions};
use calibration::observe::replay::Replay;
use calibration::observe::set::{CalibrationSet, SetInfo, weight_digests};
use calibration::observe::table::Table;
use calibration::tensorrt_rules::broken_rules;
use engines::{Cancel, OnnxRuntime, OpenOptions, WeightMemory};
use export::ExportRequest;
use export::quantized::{VariantRequest, write_variant};
use graph::Model;
use graph::proto::DataType;
use quality::quantize::report::ComponentQuality;
use quality::quantize::{QuantizeOptions, Quantizer};
use quality::record::record;
use runtime::plan::{GenerateRequest, GenerationPlan, Length};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;
use tests::golden;
use tests::program::{event, rushes};
use tests::synthetic::{self, Values};

const OPTIONS: OpenOptions = OpenOptions::cpu(None, WeightMemory::Prepacked);

fn succeeded(output: Output) -> Output {
    assert!(output.status.success(), "{output:?}");
    output
}

/// The share of a component's work that runs in integers, read from the graph after ONNX Runtime's optimisation.
fn share_of(
    bundle: &Bundle,
    entry: &ComponentEntry,
    part: Part,
    kernels: KernelLibrary,
    rows: StepRows,
) -> Share {
    let graph = bundle.path(&entry.graph(part, Variant::cpu(Precision::Int8, kernels)).unwrap().file);
    let optimized = graph.with_extension("optimized");
    OnnxRuntime::load(None).unwrap().write_optimized(&graph, &optimized).unwrap();
    let model = Model::read(&optimized).unwrap();
    std::fs::remove_file(optimized).unwrap();
    integer_share(&model, &positions(&bundle.manifest, &entry.component, rows))
}

/// Exports a small model and records a set of two clips.
fn recorded(folder: &Path) -> (golden::Exported, CalibrationSet) {
    let exported = golden::export(&golden::case("two-experts").checkpoint()).unwrap();
    let manifest = exported.model.manifest();
    let plans: Vec<_> = [1, 2]
        .map(|seed| GenerateRequest {
            length: Some(Length::Frames(5)),
            steps: Some(4),
            size: Some(bundle::geometry::PixelSize { width: 32, height: 32 }),
            ..GenerateRequest::new("a boat", Seed(seed))
        })
        .iter()
        .map(|request| GenerationPlan::new(manifest, request).unwrap())
        .collect();
    let info = SetInfo {
        rushes: String::new(),
        model: manifest.model.clone(),
        weights: weight_digests(manifest),
        settings: Vec::new(),
        samples: plans.iter().map(|plan| (plan.prompt.clone(), plan.seed.0)).collect(),
    };
    let set = CalibrationSet::begin(folder, info).unwrap();
    record(&exported.model, &plans, &set, &Cancel::new(), &mut |_, _| Ok(())).unwrap();
    (exported, set)
}

#[test]
fn a_calibration_that_is_interrupted_after_every_part_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (exported, set) = recorded(folder.path());
    let (bundle, onnx) = (exported.model.bundle(), OnnxRuntime::load(None).unwrap());
    let replay = Replay { bundle, set: &set, onnx: &onnx, options: OPTIONS };
    let whole = replay.run(&Cancel::new(), &mut |_| Ok(())).unwrap();
    std::fs::remove_file(set.folder().join("progress.safetensors")).unwrap();
    let stop = || calibration::Error::NotObserved { layer: "stop".into(), component: "here".into() };
    let mut stops = 0;
    let pieces = loop {
        match replay.run(&Cancel::new(), &mut |_| Err(stop())) {
            Ok(table) => break table,
            Err(_) => stops += 1,
        }
    };
    assert_eq!(stops, 2 * bundle.manifest.components.len());
    for (table, name) in [(&whole, "whole"), (&pieces, "pieces")] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
        table.write(&folder.path().join(name), &set.info).unwrap();
    }
    for file in ["calibration.json", "calibration.safetensors"] {
        let read = |name: &str| std::fs::read(folder.path().join(name).join(file)).unwrap();
        assert!(read("whole") == read("pieces"), "{file} differs");
    }
    let (read, _) = Table::read(&folder.path().join("whole/calibration.json"), &bundle.manifest).unwrap();
    assert_eq!(read, whole);

    // A calibration of other weights, or with changed numbers, is refused.
    let mut other = bundle.manifest.clone();
    other.components[1].digest.blake3 = "0".repeat(64);
    let error = Table::read(&folder.path().join("whole/calibration.json"), &other).unwrap_err();
    assert!(error.to_string().contains("was made for other weights"), "{error}");
    let numbers = folder.path().join("whole/calibration.safetensors");
    let mut bytes = std::fs::read(&numbers).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&numbers, bytes).unwrap();
    assert!(Table::read(&folder.path().join("whole/calibration.json"), &bundle.manifest).is_err());
}

/// The signal-to-noise ratio of every quantised layer in the report on int8.
fn layers(bundle: &Path) -> BTreeMap<String, f64> {
    let quality = quality::quantize::report::read(bundle).remove("int8").unwrap();
    let layers_of = |component: ComponentQuality| {
        let name = component.component;
        component
            .layers
            .into_iter()
            .map(move |layer| (format!("{name} {}", layer.layer), layer.signal_to_noise))
    };
    quality.components.into_iter().flat_map(layers_of).collect()
}

#[test]
fn an_interrupted_quantisation_does_not_change_the_bundle() {
    let folder = tempfile::tempdir().unwrap();
    let (golden::Exported { model, folder: _kept }, set) = recorded(folder.path());
    let (bundle, onnx) = (&model.bundle().clone(), OnnxRuntime::load(None).unwrap());
    // Files that an open model may read are not removed.
    drop(model);
    let replay = Replay { bundle, set: &set, onnx: &onnx, options: OPTIONS };
    replay.run(&Cancel::new(), &mut |_| Ok(())).unwrap().write(folder.path(), &set.info).unwrap();
    let contents = || {
        let mut files = walk(&bundle.folder);
        files.sort();
        let lengths = files.iter().map(|path| std::fs::metadata(path).unwrap().len()).collect::<Vec<_>>();
        (files, lengths, std::fs::read(bundle.path("bundle.json")).unwrap())
    };
    // Stops after all components but the last, without a commit; with and without a variant in the bundle.
    let quantize = |components: usize, reason: &str| {
        let calibration = folder.path().join("calibration.json");
        let options = QuantizeOptions {
            kernels: vec![KernelLibrary::OnnxRuntime],
            ..QuantizeOptions::new(Scheme::Int8)
        };
        let mut quantizer = Quantizer::open(&bundle.folder, &calibration, options).unwrap();
        for entry in bundle.manifest.components.iter().take(components) {
            let groups = calibration::numerics::plan::groups(&bundle.manifest, &entry.component);
            let keep = groups[0].layers.iter().map(|layer| (layer.clone(), reason.to_owned())).collect();
            let numerics = quantizer.plan(entry, &keep).unwrap().numerics;
            quantizer.write(numerics, None).unwrap();
        }
        quantizer
    };
    let all = bundle.manifest.components.len();
    let exported_only = contents();
    drop(quantize(all - 1, "stopped"));
    assert_eq!(contents(), exported_only);

    quantize(all, "first").commit().unwrap();
    let with_variant = contents();
    assert_ne!(with_variant.0, exported_only.0);
    drop(quantize(all - 1, "stopped"));
    assert_eq!(contents(), with_variant);
    quantize(all, "second").commit().unwrap();
    let replaced = contents();
    assert_eq!(replaced.0.len(), with_variant.0.len());
    assert_ne!(replaced.0, with_variant.0);
    Bundle::open(&bundle.folder).unwrap();
}

/// Mini, exported in f32 and calibrated with two clips in `FOLDER/bundle`.
struct Mini(tempfile::TempDir);

impl Mini {
    fn calibrated() -> Self {
        // As the embedded model: the checkpoint is in f16.
        Self::calibrated_for(&[Target::Cpu], WeightType::F32)
    }

    fn calibrated_for(targets: &[Target], weights: WeightType) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/mini/checkpoint");
        let path = folder.path().join("bundle");
        let request = ExportRequest {
            targets: targets.to_vec(),
            weights: Some(weights),
            ..ExportRequest::new(&checkpoint, &path)
        };
        export::export(&request, &mut |_| ()).unwrap();
        std::fs::write(folder.path().join("prompts"), "A red ball bounces on the beach\nA blue square\n")
            .unwrap();
        let mini = Self(folder);
        let refused = mini.run(&["quantize", "bundle"]);
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
        let calibrate = ["calibrate", "bundle", "--prompts", "prompts", "--steps", "8", "--progress", "none"];
        succeeded(mini.run(&calibrate));
        assert!(!path.join("calibration").exists());
        mini
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("bundle")
    }

    fn run(&self, arguments: &[&str]) -> Output {
        rushes(self.0.path()).args(arguments).output().unwrap()
    }

    /// Quantises with more arguments and returns the PSNR of one clip.
    fn quantize(&self, more: &[&str]) -> f64 {
        let output = succeeded(self.run(&[&["quantize", "bundle", "--clips", "1", "--json"], more].concat()));
        event(&output, "quantized")["psnr"].as_f64().unwrap()
    }
}

#[test]
fn mini_in_int8_is_small_runs_in_integers_and_gives_nearly_the_same_clip() {
    let mini = Mini::calibrated();
    let path = mini.path();
    let run = |arguments: &[&str]| mini.run(arguments);
    let quantize = |more: &[&str]| mini.quantize(more);
    let psnr = quantize(&["--kernels", "onnxruntime"]);
    assert!(psnr >= 30.0, "{psnr} dB with ONNX Runtime kernels");
    let measured = layers(&path);
    let quick = ["--sensitivity", "estimated", "--ranges", "percentile"];
    let psnr = quantize(&[&quick[..], &["--kernels", "rushes,onnxruntime"]].concat());
    assert!(psnr >= 30.0, "{psnr} dB with Rushes kernels");
    // Measured errors are small and differ from the estimated ones.
    let estimated = layers(&path);
    assert!(measured.keys().eq(estimated.keys()));
    for (layer, found) in &measured {
        assert!((20.0..100.0).contains(found) && *found != estimated[layer], "{layer}: {found} dB");
    }
    let page = std::fs::read_to_string(path.join("quality.html")).unwrap();
    assert!(
        page.contains("data:image/bmp;base64,") && !page.contains("http"),
        "the page needs no other files"
    );
    let shown = succeeded(run(&["inspect", "bundle"]));
    let shown = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.contains("variant int8: worst clip"), "{shown}");

    let bundle = Bundle::open(&path).unwrap();
    // Prompts of mini have about 12 tokens.
    let rows = |text| StepRows { tokens: 5 * 4 * 7, text };
    for (kernels, rows) in [(KernelLibrary::Rushes, rows(12)), (KernelLibrary::OnnxRuntime, rows(512))] {
        for entry in &bundle.manifest.components {
            let (ratio, part) = match entry.component {
                Component::Expert(_) => (0.30, Part::Whole),
                Component::Decoder => (0.30, Part::Next),
                Component::TextEncoder | Component::ImageEncoder | Component::Preview => continue,
            };
            let variant = entry.variant(Variant::cpu(Precision::Int8, kernels)).unwrap();
            let share = variant.weight_bytes().0 as f64 / entry.weight_bytes().0 as f64;
            assert!(share <= ratio, "{} with {kernels} kernels: {share}", entry.component);
            let share = share_of(&bundle, entry, part, kernels, rows);
            assert!(share.ratio() >= 0.85, "{} with {kernels} kernels: {share:?}", entry.component);
        }
        let clip =
            ["generate", "A red ball", "--bundle", "bundle", "--precision", "int8", "--steps", "2", "--json"];
        let output = succeeded(run(&[&clip[..], &["--kernels", kernels.name()]].concat()));
        assert_eq!(event(&output, "done")["kernels"], kernels.name());
    }
    // With a budget that needs some layers in high precision the variant is replaced, and the old files are removed.
    let files = || walk(&path).len();
    let before = files();
    let budget = format!("{}", psnr + 0.5);
    assert!(
        quantize(&[&quick[..], &["--kernels", "rushes,onnxruntime", "--budget-psnr", &budget]].concat())
            >= psnr + 0.5
    );
    let kept = |bundle: &Bundle| -> usize {
        bundle.manifest.components.iter().flat_map(|entry| &entry.variants).map(|variant| variant.kept).sum()
    };
    assert!(kept(&Bundle::open(&path).unwrap()) > kept(&bundle));
    assert_eq!(files(), before);
    // On any instruction path, and only with kernels that the variant has.
    let scalar = ["generate", "A red ball", "--bundle", "bundle", "--steps", "1", "--precision", "int8"];
    succeeded(run(&[&scalar[..], &["--cpu-path", "scalar"]].concat()));
    let refused = run(&["generate", "a", "--bundle", "bundle", "--precision", "f32", "--kernels", "rushes"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("ONNX Runtime kernels only"), "{refused:?}");
}

#[test]
fn mini_in_fp8_in_8_bit_weights_and_in_bf16_gives_nearly_the_same_clip() {
    let mini = Mini::calibrated_for(&[Target::Cpu, Target::Plain], WeightType::Bf16);
    for (scheme, wanted) in [
        (&["fp8"][..], 30.0),
        (&["fp8", "--attention", "fp8"], 30.0),
        (&["fp8", "--attention"], 30.0),
        (&["int8-weights"], 30.0),
        (&["bf16"], 40.0),
    ] {
        let psnr = mini.quantize(&[&["--scheme"], scheme].concat());
        assert!(psnr >= wanted, "{scheme:?}: {psnr} dB");
    }
    let bf16 = ["generate", "A red ball", "--bundle", "bundle", "--steps", "1", "--precision", "bf16"];
    succeeded(mini.run(&[&bf16[..], &["--kernels", "rushes"]].concat()));
    fp8_graphs_obey_the_rules(&Bundle::open(&mini.path()).unwrap());
}

/// Checks the rules on the graphs of E4M3 experts, and that broken rules are detected.
fn fp8_graphs_obey_the_rules(bundle: &Bundle) {
    let numerics = std::fs::read(bundle.path("quantization.fp8.json")).unwrap();
    let numerics: bundle::quantization::Numerics = serde_json::from_slice(&numerics).unwrap();
    let experts =
        bundle.manifest.components.iter().filter(|entry| matches!(entry.component, Component::Expert(_)));
    let mut checked = 0;
    for entry in experts {
        let numerics = numerics.components.iter().find(|found| found.component == entry.component).unwrap();
        let kept: std::collections::BTreeSet<String> = numerics.kept.keys().cloned().collect();
        // One block at each end of six, and the embedders.
        assert!(kept.contains("blocks.0.attn1.to_q") && kept.contains("blocks.5.ffn.net.2"), "{kept:?}");
        assert!(
            numerics.layers.contains_key("blocks.1.attn1.to_q")
                && numerics.layers.contains_key("blocks.4.ffn.net.2")
        );
        let quantized: std::collections::BTreeSet<String> = numerics.layers.keys().cloned().collect();
        for (target, activations) in [(Target::Cpu, DataType::Float), (Target::Plain, DataType::Bfloat16)] {
            let broken_rules = |model: &Model, kept| broken_rules(model, kept, activations);
            let variant = Variant { target, precision: Precision::Fp8, kernels: KernelLibrary::OnnxRuntime };
            let graph = entry.graph(Part::Whole, variant).unwrap();
            let model = Model::read(&bundle.path(&graph.file)).unwrap();
            assert_eq!(broken_rules(&model, &kept), Vec::<String>::new());
            // Each of four blocks has seven inputs of layers, and two attentions with four operands.
            let nodes = &model.proto.graph.as_ref().unwrap().node;
            let quantizers = nodes.iter().filter(|node| node.op_type == "QuantizeLinear").count();
            assert!(quantizers >= 4 * (7 + 2 * 4), "{quantizers} in {target}");

            assert!(
                !broken_rules(&model, &quantized).is_empty(),
                "a layer that should be kept is not detected"
            );
            let mut cut = model.clone();
            let nodes = &mut cut.proto.graph.as_mut().unwrap().node;
            let position = nodes.iter().position(|node| node.op_type == "DequantizeLinear").unwrap();
            nodes.remove(position);
            assert!(!broken_rules(&cut, &kept).is_empty(), "a missing DequantizeLinear is not detected");
            let mut old = model;
            old.proto.opset_import[0].version = 17;
            assert_eq!(broken_rules(&old, &kept).len(), 1);
        }
        checked += 1;
    }
    assert!(checked > 0);
}

fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { all.extend(walk(&path)) } else { all.push(path) }
    }
    all
}

#[test]
fn at_the_shape_of_1_3b_nearly_all_work_is_in_integers() {
    use bundle::quantization::{Affine, ComponentNumerics, LayerNumerics, WeightScales, layers};
    let folder = tempfile::tempdir().unwrap();
    let template = golden::export(&golden::case("two-experts").checkpoint()).unwrap();
    let spec = synthetic::denoiser(1);
    let template = template.model.manifest();
    let component = synthetic::expert();
    let specs = (spec.clone(), template.vae.clone());
    let bundle = synthetic::bundle(folder.path(), template, &component, specs, Values::Zeros);
    let mut entry = bundle.manifest.components[0].clone();
    let mut numerics = ComponentNumerics::empty(component, entry.digest.clone());
    for layer in layers::denoiser(&spec).into_iter().flat_map(|group| group.layers) {
        let rows = if layer.ends_with("ffn.net.0.proj") { spec.feed_forward } else { spec.width() };
        let numbers = LayerNumerics::plain(
            WeightScales::Rows(vec![1.0; rows]),
            Some(Affine { scale: 1.0, zero_point: 128 }),
        );
        numerics.layers.insert(layer, numbers);
    }
    let both = [KernelLibrary::Rushes, KernelLibrary::OnnxRuntime];
    let request = VariantRequest {
        scheme: Scheme::Int8,
        numerics: &numerics,
        targets: &[Target::Cpu],
        kernels: &both,
        merges: &[],
        is_measured: false,
        note: None,
        stop: &Stop::new(),
    };
    write_variant(&bundle, &mut entry, &request).unwrap();
    for (kernels, text) in [(KernelLibrary::Rushes, 61), (KernelLibrary::OnnxRuntime, 512)] {
        let share = share_of(&bundle, &entry, Part::Whole, kernels, StepRows { tokens: 1950, text });
        assert!(share.ratio() >= 0.95, "with {kernels} kernels: {share:?}");
    }
}
