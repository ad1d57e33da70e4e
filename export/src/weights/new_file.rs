//! New safetensors files with aligned tensors, for direct memory mapping.
//!
//! The format allows no gaps, so padding is stored as tensors named `__pad.N`. Their bytes are holes in the file and
//! take no disk space.

use super::ExternalTensor;
use crate::Error;
use bundle::atomic;
use bundle::dtype::ElementType;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

const PAGE: usize = 4096;
const CACHE_LINE: usize = 64;
/// Tensors of at least this size are always aligned to pages.
const LARGE: usize = 1 << 20;
/// Files of at least this size are flushed to the disk while they are being written. Without that the system keeps what
/// is written until the flush at the end, and the disk is idle meanwhile.
const FLUSHED_EARLY: usize = 64 << 20;
/// The time between two such flushes.
const FLUSHING: Duration = Duration::from_millis(200);

/// The alignment of tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alignment {
    /// Every tensor is aligned to a page.
    Pages,
    /// Large tensors are aligned to a page, small ones to a cache line; for files of many small tensors.
    LargeAtPages,
}

/// Name, number format and shape of a tensor to store.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) element: ElementType,
    pub(crate) shape: Vec<usize>,
}

impl Stored {
    /// Returns the bytes of its values.
    pub(crate) fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.element.bytes()
    }
}

/// A file with a fixed layout whose bytes are written in any order, from any thread.
pub(crate) struct NewFile {
    file: File,
    path: PathBuf,
    offsets: Vec<usize>,
}

impl NewFile {
    /// Writes bytes of the tensor `index`, starting at its byte `start`.
    pub(crate) fn write(&self, index: usize, start: usize, bytes: &[u8]) -> Result<(), Error> {
        let offset = (self.offsets[index] + start) as u64;
        self.file.write_all_at(bytes, offset).map_err(Error::file("write", &self.path))
    }
}

/// A file that was written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Written {
    /// The location of each tensor.
    pub(crate) tensors: BTreeMap<String, ExternalTensor>,
    /// Its length.
    pub(crate) bytes: u64,
}

/// Writes the file `path`, which is `location` in graphs. `fill` writes every tensor. The file is renamed at the end;
/// nothing is left of it after an error.
///
/// # Errors
/// I/O errors and those of `fill`.
pub(crate) fn write_new(
    path: &Path,
    location: &str,
    tensors: &[Stored],
    alignment: Alignment,
    fill: impl FnOnce(&NewFile) -> Result<(), Error>,
) -> Result<Written, Error> {
    let Layout { header, offsets, bytes } = Layout::of(tensors, alignment, path)?;
    let io = || Error::file("write", path);
    // Removed when dropped before `publish`.
    let part = atomic::create_part(path).map_err(io())?;
    let file = part.reopen().map_err(io())?;
    file.set_len(bytes as u64).map_err(io())?;
    file.write_all_at(&header, 0).map_err(io())?;
    let new = NewFile { file, path: path.to_owned(), offsets };
    if bytes < FLUSHED_EARLY {
        fill(&new)?;
    } else {
        let file = part.reopen().map_err(io())?;
        flushing(&file, || fill(&new))?;
    }
    atomic::publish(part, path).map_err(io())?;
    let offsets = new.offsets;
    let entry = |(tensor, offset): (&Stored, usize)| {
        let external = ExternalTensor {
            location: location.to_owned(),
            offset: offset as u64,
            length: tensor.bytes() as u64,
            element: tensor.element,
            shape: tensor.shape.clone(),
        };
        (tensor.name.clone(), external)
    };
    Ok(Written { tensors: tensors.iter().zip(offsets).map(entry).collect(), bytes: bytes as u64 })
}

/// Flushes a file again and again while `work` runs.
fn flushing<T>(file: &File, work: impl FnOnce() -> T) -> T {
    std::thread::scope(|scope| {
        let (running, ended) = mpsc::channel::<()>();
        scope.spawn(move || {
            while ended.recv_timeout(FLUSHING) == Err(RecvTimeoutError::Timeout) {
                // The flush at the end reports the same error.
                if file.sync_data().is_err() {
                    return;
                }
            }
        });
        let result = work();
        drop(running);
        result
    })
}

