//! What sessions on accelerators hold in memory. None of it was measured on a GPU; the sources are named.

use super::{BF16, F32, wide};
use bundle::manifest::ComponentEntry;
use bundle::spec::{DenoiserSpec, TEXT_ROWS, TextEncoderSpec};
use bundle::variant::{Precision, Target, Variant};
use engines::Provider;

use super::step::StepShape;

/// Returns a variant as if it was not quantised, on accelerators: their graphs quantise the operands of products only,
/// and what stays in memory between the operators is in the exported format.
pub(super) fn between_operators(entry: &ComponentEntry, runs: Variant) -> Variant {
    match runs.precision {
        Precision::Int8 | Precision::Fp8 if runs.target != Target::Cpu => {
            Variant { precision: entry.exported_precision(), ..runs }
        }
        _ => runs,
    }
}

/// Bytes of an activation of a variant on an accelerator, see [`between_operators`].
pub(super) fn element_bytes(runs: Variant) -> u128 {
    match runs.precision {
        Precision::F16 | Precision::Bf16 | Precision::Fp8 => BF16,
        Precision::F32 | Precision::Int8 | Precision::Int8Weights => F32,
    }
}

/// What attention keeps of the scores of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scores {
    /// Nothing: one kernel computes the scores block by block.
    Fused,
    /// The scores and their softmax, for each head and each pair of rows.
    Materialised,
}

impl Scores {
    /// The scores of the experts.
    ///
    /// * CUDA: graphs have `MultiHeadAttention`, which ONNX Runtime runs as flash attention in 16 bits (from compute
    ///   capability 8.0) and as memory-efficient attention in f32. Neither stores scores.
    /// * TensorRT and TensorRT for RTX: graphs have two products and a softmax, which TensorRT fuses in 16 bits. It does
    ///   not in f32.
    /// * OpenVINO and WebGPU run the same graphs operator by operator, as far as is known.
    pub(super) fn of(provider: Provider, runs: Variant) -> Self {
        match provider {
            Provider::Cpu | Provider::Cuda => Self::Fused,
            Provider::TensorRt | Provider::TensorRtRtx if element_bytes(runs) == BF16 => Self::Fused,
            Provider::TensorRt | Provider::TensorRtRtx | Provider::OpenVino | Provider::WebGpu => {
                Self::Materialised
            }
        }
    }

    /// The values that are held for `heads` heads, `queries` and `keys`.
    pub(super) fn values(self, heads: u128, queries: u128, keys: u128) -> u128 {
        match self {
            Self::Fused => 0,
            Self::Materialised => 2 * heads * queries * keys,
        }
    }
}

/// Bytes held at the peak of a step.
///
/// * The keys and values of the text in all layers.
/// * In a layer, what needs the most: the feed-forward layer before and after its activation, which ONNX Runtime does not
///   compute in place, with the residual stream; or queries, keys, values, the result of attention, the residual stream
///   and a rotated copy, with the scores.
/// * Where operators run one by one, a norm of plain graphs, which is in f32, with its input and results.
/// * With several timesteps, three vectors of each token.
pub(super) fn step(spec: &DenoiserSpec, shape: StepShape, element: u128, scores: Scores) -> u128 {
    let [tokens, batch, layers] = [shape.tokens, shape.batch, spec.layers].map(wide);
    let [feed_forward, width, heads, rows] =
        [spec.feed_forward, spec.width(), spec.heads, TEXT_ROWS].map(wide);
    let of_layers = element * layers * 2 * rows * width;
    let hidden = element * tokens * (2 * feed_forward + width);
    let norm = match scores {
        Scores::Fused => 0,
        Scores::Materialised => tokens * width * (3 * element + 3 * F32),
    };
    let attention = element * (6 * tokens * width + scores.values(heads, tokens, tokens.max(rows)));
    let vectors = if shape.timestep_rows > 1 { 3 * element * tokens * width } else { 0 };
    batch * (of_layers + hidden.max(norm).max(attention)) + vectors
}

/// Bytes held at the peak of the text encoder, as on the CPU: the position biases of all layers, the scores of one, and
/// the gated feed-forward layer.
pub(super) fn text_encoder(spec: &TextEncoderSpec, tokens: usize, element: u128) -> u128 {
    let [heads, width, feed_forward, rows] = [spec.heads, spec.width, spec.feed_forward, tokens].map(wide);
    let biases = (wide(spec.layers) + 2) * heads + 4;
    element * (biases * rows * rows + rows * (3 * feed_forward + 5 * width / 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::catalog::wan_denoiser;
    use bundle::variant::KernelLibrary;

    fn runs(precision: Precision) -> Variant {
        Variant { target: Target::Plain, precision, kernels: KernelLibrary::OnnxRuntime }
    }

    fn a14b(tokens: usize, scores: Scores) -> u128 {
        let shape = StepShape { tokens, batch: 1, text_rows: TEXT_ROWS, timestep_rows: 1 };
        step(&wan_denoiser(40, 40, 13_824), shape, BF16, scores)
    }

    #[test]
    fn a_step_of_a14b_at_720p_holds_the_feed_forward_layer_and_the_text() {
        // 75,600 tokens, and keys and values of 512 rows in 40 layers, in two bytes.
        let held = a14b(75_600, Scores::Fused);
        assert_eq!(held, 2 * 75_600 * (2 * 13_824 + 5120) + 2 * 40 * 2 * 512 * 5120);
    }

    #[test]
    fn scores_that_are_kept_are_more_than_any_device_has() {
        // 40 heads, 32,760 tokens squared, scores and softmax in two bytes.
        let scores = a14b(32_760, Scores::Materialised);
        assert!(scores > 2 * 2 * 40 * 32_760 * 32_760, "{scores}");
    }

    #[test]
    fn attention_is_fused_by_cuda_always_and_by_tensorrt_in_16_bits() {
        use Provider::{Cuda, OpenVino, TensorRt, TensorRtRtx, WebGpu};
        for precision in Precision::ALL {
            assert_eq!(Scores::of(Cuda, runs(precision)), Scores::Fused);
            for provider in [OpenVino, WebGpu] {
                assert_eq!(Scores::of(provider, runs(precision)), Scores::Materialised);
            }
        }
        for provider in [TensorRt, TensorRtRtx] {
            for precision in [Precision::Bf16, Precision::F16, Precision::Fp8] {
                assert_eq!(Scores::of(provider, runs(precision)), Scores::Fused);
            }
            assert_eq!(Scores::of(provider, runs(Precision::F32)), Scores::Materialised);
        }
    }
}
