//! Weights that are changed: streamed in parallel through their transforms into a new safetensors file.
//!
//! The digests of what is read and of what is written are computed in the same pass. Holes of sparse files stay holes
//! where zeros stay zeros.

use super::new_file::{Alignment, NewFile, Stored, write_new};
use super::number_format::first_non_finite;
use super::scan::Verify;
use super::transform::{Block, Transforms, Workspace};
use super::{Destination, PlacedWeights, location};
use crate::Error;
use crate::checkpoint::inventory::Required;
use crate::checkpoint::shards::{ShardFile, Shards, StoredTensor};
use crate::digests;
use crate::file_data::DataRanges;
use crate::pieces::{Found, PieceHasher, ReadPieces};
use bundle::dtype::ElementType;
use bundle::file_digest::PIECE;
use rayon::prelude::*;
use std::ops::Range;

/// Elements of a block; a thread has three buffers of this size.
pub(crate) const BLOCK: usize = 1 << 16;

/// Converted weights.
#[derive(Debug)]
pub struct Converted {
    /// Where they are.
    pub placed: PlacedWeights,
    /// Digest over every byte of the new file, see [`bundle::file_digest::of_pieces`].
    pub digest: String,
    /// What was read of the checkpoint, for [`scan_rest`](super::scan::scan_rest); nothing unless every byte is
    /// verified.
    pub read: ReadPieces,
}

impl Converted {
    /// Returns the digest of each file, for [`digests::complete`].
    pub(crate) fn known(&self) -> digests::Known {
        self.placed.files.iter().map(|file| (file.file.clone(), Some(self.digest.clone()))).collect()
    }
}

/// Writes the required weights of a component into a new file, changed by `transforms`. Weights that they do not change
/// are copied. Memory: a few MB per thread.
///
/// With [`Verify::Whole`], elements that are not finite are only noted in [`Converted::read`], so that the scan that
/// follows can report the first one; the new file must not be used then.
///
/// # Errors
/// Returns an error if a weight is missing, is not floating-point or is out of range, or if a transform does not fit it;
/// and I/O errors. Nothing is left of the file then.
pub fn place(
    shards: &Shards,
    required: &[Required],
    transforms: &Transforms,
    destination: Destination<'_>,
    verify: Verify,
) -> Result<Converted, Error> {
    let mut tensors = required
        .iter()
        .map(|required| shards.tensor(&required.name))
        .collect::<Result<Vec<StoredTensor<'_>>, _>>()?;
    let float = [ElementType::F32, ElementType::F16, ElementType::Bf16];
    if let Some(tensor) = tensors.iter().find(|tensor| !float.contains(&tensor.element)) {
        return Err(Error::WrongType { name: tensor.name.to_owned(), found: tensor.element });
    }
    // In file order.
    tensors.sort_by(|a, b| (a.file.path(), a.offset).cmp(&(b.file.path(), b.offset)));

    let stored: Vec<Stored> = tensors
        .iter()
        .map(|tensor| Stored {
            name: tensor.name.to_owned(),
            element: transforms.output(tensor.name, tensor.element),
            shape: tensor.shape.to_vec(),
        })
        .collect();
    let name = file_name(&stored);
    let path = destination.create_folder()?.join(&name);
    let data: Vec<DataRanges> = shards.files().iter().map(ShardFile::data_ranges).collect();
    let number_of = |file: &ShardFile| shards.files().iter().position(|other| std::ptr::eq(other, file));
    // Every tensor is in one of the files.
    let files: Vec<usize> = tensors.iter().filter_map(|tensor| number_of(tensor.file)).collect();
    let units: Vec<(usize, Range<usize>)> = tensors
        .iter()
        .zip(&stored)
        .enumerate()
        .flat_map(|(index, (tensor, stored))| {
            let elements = tensor.length / tensor.element.bytes();
            let each = unit(tensor.element, stored.element);
            (0..elements).step_by(each).map(move |start| (index, start..elements.min(start + each)))
        })
        .collect();
    let mut hashes = Vec::new();
    let written = write_new(&path, &location(&name), &stored, Alignment::Pages, |file| {
        let convert = |worker: &mut Worker, (index, elements): &(usize, Range<usize>)| {
            destination.check()?;
            let source = UnitSource {
                tensor: &tensors[*index],
                data: &data[files[*index]],
                is_hashed: verify == Verify::Whole && tensors[*index].strides.is_none(),
            };
            let target = UnitTarget { file, index: *index, element: stored[*index].element };
            worker.convert(&source, elements.clone(), transforms, &target)
        };
        hashes = units.par_iter().map_init(Worker::default, convert).collect::<Result<_, _>>()?;
        Ok(())
    })?;
    let (mut read, mut made) = (ReadPieces::default(), ReadPieces::default());
    for ((index, elements), Hashes { source, target }) in units.iter().zip(hashes) {
        let tensor = &tensors[*index];
        let at = |offset: u64, element: ElementType| offset + (elements.start * element.bytes()) as u64;
        read.extend(files[*index], at(tensor.offset, tensor.element), source);
        if let Some(placed) = written.tensors.get(tensor.name) {
            made.extend(0, at(placed.offset, placed.element), target);
        }
    }
    let digest = digests::whole_of_new(&path, &made)?;
    let files = vec![destination.entry(&name, written.bytes)];
    let placed = PlacedWeights { tensors: written.tensors, files, from: shards.folder().to_owned() };
    Ok(Converted { placed, digest, read })
}

