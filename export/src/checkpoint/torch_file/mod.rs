//! Weight files of PyTorch (`.pth`, `.pt`, `.ckpt`, `.bin`), as `torch.save` writes a dictionary of tensors.
//!
//! ```text
//! NAME/data.pkl     a pickle: names, shapes, strides, and the storage of each tensor
//! NAME/byteorder    "little"; absent before torch 2.1
//! NAME/data/KEY     the bytes of a storage, aligned to 64 bytes by torch
//! ```
//!
//! The file is a zip archive. The reader is restricted: it runs no code, decompresses nothing, and refuses by name what
//! a dictionary of tensors does not need. `archive` reads the directories of the archive, `pickle` the names. Both see
//! bytes only, so that they can be fuzzed.

mod archive;
mod pickle;
#[cfg(test)]
mod tests;

use super::header::HeaderTensor;
use super::strides;
use crate::Error;
use archive::Entry;
use pickle::{PickledTensor, Refusal};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The extensions of these files.
const EXTENSIONS: [&str; 4] = ["pth", "pt", "ckpt", "bin"];
/// The longest pickle that is read. That of a model with 10,000 tensors has 2 MB.
const MAX_PICKLE_BYTES: u64 = 16 << 20;
/// The largest tensor that is stored in another order than row by row. It is read into memory as a whole.
const MAX_PERMUTED: usize = 64 << 20;
/// What older versions of torch wrote: a pickle of this number, a protocol version and so on, in one stream.
const LEGACY_MAGIC: [u8; 12] = *b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
/// The position and the mark of a tar archive, the format before that.
const TAR_MAGIC: (usize, &[u8]) = (257, b"ustar");

/// Returns true if a file has the name of a PyTorch file.
pub(crate) fn is_named(path: &Path) -> bool {
    path.extension().is_some_and(|found| EXTENSIONS.iter().any(|extension| found == *extension))
}

/// The bytes that are read.
pub(super) struct Input<'a> {
    /// The name of the file in errors.
    path: &'a Path,
    /// The length of the file.
    bytes: u64,
    data: Data<'a>,
}

enum Data<'a> {
    File(&'a File),
    Memory(&'a [u8]),
}

impl Input<'_> {
    /// Returns `length` bytes from `offset` on.
    fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>, Error> {
        let end = offset.checked_add(length);
        if end.is_none_or(|end| end > self.bytes) {
            let expected = end.unwrap_or(u64::MAX);
            return Err(Error::Truncated { path: self.path.to_owned(), expected, found: self.bytes });
        }
        let (start, length) = (usize::try_from(offset), usize::try_from(length));
        let (Ok(start), Ok(length)) = (start, length) else {
            return Err(self.damaged(format!("{length:?} bytes at {offset} cannot be addressed")));
        };
        match self.data {
            Data::File(file) => {
                let mut buffer = vec![0; length];
                file.read_exact_at(&mut buffer, offset).map_err(Error::file("read", self.path))?;
                Ok(buffer)
            }
            Data::Memory(bytes) => Ok(bytes.get(start..start + length).unwrap_or_default().to_vec()),
        }
    }

    fn damaged(&self, why: impl Into<String>) -> Error {
        Error::header(self.path, why)
    }
}

/// Reads the names and places of the tensors of an open file of `bytes` bytes. Returns them in the order of their spans.
/// Several names may have the same span; other overlaps are refused.
///
/// # Errors
/// [`Error::Header`], [`Error::Truncated`] or [`Error::File`] for a damaged file, [`Error::LegacyTorchFile`] for one of
/// an old format, and [`Error::Pickle`] for one that holds more than a dictionary of tensors.
pub(crate) fn read(path: &Path, file: &File, bytes: u64) -> Result<Vec<HeaderTensor>, Error> {
    tensors(&Input { path, bytes, data: Data::File(file) })
}

/// Reads a whole file in memory. `path` is its name in errors.
///
/// # Errors
/// Those of a file: [`Error::Header`], [`Error::Truncated`], [`Error::LegacyTorchFile`] and [`Error::Pickle`].
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<HeaderTensor>, Error> {
    tensors(&Input { path, bytes: bytes.len() as u64, data: Data::Memory(bytes) })
}

