//! Checks that a clip fits into the available memory, for commands without memory options.

use crate::Error;
use crate::footprint::{MemorySettings, footprints};
use crate::plan::GenerationPlan;
use bundle::manifest::Manifest;
use bundle::units::ByteCount;
use engines::WeightMemory;
use engines::residency::{self, Mode, Residency};

/// Returns the residency mode for a clip, with weights in memory and frames decoded whole.
///
/// # Errors
/// The clip does not fit. Nothing was allocated for it.
pub fn residency_mode(manifest: &Manifest, plan: &GenerationPlan) -> Result<Mode, Error> {
    let free = engines::memory::memory().map_or(ByteCount(u64::MAX), |memory| memory.available);
    let needed = footprints(manifest, plan, MemorySettings::plain(WeightMemory::Prepacked));
    Ok(residency::plan(Residency::Auto, &needed, free)?.mode)
}
