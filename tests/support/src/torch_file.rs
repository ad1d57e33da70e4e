//! Writes files as `torch.save` writes a dictionary of tensors: a zip archive of stored entries, with zip64 beyond 4 GiB.
//!
//! The bytes of the tensors are not written, only the places where they belong, so that a file of any size is a file of
//! holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Storages begin at multiples of this.
const ALIGNMENT: u64 = 64;
/// The largest value of a 32-bit field; a larger one is in zip64.
const FULL: u64 = 0xffff_ffff;

/// A tensor to store, with a storage of its own.
#[derive(Debug, Clone)]
pub struct TorchTensor {
    /// Its name.
    pub name: String,
    /// The class of its storage, such as `FloatStorage` or `BFloat16Storage`.
    pub storage: &'static str,
    /// Bytes of an element.
    pub element: u64,
    /// Its shape.
    pub shape: Vec<u64>,
}

impl TorchTensor {
    fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Bytes of its values.
    pub fn bytes(&self) -> u64 {
        self.elements() * self.element
    }
}

/// The parts of a file that are not values of tensors, and where those belong.
#[derive(Debug, Clone, Default)]
pub struct TorchFile {
    /// Bytes with their positions, in order.
    pub parts: Vec<(u64, Vec<u8>)>,
    /// The position of the values of each tensor.
    pub offsets: Vec<u64>,
    /// The length of the file.
    pub length: u64,
}

impl TorchFile {
    /// Lays out a file. `folder` is the folder in the archive; torch names it after the file.
    pub fn new(folder: &str, tensors: &[TorchTensor]) -> Self {
        Self::with_pickle(folder, &pickle(tensors), tensors)
    }

    /// [`Self::new`] with another pickle.
    pub fn with_pickle(folder: &str, pickle: &[u8], tensors: &[TorchTensor]) -> Self {
        Self::laid_out(Archive::default(), folder, pickle, tensors)
    }

    fn laid_out(mut archive: Archive, folder: &str, pickle: &[u8], tensors: &[TorchTensor]) -> Self {
        archive.entry(&format!("{folder}/data.pkl"), pickle);
        archive.entry(&format!("{folder}/byteorder"), b"little");
        let mut offsets = Vec::with_capacity(tensors.len());
        for (number, tensor) in tensors.iter().enumerate() {
            offsets.push(archive.room(&format!("{folder}/data/{number}"), tensor.bytes()));
        }
        archive.entry(&format!("{folder}/version"), b"3\n");
        archive.finish();
        Self { parts: archive.parts, offsets, length: archive.at }
    }

    /// [`Self::new`] with values that begin one byte behind a multiple of 64, as no version of torch writes.
    pub fn unaligned(folder: &str, tensors: &[TorchTensor]) -> Self {
        Self::laid_out(Archive { shift: 1, ..Archive::default() }, folder, &pickle(tensors), tensors)
    }

    /// The whole file, with `values` as the bytes of each tensor.
    ///
    /// # Panics
    /// Panics if the file does not fit in memory.
    pub fn to_bytes(&self, values: &[&[u8]]) -> Vec<u8> {
        let mut file = vec![0; usize::try_from(self.length).expect("a small file")];
        let of_tensors = self.offsets.iter().copied().zip(values.iter().copied());
        let parts = self.parts.iter().map(|(at, bytes)| (*at, bytes.as_slice()));
        for (at, bytes) in parts.chain(of_tensors) {
            let at = usize::try_from(at).expect("a small file");
            file[at..at + bytes.len()].copy_from_slice(bytes);
        }
        file
    }

    /// Writes the file; the values of the tensors are holes.
    ///
    /// # Errors
    /// I/O errors.
    pub fn write(&self, path: &Path) -> io::Result<File> {
        let file = File::create(path)?;
        file.set_len(self.length)?;
        self.parts.iter().try_for_each(|(at, bytes)| file.write_all_at(bytes, *at))?;
        Ok(file)
    }
}

/// The pickle of a dictionary of tensors whose storages are numbered.
pub fn pickle(tensors: &[TorchTensor]) -> Vec<u8> {
    let mut bytes = b"\x80\x02ccollections\nOrderedDict\n)R(".to_vec();
    for (number, tensor) in tensors.iter().enumerate() {
        text(&mut bytes, &tensor.name);
        bytes.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut bytes, "storage");
        bytes.extend(format!("ctorch\n{}\n", tensor.storage).bytes());
        text(&mut bytes, &number.to_string());
        text(&mut bytes, "cpu");
        integer(&mut bytes, tensor.elements());
        bytes.extend(b"tQK\0(");
        tensor.shape.iter().for_each(|extent| integer(&mut bytes, *extent));
        bytes.extend(b"t(");
        for axis in 0..tensor.shape.len() {
            integer(&mut bytes, tensor.shape[axis + 1..].iter().product());
        }
        bytes.extend(b"t\x89ccollections\nOrderedDict\n)RtR");
    }
    bytes.extend(b"u.");
    bytes
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.push(b'X');
    bytes.extend(u32::try_from(text.len()).expect("a short text").to_le_bytes());
    bytes.extend(text.bytes());
}

