//! The clip while it is denoised: after each step the clean latent that the step points to, as a picture.
//!
//! In reading order: [`clean`] (what is shown; pure), [`painter`] (latent to colours, in three ways), [`budget`] (how often
//! it may be done; pure), `slot` (a queue of one), [`Previewer`] (the thread), [`picture`] (PNG files), [`fit`] (the map
//! that the first way needs).

pub mod budget;
pub mod clean;
pub mod fit;
pub mod painter;
pub mod picture;
mod previewer;
mod slot;

pub use painter::Painter;
pub use previewer::{Painters, Preview, PreviewReport, PreviewSettings, Previewer, Sink};
