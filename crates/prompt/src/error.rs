//! Errors of prompts and tokenizers.

use super::limits::MAX_PROMPT_BYTES;
use bundle::{Diagnose, Field, Report};
use std::path::PathBuf;

/// Errors of prompts and tokenizers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Cleaning leaves nothing of the prompt.
    Empty,
    /// The prompt is longer than [`MAX_PROMPT_BYTES`].
    TooLong {
        /// The length in bytes.
        bytes: usize,
    },
    /// The tokenizer cannot be read.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: std::io::Error,
    },
    /// The file is not a supported tokenizer.
    Broken {
        /// The file.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// The tokenizer has no token `</s>`, with which every prompt ends.
    NoEnd {
        /// The file.
        path: PathBuf,
    },
    /// The tokenizer cannot encode the prompt.
    Encode {
        /// The message of the tokenizer.
        why: String,
    },
}

/// The fix for every tokenizer that can be read and not used.
const ANOTHER_TOKENIZER: &str =
    "get tokenizer/tokenizer.json of the checkpoint again, then export the checkpoint again";

impl Diagnose for Error {
    fn report(&self) -> Report {
        match self {
            Self::Empty => Report::bad_input(
                "the prompt is empty",
                "cleaning leaves no text",
                "describe the video in a sentence or two",
            )
            .about(Field::Prompt),
            Self::TooLong { bytes } => Report::bad_input(
                "the prompt is too long",
                format!("it has {bytes} bytes, and the limit is {MAX_PROMPT_BYTES}"),
                "shorten it; the model uses at most 512 tokens",
            )
            .about(Field::Prompt),
            Self::Unreadable { path, source } => Report::bad_input(
                format!("cannot read the tokenizer {}", path.display()),
                source.to_string(),
                "check that the bundle is whole and that you may read it",
            ),
            Self::Broken { path, why } => Report::damaged(
                format!("{} is not a tokenizer", path.display()),
                why.clone(),
                ANOTHER_TOKENIZER,
            ),
            Self::NoEnd { path } => Report::damaged(
                format!("the tokenizer {} does not match this model", path.display()),
                "it has no token </s>, with which every prompt ends",
                ANOTHER_TOKENIZER,
            ),
            Self::Encode { why } => {
                Report::damaged("the prompt cannot be split into tokens", why.clone(), ANOTHER_TOKENIZER)
            }
        }
    }
}

bundle::display_as_report!(Error);

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::ErrorClass;

    #[test]
    fn the_error_of_a_long_prompt_has_both_lengths() {
        let error = Error::TooLong { bytes: 70_000 };
        assert_eq!(error.report().class, ErrorClass::BadInput);
        insta::assert_snapshot!(error, @"the prompt is too long: it has 70000 bytes, and the limit is 65536 (shorten it; the model uses at most 512 tokens)");
    }

    #[test]
    fn the_error_of_an_unsuitable_tokenizer_has_its_path() {
        let error = Error::NoEnd { path: "b/tokenizer.json".into() };
        insta::assert_snapshot!(error, @"the tokenizer b/tokenizer.json does not match this model: it has no token </s>, with which every prompt ends (get tokenizer/tokenizer.json of the checkpoint again, then export the checkpoint again)");
    }
}
