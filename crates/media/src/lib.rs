//! Video output through GStreamer: files, streams, overlays and audio, live publishing, provenance marks.
//!
//! An [`OutputSpec`] is parsed from a path or an address. [`OutputTarget::claim_all`] claims all outputs before any
//! other work starts; its errors name missing elements with their Debian package. [`Outputs`] writes the frames.
//!
//! Each output has its own GStreamer pipeline, so that a failed or stalled output never affects another. A frame is
//! converted once, to I420 or RGB, and all outputs share its memory ([`SharedFrame`]). Encoders and writers run in the
//! threads of the pipelines behind short queues. A pipeline without progress ends in an error instead of a hang. A file
//! is `NAME.part.EXT` while it is written, can be played even after a kill, and is renamed when it is complete.
//!
//! Modules in reading order:
//!
//! * Names and claims: `spec`, `standard_output`, `target`, `part_folder`, `folder_lock`, `pipe_lock`.
//! * Frames: [`frames`] (f32 to RGB and I420), `shared_frame`, `sound`, `buffers` (with timestamps).
//! * [`post_process`]: captions, logo, chroma key, another rate, audio; [`wav`]: sounds of strangers, without GStreamer.
//! * Pipelines: [`encoder`] (encoders and their settings), [`plugins`] (installed elements and Debian packages),
//!   [`tags`] (AI mark, model, seed), `pipeline` (the elements), `collect` (writers without a GStreamer element),
//!   `whip` (a feature), `monitor` (bounded queue and stall detection), `stopping` (a bounded stop), `mp4` (audio sync, index before the frames).
//! * [`clip_record`] (what repeats a clip, read from its file), `record_code` (its encoding), `matroska` (tags that
//!   GStreamer cannot write).
//! * Runs: `options`, `clip` (input format and results), `output` (one output), `outputs` (all outputs of a run),
//!   `clip_writer` (outputs, post-processing and live address of one clip), `output_report` (results as JSON).
//! * [`live`] (one address that always shows a picture), [`preview_files`] (PNGs of a run in progress),
//!   `contact_sheet` (pictures of several clips in one PNG), [`still`] (one picture).
//!
//! ```no_run
//! # use media::{ClipFormat, OutputOptions, Outputs, OutputTarget, Tags};
//! # fn chunks() -> Vec<ndarray::Array4<f32>> { vec![] }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let targets = OutputTarget::claim_all(&["clip.mp4".parse()?, "clip.gif".parse()?])?;
//! let rate = bundle::units::FrameRate::try_new(16)?;
//! let format = ClipFormat { size: "832x480".parse()?, rate, frames: Some(81) };
//! let tags = Tags::new("A cat".to_owned(), "mini", bundle::units::Seed(42));
//! let mut outputs = Outputs::start(&targets, &OutputOptions::new(format, tags, &bundle::Cancel::new()))?;
//! for frames in chunks() {
//!     outputs.write(frames.view())?;
//! }
//! for clip in outputs.finish().written {
//!     println!("{}: {} frames", clip.output, clip.frames);
//! }
//! # Ok(())
//! # }
//! ```

mod buffers;
mod clip;
pub mod clip_record;
mod clip_writer;
mod collect;
mod contact_sheet;
pub mod encoder;
mod error;
mod folder_lock;
pub mod frames;
pub mod live;
mod matroska;
mod monitor;
mod mp4;
mod options;
mod output;
mod output_report;
mod outputs;
mod part_folder;
mod pipe_lock;
mod pipeline;
mod playable;
pub mod plugins;
pub mod post_process;
pub mod preview_files;
mod record_code;
mod shared_frame;
mod sign;
mod sound;
mod spec;
mod standard_output;
pub mod still;
mod stopping;
pub mod tags;
mod target;
pub mod wav;
#[cfg(feature = "whip")]
mod whip;
mod xmp_box;

pub use clip::{ClipFormat, Remainder, WrittenClip};
pub use clip_writer::{ClipOutcome, ClipSettings, ClipWriter};
pub use contact_sheet::{ContactSheet, ContactSheetError};
pub use error::Error;
pub(crate) use folder_lock::make_locked;
pub use options::OutputOptions;
pub use output::Output;
pub use output_report::{FailedOutputReport, OutputReport, OutputResult};
pub use outputs::{FailedOutput, Outcome, Outputs};
pub use shared_frame::{PixelLayout, SharedFrame};
pub use sign::SigningKey;
pub use spec::{FileFormat, OutputSpec, Token};
pub use tags::Tags;
pub use target::{OutputTarget, check_signing, check_sound, notes};

#[cfg(test)]
#[path = "stalled_threads_tests.rs"]
mod stalled_threads;
