//! The use of memory for a clip: which sessions stay open on each device, where weights are, and whether frames are
//! decoded in tiles.

mod footprints;
mod proposal;

pub use footprints::{MemorySettings, footprints};
pub use proposal::Proposal;

use crate::Error;
use crate::model::{ModelOptions, choose_variant};
use crate::plan::GenerationPlan;
use crate::tiling::{TileSide, Tiles};
use bundle::manifest::{Component, GraphEntry, Manifest, Part};
use bundle::preview::PreviewKind;
use bundle::units::ByteCount;
use bundle::variant::{Target, Variant};
use engines::placement::name_of;
use engines::residency::{self, DevicePlan, Residency};
use engines::{Device, MemoryBudgets, Place, Placement, PlacementRequest, Remedy, WeightMemory};
use kernels::CpuPath;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;

/// What a plan of memory begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryRequest {
    /// The device of each component.
    pub placement: Placement,
    /// The variant that runs on devices of each target.
    pub variants: BTreeMap<Target, Variant>,
    /// Threads of a session on the CPU; `None` uses every core.
    pub threads: Option<NonZeroUsize>,
    /// The kind of previews.
    pub preview: PreviewKind,
    /// The decoder tiles.
    pub tiles: Tiles,
    /// The location of weights; `None` is in memory if they fit there, else mapped from their files.
    pub weights: Option<WeightMemory>,
    /// Which components stay open.
    pub residency: Residency,
    /// The memory of each device that may be used. Without a budget it is what is free now.
    pub budgets: MemoryBudgets,
}

impl MemoryRequest {
    /// The request for a clip without previews on the CPU, with every choice left open.
    pub fn new(variant: Variant) -> Self {
        let variants = BTreeMap::from([(variant.target, variant)]);
        Self::with_variants(Placement::on(Device::CPU), variants)
    }

    /// The request for a clip without previews, with every choice left open but the placement and what `options` say.
    /// `path` is that of the Rushes kernels. The device of the options does not matter. If the bundle has graphs for the
    /// CPU, their variant is included, so that components may be proposed to be placed there.
    ///
    /// # Errors
    /// The bundle has no graphs for a device of the placement and the options.
    pub fn placed(
        manifest: &Manifest,
        placement: Placement,
        path: CpuPath,
        options: &ModelOptions,
    ) -> Result<Self, Error> {
        let targets = placement.devices().into_iter().map(|device| device.provider().target());
        let variant = |target| Ok((target, choose_variant(manifest, target, path, options)?));
        let mut variants = targets.map(variant).collect::<Result<BTreeMap<_, _>, Error>>()?;
        if !variants.contains_key(&Target::Cpu)
            && let Ok(cpu) = choose_variant(manifest, Target::Cpu, path, options)
        {
            variants.insert(Target::Cpu, cpu);
        }
        Ok(Self { threads: options.threads, ..Self::with_variants(placement, variants) })
    }

    fn with_variants(placement: Placement, variants: BTreeMap<Target, Variant>) -> Self {
        Self {
            placement,
            variants,
            threads: None,
            preview: PreviewKind::Off,
            tiles: Tiles::Auto,
            weights: None,
            residency: Residency::Auto,
            budgets: MemoryBudgets::default(),
        }
    }

    /// The same request for a tool that measures a variant: weights are in memory and frames are decoded whole, so that
    /// results do not depend on how much memory is free.
    #[must_use]
    pub fn measured(self) -> Self {
        Self { tiles: Tiles::Off, weights: Some(WeightMemory::Prepacked), ..self }
    }
}

/// The use of memory for a clip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The device of each component.
    pub placement: Placement,
    /// The use of each device that has a session.
    pub devices: Vec<DevicePlan>,
    /// The location of weights in the memory of the CPU.
    pub weights: WeightMemory,
    /// The longest side of a decoder tile; `None` decodes whole frames.
    pub tile: Option<TileSide>,
    /// A component that would better be on another device.
    pub proposal: Option<Proposal>,
}

impl MemoryPlan {
    /// Plans the memory of a clip. If whole frames do not fit, they are decoded in tiles. If copies of the weights do
    /// not fit, the weights are used directly from their files. Both are slower.
    ///
    /// On a device with memory of its own and several experts, frames are also decoded in tiles if the experts can then
    /// stay open beside the decoder: an expert is tens of gigabytes to read again for the next clip.
    ///
    /// # Errors
    /// The clip does not fit, or tiles have a size that is out of range. Nothing was allocated for it.
    pub fn new(manifest: &Manifest, plan: &GenerationPlan, request: &MemoryRequest) -> Result<Self, Error> {
        // Read once, so that all attempts are compared with the same number.
        let free = engines::memory::memory().map(|memory| memory.available);
        let budget = |device| request.budgets.of(device).or(if device == Device::CPU { free } else { None });
        let mut found = first_that_fits(manifest, plan, request, &budget);
        if let Err(Error::Engine(engines::Error::DoesNotFit { device, remedy, .. })) = &mut found
            && !matches!(remedy, Remedy::OneAtATime(_))
            && let Some(place) = elsewhere(manifest, plan, request, &budget, *device)
        {
            *remedy = place;
        }
        let mut found = found?;
        found.proposal = text_encoder_on_cpu(manifest, plan, request, &budget, &found);
        Ok(found)
    }

    /// The budget of each device that it was planned with.
    pub fn budgets(&self) -> MemoryBudgets {
        self.devices.iter().filter_map(|device| Some((device.device, device.budget?))).collect()
    }
}

type Budget<'a> = dyn Fn(Device) -> Option<ByteCount> + 'a;

