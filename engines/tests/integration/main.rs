//! Tests of this crate with ONNX Runtime and small graphs.
//!
//! They are one binary. A test that needs a process of its own starts this binary again with
//! [`support::in_own_process`]: library lookup because a process loads one library, memory because its numbers are
//! those of the whole process.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod graphs;
mod library;
mod memory;
mod sessions;
mod support;