/// The layout of a file.
struct Layout {
    /// Length and JSON, padded to a page.
    header: Vec<u8>,
    /// Position of each tensor in the file.
    offsets: Vec<usize>,
    /// Length of the file.
    bytes: usize,
}

impl Layout {
    fn of(tensors: &[Stored], alignment: Alignment, path: &Path) -> Result<Self, Error> {
        let unwritable = |why: String| Error::header(path, format!("its header cannot be written: {why}"));
        let mut entries = Vec::with_capacity(2 * tensors.len());
        let mut begins = Vec::with_capacity(tensors.len());
        let mut end = 0;
        for tensor in tensors {
            let is_small = alignment == Alignment::LargeAtPages && tensor.bytes() < LARGE;
            let begin = usize::next_multiple_of(end, if is_small { CACHE_LINE } else { PAGE });
            if begin > end {
                let pad =
                    TensorInfo { dtype: Dtype::U8, shape: vec![begin - end], data_offsets: (end, begin) };
                entries.push((format!("__pad.{}", begins.len()), pad));
            }
            end = begin + tensor.bytes();
            begins.push(begin);
            let info = TensorInfo {
                dtype: dtype(tensor.element),
                shape: tensor.shape.clone(),
                data_offsets: (begin, end),
            };
            entries.push((tensor.name.clone(), info));
        }
        let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let metadata = Metadata::new(Some(format), entries).map_err(|error| unwritable(error.to_string()))?;
        let mut header = vec![0; 8];
        serde_json::to_writer(&mut header, &metadata).map_err(|error| unwritable(error.to_string()))?;
        header.resize(header.len().next_multiple_of(PAGE), b' ');
        let length = header.len() as u64 - 8;
        header[..8].copy_from_slice(&length.to_le_bytes());
        let offsets = begins.iter().map(|begin| header.len() + begin).collect();
        Ok(Self { offsets, bytes: header.len() + end, header })
    }
}

fn dtype(element: ElementType) -> Dtype {
    match element {
        ElementType::F32 => Dtype::F32,
        ElementType::F16 => Dtype::F16,
        ElementType::Bf16 => Dtype::BF16,
        ElementType::I64 => Dtype::I64,
        ElementType::I32 => Dtype::I32,
        ElementType::I8 => Dtype::I8,
        ElementType::U8 => Dtype::U8,
        ElementType::F8E4M3 => Dtype::F8_E4M3,
        ElementType::Bool => Dtype::BOOL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    fn tensors() -> Vec<Stored> {
        let stored = |name: &str, element, shape: &[usize]| Stored {
            name: name.into(),
            element,
            shape: shape.to_vec(),
        };
        vec![
            stored("a", ElementType::U8, &[3]),
            stored("b", ElementType::F32, &[2]),
            stored("c", ElementType::I8, &[LARGE]),
        ]
    }

    #[test]
    fn tensors_are_aligned_and_the_file_is_valid() {
        let folder = tempfile::tempdir().unwrap();
        for (alignment, begin_of_b) in [(Alignment::Pages, PAGE), (Alignment::LargeAtPages, CACHE_LINE)] {
            let path = folder.path().join("new.safetensors");
            let written = write_new(&path, "weights/new.safetensors", &tensors(), alignment, |file| {
                file.write(0, 0, &[1, 2, 3])?;
                file.write(1, 4, &7.0_f32.to_le_bytes())
            })
            .unwrap();
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(bytes.len() as u64, written.bytes);
            let read = SafeTensors::deserialize(&bytes).unwrap();
            assert_eq!(read.tensor("a").unwrap().data(), [1, 2, 3]);
            assert_eq!(read.tensor("b").unwrap().data()[4..], 7.0_f32.to_le_bytes());
            let first = written.tensors["a"].offset;
            assert_eq!(written.tensors["b"].offset - first, begin_of_b as u64);
            assert_eq!(written.tensors["c"].offset % PAGE as u64, 0);
        }
    }

    #[test]
    fn nothing_is_left_after_a_failed_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new.safetensors");
        let failed = write_new(&path, "new", &tensors(), Alignment::Pages, |_| {
            Err(Error::MissingTensor { name: "c".into(), folder: PathBuf::new() })
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
