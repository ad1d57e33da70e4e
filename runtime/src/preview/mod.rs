//! The clip while it is denoised: after each step the clean latent that the step points to, as a picture.
//!
//! In reading order: [`clean`] (what is shown; pure), [`painter`] (latent to colours, in three ways), [`budget`] (how often
//! it may be done; pure), `slot` (a queue of one), [`Previewer`] (the thread), [`latent_to_rgb`] (the map
//! that the first way needs; pure).

pub mod budget;
pub mod clean;
pub mod latent_to_rgb;
pub mod painter;
mod previewer;
mod slot;

pub use painter::Painter;
pub use previewer::{Painters, Preview, PreviewReport, PreviewSettings, Previewer, Sink};
