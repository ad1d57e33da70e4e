//! The operators of the domain `rushes`: ONNX Runtime's buffers in, its buffers out, on its threads.
//!
//! Thin on purpose: what is computed is in `kernels`. Every operator tells the shapes of its outputs beforehand
//! (`infer_shape`), without which ONNX Runtime reuses no memory.

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

/// What every operator of one open graph shares.
#[derive(Debug, Clone)]
pub(crate) struct OperatorContext {
    /// The kernels for this processor.
    pub(crate) kernels: Kernels,
    /// Threads of the graph; ONNX Runtime does not tell its operators.
    pub(crate) threads: NonZeroUsize,
    /// Memory for what is in between: operators run one after another.
    pub(crate) scratch: Arc<Mutex<Scratch>>,
}

/// The domain for one graph that runs on `threads` threads.
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
