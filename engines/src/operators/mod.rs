//! The operators of the domain `rushes`: wrappers that run Rushes kernels on ONNX Runtime's buffers and threads.
//!
//! The computations are in the crate `kernels`. Every operator implements `infer_shape`, without which ONNX Runtime
//! does not reuse memory.

mod attention;
mod frames;
mod linear;
mod rows;
mod tensors;

use kernels::{Kernels, Scratch};
use ort::operator::OperatorDomain;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

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
        .add(rows::NormQuant(with()))?
        .add(rows::NormBf16(with()))?
        .add(rows::RowQuantF32(with()))?
        .add(rows::RowQuantBf16(with()))?
        .add(linear::LinearQ(with()))?
        .add(linear::LinearQResidual(with()))?
        .add(linear::LinearBf16(with()))?
        .add(linear::LinearBf16Residual(with()))?
        .add(attention::SelfAttention(with()))?
        .add(attention::CrossAttention(with()))?
        .add(frames::ChannelNormQuant(with()))?
        .add(frames::CausalConvolution(with()))
}
