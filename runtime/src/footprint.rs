//! Predicted memory of each component for one clip, from sizes alone.

use crate::decode::{TileSide, Tiling};
use crate::denoise::BATCHED_TOKENS_MAX;
use crate::plan::GenerationPlan;
use bundle::dtype::ElementType;
use bundle::geometry::{LatentShape, VaeStride};
use bundle::manifest::{Component, ComponentEntry, Manifest};
use bundle::preview::PreviewKind;
use bundle::spec::{DenoiserSpec, TEXT_ROWS, TextEncoderSpec, TinyDecoderSpec, VaeSpec};
use bundle::units::ByteCount;
use bundle::variant::{KernelLibrary, Precision};
use engines::WeightMemory;
use engines::residency::Footprint;

/// Bytes of one f32.
const F32: u128 = 4;

/// Settings that decide the memory of a clip, besides its plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySettings {
    /// The location of weights in memory.
    pub weights: WeightMemory,
    /// Precision of the variant; `None` is the exported one.
    pub precision: Option<Precision>,
    /// Kernels of the variant.
    pub kernels: KernelLibrary,
    /// The kind of previews, whose decoder is open together with the experts.
    pub preview: PreviewKind,
    /// Tile size of the decoder; `None` decodes whole frames.
    pub tile: Option<TileSide>,
}

impl MemorySettings {
    /// The exported variant without previews, with frames decoded whole.
    pub fn plain(weights: WeightMemory) -> Self {
        Self {
            weights,
            precision: None,
            kernels: KernelLibrary::OnnxRuntime,
            preview: PreviewKind::Off,
            tile: None,
        }
    }
}

/// Returns the memory of each component for a clip, in order of use. The preview decoder is open together with the text
/// encoder and the experts, so it is counted with each of them.
///
/// Mapped weights that are stored as f32 count as 0: the system may drop their pages and read them again. The activations
/// of an image encoder are not predicted.
pub fn footprints(manifest: &Manifest, plan: &GenerationPlan, settings: MemorySettings) -> Vec<Footprint> {
    let MemorySettings { weights, preview, tile, .. } = settings;
    let positions = plan.latent.height * plan.latent.width;
    let preview_bytes = preview_bytes(manifest, positions, weights, preview);
    let batch = if plan.is_guided() && plan.tokens <= BATCHED_TOKENS_MAX { 2 } else { 1 };
    manifest
        .components
        .iter()
        .filter(|entry| entry.component != Component::Preview)
        .map(|entry| {
            let activations = match &entry.component {
                Component::TextEncoder => text_encoder_peak(&manifest.text_encoder) + preview_bytes,
                Component::Expert(_) => step_peak(&manifest.denoiser, plan.tokens, batch) + preview_bytes,
                Component::Decoder => match tile {
                    Some(side) => tiled_decoder_peak(&manifest.vae, plan.latent, side),
                    None => decoder_peak(&manifest.vae, positions),
                },
                // Only its weights are counted.
                Component::ImageEncoder => 0,
                Component::Preview => 0,
            };
            Footprint {
                component: entry.component.to_string(),
                weights: resident_weights(entry, settings),
                activations: bytes(activations),
            }
        })
        .collect()
}

/// Converts a byte count. Sums and products use 128 bits, which the extents of a bundle cannot exceed.
fn bytes(count: u128) -> ByteCount {
    ByteCount(u64::try_from(count).unwrap_or(u64::MAX))
}

/// Memory of the previews of a clip with `positions = h·w`.
fn preview_bytes(manifest: &Manifest, positions: usize, weights: WeightMemory, kind: PreviewKind) -> u128 {
    let weights_of = |component| {
        let entry = manifest.components.iter().find(|entry| entry.component == component);
        entry.map_or(0, |entry| u128::from(resident_weights(entry, MemorySettings::plain(weights)).0))
    };
    match kind {
        PreviewKind::Off | PreviewKind::Rgb => 0,
        PreviewKind::Tiny => {
            let activations =
                manifest.tiny_decoder.as_ref().map_or(0, |spec| tiny_decoder_peak(spec, positions));
            weights_of(Component::Preview) + activations
        }
        PreviewKind::Full => {
            // The first latent frame decodes to one frame, a later one to as many as the stride.
            let first = decoder_peak(&manifest.vae, positions) / manifest.vae.stride().time as u128;
            weights_of(Component::Decoder) + first
        }
    }
}

/// Size of the weights in memory. On the CPU they are f32, whatever their stored format, or 8 bits.
fn resident_weights(entry: &ComponentEntry, settings: MemorySettings) -> ByteCount {
    let MemorySettings { weights, precision, kernels, .. } = settings;
    if let Some(variant) = precision.and_then(|precision| entry.variant(precision, kernels)) {
        return if weights == WeightMemory::Mapped { ByteCount(0) } else { variant.weight_bytes() };
    }
    let stored = entry.weight_type.element();
    if weights == WeightMemory::Mapped && stored == ElementType::F32 {
        return ByteCount(0);
    }
    bytes(u128::from(entry.weight_bytes().0) * F32 / stored.bytes() as u128)
}

/// Peak of the text encoder: for a full prompt the position bias of two layers and the gated feed-forward.
fn text_encoder_peak(spec: &TextEncoderSpec) -> u128 {
    let [heads, width, feed_forward, rows] = [spec.heads, spec.width, spec.feed_forward, TEXT_ROWS].map(wide);
    F32 * (3 * heads * rows * rows + rows * (3 * feed_forward + 6 * width))
}

