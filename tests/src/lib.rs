//! What the cross-crate tests share: golden cases, comparisons, edits of checkpoints, the binary.
//!
//! The tests themselves are in `tests/tests`: `golden` (parity with diffusers, and mutations that must break it),
//! `checkpoint_faults`, `command_line`, `interruption`, `residency`, `mini`, `tidy`.

pub mod compare;
pub mod cpu_paths;
pub mod edit;
pub mod folder;
pub mod golden;
pub mod mounts;
pub mod program;
pub mod signals;
pub mod synthetic;
