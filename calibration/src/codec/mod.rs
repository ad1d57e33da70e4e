//! 8-bit number formats: [`fp8`] (E4M3 floats) and [`int8`] (integer multiples of a scale).
//!
//! Both round to the nearest quantised value, ties to even, and saturate, like ONNX's `QuantizeLinear`.

mod error;
pub mod int8;

pub use bundle::quantization::e4m3 as fp8;
pub use error::CodecError;
