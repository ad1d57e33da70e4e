//! Tests that need execution providers, which `scripts/setup.sh openvino`, `webgpu`, `cuda` and
//! `tensorrt-rtx` get.
//!
//! `make test-providers` runs them, `make test-providers SMOKE=1` those whose name contains `smoke`. A test whose
//! provider cannot be used prints why and passes. With `REQUIRE=openvino` it fails instead.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod bundles;
mod cuda;
mod device_memory;
mod engines_openvino;
mod openvino;
mod pairs;
mod parity;
mod refusals;
mod support;
mod tensorrt_rtx;
