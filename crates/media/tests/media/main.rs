//! Outputs, read back with independent tools: ffmpeg, ffprobe, webpinfo, webpmux and the C2PA reader.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod animations;
mod audio_sync;
mod captions;
mod clip;
mod clip_records;
mod damaged_inputs;
mod frame_rates;
mod outputs;
mod post_process;
#[cfg(feature = "sign")]
mod sign;
mod streams;
mod tools;
#[cfg(feature = "whip")]
mod whip;