/// Returns the elements that one thread changes in one go: whole pieces of both files.
fn unit(from: ElementType, to: ElementType) -> usize {
    PIECE / from.bytes().min(to.bytes())
}

/// A weight that is read.
struct UnitSource<'a> {
    tensor: &'a StoredTensor<'a>,
    /// Where its file holds data.
    data: &'a DataRanges,
    /// True to hash what is read and to search it for elements that are not finite.
    is_hashed: bool,
}

/// A weight that is written.
struct UnitTarget<'a> {
    file: &'a NewFile,
    /// Its number in the file.
    index: usize,
    element: ElementType,
}

/// The pieces of a unit.
struct Hashes {
    source: Vec<Found>,
    target: Vec<Found>,
}

/// The buffers and hashes of a thread.
#[derive(Default)]
struct Worker {
    buffers: Buffers,
    source: PieceHasher,
    target: PieceHasher,
}

impl Worker {
    fn convert(
        &mut self,
        source: &UnitSource<'_>,
        elements: Range<usize>,
        transforms: &Transforms,
        target: &UnitTarget<'_>,
    ) -> Result<Hashes, Error> {
        let UnitSource { tensor, data, is_hashed } = *source;
        let (from, to) = (tensor.element, target.element);
        let may_have_holes = tensor.strides.is_none() && transforms.keeps_zeros(tensor.name);
        // What an earlier unit left after an error.
        (self.source, self.target) = Default::default();
        for start in elements.clone().step_by(BLOCK) {
            let block = start..elements.end.min(start + BLOCK);
            if may_have_holes && data.is_hole(&span_in_file(tensor, &block)) {
                if is_hashed {
                    self.source.zeros(block.len() * from.bytes());
                }
                self.target.zeros(block.len() * to.bytes());
                continue;
            }
            let stored = self.buffers.read(tensor, block.clone())?;
            if is_hashed {
                if let Some(bad) = first_non_finite(from, stored) {
                    self.source.mark_bad(block.start + bad);
                }
                self.source.update(stored);
                if self.source.has_bad() {
                    // The export fails: nothing of this unit is written, and its hashes are never used.
                    self.target.zeros(block.len() * to.bytes());
                    continue;
                }
            }
            let changed = self.buffers.transform(tensor, &block, transforms)?;
            self.target.update(changed);
            let write = |part: Range<usize>| {
                let bytes = (part.start - block.start) * to.bytes()..(part.end - block.start) * to.bytes();
                target.file.write(target.index, part.start * to.bytes(), &changed[bytes])
            };
            if may_have_holes {
                data_within(tensor, block.clone(), data).try_for_each(write)?;
            } else {
                write(block.clone())?;
            }
        }
        Ok(Hashes { source: self.source.finish(), target: self.target.finish() })
    }
}

/// Returns the bytes of elements of a tensor in its file.
fn span_in_file(tensor: &StoredTensor<'_>, elements: &Range<usize>) -> Range<u64> {
    let place = |element: usize| tensor.offset + (element * tensor.element.bytes()) as u64;
    place(elements.start)..place(elements.end)
}

