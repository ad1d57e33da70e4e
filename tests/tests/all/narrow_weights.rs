//! Checkpoints whose components are stored in different number formats: each component keeps its own in the bundle, the
//! clips are those of f32 weights, and variants are chosen and quantised as with one format.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::dtype::WeightType;
use bundle::layout::component_folder;
use bundle::manifest::{Bundle, Component};
use bundle::quantization::Scheme;
use bundle::variant::{KernelLibrary, Precision, Target, Variant};
use engines::OnnxRuntime;
use export::{ExportEvent, ExportReport, ExportRequest};
use quality::quantize::variant::UnquantizedLayers;
use quality::quantize::{QuantizeOptions, Quantizer};
use runtime::model::{Model, ModelOptions};
use runtime::pipeline::seeded_noise;
use runtime::plan::GenerationPlan;
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tempfile::TempDir;
use tests::program::rushes;
use tests::{edit, golden};

/// A case in bf16 whose heads Rushes kernels support.
const CASE: &str = "official-names";
const PARTS: [&str; 4] = ["text_encoder", "transformer", "transformer_2", "vae"];

/// A checkpoint, by the components that stay in bf16.
struct Mixed {
    narrow: &'static [&'static str],
    /// The exported precision of its bundle.
    precision: Precision,
}

const ALL: [Mixed; 4] = [
    Mixed { narrow: &["text_encoder"], precision: Precision::F32 },
    Mixed { narrow: &["transformer", "transformer_2"], precision: Precision::Bf16 },
    Mixed { narrow: &["transformer_2"], precision: Precision::F32 },
    Mixed { narrow: &PARTS, precision: Precision::Bf16 },
];

/// Widens a stored bf16 tensor to f32, which keeps its values.
fn widen((dtype, _, bytes): &mut (Dtype, Vec<usize>, Vec<u8>)) {
    assert_eq!(*dtype, Dtype::BF16);
    *bytes = bytes.chunks_exact(2).flat_map(|two| [0, 0, two[0], two[1]]).collect();
    *dtype = Dtype::F32;
}

impl Mixed {
    /// Writes the checkpoint. Clips are small by default.
    fn checkpoint(&self) -> TempDir {
        let copy = edit::copy_of(&golden::case(CASE).checkpoint());
        for part in PARTS.into_iter().filter(|part| !self.narrow.contains(part)) {
            edit::rewrite(&copy.path().join(part), |stored| stored.values_mut().for_each(widen));
        }
        let defaults = r#"{"size": "32x32", "frames": 5, "steps": 4}"#;
        fs::write(copy.path().join("rushes.json"), defaults).unwrap();
        copy
    }

    fn format_of(&self, component: &Component) -> WeightType {
        let part = match component {
            Component::TextEncoder => "text_encoder",
            Component::Expert(name) if name.0 == "high_noise" => "transformer",
            Component::Expert(_) => "transformer_2",
            _ => "vae",
        };
        if self.narrow.contains(&part) { WeightType::Bf16 } else { WeightType::F32 }
    }
}

/// Exports a checkpoint to the folder `name` in it.
fn export(checkpoint: &TempDir, name: &str, weights: Option<WeightType>) -> ExportReport {
    let request =
        ExportRequest { weights, ..ExportRequest::new(checkpoint.path(), &checkpoint.path().join(name)) };
    export::export(&request, &mut |event| {
        assert!(!matches!(event, ExportEvent::MixedFormats { .. }), "{event:?}");
    })
    .unwrap()
}

fn model(folder: &Path, precision: Option<Precision>, kernels: Option<KernelLibrary>) -> Model {
    open(folder, precision, kernels).unwrap()
}

fn open(
    folder: &Path,
    precision: Option<Precision>,
    kernels: Option<KernelLibrary>,
) -> Result<Model, runtime::Error> {
    let options = ModelOptions { precision, kernels, ..ModelOptions::default() };
    Model::new(Bundle::open(folder).unwrap(), OnnxRuntime::load(None).unwrap(), options)
}

/// The bits of a clip: text states, the latent after each step, and frames.
fn clip(model: &Model) -> Vec<u32> {
    let case = golden::case(CASE);
    let plan = GenerationPlan::new(model.manifest(), &case.request()).unwrap();
    let computed = golden::compute(model, &case, seeded_noise(&plan)).unwrap();
    let latents = computed.latents.iter().flatten();
    let values = computed.prompt.iter().chain(latents).chain(&computed.frames);
    let bits: Vec<u32> = values.map(|value| value.to_bits()).collect();
    assert!(bits.len() > computed.prompt.len() && !computed.frames.is_empty());
    bits
}

