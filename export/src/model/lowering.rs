//! Choices of operators and number formats for a target.

use bundle::dtype::{ElementType, WeightType};
use bundle::variant::Target;
use graph::GraphBuilder;

/// The choices in which the graphs of a model differ between targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lowering {
    /// The number format of matrix products, attention and convolutions. Inputs and outputs of a graph are always f32.
    pub(super) compute: ElementType,
    /// True if only operators with 16-bit kernels on accelerators are used.
    pub(super) is_for_accelerators: bool,
    /// True if only standard operators are used.
    pub(crate) is_plain: bool,
}

impl Lowering {
    /// For the CPU: f32.
    pub const CPU: Self = Self { compute: ElementType::F32, is_for_accelerators: false, is_plain: false };

    /// Returns the lowering for a target and a number format of the weights.
    pub fn new(target: Target, weights: WeightType) -> Self {
        match target {
            Target::Cpu => Self::CPU,
            Target::Cuda => Self { compute: weights.element(), is_for_accelerators: true, is_plain: false },
            Target::Plain => Self { compute: weights.element(), is_for_accelerators: true, is_plain: true },
        }
    }

    /// Creates an empty graph.
    pub(super) fn builder(self, name: &str) -> GraphBuilder {
        match (self.is_plain, self.is_for_accelerators) {
            (true, _) => GraphBuilder::plain(name),
            (false, true) => GraphBuilder::cuda(name),
            (false, false) => GraphBuilder::new(name),
        }
    }
}
