//! Weights: from a checkpoint into a bundle.
//!
//! [`scan`] reads every byte once, for the digest and to detect damage, and [`stored_formats`] lists the number formats
//! of a component, which it keeps by default. Then the weight files are [`linked`] into the bundle, or [`converted`]
//! into a new file by a list of [`transform`]s, which hashes them in the same pass. The result is the location of each
//! weight, which is all that a graph contains. [`packed`] packs linear layers for Rushes kernels. `new_file` writes new
//! files.
//!
//! The transforms are the conversion of [`number_format`]s, the [`merge`] of changes, whose forms are in [`delta`], and
//! [`row_quantization`].

pub mod converted;
pub mod delta;
pub mod linked;
pub mod magnitudes;
pub mod merge;
pub(crate) mod new_file;
pub mod number_format;
pub mod packed;
pub mod row_quantization;
mod row_segments;
pub mod scan;
pub mod stored_formats;
pub mod transform;

use crate::Error;
use crate::checkpoint::Source;
use bundle::dtype::{ElementType, WeightType};
use bundle::layout;
use bundle::manifest::{Component, WeightFile};
use bundle::stop::Stop;
use bundle::units::ByteCount;
use converted::Converted;
use scan::Verify;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use transform::Transforms;

/// Suffix of the scales of a quantised weight.
pub(crate) const SCALES: &str = "weight_scale";
/// Suffix of the smoothing factors of input channels: one over the divisors.
pub(crate) const INPUT_FACTORS: &str = "input_factors";
/// Suffix of the newest tap in time of a quantised kernel, which the graph for the first latent frame reads.
pub(crate) const NEWEST_TAP: &str = "newest_tap";
/// A weight in the bundle: ONNX external data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalTensor {
    /// File, relative to the component's folder, with `/`: `weights/model.safetensors`.
    pub location: String,
    /// Position of its first byte in the file.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// Number format.
    pub element: ElementType,
    /// Shape, row-major.
    pub shape: Vec<usize>,
}

/// The weights of a component in the bundle.
#[derive(Debug, Clone, PartialEq)]
pub struct PlacedWeights {
    /// Every weight by its canonical name.
    pub tensors: BTreeMap<String, ExternalTensor>,
    /// Their files.
    pub files: Vec<WeightFile>,
    /// The component's folder in the checkpoint, for errors.
    pub from: PathBuf,
}

impl PlacedWeights {
    /// Returns a weight by its canonical name and checks its shape.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], or [`Error::WrongShape`] with the expected and the found shape.
    pub fn expect(&self, name: &str, shape: &[usize]) -> Result<&ExternalTensor, Error> {
        match self.tensors.get(name) {
            None => Err(Error::MissingTensor { name: name.to_owned(), folder: self.from.clone() }),
            Some(tensor) if tensor.shape != shape => Err(Error::WrongShape {
                name: name.to_owned(),
                expected: shape.to_vec(),
                found: tensor.shape.clone(),
            }),
            Some(tensor) => Ok(tensor),
        }
    }
}

/// The largest size that is copied without request if the file system refuses hard links.
pub const COPY_LIMIT: ByteCount = ByteCount(1_000_000_000);

/// The destination of a component's weights.
#[derive(Debug, Clone, Copy)]
pub struct Destination<'a> {
    /// Folder of the bundle.
    pub bundle: &'a Path,
    /// The component.
    pub component: &'a Component,
    /// The transfer of files that need no conversion.
    pub transfer: Transfer,
    /// Stops the work.
    pub stop: Option<&'a Stop>,
}

/// The transfer of a weight file that needs no conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    /// A hard link: takes no disk space and shares the file with the checkpoint.
    Link {
        /// The largest size that may be copied if links are refused; none for no limit.
        copy_limit: Option<ByteCount>,
    },
    /// A copy: later changes of the checkpoint do not affect the bundle.
    Copy,
}

impl Destination<'_> {
    /// Returns an error once a stop has been requested.
    fn check(&self) -> Result<(), Error> {
        Ok(self.stop.map_or(Ok(()), Stop::check)?)
    }

    /// Creates the folder of the weights.
    fn create_folder(&self) -> Result<PathBuf, Error> {
        let folder = self.bundle.join(layout::component_folder(self.component)).join(layout::WEIGHTS);
        std::fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
        Ok(folder)
    }

    /// Returns the manifest's entry for a weight file.
    fn entry(&self, name: &str, bytes: u64) -> WeightFile {
        file_entry(self.component, name, bytes)
    }
}

/// Returns the manifest's entry for a weight file of a component.
fn file_entry(component: &Component, name: &str, bytes: u64) -> WeightFile {
    let folder = layout::component_folder(component);
    WeightFile { file: format!("{folder}/{}", location(name)), bytes: ByteCount(bytes) }
}

/// Returns the path of a weight file, relative to the component's folder.
pub(crate) fn location(name: &str) -> String {
    format!("{}/{name}", layout::WEIGHTS)
}

/// Links the weights of a component into the bundle if `transforms` change none of the weights that its graphs read, and
/// graphs can refer to all of them in their files. Returns none otherwise.
///
/// # Errors
/// See [`linked::place`].
pub fn place_linked(
    source: &Source,
    transforms: &Transforms,
    destination: Destination<'_>,
) -> Result<Option<PlacedWeights>, Error> {
    if is_unchanged(source, transforms)? {
        linked::place(&source.shards, destination).map(Some)
    } else {
        Ok(None)
    }
}

