//! Predicted memory of each component for one clip, from sizes alone.

use crate::decode::{TileSide, Tiling};
use crate::denoise::BATCHED_TOKENS_MAX;
use crate::plan::GenerationPlan;
use bundle::dtype::{ElementType, Operators, Precision};
use bundle::geometry::LatentShape;
use bundle::manifest::{Component, ComponentEntry, Manifest};
use bundle::preview::PreviewKind;
use bundle::spec::{DenoiserSpec, TEXT_ROWS, TextEncoderSpec, TinyDecoderSpec, VaeSpec};
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
    /// The variant; none is the one that the model was exported in.
    pub precision: Option<Precision>,
    /// Whose operators, as of [`crate::model::Model::operators`].
    pub operators: Operators,
    /// What is open beside every expert.
    pub preview: PreviewKind,
    /// Tiles that pictures are decoded in; none decodes them whole.
    pub tile: Option<TileSide>,
}

impl Running {
    /// The exported variant without previews, pictures decoded whole.
    pub fn plain(weights: WeightMemory) -> Self {
        Self { weights, precision: None, operators: Operators::Stock, preview: PreviewKind::Off, tile: None }
    }
}

/// What each component needs for a clip, in the order in which they are used. What previews are made with is open beside
/// the text encoder and every expert, so it counts as theirs.
///
/// Mapped weights that are f32 already need none: the system may drop their pages and read them again.
pub fn footprints(manifest: &Manifest, plan: &GenerationPlan, running: Running) -> Vec<Footprint> {
    let Running { weights, preview, tile, .. } = running;
    let positions = plan.latent.height * plan.latent.width;
    let previewing = previewing(manifest, positions, weights, preview);
    let batch = if plan.is_guided() && plan.tokens <= BATCHED_TOKENS_MAX { 2 } else { 1 };
    manifest
        .components
        .iter()
        .filter(|entry| entry.component != Component::Preview)
        .map(|entry| {
            let activations = match &entry.component {
                Component::TextEncoder => encoding(&manifest.text_encoder) + previewing,
                Component::Expert(_) => step(&manifest.denoiser, plan.tokens, batch) + previewing,
                Component::Decoder => match tile {
                    Some(side) => decoding_tiles(&manifest.vae, plan.latent, side),
                    None => decoding(&manifest.vae, positions),
                },
                Component::Preview => 0,
            };
            Footprint {
                component: entry.component.to_string(),
                weights: resident_weights(entry, running),
                activations: ByteCount(activations as u64),
            }
        })
        .collect()
}

/// What previews of a clip with `positions = h·w` need.
fn previewing(manifest: &Manifest, positions: usize, weights: WeightMemory, kind: PreviewKind) -> usize {
    let weights_of = |component| {
        let entry = manifest.components.iter().find(|entry| entry.component == component);
        let bytes = entry.map_or(0, |entry| resident_weights(entry, Running::plain(weights)).0);
        usize::try_from(bytes).unwrap_or(usize::MAX)
    };
    match kind {
        PreviewKind::Off | PreviewKind::Rgb => 0,
        PreviewKind::Tiny => {
            let activations = manifest.tiny_decoder.as_ref().map_or(0, |spec| tiny_decoding(spec, positions));
            weights_of(Component::Preview).saturating_add(activations)
        }
        PreviewKind::Full => {
            // One frame where a later latent frame makes as many as the stride.
            let first = decoding(&manifest.vae, positions) / manifest.vae.stride().time;
            weights_of(Component::Decoder).saturating_add(first)
        }
    }
}

/// Weights as they lie in memory: on the CPU they are f32, however narrow they are stored, or 8 bits.
fn resident_weights(entry: &ComponentEntry, running: Running) -> ByteCount {
    let Running { weights, precision, operators, .. } = running;
    if let Some(variant) = precision.and_then(|precision| entry.variant(precision, operators)) {
        return if weights == WeightMemory::Mapped { ByteCount(0) } else { variant.weight_bytes() };
    }
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
    F32 * positions * (2 * caches(spec) + working(spec))
}

/// Frames that the part of a decoder at the latent's resolution holds: caches before and after, and a few layers.
const STEM_FRAMES_HELD: usize = 60;

/// Peak of decoding in tiles: what sees the whole picture, the caches of all tiles, those that one call replaces, its
/// layers, and the picture.
fn decoding_tiles(spec: &VaeSpec, latent: LatentShape, side: TileSide) -> usize {
    let tiling = Tiling::new(latent.height, latent.width, side);
    let (count, positions) = (tiling.count(), tiling.tile_positions());
    let stride = spec.stride();
    let picture = 3 * stride.time * stride.space * stride.space * latent.height * latent.width;
    let stem = STEM_FRAMES_HELD * spec.deepest_width() * latent.height * latent.width;
    F32 * (stem + positions * ((count + 1) * caches(spec) + working(spec)) + picture)
}

/// Peak of a tiny decoder over `positions = h·w`: four frames at full resolution, a few layers at once.
fn tiny_decoding(spec: &TinyDecoderSpec, positions: usize) -> usize {
    let stride = spec.stride();
    let [_, _, third, fourth] = spec.widths;
    F32 * positions * stride.time * stride.space * stride.space * 4 * (third + fourth)
}

/// Values at full resolution that a call holds for each latent position.
fn working(spec: &VaeSpec) -> usize {
    let stride = spec.stride();
    DECODER_LAYERS_HELD * stride.time * stride.space * stride.space * spec.base
}

/// Values that the caches of a decoder hold for each latent position.
fn caches(spec: &VaeSpec) -> usize {
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
    caches
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
    fn smaller_tiles_need_less_until_overlaps_take_over() {
        let vae = wan21_vae();
        let latent = LatentShape { channels: 16, frames: 21, height: 90, width: 160 };
        let needed: Vec<usize> =
            TileSide::TRIED.into_iter().map(|side| decoding_tiles(&vae, latent, side)).collect();
        assert!(needed[2] < decoding(&vae, 90 * 160) / 2, "{needed:?}");
        assert!(needed[..3].is_sorted_by(|a, b| a > b), "{needed:?}");
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
