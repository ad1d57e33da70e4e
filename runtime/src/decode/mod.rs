//! A clean latent to frames, chunk by chunk: the third of the three parts of the pipeline.

pub mod tiling;
mod video_decoder;

pub use tiling::{TileSide, Tiles, Tiling};
pub use video_decoder::VideoDecoder;
pub(crate) use video_decoder::caches_of;
