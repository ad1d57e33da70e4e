//! Quantisation parameters from activation statistics: scales, smoothing, clipping.
//!
//! In reading order: [`activations`] (their integers), [`range`] (ranges of activations), [`weights`] (per-row scales of
//! weights), [`smoothing`] (SmoothQuant factors of input channels), [`plan`] (all layers of a component), `convolutions`
//! (those of the decoder), [`fp8`] (E4M3), [`measured`] (measured errors of layer outputs).

pub mod activations;
mod convolutions;
pub mod fp8;
pub mod measured;
pub mod plan;
pub mod range;
pub mod smoothing;
pub mod weights;
