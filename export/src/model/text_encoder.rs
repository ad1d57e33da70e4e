//! The graph of the umT5 encoder: `ids [1,S]` to `states [1,S,D]`.
//!
//! It encodes tokens without padding. The rows equal those of a padded run, because padding is on the right and masked
//! and positions are relative. The caller pads with zeros.

use super::graph_weights::GraphWeights;
use crate::Error;
use bundle::dtype::ElementType;
use bundle::spec::{TEXT_ROWS, TextEncoderSpec};
use graph::{Attention, Dim, GraphBuilder, Model, Tensor};

/// Builds the graph of a text encoder.
///
/// # Errors
/// Returns an error if a weight is missing or does not match the spec.
pub fn text_encoder_graph(spec: &TextEncoderSpec, weights: GraphWeights<'_>) -> Result<Model, Error> {
    let mut graph = weights.lowering().builder("text_encoder");
    let g = &mut graph;
    let length = Dim::symbol("S");
    let ids = g.input("ids", ElementType::I64, &[1.into(), length.clone()]);
    let table_shape = [spec.vocabulary, spec.width];
    let table = weights.load_stored(g, "shared.weight", &table_shape, &table_shape)?;
    // Rows are widened after the lookup: the table of 256,000 rows is never widened as a whole.
    let rows = g.gather(&table, &ids)?;
    let mut x = g.cast(&rows, weights.lowering().compute);
    let buckets = relative_buckets(g, spec, &length)?;
    for layer in 0..spec.layers {
        x = g.scoped(&format!("layer.{layer}"), |g| encoder_layer(g, spec, weights, layer, &x, &buckets))?;
    }
    let gain = weights.load(g, "encoder.final_layer_norm.weight", &[spec.width])?;
    let states = g.rms_norm(&x, &gain, spec.epsilon)?;
    let states = g.cast(&states, ElementType::F32);
    g.output("states", &states)?;
    Ok(graph.finish()?)
}

fn encoder_layer(
    g: &mut GraphBuilder,
    spec: &TextEncoderSpec,
    weights: GraphWeights<'_>,
    layer: usize,
    x: &Tensor,
    buckets: &Tensor,
) -> Result<Tensor, Error> {
    let (width, inner) = (spec.width, spec.heads * spec.head_width);
    let attention = format!("encoder.block.{layer}.layer.0");
    let mlp = format!("encoder.block.{layer}.layer.1");

    let part = |part: &str| format!("{attention}.SelfAttention.{part}");
    let gain = weights.load(g, &format!("{attention}.layer_norm.weight"), &[width])?;
    let [gain] = weights.smoothed(g, &part("q"), [gain])?;
    let h = g.rms_norm(x, &gain, spec.epsilon)?;
    let q = weights.linear_without_bias(g, &part("q"), &h, [inner, width])?;
    let k = weights.linear_without_bias(g, &part("k"), &h, [inner, width])?;
    let v = weights.linear_without_bias(g, &part("v"), &h, [inner, width])?;
    let bias = position_bias(g, spec, weights, &part("relative_attention_bias.weight"), buckets)?;
    // umT5 does not divide by the root of the head width.
    let mixed = g.attention(Attention { heads: spec.heads, scale: 1.0 }, &q, &k, &v, Some(&bias))?;
    let mixed = weights.linear_without_bias(g, &part("o"), &mixed, [width, inner])?;
    let x = g.add(x, &mixed)?;

    let part = |part: &str| format!("{mlp}.DenseReluDense.{part}");
    let gain = weights.load(g, &format!("{mlp}.layer_norm.weight"), &[width])?;
    let [gain] = weights.smoothed(g, &part("wi_0"), [gain])?;
    let h = g.rms_norm(&x, &gain, spec.epsilon)?;
    let gate = weights.linear_without_bias(g, &part("wi_0"), &h, [spec.feed_forward, width])?;
    let gate = g.gelu_tanh(&gate);
    let linear = weights.linear_without_bias(g, &part("wi_1"), &h, [spec.feed_forward, width])?;
    let hidden = g.multiply(&gate, &linear)?;
    let out = weights.linear_without_bias(g, &part("wo"), &hidden, [width, spec.feed_forward])?;
    Ok(g.add(&x, &out)?)
}

