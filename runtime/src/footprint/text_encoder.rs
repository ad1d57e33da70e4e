//! Memory of the text encoder.

use super::accelerator::{self, between_operators, element_bytes};
use super::weights::{need, running_variant};
use super::{F32, SessionSettings, wide};
use bundle::manifest::{Component, Manifest, Part};
use bundle::spec::TextEncoderSpec;
use bundle::variant::Target;
use engines::residency::MemoryNeed;

/// Predicts the memory of the text encoder for a prompt of `tokens` tokens; the longest has
/// [`TEXT_ROWS`](bundle::spec::TEXT_ROWS).
pub fn text_encoder_need(manifest: &Manifest, settings: SessionSettings, tokens: usize) -> MemoryNeed {
    let spec = &manifest.text_encoder;
    let entry = manifest.components.iter().find(|entry| entry.component == Component::TextEncoder);
    let runs =
        entry.map(|entry| between_operators(entry, running_variant(manifest, entry, Part::Whole, settings)));
    let live = match runs.filter(|runs| runs.target != Target::Cpu) {
        Some(runs) => accelerator::text_encoder(spec, tokens, element_bytes(runs)),
        None => live(spec, tokens),
    };
    need(manifest, &Component::TextEncoder, Part::Whole, settings, live)
}

/// Bytes held at the peak.
///
/// * The position biases of all layers and the attention scores of one: for each head, a value for each pair of tokens.
///   ONNX Runtime computes the biases before the first layer, because they depend on the number of tokens only.
/// * Two tables of the distance of each pair of tokens, i64.
/// * The gated feed-forward layer: both products and their result, its input, and what is left of the layer before.
fn live(spec: &TextEncoderSpec, tokens: usize) -> u128 {
    let [heads, width, feed_forward, rows] = [spec.heads, spec.width, spec.feed_forward, tokens].map(wide);
    let biases = (wide(spec.layers) + 1) * heads + 4;
    F32 * (biases * rows * rows + rows * (3 * feed_forward + 5 * width / 2))
}
