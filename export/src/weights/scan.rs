//! The digest of a component's weights and the search for damage, in one parallel pass.
//!
//! The digest depends on canonical names, number formats, shapes and contents alone, not on how they are spread over
//! files. It is the BLAKE3 hash of, for every tensor in the order of canonical names: length and bytes of the name, name
//! of the number format, rank and extents, and the BLAKE3 hash of each [`PIECE`] of its bytes.

use crate::Error;
use crate::checkpoint::shards::{Shards, StoredTensor};
use crate::weights::number_format::{element_at, first_non_finite};
use bundle::digest::Digest;
use bundle::stop::Stop;
use rayon::prelude::*;

/// Bytes that are hashed as one; a multiple of the size of every element.
pub const PIECE: usize = 1 << 20;
/// Bytes that are hashed and searched in turn, so that they come from memory once.
const BLOCK: usize = 1 << 17;
/// Bytes of each tensor that are read when not everything is.
const BEGINNING: usize = 4096;

/// How much of the weights is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// Every byte.
    Whole,
    /// Headers and the first 4 KiB of every tensor.
    Beginnings,
}

/// Digests the weights of a component and makes sure that they are finite.
///
/// # Errors
/// [`Error::NotFinite`] for the first bad element of the first bad weight, in the order of names; a stop.
pub fn scan(shards: &Shards, verify: Verify, stop: &Stop) -> Result<Digest, Error> {
    let tensors: Vec<StoredTensor<'_>> = shards.tensors().collect();
    let read = |tensor: &StoredTensor<'_>| match verify {
        Verify::Whole => tensor.bytes.len(),
        Verify::Beginnings => tensor.bytes.len().min(BEGINNING),
    };
    let mut pieces: Vec<Piece<'_>> = tensors
        .iter()
        .enumerate()
        .flat_map(|(index, tensor)| {
            let starts = (0..read(tensor)).step_by(PIECE);
            starts.map(move |start| Piece { tensor: index, start, bytes: &tensor.bytes[start..] })
        })
        .map(|piece| {
            let left = read(&tensors[piece.tensor]) - piece.start;
            Piece { bytes: &piece.bytes[..left.min(PIECE)], ..piece }
        })
        .collect();
    // In the order of the files, which is how a disk likes to be read.
    pieces.sort_by_key(|piece| piece.bytes.as_ptr());
    let read = |piece: Piece<'_>| stop.check().map(|()| piece.read(&tensors[piece.tensor]));
    let mut results = pieces.into_par_iter().map(read).collect::<Result<Vec<PieceResult>, _>>()?;
    results.sort_by_key(|result| (result.tensor, result.start));

    if let Some((result, index)) = results.iter().find_map(|result| Some((result, result.bad?))) {
        return Err(not_finite(&tensors[result.tensor], index));
    }
    let mut results = results.iter().peekable();
    let mut hasher = blake3::Hasher::new();
    for (index, tensor) in tensors.iter().enumerate() {
        describe(&mut hasher, tensor);
        while let Some(result) = results.next_if(|result| result.tensor == index) {
            hasher.update(result.hash.as_bytes());
        }
    }
    Ok(Digest::new(hasher.finalize(), verify == Verify::Whole))
}

/// A part of a tensor that one thread reads.
struct Piece<'a> {
    tensor: usize,
    start: usize,
    bytes: &'a [u8],
}

struct PieceResult {
    tensor: usize,
    start: usize,
    hash: blake3::Hash,
    /// Position in the tensor of the first element that is not finite.
    bad: Option<usize>,
}

impl Piece<'_> {
    fn read(&self, tensor: &StoredTensor<'_>) -> PieceResult {
        let element = tensor.element;
        let mut hasher = blake3::Hasher::new();
        let mut bad = None;
        for (block, bytes) in self.bytes.chunks(BLOCK).enumerate() {
            hasher.update(bytes);
            if bad.is_none() {
                let before = (self.start + block * BLOCK) / element.bytes();
                bad = first_non_finite(element, bytes).map(|index| before + index);
            }
        }
        PieceResult { tensor: self.tensor, start: self.start, hash: hasher.finalize(), bad }
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
        value: element_at(tensor.element, tensor.bytes, index).unwrap_or(f32::NAN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::names::Family;
    use crate::checkpoint::samples::{bytes_of, write_shard};
    use std::path::Path;

    const LARGE: usize = 600_000;

    fn write(folder: &Path, values: &[f32], small: f32) {
        let tensors: [(&str, &[usize], &[u8]); 2] =
            [("large", &[2, LARGE / 2], &bytes_of(values)), ("small", &[1], &bytes_of(&[small]))];
        write_shard(&folder.join("m.safetensors"), &tensors);
    }

    fn digest(folder: &Path, verify: Verify) -> Result<Digest, Error> {
        scan(&Shards::open(folder, Family::Denoiser).unwrap(), verify, &Stop::new())
    }

    #[test]
    fn the_digest_does_not_depend_on_sharding_or_on_whose_names_are_used() {
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
    fn every_byte_counts_unless_only_beginnings_are_read() {
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
    fn the_first_element_that_is_not_finite_is_named() {
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

    #[test]
    fn a_stop_ends_it() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &vec![1.0; LARGE], 1.0);
        let shards = Shards::open(folder.path(), Family::Denoiser).unwrap();
        let stop = Stop::new();
        stop.request();
        let error = scan(&shards, Verify::Whole, &stop).unwrap_err();
        assert!(matches!(error, Error::Contract(bundle::Error::Stopped)), "{error}");
    }
}
