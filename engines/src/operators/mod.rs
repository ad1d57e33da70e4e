//! The operators of the domain `rushes`: wrappers that run Rushes kernels on ONNX Runtime's buffers and threads.
//!
//! The computations are in the crate `kernels`. Every operator implements `infer_shape`, without which ONNX Runtime
//! does not reuse memory. ONNX Runtime checks no shapes: the kernels refuse lengths that do not match the extents.

mod attention;
mod frames;
mod linear;
mod rows;
mod stored;
mod tensors;
mod unwinding;

use kernels::{Kernels, Scratch};
use ort::operator::OperatorDomain;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use unwinding::Caught;

/// The name of the domain in graphs.
const DOMAIN: &str = "rushes";

/// State shared by the operators of an open graph.
#[derive(Debug, Clone)]
pub(crate) struct OperatorContext {
    /// The kernels for this processor.
    pub(crate) kernels: Kernels,
    /// Threads of the graph; ONNX Runtime does not report them to operators.
    pub(crate) threads: NonZeroUsize,
    /// Scratch memory. Operators run one after another.
    pub(crate) scratch: Arc<Mutex<Scratch>>,
}

/// Creates the domain for a graph that runs on `threads` threads.
pub(crate) fn domain(kernels: Kernels, threads: NonZeroUsize) -> ort::Result<OperatorDomain> {
    let shared = OperatorContext { kernels, threads, scratch: Arc::default() };
    let with = || shared.clone();
    OperatorDomain::new(DOMAIN)?
        .add(Caught(rows::NormQuant(with())))?
        .add(Caught(rows::NormBf16(with())))?
        .add(Caught(rows::RowQuantF32(with())))?
        .add(Caught(rows::RowQuantBf16(with())))?
        .add(Caught(linear::LinearQ(with())))?
        .add(Caught(linear::LinearQResidual(with())))?
        .add(Caught(linear::LinearBf16(with())))?
        .add(Caught(linear::LinearBf16Residual(with())))?
        .add(Caught(stored::LinearStored(with())))?
        .add(Caught(attention::SelfAttention(with())))?
        .add(Caught(attention::CrossAttention(with())))?
        .add(Caught(frames::ChannelNormQuant(with())))?
        .add(Caught(frames::CausalConvolution(with())))
}

#[cfg(test)]
mod tests;
