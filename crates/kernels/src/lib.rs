//! Operators of a denoising step for the CPU, written for its byte and bf16 dot products.
//!
//! [`Kernels`] is the way in: it is made once, for the fastest instruction set of the processor or for one that the user
//! forces ([`CpuPath`]), and passed to whoever computes. Each operator is written once over a trait of vectors and
//! compiled for every instruction set. There are no threads in here: operators hand their tasks to [`Workers`], and the
//! result is the same, bit for bit, whoever does them.
//!
//! Activations are u8 with a scale and a zero point for each row ([`RowScale`]), weights s8 with a scale for each output
//! ([`Int8Matrix`]), packed as the products read them. What follows a product (GELU and requantising, gate and residual)
//! happens while its sums are in registers ([`Output`]).

mod attention;
mod packing;
mod path;
pub mod peak;
mod product;
mod rows;
mod shared;
mod simd;
mod workers;

pub use attention::{Attention, Columns, Heads, Rotary, Scratch, ValueProduct};
pub use packing::{
    Bf16Matrix, Bf16Weights, GROUP, Int8Matrix, Int8Weights, MatrixShape, SizeError, quantise_outputs,
};
pub use path::{CpuPath, Kernels, PathError};
pub use product::{Gate, Output, QuantisedRows, Residual};
pub use rows::{Codes, Norm, Range, RowScale};
pub use workers::{Serial, TaskCounter, Threads, Workers};
