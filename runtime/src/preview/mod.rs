//! The clip while it is denoised: after each step the clean latent that the step points to, as a picture.
//!
//! In reading order: [`clean`] (what is shown; pure), [`renderer`] (latent to colours, in three ways), [`budget`] (how often
//! it may be done; pure), `slot` (a queue of one), [`Previewer`] (the thread), [`latent_to_rgb`] (the map
//! that the first way needs; pure).

pub mod budget;
pub mod clean;
pub mod latent_to_rgb;
mod previewer;
pub mod renderer;
mod slot;

pub use previewer::{Preview, PreviewRenderers, PreviewReport, PreviewSettings, Previewer, Sink};
pub use renderer::PreviewRenderer;
