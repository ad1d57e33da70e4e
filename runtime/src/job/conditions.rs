//! What decides the bits of a clip besides its spec: program, machine, threads, memory.

use crate::denoise::GuidanceForm;
use crate::model::Model;
use crate::plan::GenerationPlan;
use engines::providers::DeviceFacts;
use engines::{Backend, Device, WeightMemory};
use serde::{Deserialize, Serialize};

/// The conditions of a run. Equal spec and equal conditions give equal bits on the CPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConditions {
    /// Version of Rushes.
    pub program: String,
    /// The device, or the devices of the components that decide bits, as
    /// [`Placement`](engines::Placement) prints them.
    #[serde(rename = "provider")]
    pub devices: String,
    /// Version of ONNX Runtime.
    pub onnx_runtime: String,
    /// The hardware and the provider's version of each accelerator.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accelerators: Vec<AcceleratorConditions>,
    /// The processor.
    pub processor: String,
    /// Instruction set of the Rushes kernels.
    pub cpu_path: String,
    /// Threads of one graph.
    pub threads: usize,
    /// True if weights are mapped from their files, which selects other kernels.
    pub mapped_weights: bool,
    /// How the guidance passes run.
    pub guidance: GuidanceForm,
    /// The longest side of a decoder tile in latent positions; `None` for whole frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tile: Option<usize>,
}

/// What decides the bits that an accelerator computes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceleratorConditions {
    /// The device.
    pub device: String,
    /// The name of the hardware.
    pub hardware: String,
    /// The kind of hardware that compiled engines depend on, such as `sm90`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// Version of the execution provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
}

impl AcceleratorConditions {
    /// Those of a device; `None` if nothing is known about it beyond its name.
    fn of(backend: &dyn Backend, device: Device) -> Option<Self> {
        let DeviceFacts { device, name, architecture, version, .. } = backend.facts(device)?;
        Some(Self {
            device: device.to_string(),
            hardware: name,
            architecture: Some(architecture).filter(|text| !text.is_empty()),
            provider: version,
        })
    }
}

impl std::fmt::Display for AcceleratorConditions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { device, hardware, architecture, provider } = self;
        write!(f, "{device} ({hardware}")?;
        for part in [architecture, provider].into_iter().flatten() {
            write!(f, ", {part}")?;
        }
        f.write_str(")")
    }
}

impl RunConditions {
    /// The conditions of a model on this machine, for a plan and decoder tiles of `tile` latent positions.
    pub fn new(model: &Model, plan: &GenerationPlan, tile: Option<usize>) -> Self {
        let sessions = model.sessions();
        let backend = sessions.backend().info();
        let devices = model.placement().without_previews();
        let accelerators = devices.devices().into_iter();
        let cpu = engines::cpu::Cpu::detect();
        let options = model.engine_options();
        Self {
            program: env!("CARGO_PKG_VERSION").to_owned(),
            devices: devices.to_string(),
            onnx_runtime: backend.version,
            accelerators: accelerators
                .filter_map(|device| AcceleratorConditions::of(sessions.backend(), device))
                .collect(),
            processor: cpu.full_name(),
            cpu_path: backend.cpu_path.name().to_owned(),
            threads: options.threads.map_or(cpu.threads, std::num::NonZeroUsize::get),
            mapped_weights: options.weights == WeightMemory::Mapped,
            guidance: GuidanceForm::of(plan.tokens, model.placement()),
            tile,
        }
    }

    /// What differs from any of several conditions, each text once. `self` are the conditions of this run.
    pub fn all_differences(&self, others: &[Self], with_tiles: bool) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        for text in others.iter().flat_map(|other| self.differences(other, with_tiles)) {
            if !all.contains(&text) {
                all.push(text);
            }
        }
        all
    }

    /// What differs from other conditions, one text for each, as `threads 4 instead of 2`. `self` are the conditions of
    /// this run. Tiles are left out if only latents are compared.
    pub fn differences(&self, other: &Self, with_tiles: bool) -> Vec<String> {
        let memory = |conditions: &Self| if conditions.mapped_weights { "mapped" } else { "in memory" };
        let tile = |conditions: &Self| conditions.tile.map_or("none".to_owned(), |side| side.to_string());
        let accelerators = |conditions: &Self| match &conditions.accelerators[..] {
            [] => "unknown".to_owned(),
            all => all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        };
        let mut pairs = vec![
            ("rushes", self.program.clone(), other.program.clone()),
            ("devices", self.devices.clone(), other.devices.clone()),
            ("ONNX Runtime", self.onnx_runtime.clone(), other.onnx_runtime.clone()),
            ("accelerators", accelerators(self), accelerators(other)),
            ("processor", self.processor.clone(), other.processor.clone()),
            ("CPU path", self.cpu_path.clone(), other.cpu_path.clone()),
            ("threads", self.threads.to_string(), other.threads.to_string()),
            ("weights", memory(self).to_owned(), memory(other).to_owned()),
            ("guidance", self.guidance.to_string(), other.guidance.to_string()),
        ];
        if with_tiles {
            pairs.push(("decoder tiles", tile(self), tile(other)));
        }
        let differing = pairs.into_iter().filter(|(_, own, other)| own != other);
        differing.map(|(what, own, other)| format!("{what} {own} instead of {other}")).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn conditions() -> RunConditions {
        RunConditions {
            program: "0.1.0".into(),
            devices: "cpu".into(),
            onnx_runtime: "1.31.1".into(),
            accelerators: Vec::new(),
            processor: "AMD EPYC 9B14, family 25 model 17".into(),
            cpu_path: "avx512-vnni".into(),
            threads: 2,
            mapped_weights: false,
            guidance: GuidanceForm::OneCall,
            tile: None,
        }
    }

    #[test]
    fn conditions_without_accelerators_are_read() {
        let json = serde_json::to_value(conditions()).unwrap();
        assert!(json.get("accelerators").is_none());
        assert_eq!(serde_json::from_value::<RunConditions>(json).unwrap(), conditions());
    }

    #[test]
    fn differences_are_named() {
        let same = conditions();
        assert_eq!(same.differences(&conditions(), true), [""; 0]);
        let moved =
            RunConditions { devices: "text_encoder=cpu,only=cuda:0,decoder=cpu".into(), ..conditions() };
        assert_eq!(
            moved.differences(&conditions(), true),
            ["devices text_encoder=cpu,only=cuda:0,decoder=cpu instead of cpu"]
        );
        let accelerator = |version: &str| AcceleratorConditions {
            device: "openvino:0".into(),
            hardware: "GenuineIntel".into(),
            architecture: None,
            provider: Some(version.into()),
        };
        let [new, old] = ["1.8.1", "1.8.0"]
            .map(|version| RunConditions { accelerators: vec![accelerator(version)], ..conditions() });
        assert_eq!(
            new.differences(&old, true),
            ["accelerators openvino:0 (GenuineIntel, 1.8.1) instead of openvino:0 (GenuineIntel, 1.8.0)"]
        );
        let other = RunConditions { threads: 4, tile: Some(32), ..conditions() };
        assert_eq!(other.differences(&conditions(), false), ["threads 4 instead of 2"]);
        assert_eq!(
            other.differences(&conditions(), true),
            ["threads 4 instead of 2", "decoder tiles 32 instead of none"]
        );
    }
}
