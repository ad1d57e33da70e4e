//! The cost file: devices, components, and the work of each kind of clip. Every figure names its source.

use crate::scheduler::{Bounds, DeviceBudget, DeviceName, Devices, Order, Seconds, Settings, Stage};
use bundle::Field;
use bundle::routing::ExpertIndex;
use bundle::units::ByteCount;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A number and where it is from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure<T> {
    /// The number.
    pub value: T,
    /// A measurement, a published figure, or how it was derived.
    pub source: String,
    /// True if it was estimated rather than measured or computed.
    #[serde(default)]
    pub estimate: bool,
}

/// What a model costs on a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Costs {
    /// The model and the machine, for people.
    pub about: String,
    /// The devices.
    pub devices: Vec<DeviceCosts>,
    /// The text encoder.
    pub text_encoder: ComponentCosts,
    /// The experts, from the noisiest down.
    pub experts: Vec<ComponentCosts>,
    /// The decoder.
    pub decoder: ComponentCosts,
    /// The kinds of clips that arrivals name.
    pub clips: BTreeMap<String, ClipCosts>,
    /// Bounds of the scheduler; its defaults if absent.
    #[serde(default)]
    pub bounds: Bounds,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceCosts {
    /// The device.
    pub device: DeviceName,
    /// The memory that may be used, in bytes.
    pub budget: Figure<ByteCount>,
}

/// A component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ComponentFields", into = "ComponentFields")]
pub struct ComponentCosts {
    /// The device that it is placed on, or the pair of an expert.
    pub devices: Devices,
    /// The size of its weights on each of the devices, in bytes.
    pub weights: Figure<ByteCount>,
    /// Seconds to open its session on a device. Closing takes none.
    pub load: Figure<Seconds>,
}

/// A component as it is written: with `device`, or with the two `devices` of a pair.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ComponentFields {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device: Option<DeviceName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    devices: Option<[DeviceName; 2]>,
    weights: Figure<ByteCount>,
    load: Figure<Seconds>,
}

impl TryFrom<ComponentFields> for ComponentCosts {
    type Error = bundle::Error;

    fn try_from(fields: ComponentFields) -> Result<Self, bundle::Error> {
        let ComponentFields { device, devices, weights, load } = fields;
        let devices = match (device, devices) {
            (Some(device), None) => Devices::one(device),
            (None, Some([first, second])) => Devices::pair(first, second)?,
            (device, _) => {
                let given = if device.is_some() { "both" } else { "neither" };
                let (rule, fix) = ("a component has `device` or `devices`", "give one of the two keys");
                return Err(bundle::Error::value(Field::Place, given, rule, fix));
            }
        };
        Ok(Self { devices, weights, load })
    }
}

impl From<ComponentCosts> for ComponentFields {
    fn from(costs: ComponentCosts) -> Self {
        let ComponentCosts { devices, weights, load } = costs;
        let (device, devices) = match devices.second() {
            None => (Some(devices.first()), None),
            Some(second) => (None, Some([devices.first(), second])),
        };
        Self { device, devices, weights, load }
    }
}

/// A kind of clip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipCosts {
    /// Seconds to encode its prompts.
    pub encode: Figure<Seconds>,
    /// Its steps on each expert, from the noisiest down. An expert without steps has 0.
    pub experts: Vec<ExpertClipCosts>,
    /// Chunks of frames to decode.
    pub chunks: Figure<u32>,
    /// Seconds per chunk.
    pub chunk: Figure<Seconds>,
    /// Memory of activations.
    pub activations: Activations,
    /// Bytes of latents and solver history on each device.
    pub latents: Figure<ByteCount>,
    /// Bytes of the decoder's caches.
    pub caches: Figure<ByteCount>,
}

/// The steps of a clip on one expert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertClipCosts {
    /// The number of steps.
    pub steps: Figure<u32>,
    /// Seconds per step, with all guidance passes. On a pair of devices, these run at the same time.
    pub step: Figure<Seconds>,
}

/// The activations of each component, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Activations {
    /// The text encoder.
    pub text_encoder: Figure<ByteCount>,
    /// Each expert.
    pub expert: Figure<ByteCount>,
    /// The decoder, without its caches.
    pub decoder: Figure<ByteCount>,
}

impl Costs {
    /// Parses a cost file.
    ///
    /// # Errors
    /// It is not JSON of this form, a clip has another number of experts than the model, a kind of clip has no work, a
    /// component is on a device without budget, or another component than an expert is on a pair of devices.
    pub fn parse(text: &str, name: &str) -> Result<Self, bundle::Error> {
        let refused = |why: String| {
            let fix = "follow the example in docs/scheduling.md";
            bundle::Error::value(Field::Costs, format!("`{name}`"), why, fix)
        };
        let costs: Self = serde_json::from_str(text).map_err(|error| refused(error.to_string()))?;
        costs.check().map_err(refused)?;
        Ok(costs)
    }

    fn check(&self) -> Result<(), String> {
        for (name, clip) in &self.clips {
            if clip.experts.len() != self.experts.len() {
                return Err(format!(
                    "clip `{name}` has {} experts and the model {}",
                    clip.experts.len(),
                    self.experts.len()
                ));
            }
            if clip.experts.iter().all(|expert| expert.steps.value == 0) {
                return Err(format!("clip `{name}` has no steps"));
            }
        }
        let settings = self.settings(Order::Waves);
        settings.check().map_err(|error| error.to_string())?;
        for (stage, ComponentCosts { devices, .. }) in self.components() {
            if let Some(unknown) = devices.iter().find(|device| settings.budget(*device).is_none()) {
                return Err(format!("the {stage} is placed on {unknown}, which is not among the devices"));
            }
            if devices.is_pair() && stage.expert().is_none() {
                return Err(format!("the {stage} is placed on {devices}: only an expert can be on a pair"));
            }
        }
        Ok(())
    }

    /// The components, in the order in which a clip uses them.
    pub(super) fn components(&self) -> impl Iterator<Item = (Stage, &ComponentCosts)> {
        let experts = self.experts.iter().enumerate();
        let experts = experts.map(|(index, costs)| (Stage::Expert(ExpertIndex(index)), costs));
        [(Stage::TextEncoder, &self.text_encoder)]
            .into_iter()
            .chain(experts)
            .chain([(Stage::Decoder, &self.decoder)])
    }

    /// The costs of a component.
    pub(super) fn component(&self, stage: Stage) -> Option<&ComponentCosts> {
        self.components().find(|(found, _)| *found == stage).map(|(_, costs)| costs)
    }

    /// The settings of a scheduler with these devices.
    pub fn settings(&self, order: Order) -> Settings {
        let budget =
            |device: &DeviceCosts| DeviceBudget { device: device.device, budget: device.budget.value };
        Settings { devices: self.devices.iter().map(budget).collect(), order, bounds: self.bounds }
    }
}
