//! The parser and the builder of TensorRT for RTX, which need no GPU. Its Python packages are in
//! `target/providers/tensorrt-rtx/python`.

use crate::support::skipped;
use bundle::catalog::{wan_denoiser, wan21_vae};
use bundle::digest::Digest;
use bundle::dtype::{ElementType, WeightType};
use bundle::manifest::{Bundle, Component, Manifest};
use bundle::quantization::{ComponentNumerics, Scheme, WeightScales};
use bundle::spec::TextEncoderSpec;
use bundle::variant::Target;
use engines::Provider;
use export::ExportRequest;
use export::checkpoint::inventory::Required;
use export::model::{Chunk, GraphWeights, Lowering, decoder_graph, step_graph, text_encoder_graph};
use export::weights::{ExternalTensor, PlacedWeights};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tests::golden;
use tests::made_up_scales::{fill, quantize, required};

/// The exit code of the script if the packages cannot be loaded.
const CANNOT_LOAD: i32 = 3;

/// Runs the script on graphs; `None` after saying why it cannot run.
fn parsed(test: &str, options: &[&str], graphs: &[PathBuf]) -> Option<Output> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let packages = here.join("../target/providers/tensorrt-rtx/python");
    if !packages.is_dir() {
        let why = format!("{} is missing; `scripts/setup.sh tests` gets it", packages.display());
        skipped(test, Provider::TensorRtRtx, &why);
        return None;
    }
    let mut command = Command::new("python3");
    command.arg(here.join("providers/parse_tensorrt_rtx.py")).arg("--python").arg(packages);
    let output = command.args(options).args(graphs).output().unwrap();
    if output.status.code() == Some(CANNOT_LOAD) {
        skipped(test, Provider::TensorRtRtx, String::from_utf8_lossy(&output.stderr).trim());
        return None;
    }
    Some(output)
}

fn succeeded(output: &Output, graphs: usize) {
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text.lines().filter(|line| line.starts_with("ok ")).count(), graphs, "{text}");
}

/// The graphs of mini for a target, with those in INT8 and E4M3.
fn graphs_of_mini(folder: &Path, weights: WeightType, target: Target) -> Vec<PathBuf> {
    let out = folder.join(format!("{target}-{weights}"));
    let request = ExportRequest {
        targets: vec![target],
        weights: Some(weights),
        ..ExportRequest::new(&golden::case("mini").checkpoint(), &out)
    };
    export::export(&request, &mut |_| ()).unwrap();
    [Scheme::Int8, Scheme::Fp8].into_iter().for_each(|scheme| quantize(&out, scheme));
    let bundle = Bundle::open(&out).unwrap();
    let graphs = bundle.manifest.components.iter().flat_map(|entry| &entry.graphs);
    graphs.filter(|graph| graph.variant.target == target).map(|graph| bundle.path(&graph.file)).collect()
}

#[test]
fn smoke_the_parser_takes_the_plain_graphs_of_mini() {
    let folder = tempfile::tempdir().unwrap();
    let mut graphs = graphs_of_mini(folder.path(), WeightType::F32, Target::Plain);
    graphs.extend(graphs_of_mini(folder.path(), WeightType::Bf16, Target::Plain));
    // Text encoder, two experts and six parts of the decoder in three precisions, two parts of the tiny decoder; twice.
    assert_eq!(graphs.len(), 2 * (3 * 9 + 2));
    let Some(output) = parsed("plain graphs of mini", &[], &graphs) else { return };
    succeeded(&output, graphs.len());
}

#[test]
fn smoke_the_parser_refuses_fused_graphs_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let graphs = graphs_of_mini(folder.path(), WeightType::F32, Target::Cpu);
    let experts: Vec<_> =
        graphs.into_iter().filter(|graph| graph.to_string_lossy().contains("high_noise")).collect();
    let Some(output) = parsed("fused graphs of mini", &[], &experts) else { return };
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("refused ") && text.contains("RotaryEmbedding"), "{text}");
}

#[test]
fn engines_are_built_from_the_graphs_of_mini() {
    let folder = tempfile::tempdir().unwrap();
    let graphs = graphs_of_mini(folder.path(), WeightType::Bf16, Target::Plain);
    let is_built = |graph: &PathBuf| {
        let path = graph.to_string_lossy();
        let is_decoder = path.contains("/decoder/first.") || path.contains("/decoder/next.");
        path.contains("high_noise") || path.contains("/text_encoder/") || is_decoder
    };
    let graphs: Vec<_> = graphs.into_iter().filter(is_built).collect();
    assert_eq!(graphs.len(), 4 * 3, "bf16, INT8 and E4M3");
    let Some(output) = parsed("engines of mini", &["--build"], &graphs) else { return };
    succeeded(&output, graphs.len());
}

