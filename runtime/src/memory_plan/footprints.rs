//! The sessions of a clip and their memory.

use crate::denoise::GuidanceForm;
use crate::footprint::{SessionSettings, StepShape, decoder_need, step_need, text_encoder_need};
use crate::plan::GenerationPlan;
use crate::tiling::{TileSide, Tiling};
use bundle::manifest::{Component, Manifest, Part};
use bundle::preview::PreviewKind;
use bundle::spec::TEXT_ROWS;
use bundle::variant::{Target, Variant};
use engines::residency::{Footprint, MemoryNeed, Role};
use engines::{Device, Placement, WeightMemory};
use std::collections::BTreeMap;
use std::num::NonZeroUsize;

/// Settings that decide the memory of a clip, besides its plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemorySettings {
    /// The device of each component, and the second one of experts on a pair.
    pub placement: Placement,
    /// The variant that runs on devices of each target. Without one it is the exported one on the CPU.
    pub variants: BTreeMap<Target, Variant>,
    /// The location of weights in the memory of the CPU. Other devices have copies.
    pub weights: WeightMemory,
    /// Threads of a session on the CPU; `None` uses every core.
    pub threads: Option<NonZeroUsize>,
    /// The kind of previews.
    pub preview: PreviewKind,
    /// Tile size of the decoder; `None` decodes whole frames.
    pub tile: Option<TileSide>,
}

impl MemorySettings {
    /// The exported variant on the CPU without previews, with frames decoded whole.
    pub fn plain(weights: WeightMemory) -> Self {
        Self {
            placement: Placement::on(Device::CPU),
            variants: BTreeMap::new(),
            weights,
            threads: None,
            preview: PreviewKind::Off,
            tile: None,
        }
    }

    /// The settings of a session on a device.
    pub fn session(&self, device: Device) -> SessionSettings {
        let weights = if device == Device::CPU { self.weights } else { WeightMemory::Prepacked };
        let variant = self.variants.get(&device.provider().target()).copied();
        SessionSettings { provider: device.provider(), variant, weights, threads: self.threads }
    }
}

/// Returns the memory of every session that a text-to-video clip opens, in order of use. An expert on a pair of devices
/// has a session on each. Previews come last.
///
/// Mapped weights that are stored as f32 count as 0: the system may drop their pages and read them again.
pub fn footprints(manifest: &Manifest, plan: &GenerationPlan, settings: &MemorySettings) -> Vec<Footprint> {
    let mut all = Vec::new();
    for component in manifest.components.iter().map(|entry| &entry.component) {
        for device in settings.placement.devices_of(component) {
            let needs = component_needs(manifest, plan, settings, component, device);
            let footprint = |need| Footprint { role: Role::Clip(component.clone()), device, need };
            all.extend(needs.into_iter().map(footprint));
        }
    }
    all.extend(preview_footprints(manifest, plan, settings));
    all
}

/// The memory of the sessions of a component on one of its devices.
fn component_needs(
    manifest: &Manifest,
    plan: &GenerationPlan,
    settings: &MemorySettings,
    component: &Component,
    device: Device,
) -> Vec<MemoryNeed> {
    let session = settings.session(device);
    match component {
        Component::TextEncoder => vec![text_encoder_need(manifest, session, TEXT_ROWS)],
        Component::Expert(_) => {
            vec![step_need(manifest, component, session, step_shape(plan, &settings.placement))]
        }
        Component::Decoder => {
            let need = |part| decoder_need(manifest, component, part, session, plan.latent, settings.tile);
            decoder_parts(plan, settings.tile).into_iter().map(need).collect()
        }
        // Clips from text use no image encoder.
        Component::ImageEncoder | Component::Preview => Vec::new(),
    }
}

/// The shape of the steps of a plan.
fn step_shape(plan: &GenerationPlan, placement: &Placement) -> StepShape {
    let batch = if plan.is_guided() { GuidanceForm::of(plan.tokens, placement).batch() } else { 1 };
    StepShape { tokens: plan.tokens, batch, text_rows: TEXT_ROWS, timestep_rows: 1 }
}

/// The graphs that decode a clip, in order of use.
fn decoder_parts(plan: &GenerationPlan, tile: Option<TileSide>) -> Vec<Part> {
    let tiling = tile.map(|side| Tiling::new(plan.latent.height, plan.latent.width, side));
    let (first, next): (&[Part], &[Part]) = match tiling.filter(|tiling| tiling.count() > 1) {
        Some(_) => (&[Part::TrunkFirst, Part::UpsamplerFirst], &[Part::TrunkNext, Part::UpsamplerNext]),
        None => (&[Part::First], &[Part::Next]),
    };
    let next = if plan.latent.frames > 1 { next } else { &[] };
    [first, next].concat()
}

/// The decoder of previews. It runs on one thread, in sessions of its own.
fn preview_footprints(
    manifest: &Manifest,
    plan: &GenerationPlan,
    settings: &MemorySettings,
) -> Vec<Footprint> {
    let (component, parts): (_, &[Part]) = match settings.preview {
        PreviewKind::Off | PreviewKind::Rgb => return Vec::new(),
        PreviewKind::Tiny if plan.latent.frames > 1 => (Component::Preview, &[Part::First, Part::Next]),
        PreviewKind::Tiny => (Component::Preview, &[Part::First]),
        PreviewKind::Full => (Component::Decoder, &[Part::First]),
    };
    let device = settings.placement.device_of(&component);
    let session = SessionSettings { threads: Some(NonZeroUsize::MIN), ..settings.session(device) };
    let need = |part: &Part| decoder_need(manifest, &component, *part, session, plan.latent, None);
    let footprint = |need: MemoryNeed| Footprint { role: Role::Previews, device, need };
    parts.iter().map(need).map(footprint).collect()
}
