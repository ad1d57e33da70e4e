//! From a bundle to a smaller one: number codecs, what layers see, and the numbers to quantise them with.
//!
//! In reading order: [`codec`] (how values are stored in 8 bits; pure), [`observe`] (what layers see when a recorded set
//! is replayed), [`numerics`] (scales, smoothing and clips from that; pure but for reading weights),
//! [`integer_share`] (what of it really runs in integers), [`latent_to_rgb`] (the linear map of previews; pure).

pub mod codec;
mod error;
pub mod integer_share;
pub mod latent_to_rgb;
pub mod numerics;
pub mod observe;

pub use error::Error;
