//! Typed constructors of nodes. Each checks its operands and infers the shape of its result.

pub(crate) mod attention;
mod convolution;
pub(crate) mod decomposed;
mod elementwise;
pub(crate) mod frames;
pub(crate) mod kernels;
mod linear;
mod normalization;
pub(crate) mod quantized;
mod shape;
mod token_rows;