/// Tries weights and tiles in order of speed. Returns the first plan that fits and keeps the experts open, else the first
/// that fits, or why the last one does not.
fn first_that_fits(
    manifest: &Manifest,
    plan: &GenerationPlan,
    request: &MemoryRequest,
    budget: &Budget<'_>,
) -> Result<MemoryPlan, Error> {
    let tiles = tiles(manifest, plan, request)?;
    let weights = match request.weights {
        Some(weights) => vec![weights],
        None => vec![WeightMemory::Prepacked, WeightMemory::Mapped],
    };
    let mut refusal = None;
    for weights in weights {
        let mut first = None;
        for &tile in &tiles {
            let settings = MemorySettings {
                placement: request.placement.clone(),
                variants: request.variants.clone(),
                weights,
                threads: request.threads,
                preview: request.preview,
                tile,
            };
            match residency::plan(request.residency, &footprints(manifest, plan, &settings), budget) {
                Ok(devices) => {
                    let keeps_experts = !devices.iter().any(could_keep_experts);
                    let placement = settings.placement;
                    let found = MemoryPlan { placement, devices, weights, tile, proposal: None };
                    if keeps_experts {
                        return Ok(found);
                    }
                    first.get_or_insert(found);
                }
                Err(error) => refusal = Some(error),
            }
        }
        if let Some(first) = first {
            return Ok(first);
        }
    }
    // Each attempt needs about as much memory as the one before, or less.
    Err(refusal.unwrap_or_else(|| unreachable!("there is at least one attempt")).into())
}

/// Returns true if a device has memory of its own and several experts that do not stay open.
fn could_keep_experts(device: &DevicePlan) -> bool {
    device.device.provider().has_own_memory() && device.experts() > 1 && !device.experts_stay_open
}

/// The placement with a component on one other device, and the request for it.
fn moved(
    manifest: &Manifest,
    placement: &Placement,
    component: &Component,
    device: Device,
) -> Option<(Placement, PlacementRequest)> {
    placement.with(component, device).or_else(|| {
        // All components are on one device.
        let mut request = PlacementRequest::default();
        request.place(name_of(component).parse().ok()?, Place::on(device)).ok()?;
        let placed = Placement::new(manifest, placement.device_of(component), &request).ok()?;
        Some((placed, request))
    })
}

/// Finds a component of a full device that fits on another device of the placement, or on the CPU. An expert on a pair is
/// moved to one device, which may be the other one of its pair.
fn elsewhere(
    manifest: &Manifest,
    plan: &GenerationPlan,
    request: &MemoryRequest,
    budget: &Budget<'_>,
    full: Device,
) -> Option<Remedy> {
    let components = manifest.components.iter().map(|entry| &entry.component);
    let on_full = components
        .filter(|component| request.placement.devices_of(component).any(|device| device.memory() == full));
    let mut devices = request.placement.devices();
    if request.variants.contains_key(&Target::Cpu) {
        devices.insert(Device::CPU);
    }
    let moves = on_full.flat_map(|component| devices.iter().map(move |device| (component, *device)));
    moves.filter(|(_, device)| device.memory() != full).find_map(|(component, device)| {
        let (placement, place) = moved(manifest, &request.placement, component, device)?;
        let moved = MemoryRequest { placement, ..request.clone() };
        first_that_fits(manifest, plan, &moved, budget).ok().map(|_| Remedy::Place(place))
    })
}

/// Proposes to place the text encoder on the CPU if it is on a device on which the experts do not stay open, and fits
/// there: then it is not read again for every prompt, and closes no expert.
fn text_encoder_on_cpu(
    manifest: &Manifest,
    plan: &GenerationPlan,
    request: &MemoryRequest,
    budget: &Budget<'_>,
    found: &MemoryPlan,
) -> Option<Proposal> {
    let from = request.placement.device_of(&Component::TextEncoder);
    let takes_turns = found.devices.iter().any(|device| device.device == from && could_keep_experts(device));
    if !takes_turns || !request.variants.contains_key(&Target::Cpu) {
        return None;
    }
    let (placement, place) = moved(manifest, &request.placement, &Component::TextEncoder, Device::CPU)?;
    let moved = MemoryRequest { placement, ..request.clone() };
    let planned = first_that_fits(manifest, plan, &moved, budget).ok()?;
    let cpu = planned.devices.iter().find(|device| device.device == Device::CPU)?;
    Some(Proposal { place, from, to: Device::CPU, needed: cpu.peak })
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
            let target = request.placement.device_of(&Component::Decoder).provider().target();
            let has_tiles =
                request.variants.get(&target).is_some_and(|variant| has_tiles(manifest, *variant));
            let even = TileSide::even([plan.latent.height, plan.latent.width]);
            let sides = TileSide::TRIED.into_iter().chain(even);
            let smaller = sides.filter(|side| has_tiles && side.get() < longest);
            std::iter::once(None).chain(smaller.map(Some)).collect()
        }
    })
}

/// Returns true if the decoder can run in tiles in this precision.
fn has_tiles(manifest: &Manifest, variant: Variant) -> bool {
    let mut decoder = manifest.components.iter().filter(|entry| entry.component == Component::Decoder);
    decoder.any(|entry| {
        let precision = manifest.precision_of(entry, variant.precision);
        let fits = |graph: &GraphEntry| {
            let found = (graph.part, graph.variant.target, graph.variant.precision);
            found == (Part::TrunkFirst, variant.target, precision)
        };
        entry.graphs.iter().any(fits)
    })
}

#[cfg(test)]
pub(crate) mod tests;
