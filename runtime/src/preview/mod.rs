//! Previews during denoising: after a step, the predicted clean latent as frames.
//!
//! In reading order: [`renderer`] (latent to frames, with three methods), [`budget`] (how often a preview may be
//! rendered; pure), `slot` (a queue of length one), [`Previewer`] (the thread), [`latent_to_rgb`] (the linear map;
//! pure). The clean latent is [`predicted_clean`](crate::sampler::predicted_clean).

pub mod budget;
pub mod latent_to_rgb;
mod previewer;
pub mod renderer;
mod slot;

pub use previewer::{Preview, PreviewRenderers, PreviewReport, PreviewSettings, Previewer, Sink};
pub use renderer::PreviewRenderer;
