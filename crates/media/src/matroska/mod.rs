//! Matroska and WebM files: their elements, and tags that GStreamer cannot write.

pub(crate) mod ebml;
mod tag_writer;

pub(super) use tag_writer::add_tags;
