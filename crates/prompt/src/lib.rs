//! From the text of a prompt to token ids.
//!
//! Owns everything between what a user typed and what the text encoder is given: [`check()`] (which texts are refused),
//! [`clean()`] (the cleaning that the references apply) and [`PromptTokenizer`] (the checkpoint's `tokenizer.json`).
//! Knows no model and no session. Text states and their padding to 512 rows belong to the pipeline.

mod badness;
mod clean;
mod code_page;
mod entities;
mod error;
mod glyphs;
mod limits;
mod mojibake;
mod tokenizer;

pub use clean::clean;
pub use error::Error;
pub use limits::{MAX_PROMPT_BYTES, check, check_negative};
pub use tokenizer::{Cut, PromptTokenizer, TokenizedPrompt};
