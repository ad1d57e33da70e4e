//! The use of memory for a clip: which parts are open together, where weights are, and whether frames are decoded in
//! tiles.

use crate::Error;
use crate::decode::{TileSide, Tiles};
use crate::footprint::{MemorySettings, footprints};
use crate::plan::GenerationPlan;
use bundle::manifest::{Component, GraphEntry, Manifest, Part};
use bundle::preview::PreviewKind;
use bundle::units::ByteCount;
use bundle::variant::Variant;
use engines::WeightMemory;
use engines::residency::{self, Mode, Residency};

/// What a plan of memory begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryRequest {
    /// The variant that runs.
    pub variant: Variant,
    /// The kind of previews.
    pub preview: PreviewKind,
    /// The decoder tiles.
    pub tiles: Tiles,
    /// Which parts are open together.
    pub residency: Residency,
    /// The memory that may be used; `None` is what is free now.
    pub budget: Option<ByteCount>,
}

impl MemoryRequest {
    /// The request for a clip without previews, with every choice left open.
    pub fn new(variant: Variant) -> Self {
        let (preview, tiles, residency) = (PreviewKind::Off, Tiles::Auto, Residency::Auto);
        Self { variant, preview, tiles, residency, budget: None }
    }
}

/// The use of memory for a clip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Which parts are open together.
    pub mode: Mode,
    /// The location of weights.
    pub weights: WeightMemory,
    /// The longest side of a decoder tile; `None` decodes whole frames.
    pub tile: Option<TileSide>,
    /// Predicted peak of the clip.
    pub peak: ByteCount,
}

impl MemoryPlan {
    /// Plans the memory of a clip. If whole frames do not fit, they are decoded in tiles. If copies of the weights do
    /// not fit, the weights are used directly from their files. Both are slower.
    ///
    /// # Errors
    /// The clip does not fit, or tiles have a size that is out of range. Nothing was allocated for it.
    pub fn new(manifest: &Manifest, plan: &GenerationPlan, request: &MemoryRequest) -> Result<Self, Error> {
        let free = engines::memory::memory().map(|memory| memory.available);
        let budget = request.budget.or(free).unwrap_or(ByteCount(u64::MAX));
        let MemoryRequest { variant, preview, residency, .. } = *request;
        let tiles = tiles(manifest, plan, request)?;
        let mut refusal = None;
        for weights in [WeightMemory::Prepacked, WeightMemory::Mapped] {
            for &tile in &tiles {
                let settings = MemorySettings {
                    weights,
                    precision: Some(variant.precision),
                    kernels: variant.kernels,
                    preview,
                    tile,
                };
                match residency::plan(residency, &footprints(manifest, plan, settings), budget) {
                    Ok(plan) => return Ok(Self { mode: plan.mode, weights, tile, peak: plan.peak }),
                    Err(error) => refusal = Some(error),
                }
            }
        }
        // Each attempt needs about as much memory as the one before, or less.
        Err(refusal.unwrap_or_else(|| unreachable!("there is at least one attempt")).into())
    }
}

/// Returns the residency mode for a clip of a bundle's exported variant, with weights in memory and frames decoded whole.
///
/// # Errors
/// The clip does not fit. Nothing was allocated for it.
pub fn residency_mode(manifest: &Manifest, plan: &GenerationPlan) -> Result<Mode, Error> {
    let free = engines::memory::memory().map_or(ByteCount(u64::MAX), |memory| memory.available);
    let needed = footprints(manifest, plan, MemorySettings::plain(WeightMemory::Prepacked));
    Ok(residency::plan(Residency::Auto, &needed, free)?.mode)
}

/// The tile sizes to try, in this order.
fn tiles(
    manifest: &Manifest,
    plan: &GenerationPlan,
    request: &MemoryRequest,
) -> Result<Vec<Option<TileSide>>, Error> {
    let stride = manifest.vae.stride();
    Ok(match request.tiles {
        Tiles::Off => vec![None],
        Tiles::Pixels(pixels) => vec![Some(TileSide::try_new(pixels / stride.space, stride)?)],
        // Tiles are smaller than the frame.
        Tiles::Auto => {
            let longest = plan.latent.height.max(plan.latent.width);
            let has_tiles = has_tiles(manifest, request.variant);
            let smaller = TileSide::TRIED.into_iter().filter(|side| has_tiles && side.get() < longest);
            std::iter::once(None).chain(smaller.map(Some)).collect()
        }
    })
}

/// Returns true if the decoder can run in tiles in this precision.
fn has_tiles(manifest: &Manifest, variant: Variant) -> bool {
    let mut decoder = manifest.components.iter().filter(|entry| entry.component == Component::Decoder);
    let fits =
        |graph: &GraphEntry| graph.part == Part::TrunkFirst && graph.variant.precision == variant.precision;
    decoder.any(|entry| entry.graphs.iter().any(fits))
}
