//! Memory of a denoising step.

use super::accelerator::{self, Scores, between_operators, element_bytes};
use super::weights::{need, running_variant};
use super::{BF16, F32, SessionSettings, wide};
use bundle::manifest::{Component, Manifest, Part};
use bundle::spec::{DenoiserSpec, TEXT_ROWS};
use bundle::variant::{KernelLibrary, Precision, Target};
use engines::residency::MemoryNeed;

/// The sizes of a step's inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepShape {
    /// Tokens of the latent.
    pub tokens: usize,
    /// Prompts in one call: 2 if both guidance passes run as one batch.
    pub batch: usize,
    /// Rows of text states. Graphs for ONNX Runtime kernels always take all of them.
    pub text_rows: usize,
    /// Entries of the map from tokens to timesteps: 1 if all tokens have the same timestep, otherwise `tokens`.
    pub timestep_rows: usize,
}

/// Predicts the memory of an expert that makes steps of this shape.
pub fn step_need(
    manifest: &Manifest,
    expert: &Component,
    settings: SessionSettings,
    shape: StepShape,
) -> MemoryNeed {
    let entry = manifest.components.iter().find(|entry| entry.component == *expert);
    let runs = entry.map(|entry| running_variant(manifest, entry, Part::Whole, settings));
    let spec = &manifest.denoiser;
    let on_accelerator = runs.filter(|runs| runs.target != Target::Cpu);
    if let (Some(entry), Some(runs)) = (entry, on_accelerator) {
        let runs = between_operators(entry, runs);
        let scores = Scores::of(settings.provider, runs);
        let live = accelerator::step(spec, shape, element_bytes(runs), scores);
        return need(manifest, expert, Part::Whole, settings, live);
    }
    let live = match runs.map(|runs| (runs.kernels, runs.precision)) {
        Some((KernelLibrary::Rushes, _)) => rushes(spec, shape),
        Some((KernelLibrary::OnnxRuntime, Precision::Int8)) => {
            onnx_runtime(spec, shape) + quantized_text(spec, shape)
        }
        Some((KernelLibrary::OnnxRuntime, _)) | None => onnx_runtime(spec, shape),
    };
    need(manifest, expert, Part::Whole, settings, live)
}

/// Bytes held at the peak of a step on ONNX Runtime kernels.
///
/// * The keys and values of the text in all layers: ONNX Runtime computes them before the first layer, because they
///   depend on the text only.
/// * In a layer, the feed-forward layer before and after its activation, and three rows of the model's width: the
///   residual stream, the input of the layer and its result. Or, if there are few tokens, two tables of text states and
///   six rows of each token while the text is projected.
/// * With several timesteps, three vectors of each token: those of a layer.
fn onnx_runtime(spec: &DenoiserSpec, shape: StepShape) -> u128 {
    let [tokens, batch, layers] = [shape.tokens, shape.batch, spec.layers].map(wide);
    let [feed_forward, width, rows] = [spec.feed_forward, spec.width(), TEXT_ROWS].map(wide);
    let of_layers = layers * 2 * rows * width;
    let layer = tokens * (2 * feed_forward + 3 * width);
    let of_text = 2 * rows * width + 6 * tokens * width;
    let vectors = if shape.timestep_rows > 1 { 3 * tokens * width } else { 0 };
    F32 * (batch * (of_layers + layer.max(of_text)) + vectors)
}

/// The text states as bytes, in INT8 on ONNX Runtime kernels.
fn quantized_text(spec: &DenoiserSpec, shape: StepShape) -> u128 {
    wide(shape.batch) * wide(TEXT_ROWS) * wide(spec.text_width)
}

/// Buffers of Rushes kernels that do not depend on the sizes of a step, as measured.
const KERNELS: u128 = 500_000;

/// Bytes held at the peak of a step on Rushes kernels, the same in INT8 and bf16.
///
/// * The keys and values of the text in all layers, bf16.
/// * In a layer, the feed-forward layer in bf16 and its quantised rows, the residual stream in f32, and five bytes of
///   each value of the model's width in bf16 and quantised rows. Or, if there are few tokens, two tables of text states
///   in f32.
/// * The scratch memory of attention: queries, keys and values of one prompt in bf16 (or less: 8 bits), with lengths
///   or scales.
fn rushes(spec: &DenoiserSpec, shape: StepShape) -> u128 {
    let [tokens, batch, rows, layers] = [shape.tokens, shape.batch, shape.text_rows, spec.layers].map(wide);
    let [feed_forward, width, heads] = [spec.feed_forward, spec.width(), spec.heads].map(wide);
    let of_layers = layers * rows * 2 * width * BF16;
    let layer = tokens * (3 * feed_forward + 9 * width);
    let of_text = 2 * F32 * rows * width;
    let padded = tokens.max(rows).next_multiple_of(64);
    let scratch = padded * (3 * BF16 * width + 4 * F32 * heads);
    batch * (of_layers + layer.max(of_text)) + scratch + KERNELS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::footprint::{bytes, pool};
    use bundle::catalog::wan_denoiser;
    use bundle::units::ByteCount;

    fn shape(tokens: usize, batch: usize) -> StepShape {
        StepShape { tokens, batch, text_rows: TEXT_ROWS, timestep_rows: 1 }
    }

    #[test]
    fn memory_grows_with_tokens_and_batch() {
        let spec = wan_denoiser(12, 30, 8960);
        for live in [onnx_runtime, rushes] {
            assert!(live(&spec, shape(1950, 2)) <= 2 * live(&spec, shape(1950, 1)));
            assert!(live(&spec, shape(1950, 2)) > live(&spec, shape(1950, 1)));
            assert!(live(&spec, shape(3900, 1)) > live(&spec, shape(1950, 1)));
        }
    }

    #[test]
    fn the_largest_extents_of_a_bundle_do_not_overflow() {
        let most = bundle::manifest::validate::MAX_EXTENT;
        let spec = DenoiserSpec { head_width: 2, ..wan_denoiser(most / 2, 1000, most) };
        let tokens = 25_001 * 16_384 * 16_384;
        let shape = StepShape { timestep_rows: tokens, ..shape(tokens, 2) };
        for live in [onnx_runtime, rushes] {
            assert_eq!(bytes(pool(live(&spec, shape))), ByteCount(u64::MAX));
        }
    }
}
