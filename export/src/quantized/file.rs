//! One new safetensors file, tensor after tensor.

use crate::Error;
use bundle::dtype::ElementType;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Tensors from this size on begin at a page of the system, others where a cache line begins.
const LARGE: usize = 1 << 20;
const PAGE: usize = 4096;
const LINE: usize = 64;

/// Name, number format and shape of a tensor that will be stored.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stored {
    pub(super) name: String,
    pub(super) element: ElementType,
    pub(super) shape: Vec<usize>,
}

impl Stored {
    pub(super) fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.element.bytes()
    }
}

/// A file whose places are known and whose bytes come one tensor at a time.
pub(super) struct NewFile {
    file: File,
    /// Position of each tensor in the file.
    pub(super) offsets: Vec<usize>,
    /// Length of the file.
    pub(super) bytes: usize,
}

impl NewFile {
    /// Makes the file and writes its header.
    pub(super) fn create(path: &Path, tensors: &[Stored]) -> Result<Self, Error> {
        let unwritable = |why: String| Error::header(path, format!("its header cannot be written: {why}"));
        let (mut entries, mut begins, mut end) = (Vec::new(), Vec::new(), 0);
        for tensor in tensors {
            let alignment = if tensor.bytes() >= LARGE { PAGE } else { LINE };
            let begin = usize::next_multiple_of(end, alignment);
            if begin > end {
                let pad =
                    TensorInfo { dtype: Dtype::U8, shape: vec![begin - end], data_offsets: (end, begin) };
                entries.push((format!("__pad.{}", begins.len()), pad));
            }
            end = begin + tensor.bytes();
            begins.push(begin);
            let dtype = dtype(tensor.element).ok_or_else(|| unwritable(format!("{}", tensor.element)))?;
            let info = TensorInfo { dtype, shape: tensor.shape.clone(), data_offsets: (begin, end) };
            entries.push((tensor.name.clone(), info));
        }
        let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let metadata = Metadata::new(Some(format), entries).map_err(|error| unwritable(error.to_string()))?;
        let mut header = vec![0; 8];
        serde_json::to_writer(&mut header, &metadata).map_err(|error| unwritable(error.to_string()))?;
        header.resize(header.len().next_multiple_of(PAGE), b' ');
        let length = header.len() as u64 - 8;
        header[..8].copy_from_slice(&length.to_le_bytes());

        let io = || Error::file("write", path);
        let file = File::create(path).map_err(io())?;
        let bytes = header.len() + end;
        file.set_len(bytes as u64).map_err(io())?;
        file.write_all_at(&header, 0).map_err(io())?;
        let offsets = begins.iter().map(|begin| header.len() + begin).collect();
        Ok(Self { file, offsets, bytes })
    }

    /// Writes the bytes of a tensor.
    pub(super) fn write(&self, path: &Path, index: usize, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all_at(bytes, self.offsets[index] as u64).map_err(Error::file("write", path))
    }

    /// Flushes the file to disk.
    pub(super) fn finish(self, path: &Path) -> Result<(), Error> {
        self.file.sync_all().map_err(Error::file("write", path))
    }
}

fn dtype(element: ElementType) -> Option<Dtype> {
    Some(match element {
        ElementType::F32 => Dtype::F32,
        ElementType::F16 => Dtype::F16,
        ElementType::Bf16 => Dtype::BF16,
        ElementType::I64 => Dtype::I64,
        ElementType::I32 => Dtype::I32,
        ElementType::I8 => Dtype::I8,
        ElementType::U8 => Dtype::U8,
        ElementType::F8E4M3 => Dtype::F8_E4M3,
        ElementType::Bool => Dtype::BOOL,
    })
}
