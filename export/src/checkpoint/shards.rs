//! The weights of a component: its weight files, accessed by canonical names.
//!
//! Files are read, not mapped. If a file is truncated during the run, a read is an error; a mapping would end the
//! process.

use super::header::HeaderTensor;
use super::inventory::Required;
use super::listing::Listing;
use super::names::Family;
use super::{strides, torch_file, weight_file};
use crate::file_data::DataRanges;
use crate::{Error, pointer};
use bundle::dtype::ElementType;
use std::collections::{BTreeMap, HashSet};
use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A weight file, open for reading.
#[derive(Debug)]
pub struct ShardFile {
    path: PathBuf,
    file: File,
    stamp: Stamp,
    /// Tensors and what is around them, in order.
    parts: Vec<Range<u64>>,
}

/// Detects changes of a file: its length, and its modification time in seconds and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self { bytes: metadata.len(), modified: (metadata.mtime(), metadata.mtime_nsec()) }
    }
}

impl ShardFile {
    /// Opens a file and reads its header.
    fn open(path: &Path) -> Result<(Self, Vec<HeaderTensor>), Error> {
        let io = || Error::file("read", path);
        // Opening a pipe would block until a writer opens it.
        if !std::fs::metadata(path).map_err(io())?.is_file() {
            return Err(Error::header(path, "it is not a regular file"));
        }
        let file = File::open(path).map_err(io())?;
        let stamp = Stamp::of(&file.metadata().map_err(io())?);
        pointer::refuse_file(path, &file)?;
        let tensors = weight_file::read(path, &file, stamp.bytes)?;
        let parts = weight_file::parts(&tensors, stamp.bytes);
        Ok((Self { path: path.to_owned(), file, stamp, parts }, tensors))
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns its length in bytes when it was opened.
    pub fn bytes(&self) -> u64 {
        self.stamp.bytes
    }

    /// Returns tensors and what is around them, in order, without gaps.
    pub(crate) fn parts(&self) -> &[Range<u64>] {
        &self.parts
    }

    /// Returns the parts of the file that hold data.
    pub(crate) fn data_ranges(&self) -> DataRanges {
        DataRanges::of(&self.file, self.stamp.bytes)
    }

    /// Fills `buffer` from the position `offset`.
    ///
    /// # Errors
    /// [`Error::Changed`] if the file was truncated, [`Error::File`] for other I/O errors.
    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        self.file.read_exact_at(buffer, offset).map_err(|source| {
            if source.kind() == ErrorKind::UnexpectedEof {
                let now = self.file.metadata().map_or(offset, |found| found.len());
                self.changed(now)
            } else {
                Error::file("read", &self.path)(source)
            }
        })
    }

    /// Checks that the file was not changed since it was opened.
    ///
    /// # Errors
    /// [`Error::Changed`].
    pub fn check_unchanged(&self) -> Result<(), Error> {
        let found = self.file.metadata().map_err(Error::file("read", &self.path))?;
        if Stamp::of(&found) == self.stamp { Ok(()) } else { Err(self.changed(found.len())) }
    }

    fn changed(&self, now: u64) -> Error {
        Error::Changed { path: self.path.clone(), before: self.stamp.bytes, now }
    }
}

/// A stored weight.
#[derive(Debug, Clone, Copy)]
pub struct StoredTensor<'a> {
    /// Its canonical name.
    pub name: &'a str,
    /// Its file.
    pub file: &'a ShardFile,
    /// Its number format.
    pub element: ElementType,
    /// Its shape, row-major.
    pub shape: &'a [usize],
    /// The distance of neighbours along each axis in the file, in elements; none if it is stored row by row.
    pub strides: Option<&'a [usize]>,
    /// Position of its first byte in the file. May be unaligned.
    pub offset: u64,
    /// Length in bytes.
    pub length: usize,
}

