//! Whether a step graph gives the same bits for a latent alone and in a batch.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The result of comparing a step graph on latents alone and at every position of a batch of two. It holds on the machine
/// of the comparison only: kernels divide their sums by the sizes of their inputs, the instruction set and the threads.
///
/// ```
/// use bundle::manifest::{BatchConditions, BatchInvariance};
///
/// let on = BatchConditions {
///     onnx_runtime: "1.31.1".into(),
///     processor: "AMD EPYC 9B14, family 25 model 17".into(),
///     cpu_path: "avx512-vnni".into(),
///     threads: 2,
///     mapped_weights: false,
/// };
/// let found = BatchInvariance { equal: true, on: on.clone() };
/// assert!(found.holds(&on));
/// assert!(!found.holds(&BatchConditions { threads: 4, ..on }));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchInvariance {
    /// True if all bits were equal.
    pub equal: bool,
    /// What it was compared on.
    pub on: BatchConditions,
}

/// What decides the bits of a step graph on the CPU, besides the graph and its inputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchConditions {
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
}

impl BatchInvariance {
    /// Returns true if the bits are equal under these conditions. Nothing is known about others.
    pub fn holds(&self, on: &BatchConditions) -> bool {
        self.equal && self.on == *on
    }
}

impl fmt::Display for BatchConditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { onnx_runtime, processor, cpu_path, threads, mapped_weights } = self;
        let threads = if *threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") };
        let weights = if *mapped_weights { ", mapped weights" } else { "" };
        write!(f, "{processor}, {cpu_path}, {threads}, ONNX Runtime {onnx_runtime}{weights}")
    }
}
