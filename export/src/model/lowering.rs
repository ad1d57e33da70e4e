//! For what kind of machine a model is written down.

use bundle::dtype::{ElementType, WeightType};

use bundle::variant::Target;
use graph::GraphBuilder;

/// The few choices in which graphs of one model differ between machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lowering {
    /// What products, attention and convolutions compute in. Inputs and outputs of a graph are f32 whatever it is.
    pub(super) compute: ElementType,
    /// Whether only operators are used that have kernels for 16-bit numbers on accelerators.
    pub(super) is_for_accelerators: bool,
    /// Whether only small operators of ONNX itself are used.
    pub(super) is_plain: bool,
}

impl Lowering {
    /// For the CPU: f32.
    pub const CPU: Self = Self { compute: ElementType::F32, is_for_accelerators: false, is_plain: false };

    /// For a target, over weights that are stored like that.
    pub fn new(target: Target, weights: WeightType) -> Self {
        match target {
            Target::Cpu => Self::CPU,
            Target::Cuda => Self { compute: weights.element(), is_for_accelerators: true, is_plain: false },
            Target::Plain => Self { compute: weights.element(), is_for_accelerators: true, is_plain: true },
        }
    }

    /// An empty graph for it.
    pub(super) fn builder(self, name: &str) -> GraphBuilder {
        if self.is_plain { GraphBuilder::plain(name) } else { GraphBuilder::new(name) }
    }
}
