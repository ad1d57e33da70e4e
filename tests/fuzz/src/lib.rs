//! The readers of bytes that may come from anywhere, each with what is required of it: no panic, and an error or a value
//! that is the same after it was written and read again.
//!
//! A target returns true if the bytes were read and false if they were refused, and panics if the requirement is not
//! met. The crate in `fuzz` runs the targets under libFuzzer, `tests/tests/all/fuzz_seeds.rs` on the seeds in
//! `fuzz/seeds` and on simple mutations of them.

mod job;
mod models;
mod seal;
mod texts;

pub use job::{clip_record, job_spec, snapshot};
pub use models::{bundle_json, graphs_json, lora, onnx, safetensors_header, torch_file};
pub use texts::{clip_file, prompts, srt};

/// A target: true if the bytes were read, false if they were refused.
pub type Target = fn(&[u8]) -> bool;

/// Every target, by the name of its file in `fuzz/fuzz_targets` and of its folder in `fuzz/seeds`.
pub const TARGETS: [(&str, Target); 12] = [
    ("bundle_json", bundle_json),
    ("clip_file", clip_file),
    ("clip_record", clip_record),
    ("graphs_json", graphs_json),
    ("job_spec", job_spec),
    ("lora", lora),
    ("onnx", onnx),
    ("prompts", prompts),
    ("safetensors_header", safetensors_header),
    ("snapshot", snapshot),
    ("srt", srt),
    ("torch_file", torch_file),
];
