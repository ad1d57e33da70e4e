//! What decides the bits of a clip besides its spec: program, machine, threads, memory.

use crate::denoise::GuidanceForm;
use crate::model::Model;
use crate::plan::GenerationPlan;
use engines::{OnnxRuntime, WeightMemory};
use serde::{Deserialize, Serialize};

/// The conditions of a run. Equal spec and equal conditions give equal bits on the CPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConditions {
    /// Version of Rushes.
    pub program: String,
    /// Execution provider.
    pub provider: String,
    /// Version of ONNX Runtime.
    pub onnx_runtime: String,
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

impl RunConditions {
    /// The conditions of a model on this machine, for a plan and decoder tiles of `tile` latent positions.
    pub fn new(model: &Model, plan: &GenerationPlan, tile: Option<usize>) -> Self {
        let onnx: &OnnxRuntime = model.onnx_runtime();
        let cpu = engines::cpu::Cpu::detect();
        let options = model.engine_options();
        Self {
            program: env!("CARGO_PKG_VERSION").to_owned(),
            provider: "cpu".to_owned(),
            onnx_runtime: onnx.version().to_owned(),
            processor: match cpu.family {
                Some(family) => format!("{}, {family}", cpu.name),
                None => cpu.name,
            },
            cpu_path: onnx.kernels().path().name().to_owned(),
            threads: options.threads.map_or(cpu.threads, std::num::NonZeroUsize::get),
            mapped_weights: options.weights == WeightMemory::Mapped,
            guidance: GuidanceForm::of_tokens(plan.tokens),
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
        let mut pairs = vec![
            ("rushes", self.program.clone(), other.program.clone()),
            ("execution provider", self.provider.clone(), other.provider.clone()),
            ("ONNX Runtime", self.onnx_runtime.clone(), other.onnx_runtime.clone()),
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
            provider: "cpu".into(),
            onnx_runtime: "1.31.1".into(),
            processor: "AMD EPYC 9B14, family 25 model 17".into(),
            cpu_path: "avx512-vnni".into(),
            threads: 2,
            mapped_weights: false,
            guidance: GuidanceForm::OneCall,
            tile: None,
        }
    }

    #[test]
    fn differences_are_named() {
        let same = conditions();
        assert_eq!(same.differences(&conditions(), true), [""; 0]);
        let other = RunConditions { threads: 4, tile: Some(32), ..conditions() };
        assert_eq!(other.differences(&conditions(), false), ["threads 4 instead of 2"]);
        assert_eq!(
            other.differences(&conditions(), true),
            ["threads 4 instead of 2", "decoder tiles 32 instead of none"]
        );
    }
}