impl StoredTensor<'_> {
    /// Returns true if a graph cannot refer to its bytes in the file: it is not stored row by row, or its place in a
    /// PyTorch file is no multiple of its element size. torch aligns to 64 bytes, so that is the work of other programs.
    pub(crate) fn is_misplaced(&self) -> bool {
        let is_unaligned = !self.offset.is_multiple_of(self.element.bytes() as u64);
        self.strides.is_some() || torch_file::is_named(self.file.path()) && is_unaligned
    }

    /// Fills `buffer` with its bytes, little-endian and row by row, from byte `start` on. Both are whole elements.
    ///
    /// # Errors
    /// [`Error::Changed`] if the file was truncated since it was opened, [`Error::File`] for other I/O errors.
    pub fn read_at(&self, start: usize, buffer: &mut [u8]) -> Result<(), Error> {
        let Some(strides) = self.strides else {
            return self.file.read_at(self.offset + start as u64, buffer);
        };
        let (mut stored, each) = (vec![0; self.length], self.element.bytes());
        self.file.read_at(self.offset, &mut stored)?;
        strides::gather((self.shape, strides), &stored, each, start / each, buffer);
        Ok(())
    }

    /// Reads all its bytes.
    ///
    /// # Errors
    /// Those of [`Self::read_at`].
    pub fn read(&self) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; self.length];
        self.read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Checks the shape.
    ///
    /// # Errors
    /// [`Error::WrongShape`] with the name, the expected and the stored shape.
    pub fn expect_shape(&self, expected: &[usize]) -> Result<(), Error> {
        if self.shape == expected {
            return Ok(());
        }
        Err(Error::WrongShape {
            name: self.name.to_owned(),
            expected: expected.to_vec(),
            found: self.shape.to_vec(),
        })
    }
}

/// All weight files of a component.
#[derive(Debug)]
pub struct Shards {
    folder: PathBuf,
    files: Vec<ShardFile>,
    tensors: BTreeMap<String, Location>,
}

/// The embedding of umT5, shared by encoder and decoder.
const EMBEDDING: &str = "shared.weight";
/// Its name if only the encoder was saved.
const EMBEDDING_COPY: &str = "encoder.embed_tokens.weight";
/// The bytes of `spiece.model`, which single-file versions of umT5 store as a tensor. It is not a weight.
const STORED_TOKENIZER: &str = "spiece_model";

#[derive(Debug)]
struct Location {
    file: usize,
    element: ElementType,
    shape: Vec<usize>,
    strides: Option<Vec<usize>>,
    span: Range<usize>,
}

impl Shards {
    /// Opens the weights in a component's folder: shards with an index, or a single file.
    ///
    /// # Errors
    /// Returns an error if there are no weights, a shard is missing, or a header, index or file length is wrong.
    pub fn open(folder: &Path, family: Family) -> Result<Self, Error> {
        Self::of_listing(folder, &Listing::of(folder)?, family)
    }

    /// Returns the names that a weight file stores.
    ///
    /// # Errors
    /// Returns an error if the file is missing or its header is invalid.
    pub fn stored_names(path: &Path) -> Result<Vec<String>, Error> {
        let (_, tensors) = ShardFile::open(path)?;
        Ok(tensors.into_iter().map(|tensor| tensor.name).collect())
    }

    /// Opens the weights in a single file.
    ///
    /// # Errors
    /// Returns an error if the file is missing or its header is invalid.
    pub fn open_file(path: &Path, family: Family) -> Result<Self, Error> {
        let listing = Listing { files: vec![path.to_owned()], index: None };
        Self::of_listing(path.parent().unwrap_or(path), &listing, family)
    }

    /// Opens the weights in the given files.
    ///
    /// # Errors
    /// Returns an error if a file is missing, or if a header or file length is wrong.
    pub fn of_files(folder: &Path, files: Vec<PathBuf>, family: Family) -> Result<Self, Error> {
        Self::of_listing(folder, &Listing { files, index: None }, family)
    }

