//! From a bundle to a smaller one: number codecs, what layers see, and the numbers to quantise them with.
//!
//! In reading order: [`codec`] (how values are stored in 8 bits; pure), [`observe`] (what layers see when a recorded set
//! is replayed), [`numerics`] (scales, smoothing and clips from that; pure but for reading weights),
//! [`integer_share`] (what of it really runs in integers), [`structure`] (whether an E4M3 graph obeys TensorRT's rules).

pub mod codec;
mod error;
pub mod integer_share;
pub mod numerics;
pub mod observe;
pub mod tensorrt_rules;

pub use error::Error;
