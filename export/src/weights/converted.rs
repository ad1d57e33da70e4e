//! Conversion of weights: streamed in parallel into a new safetensors file of another number format.

use super::new_file::{Alignment, Stored, write_new};
use super::number_format::{element_at, first_non_finite, narrow, widen};
use super::{Destination, PlacedWeights, location};
use crate::Error;
use crate::checkpoint::inventory::Required;
use crate::checkpoint::shards::{Shards, StoredTensor};
use bundle::dtype::{ElementType, WeightType};
use rayon::prelude::*;

/// Elements of a block; a thread has three buffers of this size.
const BLOCK: usize = 1 << 18;

/// Writes the required weights of a component into a new file, stored as `weights`. Weights that already have this
/// format are copied. Memory: a few MB per thread.
///
/// # Errors
/// Returns an error if a weight is missing, is not floating-point or is out of range; and I/O errors. Nothing is left
/// of the file then.
pub fn place(
    shards: &Shards,
    required: &[Required],
    weights: WeightType,
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

    let name = format!("{}.safetensors", weights.element());
    let path = destination.create_folder()?.join(&name);
    let stored: Vec<Stored> = tensors
        .iter()
        .map(|tensor| Stored {
            name: tensor.name.to_owned(),
            element: weights.element(),
            shape: tensor.shape.to_vec(),
        })
        .collect();
    let written = write_new(&path, &location(&name), &stored, Alignment::Pages, |file| {
        let blocks: Vec<(usize, usize)> = tensors
            .iter()
            .enumerate()
            .flat_map(|(index, tensor)| {
                let elements = tensor.length / tensor.element.bytes();
                (0..elements).step_by(BLOCK).map(move |start| (index, start))
            })
            .collect();
        blocks.into_par_iter().try_for_each_init(Buffers::default, |buffers, (index, start)| {
            destination.check()?;
            let bytes = buffers.convert(&tensors[index], start, weights)?;
            file.write(index, start * weights.element().bytes(), bytes)
        })
    })?;
    let files = vec![destination.entry(&name, written.bytes)];
    Ok(PlacedWeights { tensors: written.tensors, files, from: shards.folder().to_owned() })
}

/// The buffers of a thread.
#[derive(Default)]
struct Buffers {
    stored: Vec<u8>,
    values: Vec<f32>,
    bytes: Vec<u8>,
}

impl Buffers {
    /// Converts the block of a tensor that begins at element `start`.
    fn convert(
        &mut self,
        tensor: &StoredTensor<'_>,
        start: usize,
        weights: WeightType,
    ) -> Result<&[u8], Error> {
        let (from, to) = (tensor.element, weights.element());
        let elements = (tensor.length / from.bytes() - start).min(BLOCK);
        self.stored.resize(elements * from.bytes(), 0);
        tensor.read_at(start * from.bytes(), &mut self.stored)?;
        let source = self.stored.as_slice();
        if from == to {
            return Ok(source);
        }
        self.values.resize(elements, 0.0);
        self.bytes.resize(elements * to.bytes(), 0);
        widen(from, source, &mut self.values);
        narrow(to, &self.values, &mut self.bytes);
        if let Some(index) = first_non_finite(to, &self.bytes) {
            let value = element_at(from, source, index).unwrap_or(f32::NAN);
            let (name, index) = (tensor.name.to_owned(), start + index);
            return Err(if value.is_finite() {
                Error::OutOfRange { name, index, value, weights }
            } else {
                Error::NotFinite { name, path: tensor.file.path().to_owned(), index, value }
            });
        }
        Ok(&self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::names::Family;
    use crate::checkpoint::samples::{bytes_of, write_shard};
    use crate::weights::Transfer;
    use bundle::manifest::Component;
    use half::{bf16, f16};
    use proptest::prelude::*;
    use safetensors::SafeTensors;

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
        let placed = place(&shards, &required, weights, destination);
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
        let error = place(&shards, &required(&[("z", &[1])]), WeightType::F16, destination).unwrap_err();
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
