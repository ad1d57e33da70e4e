//! The weights of a component of a bundle.

use crate::Error;
use crate::checkpoint::inventory::{self, Required};
use crate::checkpoint::names::Family;
use crate::checkpoint::shards::Shards;
use crate::weights::converted::{BLOCK, Buffers};
use crate::weights::merge::Merge;
use crate::weights::number_format::widen;
use crate::weights::transform::Transforms;
use bundle::layout;
use bundle::manifest::{Bundle, Component, ComponentEntry};
use rayon::prelude::*;
use std::path::PathBuf;

/// The exported weights of a component.
#[derive(Debug)]
pub struct BundleWeights {
    shards: Shards,
    /// The weights that its graphs read.
    pub(super) required: Vec<Required>,
    /// Its folder.
    pub(super) folder: PathBuf,
    /// Changes of the weights as they are read.
    merges: Vec<Merge>,
}

impl BundleWeights {
    /// Opens the weights of a component for reading.
    ///
    /// # Errors
    /// Returns an error if a file or a weight is missing or damaged.
    pub fn open(bundle: &Bundle, entry: &ComponentEntry) -> Result<Self, Error> {
        let manifest = &bundle.manifest;
        let (family, required) = match &entry.component {
            Component::TextEncoder => (Family::TextEncoder, inventory::text_encoder(&manifest.text_encoder)),
            Component::Expert(_) => (Family::Denoiser, inventory::denoiser(&manifest.denoiser)),
            Component::Decoder => {
                let residual_blocks = manifest.vae.residual_blocks;
                (Family::Vae { residual_blocks }, inventory::decoder(&manifest.vae))
            }
            // These are not quantised, so their weights are not read again.
            Component::ImageEncoder => {
                (Family::Vae { residual_blocks: manifest.vae.residual_blocks }, Vec::new())
            }
            Component::Preview => (Family::TinyDecoder, Vec::new()),
        };
        let folder = bundle.folder.join(layout::component_folder(&entry.component));
        let files = entry.weights.iter().map(|weights| bundle.path(&weights.file)).collect();
        let shards = Shards::of_files(&folder.join(layout::WEIGHTS), files, family)?;
        for weight in &required {
            shards.tensor(&weight.name)?.expect_shape(&weight.shape)?;
        }
        Ok(Self { shards, required, folder, merges: Vec::new() })
    }

    /// Returns the same weights with changes, which are made in f32 when a weight is read.
    #[must_use]
    pub fn with_merges(self, merges: Vec<Merge>) -> Self {
        Self { merges, ..self }
    }

    fn merges_of(&self, name: &str) -> impl Iterator<Item = &Merge> {
        self.merges.iter().filter(move |merge| merge.weight() == name)
    }

    /// Reads a weight as f32, with its shape.
    ///
    /// # Errors
    /// Returns an error if there is no such weight or its file was truncated.
    pub fn read(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>), Error> {
        let tensor = self.shards.tensor(name)?;
        let mut values = vec![0.0; tensor.length / tensor.element.bytes()];
        widen(tensor.element, &tensor.read()?, &mut values);
        self.merges_of(name).try_for_each(|merge| merge.add(tensor.shape, 0, &mut values))?;
        Ok((tensor.shape.to_vec(), values))
    }

    /// Reads a weight and changes it. Returns its shape and its new bytes.
    ///
    /// # Errors
    /// Returns an error if there is no such weight, its file was truncated, or a transform does not fit it.
    pub(super) fn transformed(
        &self,
        name: &str,
        transforms: &Transforms,
    ) -> Result<(Vec<usize>, Vec<u8>), Error> {
        let tensor = self.shards.tensor(name)?;
        let transforms = &transforms.clone().after(self.merges_of(name).cloned());
        let each = transforms.output(name, tensor.element).bytes();
        let mut bytes = vec![0; tensor.length / tensor.element.bytes() * each];
        let blocks = bytes.par_chunks_mut(BLOCK * each).enumerate();
        blocks.try_for_each_init(Buffers::default, |buffers, (block, bytes)| {
            let start = block * BLOCK;
            let elements = start..start + bytes.len() / each;
            bytes.copy_from_slice(buffers.transformed(&tensor, elements, transforms)?);
            Ok::<_, Error>(())
        })?;
        Ok((tensor.shape.to_vec(), bytes))
    }
}