/// Returns the elements in a range that are not in a hole.
fn data_within(
    tensor: &StoredTensor<'_>,
    elements: Range<usize>,
    data: &DataRanges,
) -> impl Iterator<Item = Range<usize>> {
    let (each, offset) = (tensor.element.bytes() as u64, tensor.offset);
    let element = move |byte: u64| usize::try_from(byte / each).unwrap_or(usize::MAX);
    data.within(span_in_file(tensor, &elements))
        .map(move |data| element(data.start - offset)..element((data.end - offset).next_multiple_of(each)))
}

/// Returns the name of the file: the number format of its weights, if they have the same.
fn file_name(stored: &[Stored]) -> String {
    let mut elements = stored.iter().map(|tensor| tensor.element);
    let first = elements.next().filter(|first| elements.all(|element| element == *first));
    format!("{}.safetensors", first.map_or("mixed".into(), |element| element.to_string()))
}

/// The buffers of a thread.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    stored: Vec<u8>,
    work: Workspace,
}

impl Buffers {
    /// Reads at most [`BLOCK`] elements of a tensor, and changes them.
    pub(crate) fn transformed<'a>(
        &'a mut self,
        tensor: &StoredTensor<'a>,
        elements: Range<usize>,
        transforms: &Transforms,
    ) -> Result<&'a [u8], Error> {
        self.read(tensor, elements.clone())?;
        self.transform(tensor, &elements, transforms)
    }

    /// Reads elements of a tensor.
    fn read(&mut self, tensor: &StoredTensor<'_>, elements: Range<usize>) -> Result<&[u8], Error> {
        let element = tensor.element;
        self.stored.resize(elements.len() * element.bytes(), 0);
        tensor.read_at(elements.start * element.bytes(), &mut self.stored)?;
        Ok(&self.stored)
    }

    /// Changes the elements that were read.
    fn transform<'a>(
        &'a mut self,
        tensor: &StoredTensor<'a>,
        elements: &Range<usize>,
        transforms: &Transforms,
    ) -> Result<&'a [u8], Error> {
        let (name, shape, element, path) = (tensor.name, tensor.shape, tensor.element, tensor.file.path());
        let block = Block { name, shape, element, start: elements.start, bytes: &self.stored, path };
        transforms.apply(block, &mut self.work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::names::Family;
    use crate::checkpoint::samples::{bytes_of, write_shard};
    use crate::weights::Transfer;
    use crate::weights::merge::{Factor, Merge};
    use crate::weights::number_format::widen;
    use crate::weights::scan::{scan, scan_rest};
    use bundle::dtype::WeightType;
    use bundle::manifest::Component;
    use bundle::stop::Stop;
    use half::{bf16, f16};
    use proptest::prelude::*;
    use safetensors::tensor::TensorView;
    use safetensors::{Dtype, SafeTensors};
    use std::path::Path;

    fn required(names: &[(&str, &[usize])]) -> Vec<Required> {
        names.iter().map(|(name, shape)| Required { name: (*name).into(), shape: shape.to_vec() }).collect()
    }

    /// Elements of several blocks.
    const LARGE: usize = 4 * BLOCK;

    fn destination_in(bundle: &Path) -> Destination<'_> {
        let transfer = Transfer::Link { copy_limit: None };
        Destination { bundle, component: &Component::Decoder, transfer, stop: None }
    }

    /// Converts a tensor of these values and returns the new file.
    fn converted(values: &[f32], weights: WeightType) -> Result<(PlacedWeights, Vec<u8>), Error> {
        let (folder, bundle) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let small = bytes_of(&[0.5]);
        let tensors: [(&str, &[usize], &[u8]); 3] = [
            ("a.bias", &[1], &small),
            ("b.weight", &[values.len()], &bytes_of(values)),
            ("unused", &[1], &small),
        ];
        write_shard(&folder.path().join("m.safetensors"), &tensors);
        let shards = Shards::open(folder.path(), Family::Denoiser).unwrap();
        let destination = destination_in(bundle.path());
        let required = required(&[("b.weight", &[values.len()]), ("a.bias", &[1])]);
        let placed =
            place(&shards, &required, &Transforms::conversion(weights), destination, Verify::Beginnings)
                .map(|converted| converted.placed);
        let weights: Vec<_> = std::fs::read_dir(bundle.path().join("decoder/weights"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        match placed {
            Ok(placed) => {
                assert_eq!(weights, [bundle.path().join(&placed.files[0].file)], "no part is left");
                Ok((placed, std::fs::read(&weights[0]).unwrap()))
            }
            Err(error) => {
                assert!(weights.is_empty(), "nothing is left of a failed conversion");
                Err(error)
            }
        }
    }

    #[test]
    fn the_new_file_is_a_valid_safetensors_file_with_aligned_tensors() {
        let values: Vec<f32> = (0..BLOCK + 5).map(|i| f32::from(u16::try_from(i % 4000).unwrap())).collect();
        let (placed, file) = converted(&values, WeightType::Bf16).unwrap();
        let read = SafeTensors::deserialize(&file).unwrap();
        let expected: Vec<u8> =
            values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect();
        assert_eq!(read.tensor("b.weight").unwrap().data(), expected);
        assert_eq!(read.tensor("a.bias").unwrap().data(), bf16::from_f32(0.5).to_le_bytes());
        assert!(read.tensor("unused").is_err());
        assert_eq!(placed.tensors.len(), 2);
        for tensor in placed.tensors.values() {
            assert_eq!(tensor.offset % 4096, 0);
            assert_eq!(tensor.location, "weights/bf16.safetensors");
        }
        let weight = placed.expect("b.weight", &[values.len()]).unwrap();
        let start = usize::try_from(weight.offset).unwrap();
        assert_eq!(file[start..start + expected.len()], expected);
        assert_eq!(weight.length, expected.len() as u64);
        assert_eq!(placed.files[0].bytes.0, file.len() as u64);
    }

    #[test]
    fn weights_of_the_requested_format_are_copied() {
        let (placed, file) = converted(&[1.5, -2.5], WeightType::F32).unwrap();
        let start = usize::try_from(placed.expect("b.weight", &[2]).unwrap().offset).unwrap();
        assert_eq!(file[start..start + 8], bytes_of(&[1.5, -2.5]));
    }

    #[test]
    fn a_value_out_of_range_is_refused_with_its_position() {
        let mut values = vec![1.0; BLOCK + 3];
        values[BLOCK + 1] = 70_000.0;
        let error = converted(&values, WeightType::F16).unwrap_err();
        assert!(
            matches!(&error, Error::OutOfRange { name, index, value, .. }
                if name == "b.weight" && *index == BLOCK + 1 && *value == 70_000.0),
            "{error}"
        );
        assert!(converted(&values, WeightType::Bf16).is_ok());
        values[0] = f32::NAN;
        let error = converted(&values[..1], WeightType::F16).unwrap_err();
        assert!(matches!(&error, Error::NotFinite { index: 0, .. }), "{error}");
    }

    /// Converts, and checks that the digests are those of the files.
    fn placed_in(
        shards: &Shards,
        required: &[Required],
        transforms: &Transforms,
        destination: Destination<'_>,
    ) -> PlacedWeights {
        let Converted { placed, digest, read } =
            place(shards, required, transforms, destination, Verify::Whole).unwrap();
        let path = destination.bundle.join(&placed.files[0].file);
        let none = ReadPieces::default();
        assert_eq!(digest, digests::whole_of_new(&path, &none).unwrap());
        let stop = Stop::new();
        let rest = scan_rest(shards, Verify::Whole, &read, &stop).unwrap();
        assert_eq!(rest, scan(shards, Verify::Whole, &stop).unwrap());
        let unread = place(shards, required, transforms, destination, Verify::Beginnings).unwrap();
        assert_eq!((unread.digest, unread.placed), (digest, placed.clone()));
        placed
    }

    #[test]
    fn a_scan_does_not_read_again_what_was_converted() {
        let (folder, bundle) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = folder.path().join("m.safetensors");
        let count = PIECE / 4 * 3 + 5;
        write_shard(&path, &[("a", &[count], &bytes_of(&vec![1.5; count])), ("b", &[1], &bytes_of(&[2.5]))]);
        let shards = Shards::open(folder.path(), Family::Denoiser).unwrap();
        let destination = destination_in(bundle.path());
        let stop = Stop::new();
        let all = scan(&shards, Verify::Whole, &stop).unwrap();
        let bf16 = Transforms::conversion(WeightType::Bf16);
        let converted =
            place(&shards, &required(&[("a", &[count])]), &bf16, destination, Verify::Whole).unwrap();
        // One byte of each weight is changed after the conversion: only that of `b` is read after it.
        let bytes = std::fs::read(&path).unwrap();
        let (a, b) = (bytes.len() - 4 * count - 4, bytes.len() - 4);
        for (at, is_seen) in [(a, false), (b, true)] {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            std::fs::write(&path, &changed).unwrap();
            let opened = Shards::open(folder.path(), Family::Denoiser).unwrap();
            let rest = scan_rest(&opened, Verify::Whole, &converted.read, &stop).unwrap();
            assert_eq!(rest.digest != all.digest, is_seen, "{at}");
        }
    }

    #[test]
    fn the_first_of_several_values_that_are_not_finite_is_reported_after_a_conversion() {
        let (folder, bundle) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let count = 3 * PIECE;
        let mut values = vec![1.0; count];
        for first in [count - 1, PIECE + 3, 7] {
            values[first] = f32::NAN;
            let path = folder.path().join("m.safetensors");
            write_shard(&path, &[("a", &[count], &bytes_of(&values))]);
            let shards = Shards::open(folder.path(), Family::Denoiser).unwrap();
            let destination = destination_in(bundle.path());
            let bf16 = Transforms::conversion(WeightType::Bf16);
            let converted =
                place(&shards, &required(&[("a", &[count])]), &bf16, destination, Verify::Whole).unwrap();
            let error = scan_rest(&shards, Verify::Whole, &converted.read, &Stop::new()).unwrap_err();
            assert!(matches!(&error, Error::NotFinite { index, .. } if *index == first), "{error}");
        }
    }

    /// Writes a checkpoint whose weights are stored in every format, some in more than one block.
    fn write_mixed(folder: &Path) -> Vec<Required> {
        let value = |index: usize| match index % 97 {
            0 => -0.0,
            1 => 1e-7,
            _ => f32::from(u16::try_from(index * 40_503 % 65_521).unwrap()) / 512.0 - 64.0,
        };
        let all: [(&str, &[usize], Dtype); 4] = [
            ("a.weight", &[3, LARGE / 2], Dtype::F32),
            ("b.weight", &[5, 7], Dtype::F16),
            ("c.weight", &[LARGE + 3, 1], Dtype::BF16),
            ("d.bias", &[3], Dtype::F32),
        ];
        let bytes = all.map(|(_, shape, dtype)| {
            let values = (0..shape.iter().product()).map(value);
            match dtype {
                Dtype::F16 => values.flat_map(|value| f16::from_f32(value).to_le_bytes()).collect(),
                Dtype::BF16 => values.flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect(),
                _ => bytes_of(&values.collect::<Vec<_>>()),
            }
        });
        let views = all.iter().zip(&bytes).map(|((name, shape, dtype), bytes)| {
            (*name, TensorView::new(*dtype, shape.to_vec(), bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &folder.join("m.safetensors")).unwrap();
        required(&all.map(|(name, shape, _)| (name, shape)))
    }

    #[test]
    fn converted_files_have_these_bytes() {
        let (folder, bundle) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let required = write_mixed(folder.path());
        let shards = Shards::open(folder.path(), Family::Denoiser).unwrap();
        let destination = destination_in(bundle.path());
        for (weights, digest) in [
            (WeightType::F32, "79e50bddee4db92f"),
            (WeightType::F16, "2d125bc9c4943969"),
            (WeightType::Bf16, "0f26d5ea58e8a330"),
        ] {
            let placed = placed_in(&shards, &required, &Transforms::conversion(weights), destination);
            let file = std::fs::read(bundle.path().join(&placed.files[0].file)).unwrap();
            assert_eq!(blake3::hash(&file).to_hex()[..16], *digest, "{weights:?}");
        }
    }

    #[test]
    fn a_merge_reaches_every_block_of_its_weight() {
        let (folder, bundle) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let required = write_mixed(folder.path());
        let shards = Shards::open(folder.path(), Family::Denoiser).unwrap();
        let destination = destination_in(bundle.path());
        let shape = [3, LARGE / 2];
        let down: Vec<f32> = (0..shape[1]).map(|i| f32::from(u16::try_from(i % 1000).unwrap())).collect();
        let up = Factor { shape: [3, 1], values: [1.0, -2.0, 0.5].into() };
        let down = Factor { shape: [1, shape[1]], values: down.into() };
        let merge = Merge::new("a.weight", 0.125, up, down).unwrap();
        let transforms = Transforms::conversion(WeightType::F32).after([merge.clone()]);
        let placed = placed_in(&shards, &required, &transforms, destination);
        let file = std::fs::read(bundle.path().join(&placed.files[0].file)).unwrap();
        let read = SafeTensors::deserialize(&file).unwrap();

        let stored = shards.tensor("a.weight").unwrap().read().unwrap();
        let mut expected = vec![0.0; 3 * shape[1]];
        widen(ElementType::F32, &stored, &mut expected);
        merge.add(&shape, 0, &mut expected).unwrap();
        assert!(read.tensor("a.weight").unwrap().data() == bytes_of(&expected));
        assert!(bytes_of(&expected) != stored);
        let bias = shards.tensor("d.bias").unwrap().read().unwrap();
        assert_eq!(read.tensor("d.bias").unwrap().data(), bias);
    }

    #[test]
    fn holes_stay_holes_and_convert_like_zeros() {
        use std::os::unix::fs::{FileExt, MetadataExt};
        let (folder, bundle) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let elements = 40 * BLOCK;
        let path = folder.path().join("m.safetensors");
        write_shard(&path, &[("w", &[elements], &vec![0; 4 * elements])]);
        let data_start = std::fs::metadata(&path).unwrap().len() - 4 * elements as u64;
        let header = std::fs::read(&path).unwrap()[..usize::try_from(data_start).unwrap()].to_vec();
        let sparse = std::fs::File::create(&path).unwrap();
        sparse.set_len(data_start + 4 * elements as u64).unwrap();
        sparse.write_all_at(&header, 0).unwrap();
        // At both ends, across two blocks, and alone.
        let places = [0, 1, BLOCK - 1, BLOCK, 17 * BLOCK + 5, elements - 1];
        for (number, place) in (1_u16..).zip(places) {
            sparse.write_all_at(&f32::from(number).to_le_bytes(), data_start + 4 * place as u64).unwrap();
        }
        let shards = Shards::open(folder.path(), Family::Denoiser).unwrap();
        let destination = destination_in(bundle.path());
        let required = required(&[("w", &[elements])]);
        let placed = placed_in(&shards, &required, &Transforms::conversion(WeightType::Bf16), destination);
        let written = bundle.path().join(&placed.files[0].file);
        let file = std::fs::read(&written).unwrap();
        let read = SafeTensors::deserialize(&file).unwrap();
        let mut expected = vec![0; 2 * elements];
        for (number, place) in (1_u16..).zip(places) {
            expected[2 * place..2 * place + 2].copy_from_slice(&bf16::from_f32(number.into()).to_le_bytes());
        }
        assert!(read.tensor("w").unwrap().data() == expected);
        let allocated = |path: &Path| std::fs::metadata(path).unwrap().blocks() * 512;
        if allocated(&path) > 1 << 20 {
            eprintln!("skipped in part: temporary files have no holes here");
            return;
        }
        assert!(allocated(&written) < 1 << 18, "{} of {}", allocated(&written), file.len());
        // A merge changes zeros, too.
        let up = Factor { shape: [1, 1], values: [1.0].into() };
        let down = Factor { shape: [1, elements], values: vec![2.0; elements].into() };
        let merge = Merge::new("w", 1.0, up, down);
        assert!(merge.is_ok_and(|merge| !Transforms::default().after([merge]).keeps_zeros("w")));
    }

    #[test]
    fn a_missing_weight_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        write_shard(&folder.path().join("m.safetensors"), &[("a", &[1], &bytes_of(&[1.0]))]);
        let shards = Shards::open(folder.path(), Family::Denoiser).unwrap();
        let destination = destination_in(folder.path());
        let error = place(
            &shards,
            &required(&[("z", &[1])]),
            &Transforms::conversion(WeightType::F16),
            destination,
            Verify::Whole,
        )
        .unwrap_err();
        assert!(matches!(&error, Error::MissingTensor { name, .. } if name == "z"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn converted_values_equal_those_of_the_half_crate(
            values in proptest::collection::vec(-60000.0_f32..60000.0, 1..300),
        ) {
            for (weights, convert) in [
                (WeightType::F16, (|value| f16::from_f32(value).to_le_bytes()) as fn(f32) -> [u8; 2]),
                (WeightType::Bf16, |value| bf16::from_f32(value).to_le_bytes()),
            ] {
                let (_, file) = converted(&values, weights).unwrap();
                let read = SafeTensors::deserialize(&file).unwrap();
                let expected: Vec<u8> = values.iter().flat_map(|value| convert(*value)).collect();
                prop_assert_eq!(read.tensor("b.weight").unwrap().data(), expected);
            }
        }
    }
}
