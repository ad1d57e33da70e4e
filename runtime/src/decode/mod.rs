//! Decoding: a clean latent to frames, in chunks. The third part of the pipeline.

mod pictures;
pub mod tiling;
mod video_decoder;

pub use pictures::pictures;
pub use tiling::{TileSide, Tiles, Tiling};
pub use video_decoder::{DecodeRun, VideoDecoder, caches_of};
