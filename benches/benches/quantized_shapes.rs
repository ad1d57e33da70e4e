//! Measures errors and speeds of quantised graphs at the shapes of published models, with random weights.
//!
//! `cargo bench --package benches --bench quantized_shapes -- two-blocks|decoder|bundle`
//!
//! Each takes minutes, and the blocks take 1 GB of disk space; only the named ones run. `two-blocks` measures two
//! blocks of the 1.3B shape, `decoder` the decoder of Wan2.1, and `bundle` writes two blocks for
//! `benches/compare/quantizers.py`.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed measurement")]

use bundle::manifest::{Bundle, Component, Part};
use bundle::quantization::Scheme;
use bundle::signature::{CACHE_INPUT, CACHE_OUTPUT};
use bundle::spec::DenoiserSpec;
use bundle::variant::{KernelLibrary, Precision, Target, Variant};
use calibration::observe::replay::Replay;
use calibration::observe::set::{CalibrationSet, Sample, SetInfo, weight_digests};
use engines::{Cancel, OnnxRuntime, OpenOptions, Value, WeightMemory};
use graph::Model;
use graph::proto::{NodeProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto};
use ndarray::{Array, Array1, Array2, ArrayD, Axis, Dimension, ShapeBuilder, s};
use quality::quantize::metrics::{psnr, relative_error};
use quality::quantize::variant::UnquantizedLayers;
use quality::quantize::{QuantizeOptions, Quantizer};
use runtime::denoise::RotaryTables;
use std::path::Path;
use std::time::Instant;
use test_support::Random;
use tests::golden;
use tests::synthetic::{self, Values};

const OPTIONS: OpenOptions = OpenOptions::cpu(None, WeightMemory::Prepacked);

fn normal<D: Dimension, S: ShapeBuilder<Dim = D>>(shape: S, seed: u64) -> Array<f32, D> {
    let mut random = Random::new(seed);
    Array::from_shape_simple_fn(shape, || random.next_normal())
}

/// Writes a calibration set of `samples` to a folder.
fn record(folder: &Path, bundle: &Bundle, samples: &[Sample]) -> CalibrationSet {
    let info = SetInfo {
        rushes: String::new(),
        model: String::new(),
        weights: weight_digests(&bundle.manifest),
        settings: Vec::new(),
        samples: samples.iter().map(|_| (String::new(), 0)).collect(),
    };
    let set = CalibrationSet::begin(folder, info).unwrap();
    for (index, sample) in samples.iter().enumerate() {
        set.write(index, sample).unwrap();
    }
    set
}

/// Calibrates on `samples` and quantises. Returns the bundle.
fn quantized(bundle: &Bundle, samples: &[Sample]) -> Bundle {
    let set = record(&bundle.folder, bundle, samples);
    let onnx = OnnxRuntime::load(None).unwrap();
    let replay = Replay { bundle, set: &set, onnx: &onnx, options: OPTIONS };
    let table = replay.run(&Cancel::new(), &mut |_| Ok(())).unwrap();
    table.write(&bundle.folder, &set.info).unwrap();
    let calibration = bundle.folder.join("calibration.json");
    let options = QuantizeOptions {
        kernels: vec![KernelLibrary::Rushes, KernelLibrary::OnnxRuntime],
        ..QuantizeOptions::new(Scheme::Int8)
    };
    let mut quantizer = Quantizer::open(&bundle.folder, &calibration, options).unwrap();
    let began = Instant::now();
    for entry in bundle.manifest.components.clone() {
        let numerics = quantizer.plan(&entry, &UnquantizedLayers::new()).unwrap().numerics;
        let smoothed = numerics.layers.values().filter(|layer| layer.smoothing.is_some()).count();
        println!("{}: {} layers, {smoothed} smoothed", entry.component, numerics.layers.len());
        quantizer.write(numerics, None).unwrap();
    }
    quantizer.commit().unwrap();
    quantizer.write_numerics().unwrap();
    println!("planned and written in {:.1} s", began.elapsed().as_secs_f64());
    quantizer.bundle().clone()
}

/// The shortest of `runs` runs after one warm-up run, in seconds.
fn shortest(runs: usize, mut run: impl FnMut()) -> f64 {
    let time = |run: &mut dyn FnMut()| {
        let began = Instant::now();
        run();
        began.elapsed().as_secs_f64()
    };
    run();
    (0..runs).map(|_| time(&mut run)).fold(f64::INFINITY, f64::min)
}

