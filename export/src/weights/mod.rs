//! Weights on their way from a checkpoint into a bundle.
//!
//! [`scan`] reads every byte once, for the digest and to find damage. Then the weights get their place: [`linked`] as
//! they are, or [`converted`] into a file of another number format. Either way the result says where each weight lies,
//! which is all that a graph holds of it. [`packed`] adds linear layers as Rushes kernels read them. New files are
//! written by `new_file`.

pub mod converted;
pub mod linked;
pub(crate) mod new_file;
pub mod number_format;
pub mod packed;
pub mod scan;

use crate::Error;
use crate::checkpoint::Source;
use bundle::dtype::{ElementType, WeightType};
use bundle::layout;
use bundle::manifest::{Component, WeightFile};
use bundle::stop::Stop;
use bundle::units::ByteCount;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A weight in its place in the bundle: ONNX external data.
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

/// The weights of a component in their place in the bundle.
#[derive(Debug, Clone, PartialEq)]
pub struct PlacedWeights {
    /// Every weight by its canonical name.
    pub tensors: BTreeMap<String, ExternalTensor>,
    /// The files that hold them.
    pub files: Vec<WeightFile>,
    /// The component's folder in the checkpoint, for errors.
    pub from: PathBuf,
}

impl PlacedWeights {
    /// A weight by its canonical name, which must have the given shape.
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

/// What is copied without asking when the file system refuses hard links.
pub const COPY_LIMIT: ByteCount = ByteCount(1_000_000_000);

/// Where the weights of a component go.
#[derive(Debug, Clone, Copy)]
pub struct Destination<'a> {
    /// Folder of the bundle.
    pub bundle: &'a Path,
    /// The component.
    pub component: &'a Component,
    /// How files come to it that are stored as they are needed.
    pub keeping: Keeping,
    /// What may end the work.
    pub stop: Option<&'a Stop>,
}

/// How a weight file that is stored as it is needed becomes part of a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeping {
    /// By a hard link: no room is taken, and the file stays that of the checkpoint too.
    Link {
        /// The most that may be copied when links are refused; none for any amount.
        copy_limit: Option<ByteCount>,
    },
    /// By a copy: what happens to the checkpoint later does not touch the bundle.
    Copy,
}

impl Destination<'_> {
    /// Lets the work go on, or ends it.
    fn check(&self) -> Result<(), Error> {
        Ok(self.stop.map_or(Ok(()), Stop::check)?)
    }

    /// Makes the folder of the weights.
    fn create_folder(&self) -> Result<PathBuf, Error> {
        let folder = self.bundle.join(layout::component_folder(self.component)).join(layout::WEIGHTS);
        std::fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
        Ok(folder)
    }

    /// The manifest's entry of a file of the weights.
    fn entry(&self, name: &str, bytes: u64) -> WeightFile {
        let folder = layout::component_folder(self.component);
        WeightFile { file: format!("{folder}/{}", location(name)), bytes: ByteCount(bytes) }
    }
}

/// Path of a file of the weights, relative to the component's folder.
fn location(name: &str) -> String {
    format!("{}/{name}", layout::WEIGHTS)
}

/// Gets the weights of a component into the bundle as they are, when all that its graphs read are stored as `weights`
/// already; none when they are not.
///
/// # Errors
/// See [`linked::place`].
pub fn place_linked(
    source: &Source,
    weights: WeightType,
    destination: Destination<'_>,
) -> Result<Option<PlacedWeights>, Error> {
    let is_right = source.shards.uniform_element(&source.required)? == Some(weights.element());
    is_right.then(|| linked::place(&source.shards, destination)).transpose()
}

/// Gets the weights of a component into the bundle in another number format.
///
/// # Errors
/// See [`converted::place`].
pub fn place_converted(
    source: &Source,
    weights: WeightType,
    destination: Destination<'_>,
) -> Result<PlacedWeights, Error> {
    converted::place(&source.shards, &source.required, weights, destination)
}

/// Gets the weights of a component into the bundle, stored as `weights`: linked when all that its graphs read are
/// stored like that already, else converted.
///
/// # Errors
/// See [`linked::place`] and [`converted::place`].
pub fn place(
    source: &Source,
    weights: WeightType,
    destination: Destination<'_>,
) -> Result<PlacedWeights, Error> {
    match place_linked(source, weights, destination)? {
        Some(placed) => Ok(placed),
        None => place_converted(source, weights, destination),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::samples;

    #[test]
    fn weights_are_linked_when_they_are_stored_right_and_converted_otherwise() {
        let (_folder, checkpoint) = samples::checkpoint();
        let bundle = tempfile::tempdir().unwrap();
        for source in &checkpoint.sources {
            let destination = Destination {
                bundle: bundle.path(),
                component: &source.component,
                keeping: Keeping::Link { copy_limit: None },
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
    fn a_weight_is_expected_with_its_shape() {
        let (_folder, checkpoint) = samples::checkpoint();
        let bundle = tempfile::tempdir().unwrap();
        let source = &checkpoint.sources[0];
        let destination = Destination {
            bundle: bundle.path(),
            component: &source.component,
            keeping: Keeping::Link { copy_limit: None },
            stop: None,
        };
        let placed = place(source, WeightType::F32, destination).unwrap();
        assert!(placed.expect("shared.weight", &[30, 8]).is_ok());
        assert!(matches!(placed.expect("shared.weight", &[8, 30]), Err(Error::WrongShape { .. })));
        assert!(matches!(placed.expect("shared.bias", &[8]), Err(Error::MissingTensor { .. })));
    }
}
