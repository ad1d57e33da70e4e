//! From a prompt to a clip: the library behind the binary `rushes`.
//!
//! The pipeline has three parts that can be used apart: [`text_encoder`] (prompt to text states), [`denoise`] (noise and
//! text states to a clean latent) and [`decode`] (latent to frames, chunk by chunk). [`pipeline`] runs them in a row,
//! [`plan`] says what will be made before anything is loaded, [`model`] is a bundle and how to run it.
//!
//! Below them: [`prompt`] (cleaning, tokens), [`sampler`] (schedules, solvers, guidance, noise; pure), [`media`] (video
//! out), [`preview`] (pictures while it denoises), [`live`] (one address that shows all of it), [`trace`] (files for parity
//! checks), [`record`] (clips for calibration), [`quantize`] (quantised variants and what they cost), [`footprint`]
//! (predicted memory), [`room`] (whether it is there), [`mini`] (the embedded model), [`judge`] (how well a model follows its prompts), [`mod@bench`] (how fast
//! graphs run). [`cli`] is the command line.

pub mod bench;
pub mod cli;
pub mod decode;
pub mod denoise;
mod error;
pub mod footprint;
pub mod judge;
pub mod live;
pub mod media;
pub mod mini;
pub mod model;
pub mod pipeline;
pub mod plan;
pub mod preview;
pub mod prompt;
pub mod quantize;
pub mod record;
pub mod room;
pub mod sampler;
pub mod text_encoder;
pub mod text_file;
pub mod trace;

pub use error::Error;
