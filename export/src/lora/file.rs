//! LoRA files: their tensors as f32, and what their metadata states about scales.

use super::LoraError;
use super::scaling::Scaling;
use crate::{Error, pointer};
use bundle::digest::Digest;
use bundle::quantization::e4m3;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The longest header that is read, as in the reference implementation of the format.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The files that are looked for in a folder: those that PEFT and diffusers write.
const IN_FOLDERS: [&str; 2] = ["adapter_model.safetensors", "pytorch_lora_weights.safetensors"];

/// A LoRA file, open for reading.
#[derive(Debug)]
pub struct LoraFile {
    path: PathBuf,
    digest: String,
    content: Content,
    tensors: BTreeMap<String, Stored>,
    pub(super) scaling: Scaling,
}

/// The bytes of a file.
#[derive(Debug)]
enum Content {
    File(File),
    Memory(Vec<u8>),
}

impl Content {
    /// Fills the buffer with the bytes from `position` on.
    fn read(&self, buffer: &mut [u8], position: u64) -> io::Result<()> {
        match self {
            Self::File(file) => file.read_exact_at(buffer, position),
            Self::Memory(bytes) => {
                let start = usize::try_from(position).unwrap_or(usize::MAX);
                let found = bytes.get(start..).and_then(|rest| rest.get(..buffer.len()));
                buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }
}

#[derive(Debug)]
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    span: Range<u64>,
}

impl LoraFile {
    /// Opens a safetensors file, or the LoRA of a folder that PEFT or diffusers wrote.
    ///
    /// # Errors
    /// Returns an error if there is no such file, or if it is not a valid safetensors file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let path = located(path)?;
        let io = || Error::file("read", &path);
        let file = File::open(&path).map_err(io())?;
        pointer::refuse_file(&path, &file)?;
        let bytes = file.metadata().map_err(io())?.len();
        let digest = Digest::of_file(&path).map_err(io())?.blake3;
        Self::parse(path, Content::File(file), bytes, digest)
    }

    /// Reads the bytes of a safetensors file. `path` is named in errors.
    ///
    /// # Errors
    /// Returns an error if they are not a valid safetensors file.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self, Error> {
        let (length, digest) = (bytes.len() as u64, Digest::of_parts([&bytes[..]]).blake3);
        Self::parse(path.to_owned(), Content::Memory(bytes), length, digest)
    }

    fn parse(path: PathBuf, content: Content, bytes: u64, digest: String) -> Result<Self, Error> {
        let io = || Error::file("read", &path);
        let truncated = |expected: u64| Error::Truncated { path: path.clone(), expected, found: bytes };
        let mut length = [0; 8];
        if bytes < 8 {
            return Err(truncated(8));
        }
        content.read(&mut length, 0).map_err(io())?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER_BYTES {
            return Err(LoraError::NotSafetensors { path }.into());
        }
        let data = 8 + length;
        if bytes < data {
            return Err(truncated(data));
        }
        let mut header = vec![0; usize::try_from(length).unwrap_or_default()];
        content.read(&mut header, 8).map_err(io())?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|error| Error::header(&path, format!("its header cannot be read: {error}")))?;
        let end = data.saturating_add(metadata.data_len() as u64);
        if bytes < end {
            return Err(truncated(end));
        }
        if bytes > end {
            return Err(Error::header(&path, format!("{} bytes follow the last tensor", bytes - end)));
        }
        let stored = |info: &safetensors::tensor::TensorInfo| {
            let (from, to) = info.data_offsets;
            Stored {
                dtype: info.dtype,
                shape: info.shape.clone(),
                span: data + from as u64..data + to as u64,
            }
        };
        let tensors = metadata.tensors().into_iter().map(|(name, info)| (name, stored(info))).collect();
        let scaling = Scaling::of(&path, metadata.metadata().as_ref())?;
        Ok(Self { path, digest, content, tensors, scaling })
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns its name without the folder.
    pub fn name(&self) -> String {
        self.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }

    /// Returns the BLAKE3 of its content, 64 hexadecimal digits.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Returns the keys of its tensors, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Returns the number formats of its tensors and how many have each.
    pub fn formats(&self) -> BTreeMap<String, usize> {
        let mut formats = BTreeMap::new();
        for stored in self.tensors.values() {
            *formats.entry(format!("{:?}", stored.dtype).to_lowercase()).or_default() += 1;
        }
        formats
    }

    /// Returns the shape of a tensor; empty if there is none.
    pub(super) fn shape(&self, key: &str) -> &[usize] {
        self.tensors.get(key).map_or(&[], |stored| &stored.shape)
    }

    /// Reads a tensor as f32.
    ///
    /// # Errors
    /// Returns an error if it cannot be read, or is in a number format that no LoRA has.
    pub(super) fn read(&self, key: &str) -> Result<Vec<f32>, Error> {
        let Some(Stored { dtype, span, .. }) = self.tensors.get(key) else { return Ok(Vec::new()) };
        let mut bytes = vec![0; usize::try_from(span.end - span.start).unwrap_or_default()];
        self.content.read(&mut bytes, span.start).map_err(Error::file("read", &self.path))?;
        widened(*dtype, &bytes).ok_or_else(|| {
            let format = format!("{dtype:?}").to_lowercase();
            LoraError::Format { path: self.path.clone(), key: key.to_owned(), format }.into()
        })
    }
}

