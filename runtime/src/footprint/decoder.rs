//! Memory of the decoder and of the tiny decoder.

use super::accelerator::{Scores, between_operators, element_bytes};
use super::weights::{need, running_variant};
use super::{F32, SessionSettings, bytes, wide};
use crate::tiling::{TileSide, Tiling};
use bundle::geometry::LatentShape;
use bundle::manifest::{Component, Manifest, Part};
use bundle::spec::{TinyDecoderSpec, VaeSpec};
use bundle::units::ByteCount;
use bundle::variant::{KernelLibrary, Precision, Target, Variant};
use engines::Provider;
use engines::residency::MemoryNeed;

/// Predicts the memory of one graph of the decoder, or of the tiny decoder if `component` is [`Component::Preview`], for
/// latents of the height and width of `latent`; its frames do not matter.
///
/// Trunks run on whole frames and upsamplers on tiles of `tile`; other parts ignore `tile`. The caches that the calls of
/// a session leave for the next call are part of its activations, for upsamplers those of all tiles.
pub fn decoder_need(
    manifest: &Manifest,
    component: &Component,
    part: Part,
    settings: SessionSettings,
    latent: LatentShape,
    tile: Option<TileSide>,
) -> MemoryNeed {
    let positions = latent.height * latent.width;
    let runs = manifest.components.iter().find(|entry| entry.component == *component);
    let runs = runs.map(|entry| between_operators(entry, running_variant(manifest, entry, part, settings)));
    let live = match (component, &manifest.tiny_decoder) {
        (Component::Preview, None) => 0,
        (Component::Preview, Some(spec)) => tiny_decoder(spec, part, positions),
        _ => decoder(&manifest.vae, part, Held::of(settings.provider, runs), latent, tile),
    };
    need(manifest, component, part, settings, live)
}

/// Predicts the memory of the caches that a clip leaves from one call of the decoder to the next, for latents of the
/// height and width of `latent` in tiles of `tile`. It is part of [`decoder_need`]: another clip that is decoded in turn
/// with this one needs as much again.
pub fn decoder_caches(
    manifest: &Manifest,
    settings: SessionSettings,
    latent: LatentShape,
    tile: Option<TileSide>,
) -> ByteCount {
    let entry = manifest.components.iter().find(|entry| entry.component == Component::Decoder);
    let runs =
        entry.map(|entry| between_operators(entry, running_variant(manifest, entry, Part::Next, settings)));
    let held = Held::of(settings.provider, runs);
    let [trunk, upsampler] = cache_values(&manifest.vae).map(|values| held.cache_value * values);
    let tiling = tile.map(|side| Tiling::new(latent.height, latent.width, side));
    let upsampled = tiling.map_or(wide(latent.height) * wide(latent.width), |tiling| {
        wide(tiling.count()) * tiling.tile_size().map(wide).iter().product::<u128>()
    });
    bytes(wide(latent.height) * wide(latent.width) * trunk + upsampled * upsampler)
}

/// What a call of the decoder holds at its peak, which is at full resolution.
#[derive(Debug, Clone, Copy)]
struct Held {
    /// Bytes of a value of a cache.
    cache_value: u128,
    /// Bytes of a value of a layer of the trunk.
    trunk_value: u128,
    /// The scores of the attention in the trunk, which has one head.
    scores: Scores,
    /// Layers held for the first latent frame, in tenths of an f32 layer of one frame.
    first: u128,
    /// Layers held for a later latent frame, in tenths of an f32 layer of all its frames.
    next: u128,
}

impl Held {
    /// In f32: the residual, the input of a convolution, the same stacked three times, and all of these in the layout of
    /// the convolution.
    const FLOAT: Self =
        Self { cache_value: F32, trunk_value: F32, scores: Scores::Fused, first: 263, next: 261 };
    /// Quantised frames are a quarter of that, and they are stacked before the convolution.
    const INTEGER: Self = Self { cache_value: 1, first: 116, next: 82, ..Self::FLOAT };
    /// The kernel reads cache and frames where they are; its scratch memory has the frames with a border.
    const RUSHES: Self = Self { cache_value: 1, first: 96, next: 41, ..Self::FLOAT };

    /// The same graphs as on the CPU in f32, in values of `element` bytes. Accelerators compute convolutions in the layout
    /// of the frames: without the copies in another layout, half of the layers are held. Their attention is fused only
    /// by CUDA: TensorRT's fused kernels have no heads as wide as that of the decoder.
    fn on_accelerator(provider: Provider, element: u128) -> Self {
        let scores = if provider == Provider::Cuda { Scores::Fused } else { Scores::Materialised };
        let [first, next] = [Self::FLOAT.first, Self::FLOAT.next].map(|held| held * element / (2 * F32));
        Self { cache_value: element, trunk_value: element, scores, first, next }
    }

