//! Video out: from the decoder's frames to files that players open and addresses that they listen at.
//!
//! An output is named by a path or an address ([`OutputSpec`]), claimed before any other work starts
//! ([`OutputTarget::claim_all`], which names what is missing with its Debian package), and then fed ([`Outputs`]). Each
//! has a GStreamer pipeline of its own, so that one that fails or stalls never cuts another short; a frame is converted
//! once, to I420 or RGB, and its memory is shared by all ([`SharedFrame`]). Encoders and writers run in the pipelines'
//! own threads behind short queues, and a pipeline in which nothing moves ends in an error instead of a hang. A file
//! grows as `NAME.part.EXT`, can be played even after a kill, and gets its name when it is whole.
//!
//! In reading order: [`frames`] (f32 to pictures and to I420), `spec`, `target`, `part_folder`, `folder_lock`
//! and `pipe_lock` (checked before any work starts), [`encoder`] (which encoder, and its settings), [`plugins`] (what is installed, which Debian
//! package has the rest), [`tags`] (the AI mark, model and seed), `pipeline` (the elements), `collect` (writers of our
//! own), [`post_process`] (captions, logo, key, rate, sound), `feed` (the bounded queue and its watchdog), `mp4` (sound in time,
//! index in front), `output` (one output), `outputs` (all of a run), `whip` (a feature), `clip` (what goes
//! in and what comes out), [`live`] (one address that always has a picture), [`preview_files`] (pictures of a run in
//! progress).
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

mod clip;
mod collect;
pub mod encoder;
mod error;
mod feed;
mod folder_lock;
pub mod frames;
pub mod live;
mod mp4;
mod output;
mod outputs;
mod part_folder;
mod pipe_lock;
mod pipeline;
mod playable;
pub mod plugins;
pub mod post_process;
pub mod preview_files;
mod shared_frame;
mod sign;
mod spec;
mod standard_output;
pub mod tags;
mod target;
#[cfg(feature = "whip")]
mod whip;
mod xmp_box;

pub use clip::{ClipFormat, Remainder, WrittenClip};
pub use error::Error;
pub(crate) use folder_lock::make_locked;
pub use output::{Output, OutputOptions};
pub use outputs::{FailedOutput, Outcome, Outputs};
pub use shared_frame::{PixelLayout, SharedFrame};
pub use sign::SigningKey;
pub use spec::{FileFormat, OutputSpec, Token};
pub use tags::Tags;
pub use target::{OutputTarget, check_signing, check_sound, notes};
