//! Digests of weights. They are part of graph file names, so that experts of equal topology are not confused.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;

/// A BLAKE3 digest of all bytes or of a sample.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// 64 hexadecimal digits.
    pub blake3: String,
    /// True if every byte was hashed; false if only headers and the first 4 KiB of each tensor were.
    pub whole: bool,
}

impl Digest {
    /// The first 12 digits, used in file names.
    pub fn short(&self) -> &str {
        self.blake3.get(..12).unwrap_or(&self.blake3)
    }

    /// The bytes of the hash; `None` if it is not 64 hexadecimal digits.
    pub fn bytes(&self) -> Option<[u8; 32]> {
        blake3::Hash::from_hex(&self.blake3).ok().map(|hash| *hash.as_bytes())
    }

    /// Returns the digest of a list of byte strings, each preceded by its length.
    pub fn of_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Self::new(hasher.finalize(), true)
    }

    /// Returns the digest of every byte of a file, which is read in pieces.
    ///
    /// # Errors
    /// I/O errors.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(path)?)?;
        Ok(Self::new(hasher.finalize(), true))
    }

    /// Creates a digest from a finished hash.
    pub fn new(hash: blake3::Hash, whole: bool) -> Self {
        Self { blake3: hash.to_hex().to_string(), whole }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.short(), if self.whole { "" } else { " (headers only)" })
    }
}
