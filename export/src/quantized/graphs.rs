//! The graphs of quantised variants.

use crate::Error;
use crate::model::{
    Chunk, GraphWeights, KernelLowering, Lowering, decoder_graph, decoder_trunk_graph,
    decoder_upsampler_graph, integer_decoder_graph, kernel_decoder_graph, kernel_step_graph, step_graph,
    text_encoder_graph,
};
use crate::weights::PlacedWeights;
use bundle::manifest::{Component, Manifest, Part};
use bundle::quantization::{ComponentNumerics, WeightScales};
use bundle::variant::KernelLibrary;
use graph::Model;

/// Builds the graphs of a component over quantised weights.
pub(super) fn build(
    manifest: &Manifest,
    numerics: &ComponentNumerics,
    placed: &PlacedWeights,
    (kernels, lowering): (KernelLibrary, Lowering),
) -> Result<Vec<(Part, Model)>, Error> {
    let weights = GraphWeights::quantized(placed, numerics).lowered(lowering);
    Ok(match (&numerics.component, kernels) {
        (Component::TextEncoder, _) => {
            vec![(Part::Whole, text_encoder_graph(&manifest.text_encoder, weights)?)]
        }
        (Component::Expert(_), KernelLibrary::OnnxRuntime) => {
            vec![(Part::Whole, step_graph(&manifest.denoiser, weights)?)]
        }
        (Component::Expert(_), KernelLibrary::Rushes) => {
            let lowering =
                KernelLowering { weights: GraphWeights::new(placed), values_as_bytes: true, branches: None };
            vec![(Part::Whole, kernel_step_graph(&manifest.denoiser, lowering)?)]
        }
        (Component::Decoder, KernelLibrary::OnnxRuntime) if lowering.is_plain || is_e4m3(numerics) => {
            let vae = &manifest.vae;
            vec![
                (Part::First, decoder_graph(vae, Chunk::First, weights)?),
                (Part::Next, decoder_graph(vae, Chunk::Next, weights)?),
                (Part::TrunkFirst, decoder_trunk_graph(vae, Chunk::First, weights)?),
                (Part::UpsamplerFirst, decoder_upsampler_graph(vae, Chunk::First, weights)?),
                (Part::TrunkNext, decoder_trunk_graph(vae, Chunk::Next, weights)?),
                (Part::UpsamplerNext, decoder_upsampler_graph(vae, Chunk::Next, weights)?),
            ]
        }
        (Component::Decoder, kernels) => {
            let build = match kernels {
                KernelLibrary::OnnxRuntime => integer_decoder_graph,
                KernelLibrary::Rushes => kernel_decoder_graph,
            };
            [(Part::First, Chunk::First), (Part::Next, Chunk::Next)]
                .into_iter()
                .map(|(part, chunk)| Ok((part, build(&manifest.vae, chunk, weights)?)))
                .collect::<Result<_, Error>>()?
        }
        (Component::ImageEncoder | Component::Preview, _) => Vec::new(),
    })
}

/// True if layers are quantised to E4M3.
fn is_e4m3(numerics: &ComponentNumerics) -> bool {
    numerics.layers.values().any(|layer| matches!(layer.weights, WeightScales::Tensor(_)))
}
