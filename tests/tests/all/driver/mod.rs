//! The driver on the fake backend: jobs that share devices, and everything that can end them. ONNX Runtime is not used.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod setup;
mod stops;
mod traces;
mod waves;