#[test]
fn every_component_is_linked_in_its_format_and_clips_are_those_of_f32_weights() {
    for mixed in &ALL {
        let checkpoint = mixed.checkpoint();
        let narrow = export(&checkpoint, "narrow", None);
        assert_eq!((narrow.written.0, narrow.linked.0 > 0), (0, true), "{:?}", mixed.narrow);
        assert_eq!(narrow.manifest.exported_precision(), mixed.precision);
        for entry in &narrow.manifest.components {
            assert_eq!(entry.weight_type, mixed.format_of(&entry.component), "{}", entry.component);
        }
        let wide = export(&checkpoint, "wide", Some(WeightType::F32));
        assert!(wide.written.0 > 0);
        assert!(wide.manifest.components.iter().all(|entry| entry.weight_type == WeightType::F32));
        let expected = clip(&model(&wide.folder, None, None));
        assert!(clip(&model(&narrow.folder, None, None)) == expected, "{:?}", mixed.narrow);
        assert!(clip(&model(&narrow.folder, Some(mixed.precision), None)) == expected, "{:?}", mixed.narrow);
    }
}

#[test]
fn the_exported_precision_is_that_of_the_experts_and_others_are_refused_by_name() {
    for mixed in &ALL {
        let checkpoint = mixed.checkpoint();
        let folder = export(&checkpoint, "narrow", None).folder;
        let other = if mixed.precision == Precision::F32 { Precision::Bf16 } else { Precision::F32 };
        let of_bundle = model(&folder, Some(mixed.precision), None);
        for entry in &of_bundle.manifest().components {
            let precision = of_bundle.variant_of(&entry.component).unwrap().precision;
            assert_eq!(precision, Precision::from(mixed.format_of(&entry.component)), "{}", entry.component);
        }
        of_bundle.check_parts(true).unwrap();
        for asked in [other, Precision::F16, Precision::Int8] {
            let error = open(&folder, Some(asked), None).unwrap_err().to_string();
            let named = [format!("cpu {asked}"), format!("cpu {}", mixed.precision)];
            assert!(named.iter().all(|name| error.contains(name)), "{error}");
        }
        let error = open(&folder, None, Some(KernelLibrary::Rushes)).unwrap_err().to_string();
        assert!(error.contains("ONNX Runtime kernels only"), "{error}");
    }
    let checkpoint = ALL[0].checkpoint();
    let folder = export(&checkpoint, "narrow", None).folder;
    let shown = rushes(checkpoint.path()).arg("inspect").arg(&folder).output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    for line in ["exported      f32, the text encoder in bf16\n", " of bf16 weights", " of f32 weights"] {
        assert!(shown.contains(line), "no `{line}` in:\n{shown}");
    }
}

/// Adds bf16 steps on Rushes kernels to a bundle.
fn quantize_to_bf16(folder: &Path) -> Bundle {
    let options = QuantizeOptions::new(Scheme::Bf16);
    let mut quantizer = Quantizer::open(folder, Path::new("none"), options).unwrap();
    let components = quantizer.bundle().manifest.components.clone();
    for entry in components.iter().filter(|entry| entry.component.is_quantizable()) {
        let numerics = quantizer.plan(entry, &UnquantizedLayers::new()).unwrap().numerics;
        quantizer.write(numerics, None).unwrap();
    }
    quantizer.commit().unwrap();
    Bundle::open(folder).unwrap()
}

#[test]
fn bf16_steps_are_a_variant_of_every_mixture_and_never_the_default() {
    for mixed in &ALL {
        let checkpoint = mixed.checkpoint();
        let wide = export(&checkpoint, "wide", Some(WeightType::F32)).folder;
        let narrow = export(&checkpoint, "narrow", None).folder;
        let exported = clip(&model(&narrow, None, None));
        // The second time replaces the first.
        quantize_to_bf16(&narrow);
        let bundle = quantize_to_bf16(&narrow);
        quantize_to_bf16(&wide);

        let default = model(&narrow, None, None);
        let variant = Variant::cpu(mixed.precision, KernelLibrary::OnnxRuntime);
        assert_eq!(default.effective_variant(), variant);
        assert!(clip(&default) == exported, "{:?}", mixed.narrow);
        let mut expected = vec![mixed.precision, Precision::Bf16];
        expected.dedup();
        assert_eq!(bundle.manifest.precisions(Target::Cpu, KernelLibrary::Rushes), expected);

        let in_bf16 =
            |folder: &Path| clip(&model(folder, Some(Precision::Bf16), Some(KernelLibrary::Rushes)));
        let rounded = in_bf16(&narrow);
        assert!(rounded == in_bf16(&wide), "{:?}", mixed.narrow);
        assert!(rounded != exported, "{:?}", mixed.narrow);
        // The exported bf16 experts, or an error: f32 experts have no bf16 graph for ONNX Runtime kernels.
        let onnx_runtime = open(&narrow, Some(Precision::Bf16), Some(KernelLibrary::OnnxRuntime));
        match mixed.precision {
            Precision::Bf16 => assert!(clip(&onnx_runtime.unwrap()) == exported, "{:?}", mixed.narrow),
            _ => {
                let error = onnx_runtime.unwrap_err().to_string();
                assert!(error.contains("cpu bf16 in ONNX Runtime kernels"), "{error}");
            }
        }
    }
}