/// Peak of a step: the feed-forward layer before and after its activation, the residual stream and its branch.
fn step_peak(spec: &DenoiserSpec, tokens: usize, batch: usize) -> u128 {
    let [tokens, rows, batch] = [tokens, TEXT_ROWS, batch].map(wide);
    let [feed_forward, width] = [spec.feed_forward, spec.width()].map(wide);
    F32 * batch * (tokens * (2 * feed_forward + 4 * width) + rows * 4 * width)
}

/// Full-resolution layers that a decoder call holds at once, as measured: frames stacked for a causal convolution, the
/// same in the layout of the convolution, its result, and blocks that ONNX Runtime's pool cannot reuse.
const DECODER_LAYERS_HELD: u128 = 30;

/// Peak of a decoder call over `positions = h·w`: caches before and after, and layers at full resolution.
fn decoder_peak(spec: &VaeSpec, positions: usize) -> u128 {
    F32 * wide(positions) * (2 * cache_values(spec) + layer_values(spec))
}

/// Frames that the decoder's trunk (at the latent's resolution) holds: caches before and after, and a few layers.
const TRUNK_FRAMES_HELD: u128 = 60;

/// Peak of decoding in tiles: the trunk over the whole frame, the caches of all tiles, the caches that one call
/// replaces, its layers, and the decoded frames.
fn tiled_decoder_peak(spec: &VaeSpec, latent: LatentShape, side: TileSide) -> u128 {
    let tiling = Tiling::new(latent.height, latent.width, side);
    let (count, positions) = (wide(tiling.count()), wide(tiling.tile_positions()));
    let picture = 3 * frames_and_pixels(spec.stride()) * wide(latent.height) * wide(latent.width);
    let trunk = TRUNK_FRAMES_HELD * wide(spec.deepest_width()) * wide(latent.height) * wide(latent.width);
    F32 * (trunk + positions * ((count + 1) * cache_values(spec) + layer_values(spec)) + picture)
}

/// Peak of the tiny decoder over `positions = h·w`: four frames at full resolution, a few layers at once.
fn tiny_decoder_peak(spec: &TinyDecoderSpec, positions: usize) -> u128 {
    let [_, _, third, fourth] = spec.widths.map(wide);
    F32 * wide(positions) * frames_and_pixels(spec.stride()) * 4 * (third + fourth)
}

/// Values at full resolution that a call holds per latent position.
fn layer_values(spec: &VaeSpec) -> u128 {
    DECODER_LAYERS_HELD * frames_and_pixels(spec.stride()) * wide(spec.base)
}

/// Pixels in all frames per latent position.
fn frames_and_pixels(stride: VaeStride) -> u128 {
    wide(stride.time) * wide(stride.space) * wide(stride.space)
}

/// Values in the decoder's caches per latent position.
fn cache_values(spec: &VaeSpec) -> u128 {
    let base = wide(spec.base);
    let widest = base * wide(spec.multipliers.iter().copied().max().unwrap_or(1));
    let mut caches = 2 * wide(spec.latent_channels) + 8 * widest;
    let mut area = 1;
    let levels = spec.multipliers.len();
    for (level, width) in spec.multipliers.iter().rev().copied().map(wide).enumerate() {
        caches += 2 * area * 2 * (wide(spec.residual_blocks) + 1) * width * base;
        if level + 1 < levels {
            area *= 4;
        }
    }
    caches
}

fn wide(extent: usize) -> u128 {
    extent as u128
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::catalog::{wan_denoiser, wan21_vae};

    #[test]
    fn the_predicted_memory_of_a_decode_is_within_a_quarter_of_the_measured_one() {
        // 6.6 GB without the weights, at 30x52 latents (docs/benchmarks.md).
        let predicted = decoder_peak(&wan21_vae(), 30 * 52);
        assert!((5_000_000_000..8_300_000_000).contains(&predicted), "{predicted}");
    }

    #[test]
    fn smaller_tiles_need_less_memory_until_overlaps_dominate() {
        let vae = wan21_vae();
        let latent = LatentShape { channels: 16, frames: 21, height: 90, width: 160 };
        let needed: Vec<u128> =
            TileSide::TRIED.into_iter().map(|side| tiled_decoder_peak(&vae, latent, side)).collect();
        assert!(needed[2] < decoder_peak(&vae, 90 * 160) / 2, "{needed:?}");
        assert!(needed[..3].is_sorted_by(|a, b| a > b), "{needed:?}");
    }

    #[test]
    fn the_largest_extents_of_a_bundle_do_not_overflow() {
        let most = bundle::manifest::validate::MAX_EXTENT;
        let mut vae = wan21_vae();
        vae.base = most;
        vae.multipliers = vec![1; 8];
        vae.temporal_downsample = vec![true; 7];
        vae.residual_blocks = bundle::manifest::validate::MAX_COUNT;
        assert_eq!(bytes(decoder_peak(&vae, 16_384 * 16_384)), ByteCount(u64::MAX));
        let spec = wan_denoiser(most / 2, 1000, most);
        let tokens = 25_001 * 16_384 * 16_384;
        assert_eq!(bytes(step_peak(&DenoiserSpec { head_width: 2, ..spec }, tokens, 2)), ByteCount(u64::MAX));
    }

    #[test]
    fn memory_grows_with_positions_and_tokens() {
        let vae = wan21_vae();
        assert_eq!(decoder_peak(&vae, 2 * 1560), 2 * decoder_peak(&vae, 1560));
        let spec = wan_denoiser(12, 30, 8960);
        assert_eq!(step_peak(&spec, 1950, 2), 2 * step_peak(&spec, 1950, 1));
        assert!(step_peak(&spec, 3900, 1) > step_peak(&spec, 1950, 1));
    }
}
