//! Video out: from the decoder's frames to a file that players open.
//!
//! One GStreamer pipeline per output: `appsrc ! encoder ! mp4mux ! filesink`. The frames are converted to I420 here,
//! the encoder and the muxer run in the pipeline's own thread behind a short queue, and a pipeline in which nothing
//! moves ends in an error instead of a hang. The file grows as `NAME.part.mp4`, in fragments of half a second that can
//! be played even after a kill, and gets its name when it is whole.
//!
//! In reading order: [`frames`] (f32 to pictures and to I420), [`encoder`] (which H.264 encoder, and its settings),
//! [`plugins`] (what is installed, which Debian package has the rest), [`tags`] (the AI mark, model and seed), `output`
//! and `part_file` (checked before any work starts), `pipeline` (the elements), `feed` (the bounded queue and its
//! watchdog), `mp4` (the writer), `clip` (what goes in and what comes out).
//!
//! ```no_run
//! # use runtime::media::{self, ClipFormat, Mp4Writer, Tags};
//! # fn chunks() -> Vec<ndarray::Array4<f32>> { vec![] }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let target = media::check_output("clip.mp4".as_ref())?;
//! let format = ClipFormat { size: "832x480".parse()?, rate: bundle::units::FrameRate::try_new(16)?, frames: 81 };
//! let tags = Tags { title: Some("A cat".into()), model: "mini".into(), seed: bundle::units::Seed(42) };
//! let mut writer = Mp4Writer::create(&target, format, &tags)?;
//! for frames in chunks() {
//!     writer.write(frames.view())?;
//! }
//! println!("{}", writer.finish()?.path.display());
//! # Ok(())
//! # }
//! ```

mod clip;
pub mod encoder;
mod error;
mod feed;
pub mod frames;
mod mp4;
mod mp4_index;
mod output;
mod part_file;
mod pipeline;
pub mod plugins;
pub mod tags;

pub use clip::{ClipFormat, Kept, WrittenClip};
pub use error::Error;
pub use mp4::Mp4Writer;
pub use output::{OutputTarget, check_output};
pub use tags::Tags;
