//! The domains of operators beside that of ONNX, whose name is empty.

/// Domain of the operators of ONNX Runtime.
pub(crate) const MICROSOFT: &str = "com.microsoft";

/// Domain of the operators that the crate `kernels` computes.
pub(crate) const RUSHES: &str = "rushes";
