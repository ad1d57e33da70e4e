//! Options for opening a graph.

use crate::Device;
use bundle::variant::Precision;
use std::fmt;
use std::num::NonZeroUsize;

/// Options for opening a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenOptions {
    /// The device that it runs on.
    pub device: Device,
    /// Threads per operator; `None` uses all that the process may use. More threads than that are slower, because they
    /// wait for each other at every operator.
    pub threads: Option<NonZeroUsize>,
    /// The location of the weights while the graph is open.
    pub weights: WeightMemory,
    /// The number format of the graph. OpenVINO would compute f32 graphs in bf16 if it were not told.
    pub precision: Precision,
    /// Nodes that may run on the CPU beside an accelerator.
    pub cpu_nodes: CpuNodes,
    /// The content of the graph and its weights, which compiled engines are found by; `None` if it is not known. No
    /// engine is used then.
    pub content: Option<GraphContent>,
    /// A digest of the LoRAs that the graph or its weights contain, which is part of the key of compiled engines; `None`
    /// without one.
    pub lora: Option<[u8; 32]>,
    /// The shape of the clip, for providers whose engines run one shape ([`Compilation`](crate::Compilation)).
    pub shape: Option<EngineShape>,
    /// What happens if a provider that compiles graphs has no engine of this one.
    pub first_use: FirstUse,
}

impl OpenOptions {
    /// Options for a graph on the CPU.
    pub const fn cpu(threads: Option<NonZeroUsize>, weights: WeightMemory) -> Self {
        Self {
            device: Device::CPU,
            threads,
            weights,
            precision: Precision::F32,
            cpu_nodes: CpuNodes::Integers,
            content: None,
            lora: None,
            shape: None,
            first_use: FirstUse::Compile,
        }
    }
}

/// What happens if a provider that compiles graphs has no engine of a graph.
///
/// Engines of one shape are refused with [`Self::Compile`] too: compiling them takes minutes, and memory of several times
/// the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FirstUse {
    /// It is compiled, and stored if there is a store.
    #[default]
    Compile,
    /// It is refused with [`ProviderError::NoEngine`](crate::ProviderError::NoEngine), if there is a store.
    Refuse,
    /// It is compiled in memory, also if there is a stored engine or the engine runs one shape: for tools that measure.
    InMemory,
}

/// The nodes of a graph for an accelerator that may run on the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CpuNodes {
    /// Those that compute shapes and other integers.
    #[default]
    Integers,
    /// All that the provider does not take.
    All,
}

/// A digest of a graph and of the weights that it reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GraphContent(pub [u8; 32]);

/// The shape of a clip, for engines that run one shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EngineShape {
    /// Latent frames.
    pub frames: u32,
    /// Height of the latent.
    pub height: u32,
    /// Width of the latent.
    pub width: u32,
    /// Prompts in one call of a step.
    pub batch: u32,
}

impl fmt::Display for EngineShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { frames, height, width, batch } = self;
        write!(f, "{frames} frames of {height}x{width}, batch {batch}")
    }
}

/// The location of the weights of an open graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightMemory {
    /// In the page cache, mapped from their file. Opening is fast and the system may drop pages when memory is short.
    /// Kernels rearrange the weights in every call, which makes f32 products up to a fifth slower than with prepacked
    /// weights. bf16 weights of linear layers are used as they are stored; other 16-bit weights are widened in memory.
    Mapped,
    /// Copied into the layout of each kernel, in anonymous memory of the size of the weights.
    Prepacked,
}
