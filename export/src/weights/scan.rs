//! The digest of a component's weights and the search for damage, in one parallel pass.
//!
//! The digest is that of the stored weights; [`Transforms::digest`](super::transform::Transforms::digest) adds their
//! changes. It depends on canonical names, number formats, shapes and contents, not on the distribution over files. It
//! is the BLAKE3 hash over, for every tensor in the order of canonical names: length and bytes of the name, name of the
//! number format, rank and extents, and the BLAKE3 hash of each [`file_digest::PIECE`] of its bytes. The digests of the
//! files use the same hashes.
//!
//! Holes of sparse files are hashed as the zeros that they are, and not read. Pieces that a conversion has already read
//! are not read again.

use crate::Error;
use crate::checkpoint::shards::{ShardFile, Shards, StoredTensor};
use crate::file_data::{DataRanges, hash_of_zeros, hash_zeros};
use crate::pieces::{PieceResult, ReadPieces};
use crate::weights::number_format::{element_at, first_non_finite};
use bundle::digest::Digest;
use bundle::file_digest;
use bundle::stop::Stop;
use rayon::prelude::*;
use std::collections::HashMap;
use std::ops::Range;

/// Bytes that are hashed and searched together, so that they are loaded from memory once.
const BLOCK: usize = 1 << 17;
/// Bytes of each tensor that are read with [`Verify::Beginnings`].
const BEGINNING: u64 = 4096;

/// The part of the weights that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// Every byte.
    Whole,
    /// Headers and the first 4 KiB of every tensor.
    Beginnings,
}

/// The result of a scan.
#[derive(Debug, Clone, PartialEq)]
pub struct Scan {
    /// Digest of the weights.
    pub digest: Digest,
    /// Digest over every byte of each file, see [`file_digest::of_pieces`], in the order of [`Shards::files`]; empty if
    /// not every byte was read.
    pub files: Vec<String>,
    /// Digest over every byte of each weight, in the order of [`Shards::tensors`]; empty if not every byte was read.
    pub tensors: Vec<String>,
}

/// Computes the digest of a component's weights and checks that they are finite.
///
/// # Errors
/// [`Error::NotFinite`] for the first bad element of the first bad weight in the order of names; I/O errors; an error
/// if a file was changed during the scan, or if a stop was requested.
pub fn scan(shards: &Shards, verify: Verify, stop: &Stop) -> Result<Scan, Error> {
    scan_rest(shards, verify, &ReadPieces::default(), stop)
}

/// Does what [`scan`] does, without reading the pieces in `known` again.
///
/// # Errors
/// Those of [`scan`].
pub fn scan_rest(shards: &Shards, verify: Verify, known: &ReadPieces, stop: &Stop) -> Result<Scan, Error> {
    let tensors: Vec<StoredTensor<'_>> = shards.tensors().collect();
    // In file order, for sequential reads.
    let pieces = pieces(shards, &tensors, verify);
    let data: Vec<DataRanges> = shards.files().iter().map(ShardFile::data_ranges).collect();
    let read = |block: &mut Vec<u8>, piece: &Piece<'_>| {
        stop.check()?;
        match known.get(piece.index, &piece.range) {
            Some(known) => Ok(known.clone()),
            None => piece.read(block, &tensors, &data[piece.index]),
        }
    };
    let results: Vec<PieceResult> =
        pieces.par_iter().map_init(Vec::new, read).collect::<Result<_, Error>>()?;
    shards.check_unchanged()?;

    let first = first_names(&tensors);
    let mut tensor_results = vec![Vec::new(); tensors.len()];
    for (piece, result) in pieces.iter().zip(&results) {
        if let Some((tensor, _)) = piece.tensor {
            tensor_results[tensor].push(result);
        }
    }
    let permuted = read_permuted(&tensors, verify, stop)?;
    for (number, results) in &permuted {
        tensor_results[*number].extend(results);
    }
    let mut hasher = blake3::Hasher::new();
    let whole = verify == Verify::Whole;
    let mut of_tensors = Vec::new();
    for (tensor, first) in tensors.iter().zip(first) {
        let results = &tensor_results[first];
        if let Some(index) = results.iter().find_map(|result| result.bad) {
            return Err(not_finite(tensor, index));
        }
        describe(&mut hasher, tensor);
        for result in results {
            hasher.update(result.hash.as_bytes());
        }
        if whole {
            of_tensors.push(file_digest::of_pieces(results.iter().map(|result| &result.hash)));
        }
    }
    let file = |index: usize| {
        let file_results = pieces.iter().zip(&results).filter(move |(piece, _)| piece.index == index);
        file_digest::of_pieces(file_results.map(|(_, result)| &result.hash))
    };
    let files = if whole { (0..shards.files().len()).map(file).collect() } else { Vec::new() };
    Ok(Scan { digest: Digest::new(hasher.finalize(), whole), files, tensors: of_tensors })
}