/// Returns the places that [`place_linked`] would give to the weights of a component, without placing them. Returns none
/// if `transforms` change any of the weights that its graphs read.
///
/// # Errors
/// Returns an error if a weight is missing, or the name of a file is not UTF-8.
pub fn located(source: &Source, transforms: &Transforms) -> Result<Option<PlacedWeights>, Error> {
    if is_unchanged(source, transforms)? {
        linked::located(&source.shards, &source.component).map(Some)
    } else {
        Ok(None)
    }
}

/// Returns true if `transforms` change none of the weights that the graphs of a component read.
fn is_unchanged(source: &Source, transforms: &Transforms) -> Result<bool, Error> {
    for required in &source.required {
        let tensor = source.shards.tensor(&required.name)?;
        if !transforms.is_identity(tensor.name, tensor.element) || tensor.is_misplaced() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes the weights of a component into the bundle, changed by `transforms`.
///
/// # Errors
/// See [`converted::place`].
pub fn place_converted(
    source: &Source,
    transforms: &Transforms,
    destination: Destination<'_>,
    verify: Verify,
) -> Result<Converted, Error> {
    converted::place(&source.shards, &source.required, transforms, destination, verify)
}

/// Puts the weights of a component into the bundle, stored as `weights`: linked if all weights that its graphs read are
/// already stored so, else converted.
///
/// # Errors
/// See [`linked::place`] and [`converted::place`].
pub fn place(
    source: &Source,
    weights: WeightType,
    destination: Destination<'_>,
) -> Result<PlacedWeights, Error> {
    let transforms = Transforms::conversion(weights);
    match place_linked(source, &transforms, destination)? {
        Some(placed) => Ok(placed),
        None => Ok(place_converted(source, &transforms, destination, Verify::Beginnings)?.placed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::inventory::Required;
    use crate::checkpoint::names::Family;
    use crate::checkpoint::samples::{self, bytes_of};
    use crate::checkpoint::shards::Shards;
    use test_support::torch_file::{TorchFile, TorchTensor};

    #[test]
    fn weights_of_the_requested_type_are_linked_and_others_are_converted() {
        let (_folder, checkpoint) = samples::checkpoint();
        let bundle = tempfile::tempdir().unwrap();
        for source in &checkpoint.sources {
            let destination = Destination {
                bundle: bundle.path(),
                component: &source.component,
                transfer: Transfer::Link { copy_limit: None },
                stop: None,
            };
            for (weights, file) in [
                (WeightType::F32, "diffusion_pytorch_model.safetensors"),
                (WeightType::Bf16, "bf16.safetensors"),
            ] {
                let placed = place(source, weights, destination).unwrap();
                assert_eq!(placed.files.len(), 1);
                assert!(placed.files[0].file.ends_with(&format!("/weights/{file}")), "{:?}", placed.files);
                let path = bundle.path().join(&placed.files[0].file);
                assert_eq!(std::fs::metadata(&path).unwrap().len(), placed.files[0].bytes.0);
                for required in &source.required {
                    let tensor = placed.expect(&required.name, &required.shape).unwrap();
                    assert_eq!(tensor.element, weights.element());
                    assert_eq!(tensor.location, format!("weights/{file}"));
                }
            }
        }
    }

    #[test]
    fn a_pytorch_file_is_linked_unless_its_weights_are_unaligned() {
        let values = bytes_of(&[1.0, -2.0, 0.5]);
        let tensor = TorchTensor { name: "w".into(), storage: "FloatStorage", element: 4, shape: vec![3] };
        let tensors = std::slice::from_ref(&tensor);
        for (layout, file, stored) in [
            (TorchFile::new("m", tensors), "m.pth", WeightType::F32),
            (TorchFile::unaligned("m", tensors), "f32.safetensors", WeightType::F32),
            (TorchFile::new("m", tensors), "bf16.safetensors", WeightType::Bf16),
        ] {
            let (folder, bundle) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let path = folder.path().join("m.pth");
            std::fs::write(&path, layout.to_bytes(&[&values])).unwrap();
            let source = Source {
                component: Component::Decoder,
                shards: Shards::open_file(&path, Family::Denoiser).unwrap(),
                required: vec![Required { name: "w".into(), shape: vec![3] }],
            };
            let destination = Destination {
                bundle: bundle.path(),
                component: &source.component,
                transfer: Transfer::Link { copy_limit: None },
                stop: None,
            };
            let placed = place(&source, stored, destination).unwrap();
            let weight = placed.expect("w", &[3]).unwrap();
            assert_eq!(weight.location, format!("weights/{file}"));
            assert_eq!(weight.offset % 64, 0);
            let bytes = std::fs::read(bundle.path().join("decoder").join(&weight.location)).unwrap();
            let start = usize::try_from(weight.offset).unwrap();
            let found = &bytes[start..start + usize::try_from(weight.length).unwrap()];
            let expected = match stored {
                WeightType::Bf16 => [[0x80, 0x3f], [0, 0xc0], [0, 0x3f]].concat(),
                _ => values.clone(),
            };
            assert_eq!(found, expected, "{file}");
        }
    }

    #[test]
    fn a_weight_of_another_shape_is_an_error() {
        let (_folder, checkpoint) = samples::checkpoint();
        let bundle = tempfile::tempdir().unwrap();
        let source = &checkpoint.sources[0];
        let destination = Destination {
            bundle: bundle.path(),
            component: &source.component,
            transfer: Transfer::Link { copy_limit: None },
            stop: None,
        };
        let placed = place(source, WeightType::F32, destination).unwrap();
        assert!(placed.expect("shared.weight", &[30, 8]).is_ok());
        assert!(matches!(placed.expect("shared.weight", &[8, 30]), Err(Error::WrongShape { .. })));
        assert!(matches!(placed.expect("shared.bias", &[8]), Err(Error::MissingTensor { .. })));
    }
}
