//! From a prompt to frames.
//!
//! The pipeline has three parts that can be used apart: [`text_encoder`] (prompt to text states), [`denoise`] (noise and
//! text states to a clean latent) and [`decode`] (latent to frames, chunk by chunk). [`pipeline`] runs them in a row,
//! [`plan`] says what will be made before anything is loaded, [`model`] is a bundle and how to run it.
//!
//! Below them: [`sampler`] (schedules, solvers, guidance, noise; pure), [`preview`] (pictures while it denoises), [`trace`]
//! (files for parity checks), [`footprint`] (predicted memory), [`room`] (whether it is there).

pub mod decode;
pub mod denoise;
mod error;
pub mod footprint;
pub mod model;
pub mod pipeline;
pub mod plan;
pub mod preview;
pub mod room;
pub mod sampler;
pub mod text_encoder;
pub mod trace;

pub use error::Error;
