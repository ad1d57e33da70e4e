//! Changes of weights between the file that is read and the file that is written.
//!
//! A transform is a pure function of a block of a weight: it knows no file. Weights are read and written block by
//! block, so a change needs memory for one block and for its own parameters, not for a weight.

use super::merge::Merge;
use super::number_format::{first_non_finite, narrow, widen};
use super::row_quantization::RowQuantization;
use crate::Error;
use bundle::digest::Digest;
use bundle::dtype::{ElementType, WeightType};
use std::path::Path;

/// One change.
#[derive(Debug, Clone, PartialEq)]
pub enum WeightTransform {
    /// Adds a low-rank matrix to one weight.
    Merge(Merge),
    /// Rounds every weight to a number format.
    Convert(WeightType),
    /// Quantises one weight, with a scale for each output channel.
    Quantize(RowQuantization),
}

impl WeightTransform {
    fn concerns(&self, weight: &str) -> bool {
        match self {
            Self::Merge(merge) => merge.weight() == weight,
            Self::Convert(_) => true,
            Self::Quantize(quantization) => quantization.is_of(weight),
        }
    }

    /// Returns the digest of its parameters; none for a conversion, which the names of files state.
    fn digest(&self) -> Option<Digest> {
        match self {
            Self::Merge(merge) => Some(merge.digest()),
            Self::Convert(_) => None,
            Self::Quantize(quantization) => Some(quantization.digest()),
        }
    }
}

/// The changes of a component's weights, in order: merges, then at most one conversion or quantisation.
///
/// The default changes nothing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Transforms {
    steps: Vec<WeightTransform>,
}

impl Transforms {
    /// Returns the conversion of every weight to a number format.
    pub fn conversion(weights: WeightType) -> Self {
        Self { steps: vec![WeightTransform::Convert(weights)] }
    }

    /// Returns the quantisation of one weight.
    pub fn quantization(quantization: RowQuantization) -> Self {
        Self { steps: vec![WeightTransform::Quantize(quantization)] }
    }

    /// Returns these changes after `merges`. The sum is computed in f32 and rounded once, by these changes. Merges into
    /// different weights may be given in any order; those into one weight are added in the given order.
    #[must_use]
    pub fn after(self, merges: impl IntoIterator<Item = Merge>) -> Self {
        let mut steps: Vec<_> = merges.into_iter().map(WeightTransform::Merge).chain(self.steps).collect();
        let last = steps.iter().take_while(|step| matches!(step, WeightTransform::Merge(_))).count();
        // Stable: the order within a weight is kept.
        steps[..last].sort_by(|a, b| merged_weight(a).cmp(&merged_weight(b)));
        Self { steps }
    }

    /// Returns the changes in order.
    pub fn steps(&self) -> &[WeightTransform] {
        &self.steps
    }

    fn steps_for(&self, weight: &str) -> impl Iterator<Item = &WeightTransform> {
        self.steps.iter().filter(move |step| step.concerns(weight))
    }

    /// Returns true if a weight that is stored as `element` keeps its bytes because no step concerns it.
    pub fn is_identity(&self, weight: &str, element: ElementType) -> bool {
        self.steps_for(weight)
            .all(|step| matches!(step, WeightTransform::Convert(weights) if weights.element() == element))
    }

    /// Returns true if a zero of a weight remains a zero, whose bytes are zeros in every number format.
    pub fn keeps_zeros(&self, weight: &str) -> bool {
        self.steps_for(weight).all(|step| matches!(step, WeightTransform::Convert(_)))
    }

    /// Returns the number format of a changed weight that is stored as `element`.
    pub fn output(&self, weight: &str, element: ElementType) -> ElementType {
        self.steps_for(weight).fold(element, |_, step| match step {
            WeightTransform::Merge(_) => ElementType::F32,
            WeightTransform::Convert(weights) => weights.element(),
            WeightTransform::Quantize(_) => ElementType::I8,
        })
    }

    /// Returns the digest of weights after these changes, from that of the stored ones. Without merges and
    /// quantisations it is the same.
    pub fn digest(&self, weights: &Digest) -> Digest {
        let changes: Vec<Digest> = self.steps.iter().filter_map(WeightTransform::digest).collect();
        if changes.is_empty() {
            return weights.clone();
        }
        let parts = [weights].into_iter().chain(&changes).map(|digest| digest.blake3.as_bytes());
        Digest { whole: weights.whole, ..Digest::of_parts(parts) }
    }

