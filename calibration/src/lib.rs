//! From a bundle to a smaller one: number codecs, and what is needed to choose where they may be used.
//!
//! In reading order: [`codec`] (how values are stored in 8 bits; pure), [`latent_to_rgb`] (the linear map of previews;
//! pure).

pub mod codec;
mod error;
pub mod latent_to_rgb;

pub use error::Error;
