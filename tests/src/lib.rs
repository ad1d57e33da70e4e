//! What the cross-crate tests share: golden cases, comparisons, edits of checkpoints, the binary.
//!
//! The tests themselves are modules of one binary, `tests/tests/all`: among them `golden` (parity with diffusers, and
//! mutations that must break it), `checkpoint_faults`, `command_line`, `interruption`, `residency`, `mini` and `tidy`.

pub mod branched;
pub mod compare;
pub mod cpu_paths;
pub mod edit;
pub mod folder;
pub mod golden;
pub mod kills;
pub mod made_up_scales;
pub mod mounts;
pub mod official_layout;
pub mod own_process;
pub mod program;
pub mod served;
pub mod signals;
pub mod sparse;
pub mod synthetic;
pub mod two_blocks;