/// Returns `bias [1,n,S,S]` from a table `[buckets,n]`; every layer of umT5 has its own table.
fn position_bias(
    g: &mut GraphBuilder,
    spec: &TextEncoderSpec,
    weights: GraphWeights<'_>,
    name: &str,
    buckets: &Tensor,
) -> Result<Tensor, Error> {
    let table = weights.load(g, name, &[spec.buckets, spec.heads])?;
    let bias = g.gather(&table, buckets)?; // [S,S,n]
    let bias = g.transpose(&bias, &[2, 0, 1])?; // [n,S,S]
    let mut shape = vec![Dim::from(1)];
    shape.extend_from_slice(bias.shape());
    Ok(g.reshape(&bias, &shape)?)
}

/// Returns the bucket of every pair of positions, `[S,S]` i64: row = query, column = key.
fn relative_buckets(g: &mut GraphBuilder, spec: &TextEncoderSpec, length: &Dim) -> Result<Tensor, Error> {
    let furthest = i64::try_from(TEXT_ROWS - 1).unwrap_or(i64::MAX);
    let buckets: Vec<i64> = (-furthest..=furthest)
        .map(|offset| relative_bucket(offset, spec.buckets, spec.max_distance))
        .collect();
    let table = g.integers("bucket of each offset", &[buckets.len()], &buckets)?;
    let positions = g.range(length)?;
    let keys = g.reshape(&positions, &[1.into(), length.clone()])?;
    let queries = g.reshape(&positions, &[length.clone(), 1.into()])?;
    let offsets = g.subtract(&keys, &queries)?;
    let shift = g.integers("furthest offset", &[1], &[furthest])?;
    let indices = g.add(&offsets, &shift)?;
    Ok(g.gather(&table, &indices)?)
}

/// Returns the bucket of `offset` = key position − query position, for both directions.
///
/// Source: T5. Each sign has half of the buckets. The first half of those has one bucket per distance, the second half
/// is logarithmic up to `max_distance`.
fn relative_bucket(offset: i64, buckets: usize, max_distance: usize) -> i64 {
    #[expect(clippy::cast_precision_loss, reason = "distances of at most 511 and a few buckets")]
    let real = |value: u64| value as f64;
    let half = buckets as u64 / 2;
    let exact = half / 2;
    let distance = offset.unsigned_abs();
    let within = if distance < exact {
        distance
    } else {
        let scale = (real(max_distance as u64) / real(exact)).ln();
        // The small summand keeps exact powers, whose quotient may be rounded down, in the upper bucket.
        let steps = 1e-9 + (real(distance) / real(exact)).ln() / scale * real(half - exact);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "floor of a small positive"
        )]
        let steps = steps as u64;
        (exact + steps).min(half - 1)
    };
    i64::try_from(if offset > 0 { half + within } else { within }).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_those_of_umt5() {
        let spans =
            [(8, 11, 8), (12, 15, 9), (16, 22, 10), (23, 31, 11), (32, 45, 12), (46, 63, 13), (64, 90, 14)];
        for distance in 0..512_i64 {
            let within = match distance {
                0..8 => distance,
                91.. => 15,
                _ => spans.iter().find(|(from, to, _)| (*from..=*to).contains(&distance)).unwrap().2,
            };
            assert_eq!(relative_bucket(-distance, 32, 128), within, "{distance} back");
            let ahead = if distance == 0 { 0 } else { 16 + within };
            assert_eq!(relative_bucket(distance, 32, 128), ahead, "{distance} ahead");
        }
    }
}
