//! LoRAs beside quantised weights on Rushes kernels, and beside E4M3 weights: mini, with files of every form of product.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use super::job_bundle::{contents, latents, start};
use super::loras::{expert, on};
use bundle::geometry::PixelSize;
use bundle::lora::{LoraExpert, LoraUse};
use bundle::manifest::Bundle;
use bundle::quantization::layers::denoiser;
use bundle::units::{GuidanceScale, Seed};
use bundle::variant::{KernelLibrary, Precision};
use engines::OnnxRuntime;
use export::quantized::BundleWeights;
use ndarray::Array4;
use runtime::model::{Model, ModelOptions};
use runtime::plan::{GenerateRequest, Length};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use test_support::Random;
use tests::branched::branched;
use tests::compare::relative_difference;
use tests::edit;
use tests::program::{event, rushes};

/// Mini in f32, with its experts in INT8 and bf16 on Rushes kernels, and in E4M3.
static MINI: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let output = rushes(folder.path()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    };
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/mini/checkpoint");
    edit::copy_folder(&checkpoint, &folder.path().join("ck"));
    let defaults = r#"{"size":"64x64","frames":5,"steps":3,"guidance":[4.0,4.0]}"#;
    std::fs::write(folder.path().join("ck/rushes.json"), defaults).unwrap();
    run(&["export", "ck", "--weights", "f32", "--out", "bundle"]);
    std::fs::write(folder.path().join("prompts"), "a red ball\n").unwrap();
    run(&["calibrate", "bundle", "--prompts", "prompts"]);
    let quantize = ["quantize", "bundle", "--clips", "1", "--components", "experts"];
    let int8 = ["--sensitivity", "estimated", "--kernels", "rushes"];
    run(&[&quantize[..], &int8].concat());
    run(&[&quantize[..], &["--scheme", "bf16"]].concat());
    run(&[&quantize[..], &["--scheme", "fp8"]].concat());
    let bundle = folder.path().join("bundle");
    (folder, bundle)
});

fn base() -> Bundle {
    Bundle::open(&MINI.1).unwrap()
}

