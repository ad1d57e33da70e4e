//! From a bundle to a smaller one: number codecs, and what is needed to choose where they may be used.
//!
//! In reading order: [`codec`] (how values are stored in 8 bits; pure).

pub mod codec;
mod error;

pub use error::Error;
