//! For what kind of machine a model is written down.

use bundle::dtype::{Dialect, ElementType, WeightType};

/// The few choices in which graphs of one model differ between machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lowering {
    /// What products, attention and convolutions compute in. Inputs and outputs of a graph are f32 whatever it is.
    pub(super) compute: ElementType,
    /// Whether only operators are used that have kernels for 16-bit numbers on accelerators.
    pub(super) is_for_accelerators: bool,
}

impl Lowering {
    /// For the CPU: f32.
    pub const CPU: Self = Self { compute: ElementType::F32, is_for_accelerators: false };

    /// For a dialect, over weights that are stored like that.
    pub fn new(dialect: Dialect, weights: WeightType) -> Self {
        match dialect {
            Dialect::Cpu => Self::CPU,
            Dialect::Cuda => Self { compute: weights.element(), is_for_accelerators: true },
        }
    }
}