/// Draws the tensors of a file whose changes have a given size relative to the weights.
struct Drawn {
    weights: BundleWeights,
    random: Random,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Drawn {
    fn new(seed: u64) -> Self {
        let bundle = base();
        let entry = bundle.manifest.component(&expert("high_noise")).unwrap().clone();
        let weights = BundleWeights::open(&bundle, &entry).unwrap();
        Self { weights, random: Random::new(seed), tensors: BTreeMap::new() }
    }

    /// The shape and the norm of a layer's weight.
    fn weight(&self, layer: &str) -> ([usize; 2], f32) {
        let (shape, values) = self.weights.read(&format!("{layer}.weight")).unwrap();
        let norm = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        ([shape[0], shape[1]], norm as f32)
    }

    fn put(&mut self, layer: &str, part: &str, shape: &[usize], size: f32) {
        let count = shape.iter().product::<usize>();
        let values = (0..count).map(|_| size * self.random.next_normal()).collect();
        self.tensors.insert(format!("{}.{part}", native(layer)), (shape.to_vec(), values));
    }

    /// `up · down`.
    fn pair(&mut self, layer: &str, rank: usize, share: f32) {
        let ([outputs, inputs], norm) = self.weight(layer);
        let size = (share * norm / ((outputs * inputs * rank) as f32).sqrt()).sqrt();
        self.put(layer, "lora_down.weight", &[rank, inputs], size);
        self.put(layer, "lora_up.weight", &[outputs, rank], size);
    }

    fn hadamard(&mut self, layer: &str, rank: usize, share: f32) {
        let ([outputs, inputs], norm) = self.weight(layer);
        let size = (share * norm / ((outputs * inputs) as f32).sqrt() / rank as f32).powf(0.25);
        for (part, shape) in [("w1_a", [outputs, rank]), ("w1_b", [rank, inputs])] {
            self.put(layer, &format!("hada_{part}"), &shape, size);
        }
        for (part, shape) in [("w2_a", [outputs, rank]), ("w2_b", [rank, inputs])] {
            self.put(layer, &format!("hada_{part}"), &shape, size);
        }
    }

    fn kronecker(&mut self, layer: &str, side: usize, share: f32) {
        let ([outputs, inputs], norm) = self.weight(layer);
        let size = (share * norm / ((outputs * inputs) as f32).sqrt()).sqrt();
        self.put(layer, "lokr_w1", &[side, side], size);
        self.put(layer, "lokr_w2", &[outputs / side, inputs / side], size);
    }

    /// Magnitudes of the outputs, about `1 + share` times the norms of the weight's rows; or those of the inputs.
    fn magnitudes(&mut self, layer: &str, share: f32, of_outputs: bool) {
        let ([outputs, inputs], norm) = self.weight(layer);
        let count = if of_outputs { outputs } else { inputs };
        let size = norm / (count as f32).sqrt();
        let values = (0..count).map(|_| size * (1.0 + share * self.random.next_normal())).collect();
        let shape = if of_outputs { vec![outputs, 1] } else { vec![1, inputs] };
        self.tensors.insert(format!("{}.dora_scale", native(layer)), (shape, values));
    }

    fn write(&self, folder: &Path, name: &str) -> PathBuf {
        let bytes: BTreeMap<&String, (Vec<usize>, Vec<u8>)> = self
            .tensors
            .iter()
            .map(|(key, (shape, values))| {
                (key, (shape.clone(), values.iter().flat_map(|value| value.to_le_bytes()).collect()))
            })
            .collect();
        let views = bytes
            .iter()
            .map(|(key, (shape, data))| (*key, TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
        let path = folder.join(name);
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        path
    }
}

/// The name of a layer of a block in the official code.
fn native(layer: &str) -> String {
    [
        ("attn1", "self_attn"),
        ("attn2", "cross_attn"),
        ("to_out.0", "o"),
        ("to_q", "q"),
        ("to_k", "k"),
        ("to_v", "v"),
        ("ffn.net.0.proj", "ffn.0"),
        ("ffn.net.2", "ffn.2"),
    ]
    .into_iter()
    .fold(layer.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// The linear layers of the blocks.
fn layers() -> Vec<String> {
    let groups = denoiser(&base().manifest.denoiser).into_iter().filter(|group| group.block.is_some());
    groups.flat_map(|group| group.layers).collect()
}

/// How a file is drawn.
type Draw = fn(&mut Drawn, &str);

/// Files with changes of every layer of the blocks of one expert, by the form of the changes.
fn forms() -> [(&'static str, Draw); 5] {
    [
        ("lora", |drawn, layer| drawn.pair(layer, 6, 0.25)),
        ("lora-64", |drawn, layer| drawn.pair(layer, 64, 0.25)),
        ("loha", |drawn, layer| drawn.hadamard(layer, 3, 0.3)),
        ("lokr", |drawn, layer| drawn.kronecker(layer, 4, 0.25)),
        ("dora", |drawn, layer| {
            drawn.pair(layer, 4, 0.15);
            drawn.magnitudes(layer, 0.15, true);
        }),
    ]
}

fn drawn(form: Draw, seed: u64) -> Drawn {
    let mut drawn = Drawn::new(seed);
    layers().iter().for_each(|layer| form(&mut drawn, layer));
    drawn
}

fn high(path: PathBuf) -> LoraUse {
    on(LoraExpert::HighNoise, path, 1.0)
}

/// The first latent of a clip.
fn first_latent(bundle: &Bundle, precision: Precision) -> Array4<f32> {
    let kernels = match precision {
        Precision::Int8 | Precision::Bf16 => KernelLibrary::Rushes,
        _ => KernelLibrary::OnnxRuntime,
    };
    let options =
        ModelOptions { precision: Some(precision), kernels: Some(kernels), ..ModelOptions::default() };
    let model = Model::new(bundle.clone(), OnnxRuntime::load(None).unwrap(), options).unwrap();
    assert_eq!(model.variant_of(&expert("high_noise")).unwrap().kernels, kernels);
    let mut pipeline = runtime::pipeline::Pipeline::new(&model);
    let request = GenerateRequest {
        // 32 tokens, so that products run on tiles where there are some.
        size: Some(PixelSize { width: 64, height: 64 }),
        length: Some(Length::Frames(5)),
        steps: Some(5),
        guidance: Some(vec![GuidanceScale(4.0), GuidanceScale(3.0)]),
        ..GenerateRequest::new("a red ball", Seed(3))
    };
    let start = start(&pipeline, &request);
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

/// How much nearer `with` is to `reference` than `without` is, in decibels.
fn decibels_nearer(reference: &Array4<f32>, [with, without]: [&Array4<f32>; 2]) -> f64 {
    let error = |latent: &Array4<f32>| relative_difference(latent.view(), reference.view());
    20.0 * (error(without) / error(with)).log10()
}

#[test]
fn quantised_models_on_rushes_kernels_with_a_branch_are_nearer_to_f32() {
    let folder = tempfile::tempdir().unwrap();
    let base = base();
    let precisions = [Precision::Int8, Precision::Bf16, Precision::Fp8];
    let without = precisions.map(|precision| first_latent(&base, precision));
    for (index, (name, form)) in forms().into_iter().enumerate() {
        let mut drawn = drawn(form, index as u64);
        // What is a private copy: of a packed bias, a norm, a table, and a layer outside the blocks.
        drawn.put("blocks.0.attn1.to_v", "diff_b", &[192], 0.3);
        drawn.put("blocks.1.ffn.net.0.proj", "diff_b", &[768], 0.3);
        drawn.put("blocks.1.attn1.norm_q", "diff", &[192], 0.1);
        let path = drawn.write(folder.path(), &format!("{name}.safetensors"));
        let found = branched(&base, &[high(path)], &folder.path().join(name)).unwrap();
        let reference = first_latent(&found, Precision::F32);
        for (precision, without) in precisions.into_iter().zip(&without) {
            let decibels = decibels_nearer(&reference, [&first_latent(&found, precision), without]);
            println!("{name}, {precision}: {decibels:.1} dB");
            assert!(decibels >= 6.0, "{name}, {precision}: {decibels:.1} dB");
        }
    }
}

#[test]
fn two_loras_add_on_rushes_kernels() {
    let folder = tempfile::tempdir().unwrap();
    let base = base();
    let uses: Vec<LoraUse> = [("one", 6, 11), ("other", 70, 12)]
        .into_iter()
        .map(|(name, rank, seed)| {
            let mut drawn = Drawn::new(seed);
            layers().iter().for_each(|layer| drawn.pair(layer, rank, 0.25));
            high(drawn.write(folder.path(), &format!("{name}.safetensors")))
        })
        .collect();
    let with = |name: &str, loras: &[LoraUse]| branched(&base, loras, &folder.path().join(name)).unwrap();
    let both = with("both", &uses);
    let precisions = [Precision::Int8, Precision::Bf16];
    let (reference, of_both) =
        (first_latent(&both, Precision::F32), precisions.map(|precision| first_latent(&both, precision)));
    for (name, single) in [("one", &uses[..1]), ("other", &uses[1..])] {
        let single = with(name, single);
        for (precision, of_both) in precisions.into_iter().zip(&of_both) {
            let decibels = decibels_nearer(&reference, [of_both, &first_latent(&single, precision)]);
            assert!(decibels >= 6.0, "both instead of {name} in {precision}: {decibels:.1} dB");
        }
    }
}

#[test]
fn a_clip_in_int8_applies_its_lora_and_changes_no_file_of_the_bundle() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("bundle");
    edit::copy_folder(&MINI.1, &copy);
    let before = contents(&copy);
    let (_, form) = forms()[0];
    drawn(form, 1).write(folder.path(), "style.safetensors");
    let clip = |name: &str, lora: &[&str]| {
        let arguments = ["generate", "a red ball", "--bundle", "bundle", "--precision", "int8"];
        let settings = ["--kernels", "rushes", "--seed", "3", "--steps", "3", "--json", "-o", name];
        let output = rushes(folder.path()).args(arguments).args(settings).args(lora).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(event(&output, "done")["kernels"], "rushes");
        latents(&output)
    };
    let plain = clip("a.mkv", &[]);
    let zero = clip("b.mkv", &["--lora", "high=style.safetensors@0"]);
    assert_eq!(plain, zero);
    let whole = clip("c.mkv", &["--lora", "high=style.safetensors"]);
    assert_ne!(plain, whole);
    assert_eq!(whole, clip("d.mkv", &["--lora", "high=style.safetensors"]));
    let after = contents(&copy);
    assert!(before.iter().all(|(path, bytes)| after.get(path) == Some(bytes)));
}

#[test]
fn changes_that_kernels_cannot_add_are_refused_with_the_command_that_merges_them() {
    let folder = tempfile::tempdir().unwrap();
    let base = base();
    let layer = "blocks.0.attn1.to_k";
    let draws: [(&str, Draw); 2] = [
        ("dense", |drawn, layer| drawn.put(layer, "diff", &[192, 192], 0.01)),
        ("inputs", |drawn, layer| {
            drawn.pair(layer, 4, 0.1);
            drawn.magnitudes(layer, 0.1, false);
        }),
    ];
    for (name, draw) in draws {
        let mut drawn = Drawn::new(5);
        draw(&mut drawn, layer);
        let path = drawn.write(folder.path(), &format!("{name}.safetensors"));
        let refused = branched(&base, &[high(path)], &folder.path().join(name)).unwrap_err().to_string();
        assert!(refused.contains(&format!("{layer}.weight")), "{name}: {refused}");
        assert!(refused.contains("rushes export"), "{name}: {refused}");
    }
}
