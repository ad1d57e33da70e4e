//! Scales, smoothing and clips from what was observed.
//!
//! In reading order: [`range`] (the range of an activation), [`weights`] (scales of weight rows), [`smoothing`] (which
//! factor of which input channel), [`plan`] (all layers of a component), [`fp8`] (the same for E4M3), [`measured`] (what it
//! does to the layers' outputs).

pub mod fp8;
pub mod measured;
pub mod plan;
pub mod range;
pub mod smoothing;
pub mod weights;
