//! Changes to an mp4 that GStreamer has finished: the encoder delay of its audio is corrected, its index is moved
//! before its frames, and the record of the clip is added to its tags.

mod boxes;
mod faststart;
mod sound;
mod tag_list;

pub(super) use boxes::{Kind, parse_header, top_level};
pub(super) use faststart::with_index_first;
pub(super) use sound::align;
