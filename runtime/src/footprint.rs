//! Predicted memory of each component for one clip, from sizes alone.

use crate::denoise::BATCHED_TOKENS_MAX;
use crate::plan::GenerationPlan;
use bundle::dtype::ElementType;
use bundle::manifest::{Component, ComponentEntry, Manifest};
use bundle::preview::PreviewKind;
use bundle::spec::{DenoiserSpec, TEXT_ROWS, TextEncoderSpec, VaeSpec};
use bundle::units::ByteCount;
use engines::WeightMemory;
use engines::residency::Footprint;

/// Bytes of one f32.
const F32: usize = 4;

/// What decides on memory beside the clip itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// Where weights lie.
    pub weights: WeightMemory,
    /// What is open beside every expert.
    pub preview: PreviewKind,
}

/// What each component needs for a clip, in the order in which they are used. Previews are made beside every expert, so
/// what they need counts as the expert's.
///
/// Mapped weights that are f32 already need none: the system may drop their pages and read them again.
pub fn footprints(manifest: &Manifest, plan: &GenerationPlan, running: Running) -> Vec<Footprint> {
    let Running { weights, preview } = running;
    let positions = plan.latent.height * plan.latent.width;
    let previewing = previewing(manifest, positions, weights, preview);
    let batch = if plan.is_guided() && plan.tokens <= BATCHED_TOKENS_MAX { 2 } else { 1 };
    manifest
        .components
        .iter()
        .map(|entry| {
            let activations = match &entry.component {
                Component::TextEncoder => encoding(&manifest.text_encoder),
                Component::Expert(_) => step(&manifest.denoiser, plan.tokens, batch) + previewing,
                Component::Decoder => decoding(&manifest.vae, positions),
            };
            Footprint {
                component: entry.component.to_string(),
                weights: resident_weights(entry, weights),
                activations: ByteCount(activations as u64),
            }
        })
        .collect()
}

/// What previews of a clip with `positions = h·w` need.
fn previewing(manifest: &Manifest, positions: usize, weights: WeightMemory, kind: PreviewKind) -> usize {
    match kind {
        PreviewKind::Off | PreviewKind::Rgb | PreviewKind::Tiny => 0,
        PreviewKind::Full => {
            let decoder = manifest.components.iter().find(|entry| entry.component == Component::Decoder);
            let weights = decoder.map_or(0, |entry| resident_weights(entry, weights).0);
            // One frame where a later latent frame makes as many as the stride.
            let first = decoding(&manifest.vae, positions) / manifest.vae.stride().time;
            usize::try_from(weights).unwrap_or(usize::MAX).saturating_add(first)
        }
    }
}

/// Weights as they lie in memory: on the CPU they are f32, however narrow they are stored.
fn resident_weights(entry: &ComponentEntry, weights: WeightMemory) -> ByteCount {
    let stored = entry.weight_type.element();
    if weights == WeightMemory::Mapped && stored == ElementType::F32 {
        return ByteCount(0);
    }
    let widening = (F32 / stored.bytes()) as u64;
    ByteCount(entry.weight_bytes().0 * widening)
}

/// Peak of the text encoder: a full prompt's position bias of two layers and the gated feed-forward.
fn encoding(spec: &TextEncoderSpec) -> usize {
    F32 * (3 * spec.heads * TEXT_ROWS * TEXT_ROWS + TEXT_ROWS * (3 * spec.feed_forward + 6 * spec.width))
}

/// Peak of a step: the feed-forward layer before and after its activation, beside the residual stream and its branch.
fn step(spec: &DenoiserSpec, tokens: usize, batch: usize) -> usize {
    let tokens = batch * tokens;
    let text = batch * TEXT_ROWS;
    F32 * (tokens * (2 * spec.feed_forward + 4 * spec.width()) + text * 4 * spec.width())
}

/// Full-resolution layers that a decoder call holds at once, as measured: frames stacked for a causal convolution, the
/// same in the layout of the convolution, its result, and what ONNX Runtime's pool cannot use again.
const DECODER_LAYERS_HELD: usize = 30;

/// Peak of a decoder call over `positions = h·w`: caches before and after, and the layers at full resolution.
fn decoding(spec: &VaeSpec, positions: usize) -> usize {
    let stride = spec.stride();
    let widest = spec.base * spec.multipliers.iter().copied().max().unwrap_or(1);
    let mut caches = 2 * spec.latent_channels + 8 * widest;
    let mut area = 1;
    let levels = spec.multipliers.len();
    for (level, width) in spec.multipliers.iter().rev().enumerate() {
        caches += 2 * area * 2 * (spec.residual_blocks + 1) * width * spec.base;
        if level + 1 < levels {
            area *= 4;
        }
    }
    let frames = stride.time * stride.space * stride.space;
    let working = DECODER_LAYERS_HELD * frames * spec.base;
    F32 * positions * (2 * caches + working)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::catalog::{wan_denoiser, wan21_vae};

    #[test]
    fn a_decode_is_predicted_within_a_quarter_of_what_was_measured() {
        // 6.6 GB beside the weights, at 30x52 latents (docs/benchmarks.md).
        let predicted = decoding(&wan21_vae(), 30 * 52);
        assert!((5_000_000_000..8_300_000_000).contains(&predicted), "{predicted}");
    }

    #[test]
    fn more_positions_and_tokens_need_more() {
        let vae = wan21_vae();
        assert_eq!(decoding(&vae, 2 * 1560), 2 * decoding(&vae, 1560));
        let spec = wan_denoiser(12, 30, 8960);
        assert_eq!(step(&spec, 1950, 2), 2 * step(&spec, 1950, 1));
        assert!(step(&spec, 3900, 1) > step(&spec, 1950, 1));
    }
}
