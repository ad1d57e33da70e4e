//! Wan2.2 text-to-video on one machine: from a bundle and a prompt to a video file.
//!
//! ```no_run
//! use rushes::bundle::{Cancel, units::Seed};
//! use rushes::engines::residency::Mode;
//! use rushes::media::{ClipFormat, OutputOptions, OutputTarget, Outputs, Tags};
//! use rushes::runtime::model::{Model, ModelOptions};
//! use rushes::runtime::pipeline::{Event, Pipeline, seeded_noise};
//! use rushes::runtime::plan::{GenerateRequest, GenerationPlan};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = Model::open("a14b".as_ref(), ModelOptions::default())?;
//! let request = GenerateRequest::new("Two cats box on a stage", Seed(42));
//! let plan = GenerationPlan::new(model.manifest(), &request)?;
//! let format = ClipFormat { size: plan.size, rate: plan.rate, frames: Some(plan.frames.get()) };
//! let tags = Tags::new(plan.prompt.clone(), &model.manifest().model, plan.seed);
//! let (cancel, targets) = (Cancel::new(), OutputTarget::claim_all(&["cats.mp4".parse()?])?);
//! let mut outputs = Outputs::start(&targets, &OutputOptions::new(format, tags, &cancel))?;
//! Pipeline::new(&model, Mode::OneAtATime).run(&plan, seeded_noise(&plan), &cancel, &mut |event| {
//!     let Event::Frames(frames) = event else { return Ok(()) };
//!     outputs.write(frames.view()).map_err(rushes::runtime::Error::callback)
//! })?;
//! outputs.finish();
//! # Ok(())
//! # }
//! ```
//!
//! The crates below can be used alone: [`runtime`] has neither a command line nor GStreamer. [`export`] makes a bundle
//! of a checkpoint, [`quality`] quantises and measures one. [`cli`] is the command line itself.

pub mod cli;
mod error;
pub mod mini;

pub use bundle;
pub use calibration;
pub use engines;
pub use error::Error;
pub use export;
pub use media;
pub use prompt;
pub use quality;
pub use runtime;
