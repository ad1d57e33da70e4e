//! The instruction paths that this machine has.

use kernels::{CpuPath, Kernels};

/// The kernels of every path of this machine. Reports the paths that it lacks on standard error.
pub fn available() -> Vec<Kernels> {
    let kernels = |path| Kernels::of(path).inspect_err(|error| eprintln!("skipped: {error}")).ok();
    CpuPath::ALL.into_iter().filter_map(kernels).collect()
}
