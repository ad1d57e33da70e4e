//! Checks of the checkpoint's tokenizer, which is copied into the bundle unchanged.

use crate::{Error, pointer};
use bundle::spec::TextEncoderSpec;
use std::path::Path;
use tokenizers::Tokenizer;

/// The token that ends every prompt.
const END: &str = "</s>";

/// Checks that a `tokenizer.json` is valid and that its ids are rows of the text encoder's embedding.
///
/// # Errors
/// Returns an error if the file is missing, damaged or a pointer, has no `</s>`, or has an id beyond the embedding
/// table.
pub(super) fn check(path: &Path, encoder: &TextEncoderSpec) -> Result<(), Error> {
    let text = pointer::read(path)?;
    let wrong = |why: String| Error::Tokenizer { path: path.to_owned(), why };
    if text.is_empty() {
        return Err(wrong("it is empty".into()));
    }
    let tokenizer = Tokenizer::from_bytes(&text).map_err(|error| wrong(error.to_string()))?;
    if tokenizer.token_to_id(END).is_none() {
        return Err(wrong(format!("it has no token {END}, which ends every prompt")));
    }
    let vocabulary = tokenizer.get_vocab(true);
    let highest = vocabulary.into_iter().max_by_key(|(_, id)| *id);
    match highest {
        Some((token, id)) if usize::try_from(id).is_ok_and(|id| id >= encoder.vocabulary) => {
            let rows = encoder.vocabulary;
            Err(wrong(format!("its token {token:?} has the id {id}, but the text encoder has {rows} rows")))
        }
        _ => Ok(()),
    }
}
