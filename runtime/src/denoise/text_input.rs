//! The text inputs of a step: all rows for ONNX Runtime kernels, equal rows merged for Rushes kernels.

use crate::text_encoder::TextStates;
use bundle::spec::TEXT_ROWS;
use bundle::variant::KernelLibrary;
use engines::Value;
use ndarray::{Array2, Array3, Axis, s, stack};

/// The text inputs of a step, for a batch of prompts.
#[derive(Debug)]
pub struct TextInput {
    text: Value,
    key_bias: Option<Value>,
}

impl TextInput {
    /// Creates the inputs for a batch of `states`, in that order.
    pub fn new(kernels: KernelLibrary, states: &[&TextStates]) -> Self {
        match kernels {
            KernelLibrary::OnnxRuntime => {
                let rows: Vec<_> = states.iter().map(|states| states.rows().view()).collect();
                let text = stack(Axis(0), &rows)
                    .unwrap_or_else(|_| unreachable!("text states of one model have one shape"));
                Self { text: Value::from_f32(text), key_bias: None }
            }
            KernelLibrary::Rushes => {
                let (text, key_bias) = merged(states);
                Self { text: Value::from_f32(text), key_bias: Some(Value::from_f32(key_bias)) }
            }
        }
    }

    /// The inputs by name.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        let bias = self.key_bias.iter().map(|bias| ("key_bias", bias));
        std::iter::once(("text", &self.text)).chain(bias)
    }
}

/// Returns rows `[B,T,D]` and the bias of their attention scores `[B,T]`.
///
/// The rows after the tokens are zeros, so their keys and values are equal. One row replaces them all, with the
/// logarithm of their number as its bias. Shorter prompts of a batch are padded with rows whose bias is minus infinity,
/// which gives them no attention.
fn merged(states: &[&TextStates]) -> (Array3<f32>, Array2<f32>) {
    let row_count = |states: &TextStates| (states.tokens() + 1).min(TEXT_ROWS);
    let rows = states.iter().map(|states| row_count(states)).max().unwrap_or(1);
    let width = states.first().map_or(0, |states| states.rows().ncols());
    let mut text = Array3::zeros((states.len(), rows, width));
    let mut key_bias = Array2::from_elem((states.len(), rows), f32::NEG_INFINITY);
    for (index, states) in states.iter().enumerate() {
        let tokens = states.tokens().min(TEXT_ROWS);
        text.slice_mut(s![index, ..tokens, ..]).assign(&states.rows().slice(s![..tokens, ..]));
        key_bias.slice_mut(s![index, ..tokens]).fill(0.0);
        if tokens < TEXT_ROWS {
            #[expect(clippy::cast_precision_loss, reason = "at most 512 rows")]
            let zeros = (TEXT_ROWS - tokens) as f32;
            key_bias[[index, tokens]] = zeros.ln();
        }
    }
    (text, key_bias)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(tokens: usize) -> TextStates {
        let mut rows = Array2::zeros((TEXT_ROWS, 3));
        rows.slice_mut(s![..tokens, ..]).fill(2.0);
        TextStates::try_new(rows, tokens, None).unwrap()
    }

    #[test]
    fn equal_rows_are_merged_into_one() {
        let (text, bias) = merged(&[&states(4)]);
        assert_eq!(text.dim(), (1, 5, 3));
        assert_eq!(bias.row(0).to_vec(), [0.0, 0.0, 0.0, 0.0, 508.0_f32.ln()]);
        assert_eq!(text.slice(s![0, 4, ..]).to_vec(), [0.0; 3]);
    }

    #[test]
    fn the_weights_of_all_rows_add_up_to_512_in_every_prompt_of_a_batch() {
        for lengths in [[1, 7], [512, 3], [511, 512], [0, 1]] {
            let all = lengths.map(states);
            let (text, bias) = merged(&[&all[0], &all[1]]);
            assert_eq!(text.len_of(Axis(1)), (lengths[0].max(lengths[1]) + 1).min(TEXT_ROWS));
            for (index, tokens) in lengths.into_iter().enumerate() {
                let weight: f32 = bias.row(index).iter().map(|bias| bias.exp()).sum();
                assert!((weight - 512.0).abs() < 1e-3, "{lengths:?}: {weight}");
                assert_eq!(text.slice(s![index, .., 0]).sum(), 2.0 * tokens as f32);
            }
        }
    }
}
