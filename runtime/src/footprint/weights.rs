//! Where weights are and how large they are in memory.
//!
//! Weights that a kernel reads as they are stored stay in the page cache, mapped from their file, and count as 0: f32
//! weights that are not prepacked, bf16 weights of linear layers that are not prepacked, and the packed weights of
//! Rushes kernels. ONNX Runtime's kernels on the CPU compute in f32, so other 16-bit weights are widened to 4 bytes when
//! a graph is opened. That includes the weights that a quantised variant keeps: it stores them in 16 bits.
//!
//! The graph itself and its kernels take a few hundred kilobytes ([`Graph`]).
//!
//! On an accelerator weights are counted as stored. That is not measured.

use super::{F32, SessionSettings, bytes, pool, pool_of_accelerator, wide};
use bundle::dtype::ElementType;
use bundle::manifest::{Component, ComponentEntry, Manifest, Part};
use bundle::spec::{DenoiserSpec, TextEncoderSpec, VaeSpec};
use bundle::variant::{KernelLibrary, Precision, Target, Variant};
use engines::WeightMemory;
use engines::residency::MemoryNeed;

/// Memory of an open graph without its weights: what is the same for every graph, and its nodes.
#[derive(Debug, Clone, Copy)]
struct Graph {
    fixed: u128,
    /// Of a layer of the model: its nodes and their kernels.
    layer: u128,
}

/// As measured: 0.47 MB with two layers of a step, 0.84 MB with four.
const GRAPH: Graph = Graph { fixed: 150_000, layer: 190_000 };

/// The memory of a component that does not depend on the shapes of its inputs, for the graph that runs for a part; 0 if
/// the bundle lacks it. `live` are the bytes held at the peak of a run.
pub(super) fn need(
    manifest: &Manifest,
    component: &Component,
    part: Part,
    settings: SessionSettings,
    live: u128,
) -> MemoryNeed {
    let Some(entry) = manifest.components.iter().find(|entry| entry.component == *component) else {
        return MemoryNeed { activations: bytes(pool(live)), ..MemoryNeed::default() };
    };
    let runs = running_variant(manifest, entry, part, settings);
    let layers = match entry.component {
        Component::TextEncoder => manifest.text_encoder.layers,
        Component::Expert(_) => manifest.denoiser.layers,
        Component::Decoder | Component::ImageEncoder => 8,
        Component::Preview => 2,
    };
    let graph = GRAPH.fixed + GRAPH.layer * wide(layers);
    let [weights, opening] = match entry.component {
        Component::Decoder if runs.target == Target::Cpu => {
            decoder(&manifest.vae, part, runs, settings.weights)
        }
        _ => weights(manifest, entry, runs, settings.weights),
    };
    MemoryNeed {
        weights: bytes(graph + weights),
        activations: bytes(if runs.target == Target::Cpu { pool(live) } else { pool_of_accelerator(live) }),
        opening: bytes(opening + 2 * graph),
    }
}

/// Returns the variant that runs for a part, by the same rule as [`Model::graph`](crate::model::Model::graph): the
/// exported one if no other is wanted, or if the bundle lacks it.
pub(crate) fn running_variant(
    manifest: &Manifest,
    entry: &ComponentEntry,
    part: Part,
    settings: SessionSettings,
) -> Variant {
    let exported = Variant::cpu(entry.weight_type.into(), KernelLibrary::OnnxRuntime);
    let runs = settings.variant.and_then(|wanted| {
        let precision = manifest.precision_of(entry, wanted.precision);
        entry.graph(part, Variant { precision, ..wanted }).ok()
    });
    runs.map_or(exported, |graph| graph.variant)
}

