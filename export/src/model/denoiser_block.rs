//! A block of the denoiser: self-attention, cross-attention to the text, feed-forward layer.

use super::graph_weights::GraphWeights;
use super::modulation::{Modulation, Vectors};
use crate::Error;
use bundle::quantization::AttentionNumerics;
use bundle::spec::DenoiserSpec;
use graph::{Attention, AttentionRanges, GraphBuilder, Tensor};

/// The inputs of every block besides the tokens.
#[derive(Debug)]
pub(super) struct Conditions {
    /// Text states after their projection, `[B,512,d]`, or `[B,T,d]` if equal rows are merged.
    pub(super) text: Tensor,
    /// Cosines of the rotary embedding, `[L,head/2]`.
    pub(super) cos: Tensor,
    /// Sines of the rotary embedding, `[L,head/2]`.
    pub(super) sin: Tensor,
}

/// Builds the modulation of self-attention and of the feed-forward layer of block `index`, for each token: `[1,M,d]`.
pub(super) fn token_vectors(
    g: &mut GraphBuilder,
    spec: &DenoiserSpec,
    weights: GraphWeights<'_>,
    index: usize,
    modulation: &Modulation,
) -> Result<[Vectors; 2], Error> {
    let [attention, feed_forward] = modulation.of_block(g, spec, weights, index)?;
    let mut of_tokens = |vectors: Vectors, next: &str| {
        let Vectors { scale, shift, gate } = vectors;
        let next = format!("blocks.{index}.{next}");
        let [scale, shift] = weights.smoothed(g, &next, [scale, shift])?;
        Ok::<_, Error>(Vectors {
            scale: modulation.of_tokens(g, &scale)?,
            shift: modulation.of_tokens(g, &shift)?,
            gate: modulation.of_tokens(g, &gate)?,
        })
    };
    Ok([of_tokens(attention, "attn1.to_q")?, of_tokens(feed_forward, "ffn.net.0.proj")?])
}

/// Builds block `index` over tokens `x [B,L,d]`, with the modulation of [`token_vectors`].
pub(super) fn block(
    g: &mut GraphBuilder,
    spec: &DenoiserSpec,
    weights: GraphWeights<'_>,
    (index, [attention, feed_forward]): (usize, &[Vectors; 2]),
    x: &Tensor,
    conditions: &Conditions,
) -> Result<Tensor, Error> {
    let d = spec.width();
    let part = |part: &str| format!("blocks.{index}.{part}");

    let h = g.layer_norm_of_tokens(x, [&attention.scale, &attention.shift], spec.epsilon)?;
    let attended = self_attention(g, spec, weights, &part("attn1"), &h, conditions)?;
    let gated = g.multiply_tokens(&attended, &attention.gate)?;
    let x = g.add(x, &gated)?;

    let scale = weights.load(g, &part("norm2.weight"), &[d])?;
    let shift = weights.load(g, &part("norm2.bias"), &[d])?;
    let [scale, shift] = weights.smoothed(g, &part("attn2.to_q"), [scale, shift])?;
    let h = g.layer_norm(&x, &scale, &shift, spec.epsilon)?;
    let attended = cross_attention(g, spec, weights, &part("attn2"), &h, &conditions.text)?;
    let x = g.add(&x, &attended)?;

    let h = g.layer_norm_of_tokens(&x, [&feed_forward.scale, &feed_forward.shift], spec.epsilon)?;
    let h = weights.linear(g, &part("ffn.net.0.proj"), &h, [spec.feed_forward, d])?;
    let h = g.gelu_tanh(&h);
    let h = weights.linear(g, &part("ffn.net.2"), &h, [d, spec.feed_forward])?;
    let gated = g.multiply_tokens(&h, &feed_forward.gate)?;
    Ok(g.add(&x, &gated)?)
}

/// A projection and an RMS norm over the full width, before the heads are split.
fn normed_projection(
    g: &mut GraphBuilder,
    spec: &DenoiserSpec,
    weights: GraphWeights<'_>,
    [projection, norm]: [&str; 2],
    x: &Tensor,
) -> Result<Tensor, Error> {
    let d = spec.width();
    let projected = weights.linear(g, projection, x, [d, d])?;
    let gain = weights.load(g, &format!("{norm}.weight"), &[d])?;
    Ok(g.rms_norm(&projected, &gain, spec.epsilon)?)
}

fn head_attention(spec: &DenoiserSpec) -> Attention {
    #[expect(clippy::cast_precision_loss, reason = "head widths are small")]
    let scale = 1.0 / (spec.head_width as f32).sqrt();
    Attention { heads: spec.heads, scale }
}

/// Attention; its matrix products are in E4M3 if `name` is quantised.
fn attend(
    g: &mut GraphBuilder,
    spec: &DenoiserSpec,
    weights: GraphWeights<'_>,
    name: &str,
    [q, k, v]: [&Tensor; 3],
) -> Result<Tensor, Error> {
    let Some(numbers) = weights.attention(name) else {
        return Ok(g.attention(head_attention(spec), q, k, v, None)?);
    };
    let element = q.element();
    let ranges = AttentionRanges {
        queries: g.range_e4m3(numbers.queries, element)?,
        keys: g.range_e4m3(numbers.keys, element)?,
        values: g.range_e4m3(numbers.values, element)?,
        weights: g.range_e4m3(AttentionNumerics::WEIGHTS, element)?,
    };
    Ok(g.decomposed_attention(head_attention(spec), [q, k, v], None, Some(&ranges))?)
}

fn self_attention(
    g: &mut GraphBuilder,
    spec: &DenoiserSpec,
    weights: GraphWeights<'_>,
    name: &str,
    x: &Tensor,
    conditions: &Conditions,
) -> Result<Tensor, Error> {
    let d = spec.width();
    let part = |part: &str| format!("{name}.{part}");
    let q = normed_projection(g, spec, weights, [&part("to_q"), &part("norm_q")], x)?;
    let k = normed_projection(g, spec, weights, [&part("to_k"), &part("norm_k")], x)?;
    let v = weights.linear(g, &part("to_v"), x, [d, d])?;
    let q = g.rotate_interleaved(spec.heads, &q, &conditions.cos, &conditions.sin)?;
    let k = g.rotate_interleaved(spec.heads, &k, &conditions.cos, &conditions.sin)?;
    let mixed = attend(g, spec, weights, name, [&q, &k, &v])?;
    weights.linear(g, &part("to_out.0"), &mixed, [d, d])
}

fn cross_attention(
    g: &mut GraphBuilder,
    spec: &DenoiserSpec,
    weights: GraphWeights<'_>,
    name: &str,
    x: &Tensor,
    text: &Tensor,
) -> Result<Tensor, Error> {
    let d = spec.width();
    let part = |part: &str| format!("{name}.{part}");
    let q = normed_projection(g, spec, weights, [&part("to_q"), &part("norm_q")], x)?;
    let k = normed_projection(g, spec, weights, [&part("to_k"), &part("norm_k")], text)?;
    let v = weights.linear(g, &part("to_v"), text, [d, d])?;
    let mixed = attend(g, spec, weights, name, [&q, &k, &v])?;
    weights.linear(g, &part("to_out.0"), &mixed, [d, d])
}
