//! `graphs.json`: a bundle without weights, and the digest of every weight that its graphs read.
//!
//! A *graph set* is a folder with the graphs, the tokenizer and the preview map of a bundle. It is made for the weights
//! that its *bindings* state, and becomes a bundle once it is attached to a checkpoint that has them, in files of any
//! names and cuts. It has no `bundle.json`: a folder with that file is complete.

use crate::dtype::ElementType;
use crate::file_digest::FileDigest;
use crate::layout;
use crate::manifest::validate::{MAX_EXTENT, hexadecimal};
use crate::manifest::{Component, MAX_BYTES, Manifest};
use crate::units::ByteCount;
use crate::{Error, atomic};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What `graphs.json` contains.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GraphSet {
    /// The manifest of the bundle. Its components list no weights.
    pub manifest: Manifest,
    /// The weights of each component, in the order of the manifest.
    pub bindings: Vec<Binding>,
}

/// The weights that the graphs of a component were made for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Binding {
    /// The component.
    pub component: Component,
    /// The weight files of the checkpoint that the graphs were made from, by name. Files of other names and cuts fit
    /// too; these are known in full without being read.
    pub files: BTreeMap<String, FileDigest>,
    /// Every weight that the graphs read, by its canonical name.
    pub tensors: BTreeMap<String, BoundTensor>,
}

/// A weight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundTensor {
    /// Its number format.
    pub element: ElementType,
    /// Its shape, row-major.
    pub shape: Vec<usize>,
    /// BLAKE3 over its length and a sample of its bytes, see [`sampled_with`](crate::file_digest::sampled_with).
    pub sampled: String,
    /// Digest over every byte, see [`of_pieces`](crate::file_digest::of_pieces).
    pub whole: String,
}

/// `graphs.json` before its manifest is checked.
#[derive(Deserialize)]
struct Stored {
    manifest: serde_json::Value,
    bindings: Vec<Binding>,
}

impl GraphSet {
    /// Reads and checks the content of `graphs.json`. `path` is its name in errors.
    ///
    /// # Errors
    /// Returns an error if it is not JSON of this form, or has another format or values out of range.
    pub fn from_json(text: &[u8], path: &Path) -> Result<Self, Error> {
        let wrong = |why: String| Error::GraphSet { path: path.to_owned(), why };
        let stored: Stored = serde_json::from_slice(text).map_err(|error| wrong(error.to_string()))?;
        let manifest = Manifest::from_json(stored.manifest.to_string().as_bytes(), path)?;
        let set = Self { manifest, bindings: stored.bindings };
        set.check().map_err(wrong)?;
        Ok(set)
    }

    /// Reads and checks the `graphs.json` of a folder.
    ///
    /// # Errors
    /// Returns an error if it is missing, has another format or values out of range.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(layout::GRAPHS);
        let wrong = |why: String| Error::GraphSet { path: path.clone(), why };
        match std::fs::metadata(&path) {
            Ok(found) if !found.is_file() => return Err(wrong("it is not a regular file".into())),
            Ok(found) if found.len() > MAX_BYTES => {
                let why =
                    format!("it has {}; the maximum is {}", ByteCount(found.len()), ByteCount(MAX_BYTES));
                return Err(wrong(why));
            }
            Ok(_) => {}
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::NotAGraphSet { path: folder.to_owned() });
            }
            Err(source) => return Err(Error::File { action: "read", path, source }),
        }
        Self::from_json(&std::fs::read(&path).map_err(Error::file("read", &path))?, &path)
    }

    /// Writes `graphs.json` into `folder`. It is the last file of a graph set.
    ///
    /// # Errors
    /// I/O errors, with the path.
    pub fn write(&self, folder: &Path) -> Result<(), Error> {
        let path: PathBuf = folder.join(layout::GRAPHS);
        let mut text = serde_json::to_vec(self)
            .map_err(|error| Error::GraphSet { path: path.clone(), why: error.to_string() })?;
        text.push(b'\n');
        atomic::write_atomic(&path, &text)
    }

    fn check(&self) -> Result<(), String> {
        let components = self.manifest.components.iter().map(|entry| &entry.component);
        if !components.eq(self.bindings.iter().map(|binding| &binding.component)) {
            return Err("`bindings` has not the components of `manifest`".into());
        }
        if self.manifest.weight_files().next().is_some() {
            return Err("`manifest` lists weights".into());
        }
        if let Some(entry) = self.manifest.components.iter().find(|entry| !entry.variants.is_empty()) {
            return Err(format!("`manifest` lists a quantised variant of {}", entry.component));
        }
        let files: BTreeSet<&str> = self.manifest.files().into_iter().chain([layout::TOKENIZER]).collect();
        match files
            .iter()
            .find(|file| self.manifest.digests.get(**file).is_none_or(|digest| digest.whole.is_none()))
        {
            Some(file) => Err(format!("`manifest.digests` has no digest over every byte of `{file}`")),
            None => self.bindings.iter().try_for_each(Binding::check),
        }
    }
}

