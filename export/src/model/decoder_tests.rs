//! Digests of decoder graphs: nodes, names and their order are part of the bundle format.

use super::{
    Chunk, GraphWeights, Lowering, decoder_graph, decoder_trunk_graph, decoder_upsampler_graph,
    integer_decoder_graph, kernel_decoder_graph,
};
use crate::Error;
use crate::weights::{ExternalTensor, PlacedWeights};
use bundle::digest::Digest;
use bundle::dtype::{ElementType, WeightType};
use bundle::manifest::Component;
use bundle::quantization::{Affine, ComponentNumerics, LayerNumerics, WeightScales, layers};
use bundle::spec::VaeSpec;
use bundle::variant::Target;
use graph::Model;
use std::collections::BTreeMap;

fn spec() -> VaeSpec {
    VaeSpec {
        base: 8,
        latent_channels: 4,
        multipliers: vec![1, 2, 4, 4],
        residual_blocks: 1,
        temporal_downsample: vec![false, true, true],
        latents_mean: vec![0.1, 0.2, 0.3, 0.4],
        latents_std: vec![1.0, 2.0, 3.0, 4.0],
    }
}

/// Builds a graph over weights that are declared as the graph asks for them, and returns the digest of its dump.
fn digest(
    mut tensors: BTreeMap<String, ExternalTensor>,
    element: impl Fn(&str) -> ElementType,
    build: impl Fn(&PlacedWeights) -> Result<Model, Error>,
) -> String {
    loop {
        let placed = PlacedWeights { tensors: tensors.clone(), files: Vec::new(), from: "decoder".into() };
        match build(&placed) {
            Ok(model) => return Digest::of_parts([model.dump().as_bytes()]).short().to_owned(),
            Err(Error::MissingTensor { name, .. }) => {
                tensors.insert(name.clone(), tensor(&[], element(&name)));
            }
            Err(Error::WrongShape { name, expected, .. }) => {
                tensors.insert(name.clone(), tensor(&expected, element(&name)));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn tensor(shape: &[usize], element: ElementType) -> ExternalTensor {
    ExternalTensor {
        location: "weights/w.safetensors".into(),
        offset: 0,
        length: (shape.iter().product::<usize>() * element.bytes()) as u64,
        element,
        shape: shape.to_vec(),
    }
}

fn chunks(mut line: impl FnMut(&str, Chunk)) {
    line("first", Chunk::First);
    line("next", Chunk::Next);
}

#[test]
fn graphs_for_onnx_runtime_in_floating_point_are_stable() {
    let spec = spec();
    let mut text = String::new();
    for (target, weights) in [(Target::Cpu, WeightType::F32), (Target::Cuda, WeightType::Bf16)] {
        let lowering = Lowering::new(target, weights);
        let element = |_: &str| weights.element();
        chunks(|name, chunk| {
            let whole = digest(BTreeMap::new(), element, |p| {
                decoder_graph(&spec, chunk, GraphWeights::new(p).lowered(lowering))
            });
            let trunk = digest(BTreeMap::new(), element, |p| {
                decoder_trunk_graph(&spec, chunk, GraphWeights::new(p).lowered(lowering))
            });
            let upsampler = digest(BTreeMap::new(), element, |p| {
                decoder_upsampler_graph(&spec, chunk, GraphWeights::new(p).lowered(lowering))
            });
            text += &format!("{target} {name}: {whole} {trunk} {upsampler}\n");
        });
    }
    insta::assert_snapshot!(text, @"
    cpu first: c42f02306ca4 5cf8201c107f f517cbfca5e0
    cpu next: 6f6b5be3184d 2b1b2acdde8f 53d008bc91b2
    cuda first: fdea7dc5e2ce bdf5471a3a6e 518650238dd1
    cuda next: ece4cd18c56b 456a17e3c4ef 872a08786c24
    ");
}

/// Numbers for every convolution except those that contain one of `left_out`.
fn numerics(spec: &VaeSpec, left_out: &[&str]) -> ComponentNumerics {
    let mut numerics = ComponentNumerics::empty(Component::Decoder, Digest::of_parts([]));
    let is_quantized = |layer: &String| left_out.iter().all(|part| !layer.contains(part));
    for (number, layer) in (1_u16..).zip(layers::decoder(spec).into_iter().filter(is_quantized)) {
        let range = |zero_point| Affine { scale: 1.0 / f32::from(number), zero_point };
        let numbers = LayerNumerics::plain(WeightScales::Rows(vec![1.0]), Some(range(3)));
        numerics.layers.insert(layer, LayerNumerics { output: Some(range(5)), ..numbers });
    }
    numerics
}

const LEFT_OUT: [&[&str]; 2] =
    [&[], &["conv_in", "resample", "time_conv", "conv_shortcut", "to_qkv", "conv2"]];

#[test]
fn graphs_for_onnx_runtime_in_integers_are_stable() {
    let spec = spec();
    let mut text = String::new();
    for left_out in LEFT_OUT {
        let numerics = numerics(&spec, left_out);
        let element = |name: &str| match name.rsplit_once('.') {
            Some((layer, "weight")) if numerics.layers.contains_key(layer) => ElementType::I8,
            Some((layer, "bias")) if numerics.layers.contains_key(layer) => ElementType::I32,
            _ => ElementType::F32,
        };
        chunks(|name, chunk| {
            let digest = digest(BTreeMap::new(), element, |placed| {
                integer_decoder_graph(&spec, chunk, GraphWeights::quantized(placed, &numerics))
            });
            text += &format!("{} left out, {name}: {digest}\n", left_out.len());
        });
    }
    insta::assert_snapshot!(text, @"
    0 left out, first: be6463b8bf18
    0 left out, next: 0f5a44a8b949
    6 left out, first: f352178c2c96
    6 left out, next: 8b2a1e574510
    ");
}

#[test]
fn graphs_for_rushes_kernels_are_stable() {
    let spec = spec();
    let mut text = String::new();
    for left_out in LEFT_OUT {
        let numerics = numerics(&spec, left_out);
        let element = |name: &str| match name.rsplit_once('.') {
            Some((_, "packed")) => ElementType::I8,
            Some((_, "sums")) => ElementType::I32,
            _ => ElementType::F32,
        };
        let packed =
            numerics.layers.keys().map(|layer| (format!("{layer}.packed"), tensor(&[], ElementType::I8)));
        let packed: BTreeMap<_, _> = packed.collect();
        chunks(|name, chunk| {
            let digest = digest(packed.clone(), element, |placed| {
                kernel_decoder_graph(&spec, chunk, GraphWeights::quantized(placed, &numerics))
            });
            text += &format!("{} left out, {name}: {digest}\n", left_out.len());
        });
    }
    insta::assert_snapshot!(text, @"
    0 left out, first: 378b5da162e5
    0 left out, next: c0aec9481fb4
    6 left out, first: ac5071fae0ce
    6 left out, next: 3d0c564bad32
    ");
}
