//! The parser and the builder of TensorRT for RTX, which need no GPU. Its Python packages are in
//! `target/providers/tensorrt-rtx/python`.

use crate::support::skipped;
use bundle::catalog::wan_denoiser;
use bundle::dtype::{ElementType, WeightType};
use bundle::manifest::Bundle;
use bundle::quantization::Scheme;
use bundle::variant::Target;
use engines::Provider;
use export::ExportRequest;
use export::checkpoint::inventory;
use export::model::{GraphWeights, Lowering, step_graph};
use export::weights::{ExternalTensor, PlacedWeights};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tests::golden;
use tests::made_up_scales::quantize_experts;

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

/// The graphs of mini for a target, with those of its experts in E4M3.
fn graphs_of_mini(folder: &Path, weights: WeightType, target: Target) -> Vec<PathBuf> {
    let out = folder.join(format!("{target}-{weights}"));
    let request = ExportRequest {
        targets: vec![target],
        weights: Some(weights),
        ..ExportRequest::new(&golden::case("mini").checkpoint(), &out)
    };
    export::export(&request, &mut |_| ()).unwrap();
    quantize_experts(&out, Scheme::Fp8);
    let bundle = Bundle::open(&out).unwrap();
    let graphs = bundle.manifest.components.iter().flat_map(|entry| &entry.graphs);
    graphs.filter(|graph| graph.variant.target == target).map(|graph| bundle.path(&graph.file)).collect()
}

#[test]
fn smoke_the_parser_takes_the_plain_graphs_of_mini() {
    let folder = tempfile::tempdir().unwrap();
    let mut graphs = graphs_of_mini(folder.path(), WeightType::F32, Target::Plain);
    graphs.extend(graphs_of_mini(folder.path(), WeightType::Bf16, Target::Plain));
    // Text encoder, two experts in two precisions, six parts of the decoder, two of the tiny decoder; twice.
    assert_eq!(graphs.len(), 2 * 13);
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
fn engines_are_built_from_the_experts_of_mini() {
    let folder = tempfile::tempdir().unwrap();
    let graphs = graphs_of_mini(folder.path(), WeightType::Bf16, Target::Plain);
    let experts: Vec<_> =
        graphs.into_iter().filter(|graph| graph.to_string_lossy().contains("high_noise")).collect();
    assert_eq!(experts.len(), 2, "bf16 and E4M3");
    let Some(output) = parsed("engines of mini", &["--build"], &experts) else { return };
    succeeded(&output, experts.len());
}

/// Two layers of an expert of Wan2.2-T2V-A14B, with weights that are zeros and take no disk space.
#[test]
fn an_engine_is_built_from_two_layers_of_an_expert_of_a14b() {
    let folder = tempfile::tempdir().unwrap();
    let spec = wan_denoiser(40, 2, 13_824);
    let mut end = 0;
    let tensors = inventory::denoiser(&spec).into_iter().map(|required| {
        let offset = end;
        end += 2 * required.shape.iter().product::<usize>() as u64;
        let location = "weights.safetensors".to_owned();
        let (length, element) = (end - offset, ElementType::Bf16);
        (required.name, ExternalTensor { location, offset, length, element, shape: required.shape })
    });
    let placed =
        PlacedWeights { tensors: tensors.collect(), files: Vec::new(), from: folder.path().to_owned() };
    File::create(folder.path().join("weights.safetensors")).unwrap().set_len(end).unwrap();
    let lowering = Lowering::new(Target::Plain, WeightType::Bf16);
    let graph = folder.path().join("step.onnx");
    step_graph(&spec, GraphWeights::new(&placed).lowered(lowering)).unwrap().write(&graph).unwrap();
    let sizes = ["--build", "--size", "rows=30", "--size", "columns=52"];
    let Some(output) = parsed("two layers of A14B", &sizes, &[graph]) else { return };
    succeeded(&output, 1);
}
