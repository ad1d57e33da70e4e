//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use rushes::bundle::{Cancel, units::Seed};
//! use rushes::media::{ClipFormat, OutputOptions, OutputTarget, Outputs, Tags};
//! use rushes::runtime::{Error, job::{self, JobEvent}, model::Model, pipeline::*, plan::*};
//!
//! let (model, cancel) = (Model::open("a14b".as_ref(), Default::default())?, Cancel::new());
//! let plan = GenerationPlan::new(model.manifest(), &GenerateRequest::new("Two cats box", Seed(42)))?;
//! let format = ClipFormat { size: plan.size, rate: plan.rate, frames: Some(plan.frames.get()) };
//! let tags = Tags::new(plan.prompt.clone(), &model.manifest().model, plan.seed);
//! let targets = OutputTarget::claim_all(&["cats.mp4".parse()?])?;
//! let mut outputs = Outputs::start(&targets, &OutputOptions::new(format, tags, &cancel))?;
//! let mut pipeline = Pipeline::new(&model);
//! job::generate(&mut pipeline, &plan, &cancel, &mut |event| match event {
//!     JobEvent::Frames(frames) => outputs.write(frames.view()).map_err(Error::callback),
//!     _ => Ok(()),
//! })?;
//! outputs.finish();
//! # Ok(())
//! # }
//! ```
//!
//! Rushes generates video from text with Wan2.1 and Wan2.2 models on one machine: a checkpoint is exported to a bundle
//! of ONNX graphs, and a prompt becomes a clip through ONNX Runtime and GStreamer. The example opens the bundle in the
//! folder `a14b` and writes `cats.mp4`. With the feature `embed-mini`, [`mini::bundle_folder`] returns the bundle of a
//! small model.
//!
//! This crate is the program `rushes`, and a facade over the crates that can also be used alone:
//!
//! | module | contents |
//! |---|---|
//! | [`bundle`] | the bundle on disk, the settings of a clip, units, errors with what, why and fix |
//! | [`prompt`] | prompt cleaning and tokens |
//! | [`export`] | checkpoint to bundle |
//! | [`engines`] | ONNX Runtime, execution providers, memory and residency |
//! | [`runtime`] | the pipeline: plan, text encoder, sampler, decoder, previews |
//! | [`media`] | outputs, overlays, audio and live addresses, on GStreamer |
//! | [`jobs`] | a queue of clips that survives its process |
//! | [`server`] | the HTTP server of `rushes serve` |
//! | [`calibration`] | ranges of the layers' inputs, and quantised values |
//! | [`quality`] | recording, quantising, scoring and benchmarks |
//! | [`mini`] | the embedded model |
//! | [`cli`] | the command line |

pub mod cli;
mod error;
pub mod mini;

pub use bundle;
pub use calibration;
pub use engines;
pub use error::Error;
pub use export;
pub use jobs;
pub use media;
pub use prompt;
pub use quality;
pub use runtime;
pub use server;