/// The file of a path, which may be a folder.
fn located(path: &Path) -> Result<PathBuf, Error> {
    let found = std::fs::metadata(path).map_err(Error::file("read", path))?;
    if found.is_file() {
        return Ok(path.to_owned());
    }
    let inside = IN_FOLDERS.map(|name| path.join(name)).into_iter().find(|path| path.is_file());
    inside
        .filter(|_| found.is_dir())
        .ok_or_else(|| LoraError::NotSafetensors { path: path.to_owned() }.into())
}

/// Stored elements as f32, exactly except for f64; none for other formats.
fn widened(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let two = bytes.as_chunks::<2>().0.iter();
    Some(match dtype {
        Dtype::F64 => bytes.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes) as f32).collect(),
        Dtype::F32 => bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        Dtype::F16 => two.map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect(),
        Dtype::BF16 => two.map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
        Dtype::F8_E4M3 => bytes.iter().map(|byte| e4m3::decode(*byte)).collect(),
        // The upper half of an f16.
        Dtype::F8_E5M2 => bytes.iter().map(|byte| f16::from_bits(u16::from(*byte) << 8).to_f32()).collect(),
        Dtype::I64 => bytes.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes) as f32).collect(),
        Dtype::I32 => bytes.as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes) as f32).collect(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

    #[test]
    fn every_number_format_of_a_lora_is_read_exactly() {
        let values = [1.0_f32, -0.5, 0.0, 1.75, -448.0];
        let halves = values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect::<Vec<_>>();
        let brains = values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect::<Vec<_>>();
        let fours = values.iter().map(|value| e4m3::encode(*value)).collect::<Vec<_>>();
        // 1.0, -0.5, 0.0, 1.75 and -448 as E5M2.
        let fives = vec![0x3c, 0xb8, 0x00, 0x3f, 0xdf];
        let doubles = values.iter().flat_map(|value| f64::from(*value).to_le_bytes()).collect::<Vec<_>>();
        let all = [
            (Dtype::F16, halves),
            (Dtype::BF16, brains),
            (Dtype::F8_E4M3, fours),
            (Dtype::F8_E5M2, fives),
            (Dtype::F64, doubles),
        ];
        for (dtype, bytes) in &all {
            assert_eq!(widened(*dtype, bytes).unwrap(), values, "{dtype:?}");
        }
        assert!(widened(Dtype::BOOL, &[1]).is_none());
    }

    #[test]
    fn damaged_files_and_other_formats_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let bytes = 1.0_f32.to_le_bytes();
        let view = TensorView::new(Dtype::F32, vec![1], &bytes).unwrap();
        let whole = safetensors::serialize([("a.alpha", view)], None).unwrap();
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(LoraFile::open(&path).unwrap().keys().collect::<Vec<_>>(), ["a.alpha"]);
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let error = LoraFile::open(&path).unwrap_err();
            assert!(matches!(error, Error::Truncated { .. }), "{length}: {error}");
        }
        std::fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
        assert!(LoraFile::open(&path).unwrap_err().to_string().contains("1 bytes follow"));
        // The beginning of a file of torch.save.
        std::fs::write(&path, b"PK\x03\x04\x00\x00\x08\x08\x00\x00").unwrap();
        let error = LoraFile::open(&path).unwrap_err().to_string();
        assert!(error.contains("not a safetensors file"), "{error}");
        assert!(LoraFile::open(folder.path().join("none").as_path()).is_err());
    }

    #[test]
    fn a_folder_is_the_file_that_peft_or_diffusers_wrote_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let error = LoraFile::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("adapter_model.safetensors"), "{error}");
        let empty: [(&str, TensorView<'_>); 0] = [];
        let bytes = safetensors::serialize(empty, None).unwrap();
        std::fs::write(folder.path().join(IN_FOLDERS[1]), bytes).unwrap();
        assert_eq!(LoraFile::open(folder.path()).unwrap().name(), IN_FOLDERS[1]);
    }
}