    fn of(provider: Provider, runs: Option<Variant>) -> Self {
        if let Some(runs) = runs.filter(|runs| runs.target != Target::Cpu) {
            return Self::on_accelerator(provider, element_bytes(runs));
        }
        match runs.map(|runs| (runs.precision, runs.kernels)) {
            Some((Precision::Int8, KernelLibrary::Rushes)) => Self::RUSHES,
            Some((Precision::Int8, KernelLibrary::OnnxRuntime)) => Self::INTEGER,
            _ => Self::FLOAT,
        }
    }
}

/// Bytes held at the peak of a decoder call: caches before and after, and [`Held`] layers.
fn decoder(spec: &VaeSpec, part: Part, held: Held, latent: LatentShape, tile: Option<TileSide>) -> u128 {
    let positions = wide(latent.height) * wide(latent.width);
    let frames = wide(spec.stride().time);
    let layer = F32 * pixels(spec) * wide(spec.base);
    let [trunk, upsampler] = cache_values(spec).map(|values| held.cache_value * values);
    let (first, next) = (held.first * layer / 10, held.next * frames * layer / 10);
    // Beside the layers, the attention of a frame has its scores.
    let scores = held.trunk_value * held.scores.values(1, positions, positions);
    let trunk_layers = |layers: u128| held.trunk_value * layers * wide(spec.deepest_width());
    let picture = PICTURES_HELD * 3 * F32 * pixels(spec);
    let next = next + frames * picture;
    match part {
        Part::First => positions * (trunk + upsampler) + (positions * first).max(scores),
        Part::Whole | Part::Next => positions * 2 * (trunk + upsampler) + (positions * next).max(scores),
        Part::TrunkFirst => positions * (trunk + trunk_layers(TRUNK_LAYERS_HELD[0])) + scores,
        Part::TrunkNext => positions * (2 * trunk + trunk_layers(TRUNK_LAYERS_HELD[1])) + scores,
        Part::UpsamplerFirst | Part::UpsamplerNext => {
            let tiling = tile.map(|side| Tiling::new(latent.height, latent.width, side));
            let (tiles, of_tile) = tiling.map_or((1, positions), |tiling| {
                (wide(tiling.count()), tiling.tile_size().map(wide).iter().product())
            });
            let (layers, caches) =
                if part == Part::UpsamplerFirst { (first, tiles) } else { (next, tiles + 1) };
            // Caches of several tiles leave gaps between them.
            let gaps = if tiles > 1 { 3 * upsampler / 4 } else { 0 };
            of_tile * (caches * upsampler + gaps + layers)
        }
    }
}

/// Pictures that a decoder call holds for a later latent frame: the frames, and what the last layers make of them. They
/// count only in decoders with few channels.
const PICTURES_HELD: u128 = 6;

/// Layers of one frame at the latent's resolution that the trunk holds: for the first latent frame, and for a later one.
const TRUNK_LAYERS_HELD: [u128; 2] = [27, 32];

/// Bytes held at the peak of the tiny decoder over `positions = h·w`: layers at full resolution, of four frames after
/// the first latent frame. ONNX Runtime's convolutions compute whole blocks of channels.
fn tiny_decoder(spec: &TinyDecoderSpec, part: Part, positions: usize) -> u128 {
    let width = wide(spec.widths[2].max(spec.widths[3]).next_multiple_of(CHANNEL_BLOCK));
    let space = wide(spec.stride().space / spec.patch.max(1));
    let frames = if part == Part::First { 1 } else { wide(spec.stride().time) };
    F32 * wide(positions) * space * space * frames * width * TINY_LAYERS_HELD / 10
}

/// Layers at full resolution that the tiny decoder holds, in tenths.
const TINY_LAYERS_HELD: u128 = 22;
/// Channels of a block of a convolution.
const CHANNEL_BLOCK: usize = 16;

/// Pixels of a frame per latent position.
fn pixels(spec: &VaeSpec) -> u128 {
    wide(spec.stride().space) * wide(spec.stride().space)
}

