//! Whether a clip fits into the memory that is free, for commands that leave no choice of how.

use crate::Error;
use crate::footprint::{MemorySettings, footprints};
use crate::plan::GenerationPlan;
use bundle::manifest::Manifest;
use bundle::units::ByteCount;
use engines::WeightMemory;
use engines::residency::{self, Mode, Residency};

/// What may stay open from clip to clip, with weights in memory and pictures decoded whole.
///
/// # Errors
/// A clip that does not fit, before anything is allocated for it.
pub fn mode(manifest: &Manifest, plan: &GenerationPlan) -> Result<Mode, Error> {
    let free = engines::memory::memory().map_or(ByteCount(u64::MAX), |memory| memory.available);
    let needed = footprints(manifest, plan, MemorySettings::plain(WeightMemory::Prepacked));
    Ok(residency::plan(Residency::Auto, &needed, free)?.mode)
}
