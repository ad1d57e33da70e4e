//! Calibration: activation statistics of recorded clips, and the quantisation parameters computed from them.
//!
//! In reading order: [`codec`] (8-bit number formats; pure), [`observe`] (replays a calibration set and collects
//! statistics), [`numerics`] (scales, smoothing and clipping; pure except for reading weights), [`integer_share`] (the
//! share of a graph that runs in integers), [`tensorrt_rules`] (checks E4M3 graphs against TensorRT's rules).

pub mod codec;
mod error;
pub mod integer_share;
pub mod numerics;
pub mod observe;
pub mod tensorrt_rules;

pub use error::Error;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
