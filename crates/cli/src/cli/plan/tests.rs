//! The text of plans of Wan2.2-T2V-A14B at 1280x720 with 81 frames, on devices of four sizes.

use super::*;
use crate::cli::clip_time::DeviceSpeed;
use bundle::catalog::{umt5_xxl, wan_denoiser, wan21_vae};
use bundle::digest::Digest;
use bundle::dtype::WeightType;
use bundle::geometry::PixelSize;
use bundle::manifest::{ComponentEntry, FORMAT, GraphEntry, Part, QuantizedVariant, WeightFile};
use bundle::routing::{ExpertName, Routing};
use bundle::settings::Defaults;
use bundle::units::Timestep;
use bundle::variant::{KernelLibrary, Precision, Target};
use engines::{Placement, PlacementRequest, Provider};
use kernels::CpuPath;
use runtime::estimate::{ClipEstimate, CpuPeaks, Peaks, known_gpu};
use runtime::model::ModelOptions;
use runtime::plan::Length;
use std::collections::BTreeMap;

/// A component in bf16, and in FP8 for the CPU and TensorRT. `fp8` is the size of its FP8 weights.
fn entry(component: Component, bytes: u64, fp8: Option<u64>) -> ComponentEntry {
    let parts: &[Part] = match component {
        Component::Decoder => &[
            Part::First,
            Part::Next,
            Part::TrunkFirst,
            Part::UpsamplerFirst,
            Part::TrunkNext,
            Part::UpsamplerNext,
        ],
        _ => &[Part::Whole],
    };
    let file = |name: &str, bytes| vec![WeightFile { file: name.into(), bytes: ByteCount(bytes) }];
    let graph = |target, precision, part| GraphEntry {
        part,
        variant: Variant { target, precision, kernels: KernelLibrary::OnnxRuntime },
        file: format!("{component}/{part:?}.onnx"),
        batch_invariant: None,
    };
    let bf16 = Target::ALL.map(|target| (target, Precision::Bf16));
    let of_fp8 = [Target::Cpu, Target::Plain].map(|target| (target, Precision::Fp8));
    let variants = bf16.into_iter().chain(of_fp8);
    let graphs =
        variants.flat_map(|(target, precision)| parts.iter().map(move |part| (target, precision, *part)));
    let quantized = QuantizedVariant {
        precision: Precision::Fp8,
        kernels: KernelLibrary::OnnxRuntime,
        targets: Vec::new(),
        weights: fp8.map_or(Vec::new(), |bytes| file("fp8.safetensors", bytes)),
        quantized: 340,
        kept: 60,
        note: None,
    };
    ComponentEntry {
        graphs: graphs.map(|(target, precision, part)| graph(target, precision, part)).collect(),
        weights: file("weights.safetensors", bytes),
        weight_type: WeightType::Bf16,
        digest: Digest::of_parts([]),
        variants: vec![quantized],
        loras: Vec::new(),
        component,
    }
}

fn a14b() -> Manifest {
    // 85 % of the weights of an expert are in 8 bits.
    let expert =
        |name: &str| entry(Component::Expert(ExpertName(name.into())), 28_576_983_168, Some(16_430_000_000));
    Manifest {
        format: FORMAT,
        rushes: "0.0.0".into(),
        model: "Wan2.2-T2V-A14B".into(),
        text_encoder: umt5_xxl(),
        denoiser: wan_denoiser(40, 40, 13_824),
        vae: wan21_vae(),
        tiny_decoder: None,
        routing: Routing::pair(Timestep(875.0)).unwrap(),
        defaults: Defaults::resolve(&[], 2).unwrap(),
        components: vec![
            entry(Component::TextEncoder, 11_361_820_672, None),
            expert("high_noise"),
            expert("low_noise"),
            entry(Component::Decoder, 146_590_662, None),
        ],
        digests: BTreeMap::new(),
    }
}

