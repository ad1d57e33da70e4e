//! Locations of external weights.

use crate::Error;
use crate::proto::StringStringEntryProto;

/// A span of a file, relative to the folder of the graph.
///
/// Source: ONNX external data; `location` is a relative path with `/` and without `..`, which ONNX Runtime enforces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalData {
    /// Path relative to the folder of the graph.
    pub location: String,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

impl ExternalData {
    /// Returns the entries of a tensor that is stored here.
    pub(crate) fn entries(&self) -> Vec<StringStringEntryProto> {
        let entry = |key: &str, value: String| StringStringEntryProto { key: key.into(), value };
        vec![
            entry("location", self.location.clone()),
            entry("offset", self.offset.to_string()),
            entry("length", self.length.to_string()),
        ]
    }

    /// Checks that the span is in the graph's folder and has `bytes` bytes.
    ///
    /// # Errors
    /// Returns an error if the path leaves the folder or the length is not `bytes`.
    pub(crate) fn check(&self, tensor: &str, bytes: usize) -> Result<(), Error> {
        let wrong = |why: String| Err(Error::ExternalData { tensor: tensor.into(), why });
        let inside = !self.location.is_empty()
            && self.location.split('/').all(|part| !part.is_empty() && part != ".." && part != ".");
        if !inside {
            return wrong(format!("its file `{}` is not below the graph's folder", self.location));
        }
        match u64::try_from(bytes) {
            Ok(bytes) if bytes == self.length => Ok(()),
            _ => wrong(format!("its shape needs {bytes} bytes and {} are stored", self.length)),
        }
    }
}
