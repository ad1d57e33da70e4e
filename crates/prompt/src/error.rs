//! Errors of prompts and tokenizers.

use super::limits::MAX_PROMPT_BYTES;
use bundle::{Diagnose, Report};
use std::path::PathBuf;

/// What can be wrong with a prompt or a tokenizer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Cleaning leaves nothing of the prompt.
    Empty,
    /// The prompt is over [`MAX_PROMPT_BYTES`].
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The tokenizer cannot be read.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is no tokenizer that this version understands.
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The tokenizer has no token `</s>` to end a prompt with.
    NoEnd {
        /// The file.
        path: PathBuf,
    },
    /// The tokenizer cannot split the prompt.
    Encode {
        /// What the tokenizer said.
        why: String,
    },
}

/// What helps against any tokenizer that cannot be used.
const ANOTHER_TOKENIZER: &str =
    "get tokenizer/tokenizer.json of the checkpoint again, then export the checkpoint again";

impl Diagnose for Error {
    fn report(&self) -> Report {
        match self {
            Self::Empty => Report::bad_input(
                "the prompt is empty",
                "no text is left of it after cleaning",
                "describe the video in a sentence or two",
            ),
            Self::TooLong { bytes } => Report::bad_input(
                "the prompt is too long",
                format!("it has {bytes} bytes, and the limit is {MAX_PROMPT_BYTES}"),
                "shorten it; the model reads no more than 512 tokens",
            ),
            Self::Unreadable { path, source } => Report::bad_input(
                format!("cannot read the tokenizer {}", path.display()),
                source.to_string(),
                ANOTHER_TOKENIZER,
            ),
            Self::Broken { path, why } => Report::bad_input(
                format!("{} is not a tokenizer", path.display()),
                why.clone(),
                ANOTHER_TOKENIZER,
            ),
            Self::NoEnd { path } => Report::bad_input(
                format!("the tokenizer {} does not suit this model", path.display()),
                "it has no token </s>, with which every prompt ends",
                ANOTHER_TOKENIZER,
            ),
            Self::Encode { why } => {
                Report::bad_input("the prompt cannot be split into tokens", why.clone(), ANOTHER_TOKENIZER)
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
    fn a_long_prompt_is_told_with_numbers() {
        let error = Error::TooLong { bytes: 70_000 };
        assert_eq!(error.report().class, ErrorClass::BadInput);
        insta::assert_snapshot!(error, @"the prompt is too long: it has 70000 bytes, and the limit is 65536 (shorten it; the model reads no more than 512 tokens)");
    }

    #[test]
    fn a_broken_tokenizer_is_told_with_its_path() {
        let error = Error::NoEnd { path: "b/tokenizer.json".into() };
        insta::assert_snapshot!(error, @"the tokenizer b/tokenizer.json does not suit this model: it has no token </s>, with which every prompt ends (get tokenizer/tokenizer.json of the checkpoint again, then export the checkpoint again)");
    }
}
