//! Text states as bytes: a safetensors file with the tensors `prompt` and `negative`, `[512,D]` f32, and the number of
//! their tokens in the metadata.

use crate::Error;
use crate::denoise::TextConditioning;
use crate::text_encoder::TextStates;
use bundle::digest::Digest;
use ndarray::Array2;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::HashMap;
use std::sync::Arc;

/// The digest of text states: 64 hexadecimal digits.
pub(super) fn digest(text: &TextConditioning) -> String {
    let mut parts = Vec::new();
    for states in std::iter::once(&text.prompt).chain(&text.negative) {
        parts.push(states.tokens().to_string().into_bytes());
        parts.push(bytes(states));
    }
    Digest::of_parts(parts.iter().map(|part| &part[..])).blake3
}

/// The name of the file of text states with this digest.
pub(super) fn file_name(digest: &str) -> String {
    format!("text-{}.safetensors", digest.get(..12).unwrap_or(digest))
}

pub(super) fn to_bytes(text: &TextConditioning) -> Vec<u8> {
    let states = std::iter::once(("prompt", &text.prompt));
    let states: Vec<_> = states.chain(text.negative.iter().map(|negative| ("negative", negative))).collect();
    let tensors: Vec<_> =
        states.iter().map(|(name, states)| (*name, states.rows().shape().to_vec(), bytes(states))).collect();
    let metadata =
        states.iter().map(|(name, states)| (format!("{name}_tokens"), states.tokens().to_string())).collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes)
            .unwrap_or_else(|_| unreachable!("four bytes for each value"));
        (*name, view)
    });
    safetensors::serialize(views, Some(metadata))
        .unwrap_or_else(|_| unreachable!("tensors in memory are serialised"))
}

/// Reads text states.
///
/// # Errors
/// The bytes are not such a file.
pub(super) fn from_bytes(bytes: &[u8]) -> Result<TextConditioning, Error> {
    let wrong = |why: String| Error::Snapshot { why };
    let (_, head) = SafeTensors::read_metadata(bytes).map_err(|error| wrong(error.to_string()))?;
    let file = SafeTensors::deserialize(bytes).map_err(|error| wrong(error.to_string()))?;
    let metadata: HashMap<String, String> = head.metadata().clone().unwrap_or_default();
    let states = |name: &str| -> Result<Arc<TextStates>, Error> {
        let view = file.tensor(name).map_err(|error| wrong(error.to_string()))?;
        let tokens = metadata.get(&format!("{name}_tokens")).and_then(|tokens| tokens.parse().ok());
        let (Some(tokens), [rows, width], Dtype::F32) = (tokens, view.shape(), view.dtype()) else {
            return Err(wrong(format!("`{name}` is not a matrix of text states")));
        };
        let values =
            view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let rows =
            Array2::from_shape_vec((*rows, *width), values).map_err(|error| wrong(error.to_string()))?;
        Ok(Arc::new(TextStates::try_new(rows, tokens, None)?))
    };
    let negative = file.names().contains(&"negative").then(|| states("negative")).transpose()?;
    Ok(TextConditioning { prompt: states("prompt")?, negative })
}

fn bytes(states: &TextStates) -> Vec<u8> {
    states.rows().iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::s;

    fn states(tokens: usize) -> Arc<TextStates> {
        let mut rows = Array2::zeros((512, 3));
        rows.slice_mut(s![..tokens, ..]).fill(0.5);
        Arc::new(TextStates::try_new(rows, tokens, None).unwrap())
    }

    #[test]
    fn text_states_survive_as_bytes() {
        for negative in [None, Some(states(2))] {
            let text = TextConditioning { prompt: states(7), negative };
            let read = from_bytes(&to_bytes(&text)).unwrap();
            assert_eq!((digest(&read), &read), (digest(&text), &text));
        }
        let text = TextConditioning { prompt: states(7), negative: None };
        let bytes = to_bytes(&text);
        assert!(from_bytes(&bytes[..bytes.len() - 1]).is_err());
        assert_ne!(digest(&text), digest(&TextConditioning { prompt: states(8), negative: None }));
    }
}