/// The decoder's weights. ONNX Runtime rearranges the f32 weights of convolutions when it opens a graph, also if they
/// are mapped. Graphs for the first latent frame use one of three taps: it is sliced off when they are opened, and held
/// beside its copy in the layout of the kernel, with a third more, until the graph is open. Returns the weights, and what
/// opening takes beyond them.
fn decoder(spec: &VaeSpec, part: Part, runs: Variant, memory: WeightMemory) -> [u128; 2] {
    let [trunk, upsampler] = kernels(spec);
    let is_first = matches!(part, Part::First | Part::TrunkFirst | Part::UpsamplerFirst);
    let parts: &[Kernels] = match part {
        Part::Whole | Part::First | Part::Next => &[trunk, upsampler],
        Part::TrunkFirst | Part::TrunkNext => &[trunk],
        Part::UpsamplerFirst | Part::UpsamplerNext => &[upsampler],
    };
    let count = |of: fn(&Kernels) -> u128| parts.iter().map(of).sum::<u128>();
    let (causal, frame, time) = (count(|k| k.causal), count(|k| k.frame), count(|k| k.time));
    let sliced = if is_first { causal / 3 } else { 0 };
    match (runs.precision, runs.kernels) {
        (Precision::Int8, KernelLibrary::Rushes) => [0, 0],
        (Precision::Int8, KernelLibrary::OnnxRuntime) => match memory {
            WeightMemory::Mapped => [sliced, 0],
            WeightMemory::Prepacked if is_first => [sliced + frame, sliced * 4 / 3],
            WeightMemory::Prepacked => [causal + frame + time, 0],
        },
        _ if is_first => [F32 * (sliced + frame), F32 * sliced * 4 / 3],
        _ => [F32 * (causal + frame + time), 0],
    }
}

/// The number of weights of the decoder's convolutions.
#[derive(Debug, Clone, Copy, Default)]
struct Kernels {
    /// With three taps in time and nine in space.
    causal: u128,
    /// Of single frames.
    frame: u128,
    /// With three taps in time, before the frames are doubled; not used for the first latent frame.
    time: u128,
}

/// The kernels of the trunk and of the upsampler.
fn kernels(spec: &VaeSpec) -> [Kernels; 2] {
    let (z, deepest, blocks) =
        (wide(spec.latent_channels), wide(spec.deepest_width()), wide(spec.residual_blocks) + 1);
    let trunk = Kernels {
        causal: 27 * deepest * (z + (4 + 2 * blocks) * deepest),
        frame: z * z + 4 * deepest * deepest,
        time: 0,
    };
    let (mut upsampler, mut channels) = (Kernels::default(), deepest);
    let widths = spec.multipliers.iter().rev().map(|times| wide(*times) * wide(spec.base));
    let doubles_time = spec.temporal_downsample.iter().rev().copied().map(Some);
    for (level, (width, doubles_time)) in widths.zip(doubles_time.chain(std::iter::repeat(None))).enumerate()
    {
        if level > 0 {
            upsampler.causal += 27 * width * (channels + (2 * blocks - 1) * width);
            upsampler.frame += if channels == width { 0 } else { channels * width };
            channels = width;
        }
        if let Some(doubles_time) = doubles_time {
            upsampler.time += if doubles_time { 3 * 2 * channels * channels } else { 0 };
            upsampler.frame += 9 * channels * channels / 2;
            channels /= 2;
        }
    }
    upsampler.causal += 27 * 3 * channels;
    [trunk, upsampler]
}

