//! The server, over HTTP: one module per API or promise.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod auditions;
mod classifier;
mod filter;
mod live;
mod loras;
mod openai;
mod other_apis;
mod previews;
mod results;
mod security;
mod sound;
mod starting;
mod survival;
mod texts;
mod uploads;

use serde_json::{Value, json};
use tests::served::Server;

/// A clip of a moment.
fn short(prompt: &str) -> Value {
    json!({"prompt": prompt, "size": "48x32", "num_frames": 5, "num_inference_steps": 4, "seed": 7})
}

/// A clip that is not complete before a test has looked at it.
fn long(prompt: &str) -> Value {
    json!({"prompt": prompt, "size": "192x128", "num_frames": 33, "num_inference_steps": 200, "seed": 5})
}

/// The name of a video.
fn id_of(video: &Value) -> &str {
    video["id"].as_str().unwrap()
}

/// The frames of a complete video, one after another.
fn pixels(server: &Server, id: &str) -> Vec<u8> {
    let file = server.data.join("pixels.mp4");
    std::fs::write(&file, server.get(&format!("/v1/videos/{id}/content")).with(200).body).unwrap();
    let mut ffmpeg = std::process::Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-i"]).arg(&file).args(["-f", "rawvideo", "-pix_fmt", "yuv420p", "-"]);
    let decoded = ffmpeg.output().unwrap();
    assert!(decoded.status.success() && !decoded.stdout.is_empty(), "{decoded:?}");
    decoded.stdout
}
