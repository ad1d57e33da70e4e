//! Text-to-video with Wan2.1 and Wan2.2 models as a library: a prompt in, frames out.
//!
//! The pipeline has three parts that can be used separately: [`text_encoder`] (prompt to text states), [`denoise`]
//! (noise and text states to a clean latent) and [`decode`] (latent to frames, in chunks). [`pipeline`] owns their
//! open graphs, and a [`job`] runs a clip on them, one unit of work at a time. [`model`] is a bundle and its run
//! options; [`plan`] resolves and checks a request before anything is loaded.
//!
//! Supporting modules: [`sampler`] (schedules, solvers, guidance, noise; pure), [`preview`] (frames during denoising),
//! [`trace`] (files for parity checks), [`footprint`] (predicted memory), [`memory_plan`] (decides how a clip fits, or
//! refuses it), [`estimate`] (predicted time), [`text_store`] (text states on disk).

pub mod decode;
pub mod denoise;
pub mod driver;
pub mod engine_builds;
mod engine_command;
mod error;
pub mod estimate;
pub mod footprint;
mod graph_use;
pub mod job;
mod known_faults;
pub mod memory_plan;
pub mod model;
mod model_options;
pub mod pipeline;
pub mod plan;
pub mod preview;
pub mod sampler;
pub mod scheduler;
pub mod simulation;
mod steps;
mod text_cache;
pub mod text_encoder;
pub mod text_store;
mod tiling;
pub mod trace;

pub use error::Error;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
