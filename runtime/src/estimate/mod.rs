//! The predicted time of a clip, from its operations and the peaks of its devices. Pure: measures nothing.
//!
//! Times are ranges ([`Span`]): the shares of the peak that were measured or published ([`Rates`]) differ by up to a factor
//! of two. What is not counted: outputs, previews, and files that are not in the page cache.

mod gpus;
mod rates;
mod span;

pub use gpus::{GPUS, Gpu, GpuPeaks, known_gpu};
pub use rates::{CpuPeaks, Peaks, Rates};
pub use span::Span;

use crate::footprint::{SessionSettings, running_variant};
use crate::memory_plan::{MemoryPlan, MemoryRequest};
use crate::plan::GenerationPlan;
use crate::tiling::Tiling;
use bundle::manifest::{Component, Manifest, Part};
use bundle::routing::ExpertName;
use bundle::spec::TEXT_ROWS;
use bundle::units::ByteCount;
use bundle::variant::Variant;
use bundle::work::Work;
use engines::residency::Role;
use engines::{Device, WeightMemory};

/// The predicted time of a phase of a clip.
#[derive(Debug, Clone, PartialEq)]
pub struct PhaseEstimate {
    /// The component that makes it.
    pub component: Component,
    /// The device of the component, or both of its pair.
    pub devices: Vec<Device>,
    /// Its units of work: one for the text, steps, or latent frames.
    pub units: usize,
    /// The time to open the component, from files in the page cache.
    pub opening: Span,
    /// The time of the first unit; `None` if the speed of a device is not known.
    pub first: Option<Span>,
    /// The time of each later unit.
    pub unit: Option<Span>,
}

impl PhaseEstimate {
    /// The time of the whole phase.
    pub fn time(&self) -> Option<Span> {
        let later = self.units.saturating_sub(1);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let later = self.unit? * later as f64;
        Some(self.opening + self.first? + later)
    }
}

/// The predicted time of a clip.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipEstimate {
    /// Its phases, in order.
    pub phases: Vec<PhaseEstimate>,
}

impl ClipEstimate {
    /// Predicts the time of a clip whose memory is planned. `peaks` are those of a device, if known.
    pub fn new(
        manifest: &Manifest,
        plan: &GenerationPlan,
        (request, memory): (&MemoryRequest, &MemoryPlan),
        peaks: &dyn Fn(Device) -> Option<Peaks>,
    ) -> Self {
        let clip = Clip { manifest, plan, request, memory, peaks };
        let experts = plan.expert_steps.iter().zip(&plan.guided_steps).filter(|((_, steps), _)| *steps > 0);
        let experts = experts.map(|((expert, steps), guided)| clip.steps(expert, *steps, *guided));
        Self { phases: [clip.text()].into_iter().chain(experts).chain([clip.decode()]).collect() }
    }

    /// The time of the whole clip.
    pub fn total(&self) -> Option<Span> {
        self.phases.iter().map(PhaseEstimate::time).sum::<Option<Span>>()
    }

    /// The time until the first step is done, which the first preview shows.
    pub fn until_first_step(&self) -> Option<Span> {
        self.until_first_of(|component| matches!(component, Component::Expert(_)))
    }

    /// The time until the first frame is decoded.
    pub fn until_first_frame(&self) -> Option<Span> {
        self.until_first_of(|component| *component == Component::Decoder)
    }

    fn until_first_of(&self, is_it: impl Fn(&Component) -> bool) -> Option<Span> {
        let at = self.phases.iter().position(|phase| is_it(&phase.component))?;
        let before = self.phases[..at].iter().map(PhaseEstimate::time).sum::<Option<Span>>()?;
        Some(before + self.phases[at].opening + self.phases[at].first?)
    }

    /// The phases of the experts.
    pub fn experts(&self) -> impl Iterator<Item = &PhaseEstimate> {
        self.phases.iter().filter(|phase| matches!(phase.component, Component::Expert(_)))
    }

    /// The expert with the longest steps, and their time.
    pub fn longest_step(&self) -> Option<(&PhaseEstimate, Span)> {
        let steps = self.experts().filter_map(|phase| Some((phase, phase.unit?)));
        steps.max_by(|(_, one), (_, other)| one.middle().total_cmp(&other.middle()))
    }
}

/// Bytes of weights that are opened in a second, in GB. On the CPU they are rearranged: 1.0 on two cores
/// (`docs/benchmarks.md`). Accelerators read them from the page cache: 2.5 to 5.1 of 28.6 GB (published by mold).
const OPENED: [[f64; 2]; 2] = [[0.7, 3.0], [2.0, 6.0]];

struct Clip<'a> {
    manifest: &'a Manifest,
    plan: &'a GenerationPlan,
    request: &'a MemoryRequest,
    memory: &'a MemoryPlan,
    peaks: &'a dyn Fn(Device) -> Option<Peaks>,
}

