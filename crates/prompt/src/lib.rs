//! Prompts to token ids.
//!
//! [`check()`] refuses invalid prompts, [`clean()`] applies the cleaning of diffusers, and [`PromptTokenizer`] encodes
//! the cleaned text with the `tokenizer.json` of a checkpoint. [`ContentFilter`] refuses texts by lists of terms. The
//! crate uses no model and no session. Text states and their padding to 512 rows are computed by the text encoder of the
//! pipeline.

mod badness;
mod clean;
mod code_page;
mod entities;
mod error;
mod filter;
mod glyphs;
mod limits;
mod mojibake;
mod tokenizer;

pub use clean::clean;
pub use error::Error;
pub use filter::{ContentFilter, Finding, ListError, Problem};
pub use limits::{MAX_PROMPT_BYTES, check, check_negative};
pub use tokenizer::{Cut, PromptTokenizer, TokenizedPrompt};
