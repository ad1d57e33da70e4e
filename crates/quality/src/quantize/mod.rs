//! From a calibrated bundle to one with quantised variants.
//!
//! In reading order: [`variant`] (numbers planned, weights and graphs written), [`clips`] (the same clips with two
//! variants), [`metrics`] (how far apart they are), [`assess`] (all of it for one variant), [`report`] and [`picture`] (the
//! files that say so).

pub mod assess;
pub mod clips;
mod leftovers;
pub mod metrics;
pub mod picture;
pub mod report;
pub mod variant;

pub use variant::{QuantizeOptions, Quantizer};
