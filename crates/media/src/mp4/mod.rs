//! Changes to an mp4 that GStreamer has finished: the encoder delay of its audio is corrected, and its index is moved
//! before its frames.

mod boxes;
mod faststart;
mod sound;

pub(super) use boxes::top_level;
pub(super) use faststart::with_index_first;
pub(super) use sound::align;
