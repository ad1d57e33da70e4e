//! A decoder with INT8 Rushes kernels is close to the f32 graph, on every instruction path.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::manifest::{Bundle, Component, Part};
use bundle::quantization::Scheme;
use bundle::signature::{CACHE_INPUT, CACHE_OUTPUT};
use bundle::spec::VaeSpec;
use bundle::variant::{KernelLibrary, Precision, Variant};
use calibration::observe::replay::Replay;
use calibration::observe::set::{CalibrationSet, Sample, SetInfo, weight_digests};
use engines::{Cancel, OnnxRuntime, OpenOptions, Value, WeightMemory};
use graph::Model;
use kernels::Kernels;
use ndarray::{Array, Array1, Array2, ArrayD, Axis, Dimension, ShapeBuilder, concatenate};
use quality::quantize::metrics::psnr;
use quality::quantize::variant::UnquantizedLayers;
use quality::quantize::{QuantizeOptions, Quantizer};
use std::num::NonZeroUsize;
use std::path::Path;
use test_support::Random;
use tests::cpu_paths;
use tests::golden;
use tests::synthetic::{self, Values};

fn normal<D: Dimension, S: ShapeBuilder<Dim = D>>(shape: S, seed: u64) -> Array<f32, D> {
    let mut random = Random::new(seed);
    Array::from_shape_simple_fn(shape, || random.next_normal())
}

/// A decoder whose widths are not multiples of a panel, with one temporal upsampling and two convolutions in f32.
fn bundle(folder: &Path) -> Bundle {
    let template = golden::export(&golden::case("two-experts").checkpoint()).unwrap();
    let template = template.model.manifest();
    let vae = VaeSpec {
        base: 24,
        multipliers: vec![1, 2, 3],
        residual_blocks: 1,
        temporal_downsample: vec![false, true],
        ..synthetic::vae()
    };
    let specs = (template.denoiser.clone(), vae);
    let bundle = synthetic::bundle(folder, template, &Component::Decoder, specs, Values::Outliers);
    let sample = Sample {
        ids: Vec::new(),
        text: Vec::new(),
        latents: normal((1, 16, 1, 1, 1), 1),
        timesteps: Array1::from(vec![0.0]),
        latent: normal((16, 3, 6, 8), 5),
        cos: Array2::zeros((1, 1)),
        sin: Array2::zeros((1, 1)),
    };
    let info = SetInfo {
        rushes: String::new(),
        model: String::new(),
        weights: weight_digests(&bundle.manifest),
        settings: Vec::new(),
        samples: vec![(String::new(), 0)],
    };
    let set = CalibrationSet::begin(&bundle.folder, info).unwrap();
    set.write(0, &sample).unwrap();
    let onnx = OnnxRuntime::load(None).unwrap();
    let replay = Replay { bundle: &bundle, set: &set, onnx: &onnx, options: options(2) };
    let table = replay.run(&Cancel::new(), &mut |_| Ok(())).unwrap();
    table.write(&bundle.folder, &set.info).unwrap();
    let quantize = QuantizeOptions::new(Scheme::Int8);
    let calibration = bundle.folder.join("calibration.json");
    let mut quantizer = Quantizer::open(&bundle.folder, &calibration, quantize).unwrap();
    let unquantized = ["decoder.up_blocks.1.resnets.0.conv1", "decoder.up_blocks.0.upsamplers.0.time_conv"];
    let unquantized: UnquantizedLayers =
        unquantized.into_iter().map(|layer| (layer.to_owned(), "a test".to_owned())).collect();
    let numerics = quantizer.plan(&bundle.manifest.components[0], &unquantized).unwrap().numerics;
    quantizer.write(numerics, None).unwrap();
    quantizer.commit().unwrap();
    quantizer.bundle().clone()
}

fn options(threads: usize) -> OpenOptions {
    OpenOptions::cpu(NonZeroUsize::new(threads), WeightMemory::Mapped)
}

/// Decodes three latent frames to `[t,3,H,W]`.
fn decode(bundle: &Bundle, precision: Precision, kernels: Kernels, threads: usize) -> ArrayD<f32> {
    let onnx = OnnxRuntime::load(None).unwrap().with_kernels(kernels);
    let latent: ArrayD<f32> = normal((1, 16, 3, 7, 5), 77).into_dyn();
    let mut caches: Vec<(String, Value)> = Vec::new();
    let mut frames = Vec::new();
    for index in 0..3 {
        let part = if index == 0 { Part::First } else { Part::Next };
        let entry = &bundle.manifest.components[0];
        let path =
            bundle.path(&entry.graph(part, Variant::cpu(precision, KernelLibrary::Rushes)).unwrap().file);
        let signature = Model::read(&path).unwrap().signature();
        let mut engine = onnx.open(&path, &signature, &options(threads)).unwrap();
        let frame = latent.index_axis(Axis(2), index).to_owned().insert_axis(Axis(2));
        let frame = Value::from_f32(frame);
        let mut inputs = vec![("latent", &frame)];
        inputs.extend(caches.iter().map(|(name, value)| (name.as_str(), value)));
        let mut outputs = engine.run(&inputs, &Cancel::new()).unwrap();
        frames.push(outputs.take("frames").unwrap().to_f32().unwrap());
        let renamed = |name: &str| name.strip_prefix(CACHE_OUTPUT).map(|n| format!("{CACHE_INPUT}{n}"));
        caches = outputs.into_iter().filter_map(|(name, value)| Some((renamed(&name)?, value))).collect();
    }
    let views: Vec<_> = frames.iter().map(|frames| frames.view()).collect();
    concatenate(Axis(0), &views).unwrap()
}

#[test]
fn frames_are_close_to_those_of_the_f32_graph_and_the_same_for_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = bundle(folder.path());
    let exact = decode(&bundle, Precision::F32, Kernels::best(), 2);
    assert_eq!(exact.shape(), [5, 3, 28, 20]);
    for kernels in cpu_paths::available() {
        let frames = decode(&bundle, Precision::Int8, kernels, 1);
        assert_eq!(decode(&bundle, Precision::Int8, kernels, 3), frames, "on {}", kernels.path());
        let psnr = psnr((frames / 2.0).view(), (&exact / 2.0).view());
        assert!(psnr >= 30.0, "{psnr:.1} dB on {}", kernels.path());
    }
}