    /// Changes a block. Returns its new bytes, which are those of the block if no step changes it.
    ///
    /// # Errors
    /// [`Error::WrongType`] for a weight that has to be changed and is not floating-point; [`Error::OutOfRange`] and
    /// [`Error::NotFinite`] for the first value that does not fit its new format; and an error if a step does not fit
    /// the shape of the weight.
    pub fn apply<'a>(&self, block: Block<'a>, work: &'a mut Workspace) -> Result<&'a [u8], Error> {
        let mut form = Form::Stored;
        for step in self.steps_for(block.name) {
            if form == Form::Stored
                && !matches!(step, WeightTransform::Convert(to) if to.element() == block.element)
            {
                work.widen(&block)?;
                form = Form::Values;
            }
            match step {
                WeightTransform::Merge(merge) => merge.add(block.shape, block.start, &mut work.values)?,
                WeightTransform::Convert(weights) if form == Form::Values => {
                    work.narrow(&block, *weights)?;
                    form = Form::Bytes;
                }
                // It is stored in this format.
                WeightTransform::Convert(_) => {}
                WeightTransform::Quantize(quantization) => {
                    work.bytes.resize(work.values.len(), 0);
                    quantization.quantize(block.shape, block.start, &mut work.values, &mut work.bytes)?;
                    form = Form::Bytes;
                }
            }
        }
        match form {
            Form::Stored => Ok(block.bytes),
            Form::Bytes => Ok(&work.bytes),
            Form::Values => {
                work.narrow(&block, WeightType::F32)?;
                Ok(&work.bytes)
            }
        }
    }
}

fn merged_weight(step: &WeightTransform) -> Option<&str> {
    match step {
        WeightTransform::Merge(merge) => Some(merge.weight()),
        WeightTransform::Convert(_) | WeightTransform::Quantize(_) => None,
    }
}

/// A block of a weight: consecutive elements, row-major.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// Canonical name of the weight.
    pub name: &'a str,
    /// Shape of the weight.
    pub shape: &'a [usize],
    /// Its number format.
    pub element: ElementType,
    /// Position of the block's first element in the weight.
    pub start: usize,
    /// The elements, little-endian.
    pub bytes: &'a [u8],
    /// The file, for errors.
    pub path: &'a Path,
}

/// Where the current elements of a block are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// As they are stored.
    Stored,
    /// In [`Workspace::values`].
    Values,
    /// In [`Workspace::bytes`].
    Bytes,
}

/// Buffers that are used again for every block.
#[derive(Debug, Default)]
pub struct Workspace {
    values: Vec<f32>,
    bytes: Vec<u8>,
}

impl Workspace {
    /// Reads a block as f32.
    fn widen(&mut self, block: &Block<'_>) -> Result<(), Error> {
        if !matches!(block.element, ElementType::F32 | ElementType::F16 | ElementType::Bf16) {
            return Err(Error::WrongType { name: block.name.to_owned(), found: block.element });
        }
        self.values.resize(block.bytes.len() / block.element.bytes(), 0.0);
        widen(block.element, block.bytes, &mut self.values);
        Ok(())
    }

