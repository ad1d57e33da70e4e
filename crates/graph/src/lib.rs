//! ONNX graphs as data: build them with shape checks, write them, read them back, print them.
//!
//! Nouns: a [`Tensor`] is a value of known number format and symbolic shape; a [`GraphBuilder`] makes nodes out of
//! tensors and refuses shapes that do not fit, naming the tensor; a [`Model`] is the finished graph. Weights live in
//! external files ([`ExternalData`]): the builder writes where they are, never what they hold. No ONNX Runtime here.

mod builder;
mod dim;
mod dump;
mod error;
mod external;
mod model;
pub mod observe;
mod op;
pub mod proto;
mod tensor;

pub use builder::GraphBuilder;
pub use dim::Dim;
pub use error::Error;
pub use external::ExternalData;
pub use model::Model;
pub use op::attention::Attention;
pub use op::decomposed::AttentionRanges;
pub use op::frames::{CodedFrames, PackedKernel};
pub use op::kernels::{Activation, HeadAttention, LinearOperands, PackedBf16, PackedInt8, Quantized};
pub use op::quantized::QuantizedRange;
pub use tensor::Tensor;