/// Returns the weights, and what opening takes beyond them: weights that are widened are prepacked from there, and both
/// are held until the graph is open.
fn weights(manifest: &Manifest, entry: &ComponentEntry, runs: Variant, memory: WeightMemory) -> [u128; 2] {
    let own = entry.variant(runs);
    let stored = entry.weight_type.element();
    let exported = u128::from(entry.weight_bytes().0);
    if runs.target != Target::Cpu {
        return [own.map_or(exported, |own| u128::from(own.weight_bytes().0)), 0];
    }
    let prepacked = memory == WeightMemory::Prepacked;
    // Rows of the embedding table are read where they are mapped.
    let table = match entry.component {
        Component::TextEncoder => wide(manifest.text_encoder.vocabulary) * wide(manifest.text_encoder.width),
        _ => 0,
    };
    let all = (exported / stored.bytes() as u128).saturating_sub(table);
    if own.is_none() {
        let is_widened = stored != ElementType::F32;
        let in_place = match stored {
            ElementType::Bf16 if !prepacked => linear(manifest, &entry.component).min(all),
            _ => 0,
        };
        return [
            if prepacked || is_widened { F32 * (all - in_place) } else { 0 },
            if prepacked && is_widened { F32 * all } else { 0 },
        ];
    }
    let reduced = reduced(manifest, &entry.component, runs.kernels, all);
    let kept = F32 * all.saturating_sub(reduced);
    let is_emulated = runs.kernels == KernelLibrary::OnnxRuntime
        && matches!(runs.precision, Precision::Fp8 | Precision::F16 | Precision::Bf16);
    let widened = kept + if is_emulated { F32 * reduced } else { 0 };
    let narrow = match (runs.kernels, runs.precision) {
        // Read where they are mapped, or widened.
        (KernelLibrary::Rushes, _) | (_, Precision::Fp8 | Precision::F16 | Precision::Bf16) => 0,
        // The bytes, and a scale for each block.
        (KernelLibrary::OnnxRuntime, Precision::Int8Weights) if prepacked => reduced + reduced / 16,
        (KernelLibrary::OnnxRuntime, Precision::Int8) if prepacked => reduced,
        (KernelLibrary::OnnxRuntime, _) => 0,
    };
    [widened + narrow, if prepacked { widened } else { 0 }]
}

/// The number of a component's weights, of `all`, that a quantised variant stores in fewer bits.
fn reduced(manifest: &Manifest, component: &Component, kernels: KernelLibrary, all: u128) -> u128 {
    let reduced = match component {
        Component::TextEncoder => of_text_encoder(&manifest.text_encoder),
        Component::Expert(_) => of_denoiser(&manifest.denoiser, kernels),
        Component::Decoder | Component::ImageEncoder | Component::Preview => 0,
    };
    reduced.min(all)
}

/// The number of weights of a component's linear layers, which are used in place if they are mapped and in bf16 (see
/// `graph::Model::use_weights_in_place`).
fn linear(manifest: &Manifest, component: &Component) -> u128 {
    match component {
        Component::TextEncoder => of_text_encoder(&manifest.text_encoder),
        Component::Expert(_) => {
            let spec = &manifest.denoiser;
            let [width, frequencies, channels] =
                [spec.width(), spec.frequency_width, spec.out_channels].map(wide);
            let patch = wide(spec.patch.time) * wide(spec.patch.height) * wide(spec.patch.width);
            let of_ends = width * (frequencies + width + 6 * width + patch * channels);
            of_denoiser(spec, KernelLibrary::OnnxRuntime) + of_ends
        }
        Component::Decoder | Component::ImageEncoder | Component::Preview => 0,
    }
}

/// The number of weights of the four projections of attention and the three of the feed-forward layer.
fn of_text_encoder(spec: &TextEncoderSpec) -> u128 {
    let [layers, width, inner, feed_forward] =
        [spec.layers, spec.width, spec.heads * spec.head_width, spec.feed_forward].map(wide);
    layers * width * (4 * inner + 3 * feed_forward)
}

/// The projections of both attentions and of the feed-forward layer. Graphs for ONNX Runtime kernels also quantise the
/// two layers of the text embedding.
fn of_denoiser(spec: &DenoiserSpec, kernels: KernelLibrary) -> u128 {
    let [layers, width, feed_forward, text] =
        [spec.layers, spec.width(), spec.feed_forward, spec.text_width].map(wide);
    let blocks = layers * width * (8 * width + 2 * feed_forward);
    match kernels {
        KernelLibrary::OnnxRuntime => blocks + width * (text + width),
        KernelLibrary::Rushes => blocks,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::catalog::wan21_vae;

    #[test]
    fn the_decoder_has_as_many_weights_as_published() {
        // 293 MB in f32, with the encoder left out.
        let [trunk, upsampler] = kernels(&wan21_vae());
        let all = [trunk, upsampler].map(|kernels| kernels.causal + kernels.frame + kernels.time);
        let megabytes = F32 * (all[0] + all[1]) / 1_000_000;
        assert!((290..=294).contains(&megabytes), "{megabytes}");
    }
}