/// Returns for each tensor the position of the first one with the same bytes: itself, unless it has several names.
fn first_names(tensors: &[StoredTensor<'_>]) -> Vec<usize> {
    let mut first = HashMap::new();
    let place = |tensor: &StoredTensor<'_>| {
        (std::ptr::from_ref(tensor.file), tensor.offset, tensor.strides.map(<[usize]>::to_vec))
    };
    let numbered = tensors.iter().enumerate();
    numbered
        .map(
            |(number, tensor)| {
                if tensor.length == 0 { number } else { *first.entry(place(tensor)).or_insert(number) }
            },
        )
        .collect()
}

/// Reads the tensors that are not stored row by row, in the order of their elements. Returns each with its number.
fn read_permuted(
    tensors: &[StoredTensor<'_>],
    verify: Verify,
    stop: &Stop,
) -> Result<Vec<(usize, Vec<PieceResult>)>, Error> {
    let permuted = tensors.par_iter().enumerate().filter(|(_, tensor)| tensor.strides.is_some());
    let read = |(number, tensor): (usize, &StoredTensor<'_>)| {
        let length = match verify {
            Verify::Whole => tensor.length as u64,
            Verify::Beginnings => BEGINNING.min(tensor.length as u64),
        };
        let mut results = Vec::new();
        let mut block = Vec::new();
        for piece in file_digest::pieces(std::iter::once(0..length)) {
            stop.check()?;
            let start = usize::try_from(piece.start).unwrap_or(usize::MAX);
            block.resize(usize::try_from(piece.end - piece.start).unwrap_or_default(), 0);
            tensor.read_at(start, &mut block)?;
            let before = start / tensor.element.bytes();
            let bad = first_non_finite(tensor.element, &block).map(|index| before + index);
            results.push(PieceResult { hash: blake3::hash(&block), bad });
        }
        Ok((number, results))
    };
    permuted.map(read).collect()
}

/// Returns the pieces to read in file order: everything including headers, or the beginning of every tensor.
fn pieces<'a>(shards: &'a Shards, tensors: &[StoredTensor<'_>], verify: Verify) -> Vec<Piece<'a>> {
    let mut all = Vec::new();
    for (index, file) in shards.files().iter().enumerate() {
        let here = tensors.iter().enumerate().filter(|(_, tensor)| {
            tensor.length > 0 && tensor.strides.is_none() && std::ptr::eq(tensor.file, file)
        });
        // The first of several names of the same bytes.
        let at: HashMap<u64, usize> = here.rev().map(|(number, tensor)| (tensor.offset, number)).collect();
        for part in file.parts() {
            let tensor = at.get(&part.start).copied();
            let end = match (verify, tensor) {
                (Verify::Whole, _) => part.end,
                (Verify::Beginnings, Some(_)) => part.end.min(part.start + BEGINNING),
                (Verify::Beginnings, None) => continue,
            };
            all.extend(file_digest::pieces(std::iter::once(part.start..end)).map(|range| {
                let tensor = tensor.map(|tensor| (tensor, range.start - part.start));
                Piece { index, file, range, tensor }
            }));
        }
    }
    all
}

/// A part of a file that one thread reads.
struct Piece<'a> {
    /// Position of the file in [`Shards::files`].
    index: usize,
    file: &'a ShardFile,
    range: Range<u64>,
    /// The tensor that it belongs to, and its position in the tensor in bytes.
    tensor: Option<(usize, u64)>,
}

impl Piece<'_> {
    fn read(
        &self,
        block: &mut Vec<u8>,
        tensors: &[StoredTensor<'_>],
        data: &DataRanges,
    ) -> Result<PieceResult, Error> {
        let bytes_from =
            |start: u64| usize::try_from(self.range.end.saturating_sub(start)).unwrap_or(usize::MAX);
        // Zeros are finite.
        if data.is_hole(&self.range) {
            return Ok(PieceResult { hash: hash_of_zeros(bytes_from(self.range.start)), bad: None });
        }
        let mut hasher = blake3::Hasher::new();
        let mut bad = None;
        for start in self.range.clone().step_by(BLOCK) {
            let length = bytes_from(start).min(BLOCK);
            if data.is_hole(&(start..start + length as u64)) {
                hash_zeros(&mut hasher, length);
                continue;
            }
            block.resize(length, 0);
            self.file.read_at(start, block)?;
            hasher.update(block);
            if let (None, Some((tensor, before))) = (bad, self.tensor) {
                let element = tensors[tensor].element;
                let before = before + (start - self.range.start);
                let before = usize::try_from(before).unwrap_or(usize::MAX) / element.bytes();
                bad = first_non_finite(element, block).map(|index| before + index);
            }
        }
        Ok(PieceResult { hash: hasher.finalize(), bad })
    }
}

fn describe(hasher: &mut blake3::Hasher, tensor: &StoredTensor<'_>) {
    let mut number = |number: usize| {
        hasher.update(&(number as u64).to_le_bytes());
    };
    number(tensor.name.len());
    number(tensor.shape.len());
    tensor.shape.iter().copied().for_each(number);
    hasher.update(tensor.name.as_bytes());
    hasher.update(tensor.element.to_string().as_bytes());
}

fn not_finite(tensor: &StoredTensor<'_>, index: usize) -> Error {
    Error::NotFinite {
        name: tensor.name.to_owned(),
        path: tensor.file.path().to_owned(),
        index,
        value: value_at(tensor, index).unwrap_or(f32::NAN),
    }
}

/// Reads an element again.
fn value_at(tensor: &StoredTensor<'_>, index: usize) -> Option<f32> {
    let mut bytes = vec![0; tensor.element.bytes()];
    tensor.read_at(index * bytes.len(), &mut bytes).ok()?;
    element_at(tensor.element, &bytes, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::names::Family;
    use crate::checkpoint::samples::{bytes_of, write_shard};
    use std::path::Path;

    const LARGE: usize = 600_000;
    const PIECE: usize = file_digest::PIECE;

    fn write(folder: &Path, values: &[f32], small: f32) {
        let tensors: [(&str, &[usize], &[u8]); 2] =
            [("large", &[2, LARGE / 2], &bytes_of(values)), ("small", &[1], &bytes_of(&[small]))];
        write_shard(&folder.join("m.safetensors"), &tensors);
    }

    fn digest(folder: &Path, verify: Verify) -> Result<Digest, Error> {
        scan(&Shards::open(folder, Family::Denoiser).unwrap(), verify, &Stop::new()).map(|scan| scan.digest)
    }

    #[test]
    fn the_digest_does_not_depend_on_sharding_or_on_the_naming_scheme() {
        let values: Vec<f32> = (0..1000_u16).map(f32::from).collect();
        let bytes = bytes_of(&values);
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let a: (&str, &[usize], &[u8]) = ("head.modulation", &[1000], &bytes);
        let b: (&str, &[usize], &[u8]) = ("blocks.0.norm3.bias", &[10, 100], &bytes);
        write_shard(&one.path().join("m.safetensors"), &[a, b]);
        write_shard(&two.path().join("1.safetensors"), &[("scale_shift_table", a.1, a.2)]);
        write_shard(&two.path().join("2.safetensors"), &[("blocks.0.norm2.bias", b.1, b.2)]);
        let map =
            r#"{"weight_map":{"scale_shift_table":"1.safetensors","blocks.0.norm2.bias":"2.safetensors"}}"#;
        std::fs::write(two.path().join("model.safetensors.index.json"), map).unwrap();
        let [whole, beginnings] = [Verify::Whole, Verify::Beginnings].map(|verify| {
            let digests = (digest(one.path(), verify).unwrap(), digest(two.path(), verify).unwrap());
            assert_eq!(digests.0, digests.1);
            digests.0
        });
        assert!(whole.whole && !beginnings.whole);

        write_shard(&one.path().join("m.safetensors"), &[a, (b.0, &[100, 10], b.2)]);
        assert_ne!(digest(one.path(), Verify::Whole).unwrap(), whole, "the shape is part of the digest");
        write_shard(&one.path().join("m.safetensors"), &[a, ("blocks.1.norm3.bias", b.1, b.2)]);
        assert_ne!(digest(one.path(), Verify::Whole).unwrap(), whole, "the name is part of the digest");
    }

    #[test]
    fn every_byte_affects_the_digest_unless_only_beginnings_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut values = vec![1.0; LARGE];
        write(folder.path(), &values, 0.0);
        let whole = digest(folder.path(), Verify::Whole).unwrap();
        let beginnings = digest(folder.path(), Verify::Beginnings).unwrap();
        for place in [LARGE - 1, PIECE / 4, PIECE / 4 - 1, 1024] {
            values[place] = 2.0;
            write(folder.path(), &values, 0.0);
            assert_ne!(digest(folder.path(), Verify::Whole).unwrap(), whole, "{place}");
            assert_eq!(digest(folder.path(), Verify::Beginnings).unwrap(), beginnings, "{place}");
            values[place] = 1.0;
        }
        values[1023] = 2.0;
        write(folder.path(), &values, 0.0);
        assert_ne!(digest(folder.path(), Verify::Beginnings).unwrap(), beginnings);
    }

    #[test]
    fn the_first_element_that_is_not_finite_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let mut values = vec![1.0; LARGE];
        for place in [LARGE - 1, PIECE / 4 + 1, 3] {
            values[place] = f32::NEG_INFINITY;
            write(folder.path(), &values, f32::NAN);
            let error = digest(folder.path(), Verify::Whole).unwrap_err();
            assert!(
                matches!(&error, Error::NotFinite { name, index, value, .. }
                    if name == "large" && *index == place && *value == f32::NEG_INFINITY),
                "{place}: {error}"
            );
        }
        write(folder.path(), &vec![1.0; LARGE], f32::NAN);
        let error = digest(folder.path(), Verify::Beginnings).unwrap_err();
        assert!(matches!(&error, Error::NotFinite { name, index: 0, .. } if name == "small"), "{error}");
    }

    /// Whether the blocks of the file at `path` are fewer than its length needs.
    fn is_sparse(path: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        let metadata = path.metadata().unwrap();
        metadata.blocks() * 512 < metadata.len()
    }

    #[test]
    fn a_file_with_holes_has_the_scan_of_one_with_zeros() {
        let (full, sparse) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let last = f32::from_bits(0x7f00_0000);
        let scans = |bad: Option<f32>| {
            let mut values = vec![0.0; LARGE];
            // The last element of a piece, and two in the middle of others.
            for (at, value) in [(PIECE / 4 - 1, last), (PIECE / 2 + 5, -1.5)] {
                values[at] = value;
            }
            values[LARGE - 40_000] = bad.unwrap_or(3.0);
            write(full.path(), &values, 0.0);
            let bytes = std::fs::read(full.path().join("m.safetensors")).unwrap();
            let path = sparse.path().join("m.safetensors");
            let file = std::fs::File::create(&path).unwrap();
            file.set_len(bytes.len() as u64).unwrap();
            for (index, block) in bytes.chunks(4096).enumerate() {
                if block.iter().any(|byte| *byte != 0) {
                    std::os::unix::fs::FileExt::write_all_at(&file, block, 4096 * index as u64).unwrap();
                }
            }
            if !is_sparse(&path) {
                eprintln!("skipped in part: temporary files have no holes here");
            }
            [&full, &sparse].map(|folder| {
                let shards = Shards::open(folder.path(), Family::Denoiser).unwrap();
                [Verify::Whole, Verify::Beginnings].map(|verify| scan(&shards, verify, &Stop::new()))
            })
        };
        let [of_full, of_sparse] = scans(None);
        for (full, sparse) in of_full.into_iter().zip(of_sparse) {
            assert_eq!(full.unwrap(), sparse.unwrap());
        }
        for found in scans(Some(f32::NAN)) {
            let [whole, _] = found;
            let error = whole.unwrap_err();
            assert!(
                matches!(&error, Error::NotFinite { name, index, .. }
                    if name == "large" && *index == LARGE - 40_000),
                "{error}"
            );
        }
    }

    #[test]
    fn a_tensor_in_another_order_has_the_digest_of_one_row_by_row() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/checkpoint/torch_file/data/permuted.pth");
        let of_torch = Shards::open_file(&path, Family::Denoiser).unwrap();
        let straight: Vec<f32> = (0..6_u8).map(|i| f32::from(i) / 8.0).collect();
        let turned: Vec<f32> = [0, 3, 1, 4, 2, 5].map(|i| straight[i]).into();
        let kernel: Vec<f32> = (0..48_u8).map(|i| f32::from(i) / 8.0).collect();
        let (folder, [straight, turned, kernel]) =
            (tempfile::tempdir().unwrap(), [straight, turned, kernel].map(|values| bytes_of(&values)));
        let tensors: [(&str, &[usize], &[u8]); 3] = [
            ("straight", &[2, 3], &straight),
            ("turned", &[3, 2], &turned),
            ("channels_last", &[2, 2, 2, 2, 3], &kernel),
        ];
        write_shard(&folder.path().join("m.safetensors"), &tensors);
        let stored = Shards::open(folder.path(), Family::Denoiser).unwrap();
        for verify in [Verify::Whole, Verify::Beginnings] {
            let [expected, found] =
                [&stored, &of_torch].map(|shards| scan(shards, verify, &Stop::new()).unwrap());
            assert_eq!(found.digest, expected.digest);
        }
        for (name, _, bytes) in tensors {
            let tensor = of_torch.tensor(name).unwrap();
            assert_eq!((tensor.read().unwrap(), tensor.is_misplaced()), (bytes.to_vec(), name != "straight"));
        }
    }

    #[test]
    fn a_stop_request_ends_the_scan() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &vec![1.0; LARGE], 1.0);
        let shards = Shards::open(folder.path(), Family::Denoiser).unwrap();
        let stop = Stop::new();
        stop.request();
        let error = scan(&shards, Verify::Whole, &stop).unwrap_err();
        assert!(matches!(error, Error::Contract(bundle::Error::Stopped)), "{error}");
    }
}
