//! Decoding: a clean latent to frames, in chunks. The third part of the pipeline.

mod pictures;
mod video_decoder;

pub use crate::tiling::{TileSide, Tiles, Tiling};
pub use pictures::pictures;
pub use video_decoder::{DecodeRun, VideoDecoder, caches_of};