fn tensors(input: &Input<'_>) -> Result<Vec<HeaderTensor>, Error> {
    refuse_legacy(input)?;
    let entries = archive::entries(input)?;
    let names: HashMap<&str, &Entry> = entries.iter().map(|entry| (entry.name.as_str(), entry)).collect();
    let folder = folder(input, &entries)?;
    let entry = |name: &str| names.get(format!("{folder}/{name}").as_str()).copied();
    if let Some(order) = entry("byteorder") {
        let order = input.read(order.data.start, (order.data.end - order.data.start).min(16))?;
        if order != b"little" {
            let found = String::from_utf8_lossy(&order).into_owned();
            return Err(input.damaged(format!("its byte order is {found:?}; only little is read")));
        }
    }
    if entry("constants.pkl").is_some() {
        return Err(pickled(input, "a TorchScript program".into()));
    }
    let pickle = entry("data.pkl").ok_or_else(|| input.damaged(format!("it has no {folder}/data.pkl")))?;
    let length = pickle.data.end - pickle.data.start;
    if length > MAX_PICKLE_BYTES {
        return Err(
            input.damaged(format!("its pickle has {length} bytes; the maximum is {MAX_PICKLE_BYTES}"))
        );
    }
    let stored =
        pickle::state_dict(&input.read(pickle.data.start, length)?).map_err(|refusal| match refusal {
            Refusal::Damaged(why) => input.damaged(format!("its pickle cannot be read: {why}")),
            Refusal::Foreign(found) => pickled(input, found),
        })?;
    let mut tensors = Vec::with_capacity(stored.len());
    for (name, tensor) in stored {
        let storage = entry(&format!("data/{}", tensor.storage.key));
        let located = located(&name, &tensor, storage).map_err(|why| input.damaged(why))?;
        tensors.push(located);
    }
    tensors.sort_by(|a, b| (a.span.start, a.span.end, &a.name).cmp(&(b.span.start, b.span.end, &b.name)));
    check_overlaps(&tensors).map_err(|why| input.damaged(why))?;
    Ok(tensors)
}

fn pickled(input: &Input<'_>, found: String) -> Error {
    Error::Pickle { path: input.path.to_owned(), found }
}

/// Refuses the formats of torch before 1.6, and files that are none of torch.
fn refuse_legacy(input: &Input<'_>) -> Result<(), Error> {
    let head = input.read(0, input.bytes.min(512))?;
    if head.starts_with(b"PK\x03\x04") {
        return Ok(());
    }
    let (at, mark) = TAR_MAGIC;
    let is_stream = head.first() == Some(&0x80) && head.get(2..14) == Some(&LEGACY_MAGIC);
    if is_stream || head.get(at..at + mark.len()) == Some(mark) {
        return Err(Error::LegacyTorchFile { path: input.path.to_owned() });
    }
    Err(input.damaged("it does not begin like a file that torch.save has written"))
}

/// Returns the folder in the archive that holds everything. torch names it after the file.
fn folder<'a>(input: &Input<'_>, entries: &'a [Entry]) -> Result<&'a str, Error> {
    let mut folder = None;
    for entry in entries {
        let Some((first, _)) = entry.name.split_once('/') else {
            return Err(input.damaged(format!("its entry {} is in no folder", entry.name)));
        };
        if *folder.get_or_insert(first) != first {
            return Err(input.damaged(format!("its entry {} is in a second folder", entry.name)));
        }
    }
    folder.ok_or_else(|| input.damaged("it has no entries"))
}

/// Places a tensor in the file, and checks that it is inside its storage and has no gaps.
fn located(name: &str, tensor: &PickledTensor, entry: Option<&Entry>) -> Result<HeaderTensor, String> {
    let PickledTensor { storage, offset, shape, strides } = tensor;
    let entry = entry.ok_or_else(|| format!("the storage {} of tensor {name} is missing", storage.key))?;
    let each = storage.element.bytes();
    let held = entry.data.end - entry.data.start;
    if storage.elements.checked_mul(each as u64) != Some(held) {
        let (key, elements, element) = (&storage.key, storage.elements, storage.element);
        return Err(format!(
            "the storage {key} has {held} bytes, but {elements} elements in {element} are stated"
        ));
    }
    let count = shape
        .iter()
        .try_fold(1_usize, |count, extent| count.checked_mul(*extent))
        .ok_or_else(|| format!("the shape {shape:?} of tensor {name} is too large"))?;
    let strides = if strides::is_row_major(shape, strides) {
        None
    } else if strides::is_permuted(shape, strides) && count.saturating_mul(each) <= MAX_PERMUTED {
        Some(strides.clone())
    } else {
        return Err(format!(
            "tensor {name} of shape {shape:?} is stored with the strides {strides:?}, with gaps or as more than \
             {MAX_PERMUTED} bytes in another order than row by row; in torch, tensor.contiguous() stores it row by row"
        ));
    };
    let end = offset.checked_add(count as u64).filter(|end| *end <= storage.elements);
    if end.is_none() {
        let elements = storage.elements;
        return Err(format!(
            "tensor {name} needs {count} elements from {offset} on, but its storage has {elements}"
        ));
    }
    // Both are at most the length of the storage.
    let start = usize::try_from(entry.data.start + offset * each as u64);
    let span = start.ok().and_then(|start| Some(start..start.checked_add(count.checked_mul(each)?)?));
    let span = span.ok_or_else(|| format!("tensor {name} cannot be addressed"))?;
    Ok(HeaderTensor { name: name.to_owned(), element: storage.element, shape: shape.clone(), strides, span })
}

/// Checks that sorted tensors are the same span or do not overlap.
fn check_overlaps(tensors: &[HeaderTensor]) -> Result<(), String> {
    let filled: Vec<&HeaderTensor> = tensors.iter().filter(|tensor| !tensor.span.is_empty()).collect();
    for pair in filled.windows(2) {
        let [first, second] = pair else { continue };
        let is_same = first.span == second.span && first.element == second.element;
        if !is_same && second.span.start < first.span.end {
            return Err(format!("the tensors {} and {} overlap", first.name, second.name));
        }
    }
    Ok(())
}