/// The files of int8 weights: the bytes by component and kernels.
fn int8_weights(bundle: &Bundle) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in &bundle.manifest.components {
        let variants = entry.variants.iter().filter(|variant| variant.precision == Precision::Int8);
        for file in variants.flat_map(|variant| &variant.weights) {
            let name = file.file.rsplit('/').next().unwrap().split('.').next().unwrap();
            let key = format!("{} {name}", component_folder(&entry.component));
            all.insert(key, fs::read(bundle.path(&file.file)).unwrap());
        }
    }
    all
}

#[test]
fn a_mixed_bundle_is_calibrated_and_quantised_like_one_of_f32_weights() {
    let int8 = |mixed: &Mixed, weights| {
        let checkpoint = mixed.checkpoint();
        let folder = export(&checkpoint, "bundle", weights).folder;
        fs::write(checkpoint.path().join("prompts"), "a red fox\n").unwrap();
        let run = |arguments: &[&str]| {
            let output = rushes(checkpoint.path()).args(arguments).output().unwrap();
            assert!(output.status.success(), "{arguments:?}: {output:?}");
        };
        run(&["calibrate", "bundle", "--prompts", "prompts", "--progress", "none"]);
        let quick = ["--clips", "1", "--sensitivity", "estimated", "--kernels", "rushes,onnxruntime"];
        run(&[&["quantize", "bundle"], &quick[..]].concat());
        let clips =
            KernelLibrary::ALL.map(|kernels| clip(&model(&folder, Some(Precision::Int8), Some(kernels))));
        let bundle = Bundle::open(&folder).unwrap();
        let precisions = bundle.manifest.precisions(Target::Cpu, KernelLibrary::Rushes);
        assert_eq!(precisions, [bundle.manifest.exported_precision(), Precision::Int8]);
        let calibration = fs::read(folder.join("calibration.safetensors")).unwrap();
        (calibration, int8_weights(&bundle), clips)
    };
    let wide = int8(&ALL[0], Some(WeightType::F32));
    assert!(wide.1.len() >= 5, "{:?}", wide.1.keys());
    for mixed in &ALL[..2] {
        let narrow = int8(mixed, None);
        assert!(narrow.0 == wide.0, "{:?}: the calibration differs", mixed.narrow);
        assert!(narrow.1.keys().eq(wide.1.keys()));
        for (name, bytes) in &narrow.1 {
            assert!(*bytes == wide.1[name], "{:?}: {name} differs", mixed.narrow);
        }
        assert!(narrow.2 == wide.2, "{:?}: the clip differs", mixed.narrow);
    }
}

#[test]
fn a_component_in_several_formats_is_widened_and_reported() {
    let checkpoint = ALL[3].checkpoint();
    let mut is_first = true;
    edit::rewrite(&checkpoint.path().join("text_encoder"), |stored| {
        stored.values_mut().take(usize::from(std::mem::take(&mut is_first))).for_each(widen);
    });
    let export = |name: &str, targets: &[Target]| {
        let request = ExportRequest {
            targets: targets.to_vec(),
            ..ExportRequest::new(checkpoint.path(), &checkpoint.path().join(name))
        };
        let mut mixed = Vec::new();
        let report = export::export(&request, &mut |event| {
            if matches!(event, ExportEvent::MixedFormats { .. }) {
                mixed.push(event);
            }
        });
        (report.unwrap(), mixed)
    };
    let (report, mixed) = export("cpu", &[Target::Cpu]);
    let expected = ExportEvent::MixedFormats {
        component: Component::TextEncoder,
        stored: vec![WeightType::F32, WeightType::Bf16],
        weights: WeightType::F32,
    };
    assert_eq!(mixed, [expected]);
    let formats: Vec<WeightType> = report.manifest.components.iter().map(|entry| entry.weight_type).collect();
    assert_eq!(formats, [WeightType::F32, WeightType::Bf16, WeightType::Bf16, WeightType::Bf16]);
    let entry = report.manifest.component(&Component::TextEncoder).unwrap();
    assert_eq!(report.written, entry.weight_bytes());
    assert!(entry.weights[0].file.ends_with("/f32.safetensors"), "{:?}", entry.weights);
    // Accelerators compute in one format.
    let (report, mixed) = export("both", &[Target::Cpu, Target::Cuda]);
    assert!(mixed.is_empty());
    assert!(report.manifest.components.iter().all(|entry| entry.weight_type == WeightType::Bf16));
}
