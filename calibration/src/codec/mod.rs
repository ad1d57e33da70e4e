//! Numbers in 8 bits: [`fp8`] (E4M3, a float without a scale of its own) and [`int8`] (whole multiples of a scale).
//!
//! Both round to the nearest code, ties to the even one, and saturate: as ONNX's `QuantizeLinear` does.

mod error;
pub mod int8;

pub use bundle::quantization::e4m3 as fp8;
pub use error::CodecError;
