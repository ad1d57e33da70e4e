//! What a job reports while it runs.

use super::record::LatentDigest;
use crate::denoise::{StepDone, TextConditioning};
use bundle::Report;
use ndarray::Array4;

/// An event of a job. Events are owned: a receiver may be on another thread.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum JobEvent {
    /// The text encoder is about to be opened and run.
    Encoding,
    /// The prompt and, with guidance, the negative prompt are encoded.
    Encoded(TextConditioning),
    /// The next step is about to start, after this many.
    Denoising {
        /// Steps that are done.
        done: usize,
        /// Steps of the schedule.
        steps: usize,
    },
    /// A step is done.
    Step {
        /// Its result.
        done: StepDone,
        /// The digest of the latent after it.
        digest: LatentDigest,
    },
    /// The decoder is about to start.
    Decoding,
    /// A chunk of frames is decoded: `[N,3,H,W]` in -1..1.
    Frames(Array4<f32>),
    /// The job does nothing until it is resumed.
    Paused,
    /// The job goes on.
    Resumed,
    /// Something failed that the clip does not depend on, such as writing a snapshot.
    Warning(Report),
    /// The last frames are decoded.
    Finished,
    /// The job has failed or was cancelled.
    Failed(Report),
}