impl Binding {
    fn check(&self) -> Result<(), String> {
        for (name, digest) in &self.files {
            let field = format!("bindings.files.{}", name.escape_debug());
            if name.is_empty() || Path::new(name).file_name() != Some(name.as_ref()) {
                return Err(format!("`{field}` is not the name of a file"));
            }
            std::iter::once(&digest.sampled)
                .chain(&digest.whole)
                .try_for_each(|hex| hexadecimal(&field, hex))?;
        }
        for (name, tensor) in &self.tensors {
            let field = format!("bindings.tensors.{}", name.escape_debug());
            let bytes = tensor
                .shape
                .iter()
                .filter(|extent| (1..=MAX_EXTENT).contains(*extent))
                .try_fold(tensor.element.bytes(), |bytes, extent| bytes.checked_mul(*extent));
            let fits = tensor.shape.iter().all(|extent| (1..=MAX_EXTENT).contains(extent)) && bytes.is_some();
            if !fits {
                return Err(format!("`{field}` has the shape {:?}", tensor.shape));
            }
            [&tensor.sampled, &tensor.whole].into_iter().try_for_each(|hex| hexadecimal(&field, hex))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn binding(shape: &[usize], file: &str) -> serde_json::Value {
        let hex = "0a".repeat(32);
        let tensor = json!({"element": "bf16", "shape": shape, "sampled": hex, "whole": hex});
        let digest = json!({"bytes": 7, "sampled": hex, "whole": hex});
        json!({"component": "text_encoder", "files": {file: digest}, "tensors": {"shared.weight": tensor}})
    }

    fn check(binding: serde_json::Value) -> Result<(), String> {
        serde_json::from_value::<Binding>(binding).map_err(|error| error.to_string())?.check()
    }

    #[test]
    fn bindings_out_of_range_are_refused() {
        assert_eq!(check(binding(&[256_384, 4096], "model.safetensors")), Ok(()));
        for shape in [&[0][..], &[MAX_EXTENT + 1], &[MAX_EXTENT, MAX_EXTENT, MAX_EXTENT]] {
            assert!(check(binding(shape, "a")).is_err(), "{shape:?}");
        }
        for file in ["", "a/b", "..", "/a"] {
            assert!(check(binding(&[1], file)).is_err(), "{file}");
        }
        let mut wrong = binding(&[1], "a");
        wrong["tensors"]["shared.weight"]["whole"] = json!("0a");
        assert!(check(wrong).unwrap_err().contains("shared.weight"));
    }

    #[test]
    fn a_folder_without_its_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(GraphSet::read(folder.path()), Err(Error::NotAGraphSet { .. })));
        assert!(matches!(crate::manifest::Bundle::read(folder.path()), Err(Error::NotABundle { .. })));
        std::fs::write(folder.path().join(layout::GRAPHS), "{}").unwrap();
        assert!(matches!(GraphSet::read(folder.path()), Err(Error::GraphSet { .. })));
        assert!(matches!(crate::manifest::Bundle::read(folder.path()), Err(Error::WithoutWeights { .. })));
    }
}