/// The shape of A14B with two layers of an expert and of the text encoder.
fn two_layers_of_a14b() -> Manifest {
    let mut manifest =
        golden::export(&golden::case("two-experts").checkpoint()).unwrap().model.manifest().clone();
    manifest.denoiser = wan_denoiser(40, 2, 13_824);
    manifest.text_encoder = TextEncoderSpec {
        vocabulary: 256_384,
        width: 4096,
        heads: 64,
        head_width: 64,
        feed_forward: 10_240,
        layers: 2,
        buckets: 32,
        max_distance: 128,
        epsilon: 1e-6,
    };
    manifest.vae = wan21_vae();
    manifest
}

/// Weights that are zeros and take no disk space, but for the scales. Those of a quantised layer are stored as `quantize`
/// stores them for plain graphs.
fn placed(folder: &Path, manifest: &Manifest, numerics: &ComponentNumerics) -> PlacedWeights {
    let mut end = 0;
    let mut tensors = BTreeMap::new();
    let mut scales = Vec::new();
    let mut place = |name: String, element: ElementType, shape: Vec<usize>| {
        let offset = end;
        end += (element.bytes() * shape.iter().product::<usize>()) as u64;
        if name.ends_with("weight_scale") {
            scales.push(offset..end);
        }
        let location = "weights.safetensors".to_owned();
        let tensor = ExternalTensor { location, offset, length: end - offset, element, shape };
        tensors.insert(name, tensor);
    };
    for Required { name, shape } in required(manifest, &numerics.component) {
        let layer = name.strip_suffix(".weight").and_then(|layer| Some((layer, numerics.layers.get(layer)?)));
        let Some((layer, numbers)) = layer else {
            place(name, ElementType::Bf16, shape);
            continue;
        };
        let element = match numbers.weights {
            WeightScales::Rows(_) => {
                place(format!("{layer}.weight_scale"), ElementType::Bf16, vec![shape[0]]);
                ElementType::I8
            }
            _ => ElementType::F8E4M3,
        };
        if let Some(smoothing) = &numbers.smoothing {
            place(format!("{layer}.input_factors"), ElementType::Bf16, vec![smoothing.divisors.len()]);
        }
        if numerics.component == Component::TextEncoder && numbers.bias_shift.is_some() {
            place(format!("{layer}.bias"), ElementType::Bf16, vec![shape[0]]);
        }
        match shape[..] {
            [out, width] => place(name, element, vec![width, out]),
            [out, channels, 3, height, width] => {
                place(format!("{layer}.newest_tap"), element, vec![out, channels, height, width]);
                place(name, element, shape);
            }
            _ => place(name, element, shape),
        }
    }
    let file = File::create(folder.join("weights.safetensors")).unwrap();
    file.set_len(end).unwrap();
    for range in scales {
        // 0.0078125 in bf16.
        let bytes = [0x00, 0x3c].repeat(usize::try_from(range.end - range.start).unwrap() / 2);
        file.write_all_at(&bytes, range.start).unwrap();
    }
    PlacedWeights { tensors, files: Vec::new(), from: folder.to_owned() }
}

/// Two layers of an expert and of the text encoder of Wan2.2-T2V-A14B, and its decoder, in bf16, INT8 and E4M3.
#[test]
fn engines_are_built_at_the_width_of_a14b() {
    let manifest = two_layers_of_a14b();
    let expert = Component::Expert(manifest.routing.routes()[0].expert.clone());
    let sizes = ["--build", "--size", "rows=30", "--size", "columns=52", "--size", "h=16", "--size", "w=16"];
    for component in [expert, Component::TextEncoder, Component::Decoder] {
        for scheme in [None, Some(Scheme::Int8), Some(Scheme::Fp8)] {
            let folder = tempfile::tempdir().unwrap();
            let mut numerics = ComponentNumerics::empty(component.clone(), Digest::of_parts([]));
            if let Some(scheme) = scheme {
                fill(&mut numerics, &manifest, scheme);
            }
            let placed = placed(folder.path(), &manifest, &numerics);
            let lowering = Lowering::new(Target::Plain, WeightType::Bf16);
            let weights = GraphWeights::quantized(&placed, &numerics).lowered(lowering);
            let models = match component {
                Component::TextEncoder => vec![text_encoder_graph(&manifest.text_encoder, weights).unwrap()],
                Component::Decoder => [Chunk::First, Chunk::Next]
                    .map(|chunk| decoder_graph(&manifest.vae, chunk, weights).unwrap())
                    .into(),
                _ => vec![step_graph(&manifest.denoiser, weights).unwrap()],
            };
            let paths = (0..models.len()).map(|index| folder.path().join(format!("{index}.onnx")));
            let paths: Vec<PathBuf> = paths.collect();
            models.iter().zip(&paths).for_each(|(model, path)| model.write(path).unwrap());
            let scheme = scheme.map_or("bf16".to_owned(), |scheme| scheme.to_string());
            let Some(output) = parsed(&format!("{component} of A14B in {scheme}"), &sizes, &paths) else {
                return;
            };
            println!("{component} in {scheme}: {}", String::from_utf8_lossy(&output.stdout));
            succeeded(&output, paths.len());
        }
    }
}
