//! Plans which sessions are open together on each device. Pure: works on predicted bytes.
//!
//! ONNX Runtime keeps the memory of a session's activations in a pool until the session is closed. Sessions that stay
//! open therefore need the sum of their weights and activations. A clip uses its components one after another: text
//! encoder, experts from high to low noise, decoder. The least memory is needed if each is closed before the next one
//! is opened. The decoder of previews is open beside the text encoder and the experts. Between these two, the experts
//! stay open and the other components take turns beside them: a clip opens an expert, which is the largest, once.

mod phases;

pub use phases::Phase;

use crate::{Device, Error, Remedy};
use bundle::Field;
use bundle::manifest::Component;
use bundle::units::ByteCount;

/// The components to keep in memory, as requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Residency {
    /// As many as fit. What is needed last is closed first.
    #[default]
    Auto,
    /// Every component stays open.
    All,
    /// One component at a time on each device.
    One,
}

bundle::named!(Residency, Field::Residency, "residency", "auto" => Auto, "all" => All, "one" => One);

/// The predicted memory of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryNeed {
    /// Size of its weights, held while it is open.
    pub weights: ByteCount,
    /// Size of its activations, held from its first run until it is closed: ONNX Runtime keeps them in a pool.
    pub activations: ByteCount,
    /// What opening it takes for a time, beyond the weights: copies that are given back once it is open.
    pub opening: ByteCount,
}

impl MemoryNeed {
    /// The most that it takes: its weights with its activations, or with what opening takes beyond them.
    pub fn total(self) -> ByteCount {
        self.weights + self.activations.max(self.opening)
    }

    /// What it takes once it is open: weights and activations.
    pub fn held(self) -> ByteCount {
        self.weights + self.activations
    }
}

/// The need of several sessions that are opened one after another and stay open.
impl std::ops::Add for MemoryNeed {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        let excess = |need: Self| need.opening.0.saturating_sub(need.activations.0);
        let activations = self.activations + other.activations;
        let opening = match excess(self).max(excess(other)) {
            0 => ByteCount(0),
            excess => activations + ByteCount(excess),
        };
        Self { weights: self.weights + other.weights, activations, opening }
    }
}

impl std::iter::Sum for MemoryNeed {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), std::ops::Add::add)
    }
}

/// What a session is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// It computes a component of the clip.
    Clip(Component),
    /// It decodes previews, beside the text encoder and the experts.
    Previews,
}

impl Role {
    /// Returns true if this is an expert of the clip.
    pub fn is_expert(&self) -> bool {
        matches!(self, Self::Clip(Component::Expert(_)))
    }

    /// Returns true if previews are decoded while this component runs.
    fn has_previews_beside(&self) -> bool {
        match self {
            Self::Clip(Component::TextEncoder | Component::ImageEncoder | Component::Expert(_)) => true,
            Self::Clip(Component::Decoder | Component::Preview) | Self::Previews => false,
        }
    }
}

impl Role {
    /// Returns true if a session of `other` is open while this one runs, because it is the same or decodes previews.
    fn is_beside(&self, other: &Self) -> bool {
        other == self || (*other == Self::Previews && self.has_previews_beside())
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Clip(component) => component.fmt(f),
            Self::Previews => f.write_str("the decoder of previews"),
        }
    }
}

/// The predicted memory of one session of a clip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint {
    /// What it is for. Several sessions may be for the same.
    pub role: Role,
    /// The device that it is open on.
    pub device: Device,
    /// Its memory.
    pub need: MemoryNeed,
}

/// The use of memory of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevicePlan {
    /// The device. That of the CPU is also the memory of the devices without memory of their own.
    pub device: Device,
    /// The memory that may be used; `None` if it is not known.
    pub budget: Option<ByteCount>,
    /// True if all sessions stay open. Otherwise sessions are closed when memory is short, or after use with
    /// [`Residency::One`].
    pub all_stay_open: bool,
    /// True if the device has experts, and they stay open from clip to clip while the other components take turns beside
    /// them, or all stay open.
    pub experts_stay_open: bool,
    /// The predicted memory that the clip needs, at most the budget: with all sessions open, with the experts and one
    /// more component, or the least that is enough.
    pub peak: ByteCount,
    /// The memory of each role, in order of use.
    pub needs: Vec<(Role, MemoryNeed)>,
    /// What is open while each component runs, for the first clip of a process.
    pub phases: Vec<Phase>,
}

impl DevicePlan {
    /// The number of experts on the device.
    pub fn experts(&self) -> usize {
        self.needs.iter().filter(|(role, _)| role.is_expert()).count()
    }
}