/// Values in the caches of two frames per latent position: those of the trunk, and those of the upsampler.
fn cache_values(spec: &VaeSpec) -> [u128; 2] {
    let blocks = wide(spec.residual_blocks) + 1;
    let deepest = wide(spec.deepest_width());
    let trunk = wide(spec.latent_channels) + 4 * deepest + 2 * blocks * deepest;
    let (mut upsampler, mut area, mut channels) = (0, 1, deepest);
    let widths = spec.multipliers.iter().rev().map(|times| wide(*times) * wide(spec.base));
    let doubles_time = spec.temporal_downsample.iter().rev().copied().map(Some);
    for (level, (width, doubles_time)) in widths.zip(doubles_time.chain(std::iter::repeat(None))).enumerate()
    {
        if level > 0 {
            upsampler += area * (channels + (2 * blocks - 1) * width);
            channels = width;
        }
        if let Some(doubles_time) = doubles_time {
            upsampler += if doubles_time { area * channels } else { 0 };
            area *= 4;
            channels /= 2;
        }
    }
    // The last convolution.
    [2 * trunk, 2 * (upsampler + area * channels)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::catalog::wan21_vae;

    fn latent(height: usize, width: usize) -> LatentShape {
        LatentShape { channels: 16, frames: 21, height, width }
    }

    #[test]
    fn the_predicted_memory_of_a_decode_is_within_a_quarter_of_the_measured_one() {
        // 6.6 GB without the weights, at 30x52 latents (docs/benchmarks.md).
        let predicted = decoder(&wan21_vae(), Part::Next, Held::FLOAT, latent(30, 52), None);
        assert!((5_000_000_000..8_300_000_000).contains(&predicted), "{predicted}");
    }

    #[test]
    fn caches_and_layers_on_a_gpu_are_in_bf16() {
        let held = Held::on_accelerator(Provider::Cuda, 2);
        let needed = |held, part| decoder(&wan21_vae(), part, held, latent(90, 160), None);
        // Two frames of each causal convolution at 1280x720: 2,179,123,200 values, before and after a call.
        let caches = 2 * 2 * 2_179_123_200;
        let whole = needed(held, Part::Next);
        assert!((caches + 8_000_000_000..caches + 11_000_000_000).contains(&whole), "{whole}");
        assert!(needed(Held::FLOAT, Part::Next) > 2 * whole);
        // Scores of 14,400 positions with each other and their softmax, beside the trunk's layers.
        let plain = Held::on_accelerator(Provider::TensorRt, 2);
        let [fused, kept] = [held, plain].map(|held| needed(held, Part::TrunkNext));
        assert_eq!(kept - fused, 2 * 2 * 14_400 * 14_400);
    }

    #[test]
    fn smaller_tiles_need_less_memory_until_overlaps_dominate() {
        let vae = wan21_vae();
        let needed = |part, tile| decoder(&vae, part, Held::FLOAT, latent(90, 160), tile);
        let tiled: Vec<u128> = TileSide::TRIED
            .into_iter()
            .map(|side| needed(Part::TrunkNext, None) + needed(Part::UpsamplerNext, Some(side)))
            .collect();
        assert!(tiled[2] < needed(Part::Next, None) / 2, "{tiled:?}");
        assert!(tiled[..3].is_sorted_by(|a, b| a > b), "{tiled:?}");
    }

    #[test]
    fn the_largest_extents_of_a_bundle_do_not_overflow() {
        let most = bundle::manifest::validate::MAX_EXTENT;
        let mut vae = wan21_vae();
        vae.base = most;
        vae.multipliers = vec![1; 8];
        vae.temporal_downsample = vec![true; 7];
        vae.residual_blocks = bundle::manifest::validate::MAX_COUNT;
        let needed = decoder(&vae, Part::Next, Held::FLOAT, latent(16_384, 16_384), None);
        assert_eq!(bytes(needed), ByteCount(u64::MAX));
    }

    #[test]
    fn caches_are_those_that_the_graphs_list() {
        // Two frames of the input of each causal convolution: conv_in, ten in the trunk; in the upsampler two time
        // convolutions, six in each of three levels, conv_out.
        let [trunk, upsampler] = cache_values(&wan21_vae());
        assert_eq!(trunk, 2 * (16 + 10 * 384));
        let levels = 384 + 4 * (192 + 5 * 384 + 384) + 16 * (6 * 192) + 64 * (6 * 96);
        assert_eq!(upsampler, 2 * (levels + 64 * 96));
    }

    #[test]
    fn memory_grows_with_positions() {
        let needed = |latent| decoder(&wan21_vae(), Part::Next, Held::FLOAT, latent, None);
        assert_eq!(needed(latent(30, 104)), 2 * needed(latent(30, 52)));
    }
}
