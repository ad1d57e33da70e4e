//! Adds quantised variants to a calibrated bundle and measures their quality.
//!
//! In reading order: [`variant`] (plans parameters, writes weights and graphs), [`clips`] (the same clips with two
//! variants), [`metrics`] (PSNR, SSIM and others), [`assess`] (measures one variant), [`report`] and [`picture`] (the
//! report files).

pub mod assess;
pub mod clips;
mod leftovers;
pub mod metrics;
pub mod picture;
pub mod report;
pub mod variant;

pub use variant::{QuantizeOptions, Quantizer};
