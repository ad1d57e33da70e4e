//! Building, writing, reading and printing ONNX graphs.
//!
//! A [`Tensor`] is a value with a number format and a symbolic shape. A [`GraphBuilder`] creates nodes from tensors and
//! checks their shapes. A [`Model`] is a finished graph. Weights are in external files ([`ExternalData`]): the graph
//! contains their location, not their bytes. This crate does not use ONNX Runtime.

mod builder;
mod check;
mod dim;
mod domain;
mod dump;
mod error;
mod external;
mod formats;
mod in_place;
mod model;
pub mod observe;
mod op;
mod opset;
pub mod proto;
pub mod providers;
mod tensor;

pub use builder::GraphBuilder;
pub use dim::Dim;
pub use error::Error;
pub use external::ExternalData;
pub use model::Model;
pub use op::attention::Attention;
pub use op::decomposed::AttentionRanges;
pub use op::frames::{PackedKernel, QuantizedFrames};
pub use op::kernels::{
    Activation, Added, HeadAttention, LinearOperands, NormVectors, PackedBf16, PackedBranch, PackedInt8,
    Quantized, RowGate,
};
pub use op::quantized::QuantizedRange;
pub use tensor::Tensor;
