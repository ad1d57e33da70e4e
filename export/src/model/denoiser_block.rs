//! A block of the denoiser: self-attention, cross-attention to the text, feed-forward layer.

use super::graph_weights::GraphWeights;
use crate::Error;
use bundle::dtype::ElementType;
use bundle::quantization::AttentionNumerics;
use bundle::spec::DenoiserSpec;
use graph::{Attention, AttentionRanges, GraphBuilder, Tensor};

/// The inputs of every block besides the tokens.
#[derive(Debug)]
pub(super) struct Conditions {
    /// Shift, scale and gate of self-attention, then of the feed-forward layer, for each timestep: `[R,6,d]`, f32.
    pub(super) modulation: Tensor,
    /// The timestep of each token, as a row of `modulation`: `[1,M]`, i64. M is 1 if all tokens have the same.
    pub(super) rows: Tensor,
    /// Text states after their projection, `[B,512,d]`, or `[B,T,d]` if equal rows are merged.
    pub(super) text: Tensor,
    /// Cosines of the rotary embedding, `[L,head/2]`.
    pub(super) cos: Tensor,
    /// Sines of the rotary embedding, `[L,head/2]`.
    pub(super) sin: Tensor,
}

/// Builds block `index` over tokens `x [B,L,d]`.
pub(super) fn block(
    g: &mut GraphBuilder,
    spec: &DenoiserSpec,
    weights: GraphWeights<'_>,
    index: usize,
    x: &Tensor,
    conditions: &Conditions,
) -> Result<Tensor, Error> {
    let d = spec.width();
    let part = |part: &str| format!("blocks.{index}.{part}");
    let compute = weights.lowering().compute;
    let table = weights.in_f32().load(g, &part("scale_shift_table"), &[1, 6, d])?;
    let table = g.add(&table, &conditions.modulation)?;
    let modulation = |g: &mut GraphBuilder, first: usize| {
        let shift = row(g, &table, first, compute)?;
        let scale = one_plus_row(g, &table, first + 1, compute)?;
        Ok::<_, Error>((shift, scale, row(g, &table, first + 2, compute)?))
    };

    let (shift, scale, gate) = modulation(g, 0)?;
    let [scale, shift] = weights.smoothed(g, &part("attn1.to_q"), [scale, shift])?;
    let h = g.layer_norm_by_row(x, [&scale, &shift], &conditions.rows, spec.epsilon)?;
    let attended = self_attention(g, spec, weights, &part("attn1"), &h, conditions)?;
    let gated = g.multiply_by_row(&attended, &gate, &conditions.rows)?;
    let x = g.add(x, &gated)?;

    let scale = weights.load(g, &part("norm2.weight"), &[d])?;
    let shift = weights.load(g, &part("norm2.bias"), &[d])?;
    let [scale, shift] = weights.smoothed(g, &part("attn2.to_q"), [scale, shift])?;
    let h = g.layer_norm(&x, &scale, &shift, spec.epsilon)?;
    let attended = cross_attention(g, spec, weights, &part("attn2"), &h, &conditions.text)?;
    let x = g.add(&x, &attended)?;

    let (shift, scale, gate) = modulation(g, 3)?;
    let [scale, shift] = weights.smoothed(g, &part("ffn.net.0.proj"), [scale, shift])?;
    let h = g.layer_norm_by_row(&x, [&scale, &shift], &conditions.rows, spec.epsilon)?;
    let h = weights.linear(g, &part("ffn.net.0.proj"), &h, [spec.feed_forward, d])?;
    let h = g.gelu_tanh(&h);
    let h = weights.linear(g, &part("ffn.net.2"), &h, [d, spec.feed_forward])?;
    let gated = g.multiply_by_row(&h, &gate, &conditions.rows)?;
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

/// Returns vector `index` of modulation tables `[R,vectors,d]` f32, as `[R,d]` in the number format `compute`.
pub(super) fn row(
    g: &mut GraphBuilder,
    table: &Tensor,
    index: usize,
    compute: ElementType,
) -> Result<Tensor, Error> {
    let row = f32_row(g, table, index)?;
    Ok(g.cast(&row, compute))
}

/// Returns `1 +` vector `index` of modulation tables `[R,vectors,d]` f32, as `[R,d]` in the number format `compute`.
pub(super) fn one_plus_row(
    g: &mut GraphBuilder,
    table: &Tensor,
    index: usize,
    compute: ElementType,
) -> Result<Tensor, Error> {
    let one = g.constant("1.0", &[], &[1.0])?;
    let row = f32_row(g, table, index)?;
    let sum = g.add(&row, &one)?;
    Ok(g.cast(&sum, compute))
}

fn f32_row(g: &mut GraphBuilder, table: &Tensor, index: usize) -> Result<Tensor, Error> {
    let row = g.slice(table, 1, index, index + 1)?;
    Ok(g.reshape(&row, &[table.shape()[0].clone(), table.from_last(1)])?)
}