/// Writes a copy of the graph with its residual stream before the first and after the last block as outputs.
fn with_stream(path: &Path) -> std::path::PathBuf {
    let mut model = Model::read(path).unwrap();
    let graph = model.proto.graph.as_mut().unwrap();
    for (name, scope) in [("before", "block.0/"), ("after", "head/")] {
        let is_norm = |kind: &str| matches!(kind, "LayerNormalization" | "NormQuant");
        let norm = |found: &&NodeProto| found.name.starts_with(scope) && is_norm(&found.op_type);
        let input = graph.node.iter().find(norm).unwrap().input[0].clone();
        let mut identity = graph.node.iter().find(|found| found.op_type == "Identity").unwrap().clone();
        identity.input = vec![input];
        identity.output = vec![name.to_owned()];
        identity.name = name.to_owned();
        graph.node.push(identity);
        let shape = graph.output[0].r#type.clone().unwrap().tensor_type.unwrap().shape.unwrap();
        let dim = shape.dim.iter().take(1).cycle().take(3).cloned();
        let dim = dim.enumerate().map(|(axis, mut dim)| {
            dim.value = Some(graph::proto::DimensionValue::DimParam(format!("{name}{axis}")));
            dim
        });
        graph.output.push(ValueInfoProto {
            name: name.to_owned(),
            r#type: Some(TypeProto {
                tensor_type: Some(TensorTypeProto {
                    elem_type: 1,
                    shape: Some(TensorShapeProto { dim: dim.collect() }),
                }),
            }),
        });
    }
    let out = path.with_extension("stream.onnx");
    model.write(&out).unwrap();
    out
}

/// Two blocks of the 1.3B shape with outlier channels.
fn two_blocks(folder: &Path) -> (DenoiserSpec, Bundle) {
    let template = golden::export(&golden::case("two-experts").checkpoint()).unwrap();
    let template = template.model.manifest();
    let spec = synthetic::denoiser(2);
    let specs = (spec.clone(), template.vae.clone());
    let bundle = synthetic::bundle(folder, template, &synthetic::expert(), specs, Values::Outliers);
    (spec, bundle)
}

/// Two steps over 1,950 tokens, with 60 tokens of text.
fn two_steps(spec: &DenoiserSpec, seed: u64) -> Sample {
    let shape = bundle::geometry::LatentShape { channels: 16, frames: 5, height: 30, width: 52 };
    let tables = RotaryTables::new(spec, shape);
    let mut text: Array2<f32> = normal((512, spec.text_width), 3 * seed);
    text.slice_mut(s![60.., ..]).fill(0.0);
    Sample {
        ids: Vec::new(),
        text: vec![text],
        latents: normal((2, 16, 5, 30, 52), seed),
        timesteps: Array1::from(vec![900.0, 300.0]),
        latent: normal((16, 5, 30, 52), seed),
        cos: tables.cos,
        sin: tables.sin,
    }
}

fn main() {
    let requested: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if requested.is_empty() {
        println!("nothing to measure; name two-blocks, decoder or bundle");
    }
    for name in requested {
        match name.as_str() {
            "two-blocks" => two_blocks_of_the_1_3b_shape(),
            "decoder" => the_decoder_of_wan21(),
            "bundle" => a_bundle_of_two_blocks_for_other_quantisers(),
            other => panic!("unknown measurement `{other}`; expected one of two-blocks, decoder and bundle"),
        }
    }
}

fn a_bundle_of_two_blocks_for_other_quantisers() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("two-blocks");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let (spec, bundle) = two_blocks(&folder);
    let sample = |seed| two_steps(&spec, seed);
    record(&folder.join("held-out"), &bundle, &[sample(99)]);
    let bundle = quantized(&bundle, &[sample(11), sample(12)]);
    assert!(bundle.manifest.precisions(Target::Cpu, KernelLibrary::OnnxRuntime).contains(&Precision::Int8));
    println!("{}", folder.display());
}