/// The text of a plan on one GPU.
fn planned(device: &str, precision: Precision, place: &str, budgets: &str, gpu: &str) -> String {
    let manifest = a14b();
    let request = GenerateRequest {
        size: Some(PixelSize { width: 1280, height: 720 }),
        length: Some(Length::Frames(81)),
        ..GenerateRequest::new(PROMPT, SEED)
    };
    let plan = GenerationPlan::new(&manifest, &request).unwrap();
    let place = if place.is_empty() { PlacementRequest::default() } else { place.parse().unwrap() };
    let placement = Placement::new(&manifest, device.parse().unwrap(), &place).unwrap();
    let options = ModelOptions { precision: Some(precision), ..ModelOptions::default() };
    let request = MemoryRequest::placed(&manifest, placement, CpuPath::Scalar, &options).unwrap();
    let request = MemoryRequest { budgets: budgets.parse().unwrap(), ..request };
    let memory = MemoryPlan::new(&manifest, &plan, &request).unwrap();
    let gpu = DeviceSpeed::Gpu(known_gpu(gpu).unwrap());
    let cpu = CpuPeaks { int8: 3e12, bf16: Some(1.5e12), f32: 1e12, has_tiles: false };
    let speed = |device: Device| match device.provider() {
        Provider::Cpu => DeviceSpeed::Measured(cpu),
        _ => gpu,
    };
    let devices = memory.placement.devices();
    let speeds = devices.into_iter().map(|device| (device, Some(speed(device)))).collect();
    let peaks = |device| match speed(device) {
        DeviceSpeed::Measured(peaks) => Some(Peaks::Cpu(peaks)),
        DeviceSpeed::Gpu(gpu) => Some(Peaks::Gpu(gpu.peaks)),
    };
    let estimate = ClipEstimate::new(&manifest, &plan, (&request, &memory), &peaks);
    let time = ClipTime { estimate, speeds };
    Planned { manifest: &manifest, plan, request, memory, time, preview: PreviewKind::Rgb }.as_text()
}

#[test]
fn on_141_gibibytes_all_stay_open() {
    insta::assert_snapshot!(planned("cuda", Precision::Bf16, "", "141GiB", "h200"));
}

#[test]
fn on_80_gibibytes_both_experts_stay_open_in_bf16() {
    insta::assert_snapshot!(planned("cuda", Precision::Bf16, "", "80GiB", "h100"));
}

#[test]
fn on_48_gibibytes_both_experts_fit_in_fp8_and_one_in_bf16() {
    insta::assert_snapshot!(planned("tensorrt", Precision::Fp8, "", "48GiB", "l40s"));
    insta::assert_snapshot!(planned("cuda", Precision::Bf16, "", "48GiB", "l40s"));
}

#[test]
fn on_24_gibibytes_one_expert_fits_in_fp8_with_tiles_and_the_text_encoder_on_the_cpu() {
    let budgets = "24GiB,cpu=64GiB";
    let all = planned("tensorrt", Precision::Fp8, "", budgets, "rtx 4090");
    assert!(
        all.contains("--place text_encoder=cpu would leave its memory on tensorrt:0 to the experts"),
        "{all}"
    );
    let placed = planned("tensorrt", Precision::Fp8, "text_encoder=cpu", budgets, "rtx 4090");
    insta::assert_snapshot!(placed);
}

#[test]
fn the_first_argument_is_a_prompt_or_a_bundle() {
    use clap::Parser;
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().to_str().unwrap();
    let parse = |arguments: &[&str]| {
        let all = [&["rushes", "plan"], arguments].concat();
        match crate::cli::args::Cli::try_parse_from(all).unwrap().command {
            crate::cli::args::Command::Plan(args) => prompt_or_bundle(&args),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(parse(&[bundle]), (Some(bundle.into()), None));
    std::fs::write(folder.path().join(layout::MANIFEST), "{}").unwrap();
    assert_eq!(parse(&[bundle]), (None, Some(bundle.into())));
    assert_eq!(parse(&["a fox", "--bundle", bundle]), (Some("a fox".into()), Some(bundle.into())));
    assert_eq!(parse(&[]), (None, None));
}
