//! Weights that are changed: streamed in parallel through their transforms into a new safetensors file.
//!
//! Holes of sparse files stay holes where zeros stay zeros.

use super::new_file::{Alignment, Stored, write_new};
use super::transform::{Block, Transforms, Workspace};
use super::{Destination, PlacedWeights, location};
use crate::Error;
use crate::checkpoint::inventory::Required;
use crate::checkpoint::shards::{ShardFile, Shards, StoredTensor};
use crate::file_data::DataRanges;
use bundle::dtype::ElementType;
use rayon::prelude::*;
use std::ops::Range;

/// Elements of a block; a thread has three buffers of this size.
pub(crate) const BLOCK: usize = 1 << 18;

/// Writes the required weights of a component into a new file, changed by `transforms`. Weights that they do not change
/// are copied. Memory: a few MB per thread.
///
/// # Errors
/// Returns an error if a weight is missing, is not floating-point or is out of range, or if a transform does not fit it;
/// and I/O errors. Nothing is left of the file then.
pub fn place(
    shards: &Shards,
    required: &[Required],
    transforms: &Transforms,
    destination: Destination<'_>,
) -> Result<PlacedWeights, Error> {
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
    let written = write_new(&path, &location(&name), &stored, Alignment::Pages, |file| {
        let blocks: Vec<(usize, usize)> = tensors
            .iter()
            .enumerate()
            .flat_map(|(index, tensor)| {
                let elements = tensor.length / tensor.element.bytes();
                (0..elements).step_by(BLOCK).map(move |start| (index, start))
            })
            .collect();
        let data: Vec<DataRanges> = shards.files().iter().map(ShardFile::data_ranges).collect();
        let number_of = |file: &ShardFile| shards.files().iter().position(|other| std::ptr::eq(other, file));
        // Every tensor is in one of the files.
        let files: Vec<usize> = tensors.iter().filter_map(|tensor| number_of(tensor.file)).collect();
        blocks.into_par_iter().try_for_each_init(Buffers::default, |buffers, (index, start)| {
            destination.check()?;
            let tensor = &tensors[index];
            let end = (start + BLOCK).min(tensor.length / tensor.element.bytes());
            let mut convert = |elements: Range<usize>| {
                let first = elements.start * stored[index].element.bytes();
                file.write(index, first, buffers.transformed(tensor, elements, transforms)?)
            };
            if tensor.strides.is_some() || !transforms.keeps_zeros(tensor.name) {
                return convert(start..end);
            }
            data_within(tensor, start..end, &data[files[index]]).try_for_each(convert)
        })
    })?;
    let files = vec![destination.entry(&name, written.bytes)];
    Ok(PlacedWeights { tensors: written.tensors, files, from: shards.folder().to_owned() })
}

/// Returns the elements in a range that are not in a hole.
fn data_within(
    tensor: &StoredTensor<'_>,
    elements: Range<usize>,
    data: &DataRanges,
) -> impl Iterator<Item = Range<usize>> {
    let (each, offset) = (tensor.element.bytes() as u64, tensor.offset);
    let place = |element: usize| offset + element as u64 * each;
    let element = move |byte: u64| usize::try_from(byte / each).unwrap_or(usize::MAX);
    data.within(place(elements.start)..place(elements.end))
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
        let (element, start) = (tensor.element, elements.start);
        self.stored.resize(elements.len() * element.bytes(), 0);
        tensor.read_at(start * element.bytes(), &mut self.stored)?;
        let (name, shape, path) = (tensor.name, tensor.shape, tensor.file.path());
        let block = Block { name, shape, element, start, bytes: &self.stored, path };
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
    use bundle::dtype::WeightType;
    use bundle::manifest::Component;
    use half::{bf16, f16};
    use proptest::prelude::*;
    use safetensors::tensor::TensorView;
    use safetensors::{Dtype, SafeTensors};
    use std::path::Path;

    fn required(names: &[(&str, &[usize])]) -> Vec<Required> {
        names.iter().map(|(name, shape)| Required { name: (*name).into(), shape: shape.to_vec() }).collect()
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
        let destination = Destination {
            bundle: bundle.path(),
            component: &Component::Decoder,
            transfer: Transfer::Link { copy_limit: None },
            stop: None,
        };
        let required = required(&[("b.weight", &[values.len()]), ("a.bias", &[1])]);
        let placed = place(&shards, &required, &Transforms::conversion(weights), destination);
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

    /// Writes a checkpoint whose weights are stored in every format, some in more than one block.
    fn write_mixed(folder: &Path) -> Vec<Required> {
        let value = |index: usize| match index % 97 {
            0 => -0.0,
            1 => 1e-7,
            _ => f32::from(u16::try_from(index * 40_503 % 65_521).unwrap()) / 512.0 - 64.0,
        };
        let all: [(&str, &[usize], Dtype); 4] = [
            ("a.weight", &[3, BLOCK / 2], Dtype::F32),
            ("b.weight", &[5, 7], Dtype::F16),
            ("c.weight", &[BLOCK + 3, 1], Dtype::BF16),
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
        let destination = Destination {
            bundle: bundle.path(),
            component: &Component::Decoder,
            transfer: Transfer::Link { copy_limit: None },
            stop: None,
        };
        for (weights, digest) in [
            (WeightType::F32, "79e50bddee4db92f"),
            (WeightType::F16, "2d125bc9c4943969"),
            (WeightType::Bf16, "0f26d5ea58e8a330"),
        ] {
            let placed = place(&shards, &required, &Transforms::conversion(weights), destination).unwrap();
            let file = std::fs::read(bundle.path().join(&placed.files[0].file)).unwrap();
            assert_eq!(blake3::hash(&file).to_hex()[..16], *digest, "{weights:?}");
        }
    }

    #[test]
    fn a_merge_reaches_every_block_of_its_weight() {
        let (folder, bundle) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let required = write_mixed(folder.path());
        let shards = Shards::open(folder.path(), Family::Denoiser).unwrap();
        let destination = Destination {
            bundle: bundle.path(),
            component: &Component::Decoder,
            transfer: Transfer::Link { copy_limit: None },
            stop: None,
        };
        let shape = [3, BLOCK / 2];
        let down: Vec<f32> = (0..shape[1]).map(|i| f32::from(u16::try_from(i % 1000).unwrap())).collect();
        let up = Factor { shape: [3, 1], values: [1.0, -2.0, 0.5].into() };
        let down = Factor { shape: [1, shape[1]], values: down.into() };
        let merge = Merge::new("a.weight", 0.125, up, down).unwrap();
        let transforms = Transforms::conversion(WeightType::F32).after([merge.clone()]);
        let placed = place(&shards, &required, &transforms, destination).unwrap();
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
        let destination = Destination {
            bundle: bundle.path(),
            component: &Component::Decoder,
            transfer: Transfer::Link { copy_limit: None },
            stop: None,
        };
        let required = required(&[("w", &[elements])]);
        let placed =
            place(&shards, &required, &Transforms::conversion(WeightType::Bf16), destination).unwrap();
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
        let destination = Destination {
            bundle: folder.path(),
            component: &Component::Decoder,
            transfer: Transfer::Link { copy_limit: None },
            stop: None,
        };
        let error =
            place(&shards, &required(&[("z", &[1])]), &Transforms::conversion(WeightType::F16), destination)
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