fn two_blocks_of_the_1_3b_shape() {
    let folder = tempfile::tempdir().unwrap();
    let (spec, bundle) = two_blocks(folder.path());
    let sample = |seed| two_steps(&spec, seed);
    let bundle = quantized(&bundle, &[sample(11), sample(12)]);
    let onnx = OnnxRuntime::load(None).unwrap();
    let entry = &bundle.manifest.components[0];
    let test = sample(99);
    let latent = Value::from_f32(test.latents.index_axis(Axis(0), 0).to_owned().insert_axis(Axis(0)));
    let timestep = Value::from_f32(Array1::from_elem(1, 600.0_f32));
    let rows = Value::from_i64(Array1::zeros(1));
    let (cos, sin) = (Value::from_f32(test.cos.clone()), Value::from_f32(test.sin.clone()));
    let all_rows = Value::from_f32(test.text[0].clone().insert_axis(Axis(0)));
    // The 60 rows that are not zero, and one row for all others.
    let merged = Value::from_f32(test.text[0].slice(s![..61, ..]).to_owned().insert_axis(Axis(0)));
    let mut bias = Array2::zeros((1, 61));
    bias[[0, 60]] = 452.0_f32.ln();
    let bias = Value::from_f32(bias);
    let measure = |precision: Precision, kernels: KernelLibrary| {
        let mut inputs =
            vec![("latent", &latent), ("timestep", &timestep), ("rows", &rows), ("cos", &cos), ("sin", &sin)];
        match kernels {
            KernelLibrary::OnnxRuntime => inputs.push(("text", &all_rows)),
            KernelLibrary::Rushes => inputs.extend([("text", &merged), ("key_bias", &bias)]),
        }
        let path = bundle.path(&entry.graph(Part::Whole, Variant::cpu(precision, kernels)).unwrap().file);
        let stream = with_stream(&path);
        let signature = Model::read(&stream).unwrap().signature();
        let mut outputs =
            onnx.open(&stream, &signature, &OPTIONS).unwrap().run(&inputs, &Cancel::new()).unwrap();
        let mut take = |name: &str| outputs.take(name).unwrap().to_f32().unwrap();
        let streams = (take("after") - take("before"), take("velocity"));
        let signature = Model::read(&path).unwrap().signature();
        let mut engine = onnx.open(&path, &signature, &OPTIONS).unwrap();
        (streams, shortest(5, || drop(engine.run(&inputs, &Cancel::new()).unwrap())))
    };
    let ((added, velocity), seconds) = measure(Precision::F32, KernelLibrary::OnnxRuntime);
    let errors = [KernelLibrary::OnnxRuntime, KernelLibrary::Rushes].map(|kernels| {
        let ((int8_added, int8_velocity), int8_seconds) = measure(Precision::Int8, kernels);
        let error = relative_error(int8_added.view(), added.view());
        let velocity_error = relative_error(int8_velocity.view(), velocity.view());
        println!(
            "int8 with {kernels} kernels: blocks {:.2} %, velocity {:.2} %; step {int8_seconds:.3} s, {:.2}x f32",
            100.0 * error,
            100.0 * velocity_error,
            seconds / int8_seconds
        );
        error
    });
    assert!(errors[0] <= 0.03 && errors[1] <= errors[0], "{errors:?}");
}

fn the_decoder_of_wan21() {
    let folder = tempfile::tempdir().unwrap();
    let template = golden::export(&golden::case("two-experts").checkpoint()).unwrap();
    let template = template.model.manifest();
    let specs = (template.denoiser.clone(), synthetic::vae());
    let bundle = synthetic::bundle(folder.path(), template, &Component::Decoder, specs, Values::Outliers);
    let sample = Sample {
        ids: Vec::new(),
        text: Vec::new(),
        latents: normal((1, 16, 1, 1, 1), 1),
        timesteps: Array1::from(vec![0.0]),
        latent: normal((16, 2, 12, 20), 5),
        cos: Array2::zeros((1, 1)),
        sin: Array2::zeros((1, 1)),
    };
    let bundle = quantized(&bundle, &[sample]);
    let onnx = OnnxRuntime::load(None).unwrap();
    let entry = &bundle.manifest.components[0];
    let mut frames: Vec<ArrayD<f32>> = Vec::new();
    let mut seconds = Vec::new();
    let variants = [
        (Precision::F32, KernelLibrary::OnnxRuntime),
        (Precision::Int8, KernelLibrary::OnnxRuntime),
        (Precision::Int8, KernelLibrary::Rushes),
    ];
    for (precision, kernels) in variants {
        let open = |part: Part| {
            let path = bundle.path(&entry.graph(part, Variant::cpu(precision, kernels)).unwrap().file);
            let signature = Model::read(&path).unwrap().signature();
            onnx.open(&path, &signature, &OPTIONS).unwrap()
        };
        let latent = Value::from_f32(normal((1, 16, 1, 30, 52), 77));
        let first = open(Part::First).run(&[("latent", &latent)], &Cancel::new()).unwrap();
        let caches: Vec<_> = first
            .into_iter()
            .filter_map(|(name, value)| {
                name.strip_prefix(CACHE_OUTPUT).map(|number| (format!("{CACHE_INPUT}{number}"), value))
            })
            .collect();
        let mut inputs = vec![("latent", &latent)];
        inputs.extend(caches.iter().map(|(name, value)| (name.as_str(), value)));
        let mut engine = open(Part::Next);
        let mut outputs = engine.run(&inputs, &Cancel::new()).unwrap();
        frames.push(outputs.take("frames").unwrap().to_f32().unwrap() / 2.0);
        drop(outputs);
        seconds.push(shortest(1, || drop(engine.run(&inputs, &Cancel::new()).unwrap())));
    }
    for (index, name) in ["int8", "int8 with Rushes kernels"].into_iter().enumerate() {
        println!(
            "a latent frame of 30x52: f32 {:.2} s, {name} {:.2} s, {:.2}x, {:.1} dB",
            seconds[0],
            seconds[index + 1],
            seconds[0] / seconds[index + 1],
            psnr(frames[index + 1].view(), frames[0].view())
        );
    }
}