    fn of_listing(folder: &Path, listing: &Listing, family: Family) -> Result<Self, Error> {
        let mut files = Vec::with_capacity(listing.files.len());
        let mut stored = Vec::new();
        for path in &listing.files {
            let (file, tensors) = ShardFile::open(path)?;
            stored.extend(tensors.into_iter().map(|tensor| (files.len(), tensor)));
            files.push(file);
        }
        listing.check_index(stored.iter().map(|(file, tensor)| (*file, tensor.name.as_str())))?;

        let naming = family.naming(stored.iter().map(|(_, tensor)| tensor.name.as_str()));
        let mut tensors = BTreeMap::new();
        for (file, tensor) in stored {
            let name = family.canonical(naming, &tensor.name);
            if family == Family::TextEncoder && name == STORED_TOKENIZER {
                continue;
            }
            let HeaderTensor { element, shape, strides, span, .. } = tensor;
            let location = Location { file, element, shape, strides, span };
            if let Some(other) = tensors.insert(name.clone(), location) {
                let other: Location = other;
                return Err(Error::DuplicateTensor {
                    name,
                    first: files[other.file].path.clone(),
                    second: files[file].path.clone(),
                });
            }
        }
        if family == Family::TextEncoder && !tensors.contains_key(EMBEDDING) {
            let copy = tensors.remove(EMBEDDING_COPY);
            tensors.extend(copy.map(|location| (EMBEDDING.to_owned(), location)));
        }
        Ok(Self { folder: folder.to_owned(), files, tensors })
    }

    /// Returns the component's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns its weight files.
    pub fn files(&self) -> &[ShardFile] {
        &self.files
    }

    /// Returns all weights, sorted by canonical name.
    pub fn tensors(&self) -> impl Iterator<Item = StoredTensor<'_>> {
        self.tensors.iter().map(|(name, location)| self.stored(name, location))
    }

    /// Returns a weight by its canonical name.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn tensor(&self, name: &str) -> Result<StoredTensor<'_>, Error> {
        self.tensors
            .get_key_value(name)
            .map(|(name, location)| self.stored(name, location))
            .ok_or_else(|| Error::MissingTensor { name: name.to_owned(), folder: self.folder.clone() })
    }

    fn stored<'a>(&'a self, name: &'a str, location: &'a Location) -> StoredTensor<'a> {
        let file = &self.files[location.file];
        StoredTensor {
            name,
            file,
            element: location.element,
            shape: &location.shape,
            strides: location.strides.as_deref(),
            offset: location.span.start as u64,
            length: location.span.len(),
        }
    }

    /// Checks that no file was changed since it was opened.
    ///
    /// # Errors
    /// [`Error::Changed`] for the first changed file.
    pub fn check_unchanged(&self) -> Result<(), Error> {
        self.files.iter().try_for_each(ShardFile::check_unchanged)
    }

    /// Checks that the required weights exist, are floating-point and have the right shape, and that there are no
    /// others except those whose name begins with one of `unused`.
    ///
    /// # Errors
    /// Names the weights that are missing or unexpected, or the first of a wrong shape or number format.
    pub fn check(&self, required: &[Required], unused: &[&str]) -> Result<(), Error> {
        let known: HashSet<&str> = names(required).collect();
        let missing: Vec<String> =
            names(required).filter(|name| !self.tensors.contains_key(*name)).map(str::to_owned).collect();
        let is_extra =
            |name: &str| !known.contains(name) && !unused.iter().any(|start| name.starts_with(start));
        let extra: Vec<StoredTensor<'_>> = self.tensors().filter(|tensor| is_extra(tensor.name)).collect();
        match (missing.as_slice(), extra.as_slice()) {
            ([], []) => {}
            ([name], []) => return self.tensor(name).map(drop),
            ([], [tensor]) => {
                let (name, path) = (tensor.name.to_owned(), tensor.file.path.clone());
                return Err(Error::UnexpectedTensor { name, path });
            }
            _ => {
                let extra = extra.iter().map(|tensor| tensor.name.to_owned()).collect();
                return Err(Error::Inventory { folder: self.folder.clone(), missing, extra });
            }
        }
        for Required { name, shape } in required {
            let tensor = self.tensor(name)?;
            tensor.expect_shape(shape)?;
            if !matches!(tensor.element, ElementType::F32 | ElementType::F16 | ElementType::Bf16) {
                return Err(Error::WrongType { name: name.clone(), found: tensor.element });
            }
        }
        Ok(())
    }
}

fn names(required: &[Required]) -> impl Iterator<Item = &str> {
    required.iter().map(|required| required.name.as_str())
}

#[cfg(test)]
#[path = "shards_tests.rs"]
mod tests;