/// LONG1 of eight bytes. The ninth is the sign, which no size reaches.
fn integer(bytes: &mut Vec<u8>, number: u64) {
    bytes.extend(b"\x8a\x08");
    bytes.extend(number.to_le_bytes());
}

#[derive(Default)]
struct Archive {
    parts: Vec<(u64, Vec<u8>)>,
    directory: Vec<u8>,
    entries: u64,
    at: u64,
    /// Bytes between the aligned place of an entry and its bytes.
    shift: u64,
}

impl Archive {
    fn push(&mut self, bytes: Vec<u8>) {
        let length = bytes.len() as u64;
        self.parts.push((self.at, bytes));
        self.at += length;
    }

    fn entry(&mut self, name: &str, bytes: &[u8]) {
        let at = self.room(name, bytes.len() as u64);
        // Before the descriptor, which `room` has added.
        let last = self.parts.len() - usize::from(!bytes.is_empty());
        self.parts.insert(last, (at, bytes.to_vec()));
    }

    /// Adds an entry without its bytes, and returns where they belong. As in torch, sizes follow the data.
    fn room(&mut self, name: &str, bytes: u64) -> u64 {
        let local = self.at;
        let mut wide = Vec::new();
        if bytes >= FULL {
            wide.extend([bytes, bytes].map(u64::to_le_bytes).concat());
        }
        let is_far = local >= FULL;
        if is_far {
            wide.extend(local.to_le_bytes());
        }
        let zip64 = if wide.is_empty() { Vec::new() } else { field(1, &wide) };

        let start = local + 30 + (name.len() + zip64.len()) as u64 + 4;
        let padding =
            usize::try_from(start.next_multiple_of(ALIGNMENT) - start + self.shift).expect("at most 64");
        let local_extra = [zip64.clone(), field(u16::from_le_bytes(*b"FB"), &vec![b'Z'; padding])].concat();
        let mut header = b"PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        header.extend(length_16(name.len()));
        header.extend(length_16(local_extra.len()));
        header.extend(name.bytes());
        header.extend(local_extra);
        self.push(header);
        let start = self.at;
        self.at += bytes;
        let is_wide = !zip64.is_empty();
        let sizes = if is_wide { [bytes.to_le_bytes(); 2].concat() } else { [length_32(bytes); 2].concat() };
        if bytes > 0 {
            self.push([b"PK\x07\x08\0\0\0\0".to_vec(), sizes].concat());
        }

        self.directory.extend(b"PK\x01\x02\0\0\0\0\x08\x08\0\0\0\0\0\0\0\0\0\0");
        self.directory.extend([length_32(bytes); 2].concat());
        self.directory.extend(length_16(name.len()));
        self.directory.extend(length_16(zip64.len()));
        self.directory.extend([0; 10]);
        self.directory.extend(length_32(local));
        self.directory.extend(name.bytes());
        self.directory.extend(zip64);
        self.entries += 1;
        start
    }

    fn finish(&mut self) {
        let (start, directory) = (self.at, std::mem::take(&mut self.directory));
        let bytes = directory.len() as u64;
        self.push(directory);
        let record = self.at;
        let mut end = b"PK\x06\x06\x2c\0\0\0\0\0\0\0\x1e\x03\x2d\0\0\0\0\0\0\0\0\0".to_vec();
        end.extend([self.entries, self.entries, bytes, start].map(u64::to_le_bytes).concat());
        end.extend(b"PK\x06\x07\0\0\0\0");
        end.extend(record.to_le_bytes());
        end.extend(b"\x01\0\0\0PK\x05\x06\0\0\0\0");
        end.extend([u16::try_from(self.entries).unwrap_or(u16::MAX).to_le_bytes(); 2].concat());
        end.extend([length_32(bytes), length_32(start)].concat());
        end.extend([0; 2]);
        self.push(end);
    }
}

fn field(tag: u16, content: &[u8]) -> Vec<u8> {
    [&tag.to_le_bytes()[..], &length_16(content.len()), content].concat()
}

fn length_16(length: usize) -> [u8; 2] {
    u16::try_from(length).expect("a short field").to_le_bytes()
}

/// A 32-bit field, full if the number is in zip64.
fn length_32(length: u64) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_aligned_and_parts_do_not_overlap() {
        let tensor = |name: &str, elements| TorchTensor {
            name: name.into(),
            storage: "FloatStorage",
            element: 4,
            shape: vec![elements],
        };
        let tensors = [tensor("a", 3), tensor("large", 3 << 30), tensor("far", 5), tensor("none", 0)];
        let file = TorchFile::new("model", &tensors);
        let of_tensors = file.offsets.iter().zip(&tensors).map(|(at, tensor)| *at..*at + tensor.bytes());
        let parts = file.parts.iter().map(|(at, bytes)| *at..*at + bytes.len() as u64);
        let mut spans: Vec<_> = of_tensors.chain(parts).filter(|span| !span.is_empty()).collect();
        spans.sort_by_key(|span| span.start);
        assert!(spans.windows(2).all(|pair| pair[0].end == pair[1].start), "{spans:?}");
        assert_eq!((spans[0].start, spans.last().unwrap().end), (0, file.length));
        assert!(file.offsets.iter().all(|at| at % ALIGNMENT == 0));
    }
}