/// Decides for each device whether its sessions stay open, so that the memory of none exceeds its budget. Returns the
/// devices in the order of their names. `budget` is that of a device; `None` is no limit. Sessions on devices without
/// memory of their own are planned with those of the CPU.
///
/// # Errors
/// [`Error::DoesNotFit`] for the first device whose sessions do not fit, with the largest parts and a remedy.
pub fn plan(
    wanted: Residency,
    sessions: &[Footprint],
    budget: impl Fn(Device) -> Option<ByteCount>,
) -> Result<Vec<DevicePlan>, Error> {
    let mut devices: Vec<Device> = sessions.iter().map(|session| session.device.memory()).collect();
    devices.sort_unstable();
    devices.dedup();
    devices.into_iter().map(|device| plan_device(wanted, device, sessions, budget(device))).collect()
}

fn plan_device(
    wanted: Residency,
    device: Device,
    sessions: &[Footprint],
    budget: Option<ByteCount>,
) -> Result<DevicePlan, Error> {
    let needs = needs_by_role(sessions.iter().filter(|session| session.device.memory() == device));
    let limit = budget.unwrap_or(ByteCount(u64::MAX));
    let sum = total(&needs).total();
    let largest = largest_stage(&needs);
    let least = total(&largest).total();
    let (fits_open, fits_in_turn) = (sum <= limit, least <= limit);
    let all_stay_open = match wanted {
        Residency::Auto => fits_open,
        Residency::All => true,
        Residency::One => false,
    };
    let beside_experts = beside_experts(&needs).filter(|peak| wanted == Residency::Auto && *peak <= limit);
    let has_experts = needs.iter().any(|(role, _)| role.is_expert());
    let experts_stay_open = has_experts && (all_stay_open || beside_experts.is_some());
    let peak = if all_stay_open { sum } else { beside_experts.unwrap_or(least) };
    if peak <= limit {
        let phases = phases::phases(&needs, wanted, limit);
        return Ok(DevicePlan { device, budget, all_stay_open, experts_stay_open, peak, needs, phases });
    }
    Err(Error::DoesNotFit {
        device,
        needed: peak,
        budget: limit,
        largest: largest_parts(if all_stay_open { &needs } else { &largest }),
        remedy: if fits_in_turn {
            Remedy::OneAtATime(least)
        } else if stages(&needs).iter().all(|stage| total(stage).weights < limit) {
            Remedy::SmallerClip
        } else {
            Remedy::MoreMemory
        },
    })
}

type Needs = Vec<(Role, MemoryNeed)>;

/// The sum of the sessions of each role, in the order of their first session.
fn needs_by_role<'a>(sessions: impl Iterator<Item = &'a Footprint>) -> Needs {
    let mut needs = Needs::new();
    for Footprint { role, need, .. } in sessions {
        match needs.iter_mut().find(|(known, _)| known == role) {
            Some((_, sum)) => *sum = *sum + *need,
            None => needs.push((role.clone(), *need)),
        }
    }
    needs
}

fn total(needs: &[(Role, MemoryNeed)]) -> MemoryNeed {
    needs.iter().map(|(_, need)| *need).sum()
}

/// What is open together with one component at a time.
fn stages(needs: &[(Role, MemoryNeed)]) -> Vec<Needs> {
    let stage = |running: &Role| needs.iter().filter(|(role, _)| running.is_beside(role)).cloned().collect();
    needs.iter().map(|(running, _)| stage(running)).collect()
}

/// The most that is needed if the experts stay open and each other component is opened beside them. `None` if there are no
/// experts.
fn beside_experts(needs: &[(Role, MemoryNeed)]) -> Option<ByteCount> {
    needs.iter().any(|(role, _)| role.is_expert()).then(|| {
        let peak = |running: &Role| {
            let is_open = |role: &Role| role.is_expert() || running.is_beside(role);
            let open = needs.iter().filter(|(role, _)| is_open(role));
            open.map(|(_, need)| *need).sum::<MemoryNeed>().total()
        };
        needs.iter().map(|(running, _)| peak(running)).max().unwrap_or_default()
    })
}

/// What is open together in the stage that needs the most memory.
fn largest_stage(needs: &[(Role, MemoryNeed)]) -> Needs {
    stages(needs).into_iter().max_by_key(|stage| total(stage).total()).unwrap_or_default()
}

/// The three largest parts, in descending order.
fn largest_parts(needs: &[(Role, MemoryNeed)]) -> Vec<(String, ByteCount)> {
    let parts = needs.iter().flat_map(|(role, need)| {
        [
            (format!("the weights of {role}"), need.weights),
            (format!("the activations of {role}"), need.activations),
            (format!("opening {role}"), ByteCount(need.opening.0.saturating_sub(need.activations.0))),
        ]
    });
    let mut parts: Vec<(String, ByteCount)> = parts.filter(|(_, bytes)| bytes.0 > 0).collect();
    parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    parts.truncate(3);
    parts
}

#[cfg(test)]
mod tests;
