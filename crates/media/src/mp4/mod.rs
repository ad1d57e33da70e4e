//! What is done to an mp4 that GStreamer has finished: its sound is put in time with its pictures, and its index in
//! front of its frames.

mod boxes;
mod front;
mod sound;

pub(super) use boxes::outermost;
pub(super) use front::with_index_in_front;
pub(super) use sound::align;