    /// Rounds the values to a number format, and checks that they are finite in it.
    fn narrow(&mut self, block: &Block<'_>, weights: WeightType) -> Result<(), Error> {
        let element = weights.element();
        self.bytes.resize(self.values.len() * element.bytes(), 0);
        narrow(element, &self.values, &mut self.bytes);
        let Some(index) = first_non_finite(element, &self.bytes) else { return Ok(()) };
        let value = self.values.get(index).copied().unwrap_or(f32::NAN);
        let (name, index) = (block.name.to_owned(), block.start + index);
        Err(if value.is_finite() {
            Error::OutOfRange { name, index, value, weights }
        } else {
            Error::NotFinite { name, path: block.path.to_owned(), index, value }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::samples::bytes_of;
    use crate::weights::merge::Factor;
    use crate::weights::row_quantization::Adjustment;
    use half::{bf16, f16};
    use proptest::prelude::*;

    fn merge(weight: &str, scale: f32, up: &[f32], down: &[f32]) -> Merge {
        let up = Factor { shape: [up.len(), 1], values: up.into() };
        let down = Factor { shape: [1, down.len()], values: down.into() };
        Merge::new(weight, scale, up, down).unwrap()
    }

    fn applied(transforms: &Transforms, block: Block<'_>) -> Result<Vec<u8>, Error> {
        transforms.apply(block, &mut Workspace::default()).map(<[u8]>::to_vec)
    }

    fn block<'a>(name: &'a str, shape: &'a [usize], bytes: &'a [u8]) -> Block<'a> {
        Block { name, shape, element: ElementType::F32, start: 0, bytes, path: Path::new("m.safetensors") }
    }

    #[test]
    fn a_merge_changes_one_weight_and_is_rounded_once() {
        let transforms = Transforms::conversion(WeightType::Bf16).after([merge(
            "a.weight",
            0.5,
            &[1.0, 2.0],
            &[2.0, 1e-3],
        )]);
        let values = [1.0, 1.0, -1.0, 0.0];
        let bytes = bytes_of(&values);
        let rounded = |values: [f32; 4]| values.map(|value| bf16::from_f32(value).to_le_bytes()).concat();
        let merged = applied(&transforms, block("a.weight", &[2, 2], &bytes)).unwrap();
        assert_eq!(merged, rounded([2.0, 1.0 + 5e-4, 1.0, 1e-3]));
        let other = applied(&transforms, block("b.weight", &[2, 2], &bytes)).unwrap();
        assert_eq!(other, rounded(values));
        let error = applied(&transforms, block("a.weight", &[4, 1], &bytes)).unwrap_err();
        assert!(matches!(&error, Error::Merge { weight, .. } if weight == "a.weight"), "{error}");
    }

    #[test]
    fn without_a_conversion_a_merged_weight_is_f32() {
        let transforms = Transforms::default().after([merge("a", 1.0, &[1.0], &[0.5])]);
        let stored = f16::from_f32(2.0).to_le_bytes();
        let block = Block { element: ElementType::F16, ..block("a", &[1, 1], &stored) };
        assert_eq!(applied(&transforms, block).unwrap(), 2.5_f32.to_le_bytes());
        assert_eq!(transforms.output("a", ElementType::F16), ElementType::F32);
        assert_eq!(transforms.output("b", ElementType::F16), ElementType::F16);
        assert_eq!(applied(&transforms, Block { name: "b", ..block }).unwrap(), stored);
    }

    #[test]
    fn a_merged_weight_can_be_quantised() {
        let quantization = RowQuantization {
            layer: "a".into(),
            adjustment: Adjustment { rows: None, columns: Some(vec![1.0, 2.0]) },
            scales: vec![0.5],
        };
        let transforms =
            Transforms::quantization(quantization).after([merge("a.weight", 1.0, &[1.0], &[3.0, 1.0])]);
        let bytes = bytes_of(&[1.0, -3.0]);
        let quantized = applied(&transforms, block("a.weight", &[1, 2], &bytes)).unwrap();
        assert_eq!(quantized, [8, -8_i8].map(i8::cast_unsigned));
        assert_eq!(transforms.output("a.weight", ElementType::F32), ElementType::I8);
        assert!(transforms.is_identity("a.bias", ElementType::F32));
    }

    #[test]
    fn only_weights_that_no_step_changes_can_be_linked() {
        let conversion = Transforms::conversion(WeightType::Bf16);
        assert!(Transforms::default().is_identity("a", ElementType::I8));
        assert!(conversion.is_identity("a", ElementType::Bf16));
        assert!(!conversion.is_identity("a", ElementType::F32));
        let merged = conversion.after([merge("a", 1.0, &[0.0], &[0.0])]);
        assert!(!merged.is_identity("a", ElementType::Bf16));
        assert!(merged.is_identity("b", ElementType::Bf16));
    }

    #[test]
    fn merges_are_part_of_the_digest_and_conversions_are_not() {
        let stored = Digest { whole: false, ..Digest::of_parts([b"weights".as_slice()]) };
        for plain in [Transforms::default(), Transforms::conversion(WeightType::F16)] {
            assert_eq!(plain.digest(&stored), stored);
        }
        let merged =
            |merges: Vec<Merge>| Transforms::conversion(WeightType::F16).after(merges).digest(&stored);
        let (a, b) = (merge("a", 1.0, &[1.0], &[1.0]), merge("b", 1.0, &[1.0], &[1.0]));
        let both = merged(vec![a.clone(), b.clone()]);
        assert!(!both.whole && both != stored);
        assert_eq!(both, merged(vec![b.clone(), a.clone()]), "the order of weights does not matter");
        let stronger = merge("a", 0.5, &[1.0], &[1.0]);
        let others = [vec![a.clone()], vec![b.clone()], vec![stronger.clone(), b], vec![a, stronger]];
        let mut all: Vec<Digest> = others.into_iter().map(merged).chain([both, stored.clone()]).collect();
        all.sort_by(|a, b| a.blake3.cmp(&b.blake3));
        all.dedup();
        assert_eq!(all.len(), 6);
    }

    #[test]
    fn integers_cannot_be_changed() {
        let integer = Block { element: ElementType::I8, ..block("a", &[1, 4], &[1, 2, 3, 4]) };
        assert_eq!(applied(&Transforms::default(), integer).unwrap(), [1, 2, 3, 4]);
        let error = applied(&Transforms::conversion(WeightType::F32), integer).unwrap_err();
        assert!(matches!(&error, Error::WrongType { found: ElementType::I8, .. }), "{error}");
    }

    proptest! {
        #[test]
        fn a_merge_of_zeros_equals_the_conversion(
            values in proptest::collection::vec(prop_oneof![Just(-0.0_f32), -6e4_f32..6e4, -1e-6_f32..1e-6], 1..40),
            scale in -2.0_f32..2.0,
        ) {
            let bytes = bytes_of(&values);
            let shape = [1, values.len()];
            for weights in [WeightType::F32, WeightType::F16, WeightType::Bf16] {
                let plain = Transforms::conversion(weights);
                let merged = plain.clone().after([merge("a", scale, &[0.0], &vec![1.0; values.len()])]);
                prop_assert_eq!(
                    applied(&merged, block("a", &shape, &bytes)).unwrap(),
                    applied(&plain, block("a", &shape, &bytes)).unwrap()
                );
            }
        }
    }
}
