//! The server, over HTTP: one module per API or promise.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod classifier;
mod filter;
mod openai;
mod other_apis;
mod previews;
mod security;
mod starting;
mod survival;
mod uploads;

use serde_json::{Value, json};

/// A clip of a moment.
fn short(prompt: &str) -> Value {
    json!({"prompt": prompt, "size": "48x32", "num_frames": 5, "num_inference_steps": 4, "seed": 7})
}

/// A clip that is not complete before a test has looked at it.
fn long(prompt: &str) -> Value {
    json!({"prompt": prompt, "size": "192x128", "num_frames": 33, "num_inference_steps": 200, "seed": 5})
}