impl Clip<'_> {
    /// The variant of a component on a device.
    fn variant(&self, component: &Component, part: Part, device: Device) -> Option<Variant> {
        let entry = self.manifest.components.iter().find(|entry| entry.component == *component)?;
        let settings = SessionSettings {
            provider: device.provider(),
            variant: self.request.variants.get(&device.target()).copied(),
            weights: WeightMemory::Prepacked,
            threads: self.request.threads,
        };
        Some(running_variant(self.manifest, entry, part, settings))
    }

    /// The speed of a component on a device, if it is known.
    fn rates(&self, component: &Component, part: Part, device: Device) -> Option<Rates> {
        let runs = self.variant(component, part, device)?;
        Rates::of((self.peaks)(device)?, device.provider(), runs)
    }

    /// The time to open a component on all its devices at the same time.
    fn opening(&self, component: &Component, devices: &[Device]) -> Span {
        let weights = |device: &&_| {
            let planned = self.memory.devices.iter().find(|planned| planned.device == **device)?;
            let role = Role::Clip(component.clone());
            planned.needs.iter().find(|(known, _)| *known == role).map(|(_, need)| need.weights)
        };
        let time = |device: &Device| {
            let ByteCount(bytes) = weights(&device).unwrap_or_default();
            let [least, most] = OPENED[usize::from(*device != Device::CPU)];
            #[expect(clippy::cast_precision_loss, reason = "a time of two digits")]
            let gigabytes = bytes as f64 / 1e9;
            Span { least: gigabytes / most, most: gigabytes / least }
        };
        devices.iter().map(time).fold(Span::default(), Span::beside)
    }

    fn phase(
        &self,
        component: Component,
        units: usize,
        times: impl Fn(&Component, Device) -> Option<[Span; 2]>,
    ) -> PhaseEstimate {
        let devices: Vec<Device> = self.memory.placement.devices_of(&component).collect();
        let of_devices: Option<Vec<[Span; 2]>> =
            devices.iter().map(|device| times(&component, *device)).collect();
        let longest = |index: usize| {
            let times = of_devices.as_ref()?.iter().map(|times| times[index]);
            Some(times.fold(Span::default(), Span::beside))
        };
        let opening = self.opening(&component, &devices);
        PhaseEstimate { units, opening, first: longest(0), unit: longest(1), component, devices }
    }

    /// The prompt, and the negative prompt of a guided clip. A token has one to four characters.
    fn text(&self) -> PhaseEstimate {
        let spec = &self.manifest.text_encoder;
        let work = |characters_of_token: usize, unknown: usize| {
            let of = |prompt: &str| match prompt.chars().count() {
                0 => spec.work(unknown),
                characters => spec.work((characters / characters_of_token + 1).min(TEXT_ROWS)),
            };
            let negative = if self.plan.is_guided() { of(&self.plan.negative) } else { Work::default() };
            of(&self.plan.prompt) + negative
        };
        self.phase(Component::TextEncoder, 1, |component, device| {
            let rates = self.rates(component, Part::Whole, device)?;
            let [least, most] = [work(4, 1), work(1, TEXT_ROWS)].map(|work| rates.time(work, spec.layers));
            Some([Span { least: least.least, most: most.most }; 2])
        })
    }

    /// The steps of an expert, of which the first ones are guided. A guided step is two passes, each on one device of a
    /// pair. Steps that may be reused are counted as computed.
    fn steps(&self, expert: &ExpertName, steps: usize, guided: usize) -> PhaseEstimate {
        let component = Component::Expert(expert.clone());
        let is_pair = self.memory.placement.pair_of(&component).is_some();
        self.phase(component, steps, |component, device| {
            let rates = self.rates(component, Part::Whole, device)?;
            let time = |is_guided: bool| {
                let (passes, times) = if is_guided && !is_pair { (2, 2.0) } else { (1, 1.0) };
                let work = self.manifest.denoiser.step_work(self.plan.tokens) * times;
                rates.time(work, passes * self.manifest.denoiser.layers)
            };
            let (later, later_guided) = (steps.saturating_sub(1), guided.saturating_sub(1));
            let unit = match later_guided {
                0 if guided < steps => time(false),
                all if all == later => time(true),
                some => {
                    #[expect(clippy::cast_precision_loss, reason = "at most a thousand steps")]
                    let share = some as f64 / later as f64;
                    time(true) * share + time(false) * (1.0 - share)
                }
            };
            Some([time(guided > 0), unit])
        })
    }

    /// The latent frames. Tiles overlap, so they are more work than the frame.
    fn decode(&self) -> PhaseEstimate {
        let (latent, vae) = (self.plan.latent, &self.manifest.vae);
        let [height, width] = [latent.height, latent.width];
        let tiling = self.memory.tile.map(|side| Tiling::new(height, width, side));
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let overlap = tiling.map_or(1.0, |tiling| {
            let tile: usize = tiling.tile_size().iter().product();
            (tiling.count() * tile) as f64 / (height * width).max(1) as f64
        });
        let work = [vae.first_frame_work(height, width), vae.next_frames_work(height, width)];
        // Residual blocks: those of each level, and two in the middle.
        let layers = vae.multipliers.len() * (vae.residual_blocks + 1) + 2;
        self.phase(Component::Decoder, latent.frames, |component, device| {
            let rates = self.rates(component, Part::Next, device)?;
            Some(work.map(|work| rates.time(work * overlap, layers)))
        })
    }
}

#[cfg(test)]
mod tests;
