//! Weights of linear layers as the CPU's own operators read them: quantised per output or rounded to bf16, and packed.
//!
//! The operators read them where they lie in the file: nothing is rearranged when a graph is opened.

use super::number_format::widen;
use super::{ExternalTensor, PlacedWeights, location, part_of};
use crate::Error;
use bundle::dtype::ElementType;
use bundle::layout;
use half::bf16;
use kernels::{Bf16Matrix, Int8Matrix, MatrixShape};
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Every tensor begins at a multiple of this, so that it can be mapped and read directly.
const ALIGNMENT: usize = 4096;

/// The format of packed weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackedFormat {
    /// s8 with a scale for each output.
    Int8,
    /// bf16.
    Bf16,
}

/// One packed linear layer: one of the model, or several side by side that read the same input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedLayer {
    /// Its name in the file; tensors are `NAME.packed`, `NAME.bias`, and for bytes `NAME.sums` and `NAME.scales`.
    pub name: String,
    /// The layers of the model whose outputs stand one after another: `PART.weight [out,in]`, `PART.bias [out]`.
    pub parts: Vec<String>,
    /// Outputs of each part, and inputs.
    pub shape: [usize; 2],
}

impl PackedLayer {
    /// Extents of the whole.
    pub fn matrix(&self) -> MatrixShape {
        MatrixShape { outputs: self.parts.len() * self.shape[0], inputs: self.shape[1] }
    }

    /// Names, number formats and shapes of what is stored.
    pub fn tensors(&self, format: PackedFormat) -> Vec<(String, ElementType, Vec<usize>)> {
        let MatrixShape { outputs, inputs } = self.matrix();
        let of = |what: &str| format!("{}.{what}", self.name);
        let groups = outputs.div_ceil(kernels::GROUP);
        let bias = (of("bias"), ElementType::F32, vec![outputs]);
        match format {
            PackedFormat::Int8 => vec![
                (of("packed"), ElementType::I8, vec![groups, inputs.div_ceil(4), 64]),
                (of("sums"), ElementType::I32, vec![outputs]),
                (of("scales"), ElementType::F32, vec![outputs]),
                bias,
            ],
            PackedFormat::Bf16 => {
                vec![(of("packed"), ElementType::Bf16, vec![groups, inputs.div_ceil(2), 32]), bias]
            }
        }
    }
}

/// Codes and scales of a layer that were chosen elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub struct ChosenCodes {
    /// `[out,in]`.
    pub codes: Vec<i8>,
    /// `[out]`.
    pub scales: Vec<f32>,
}

/// Who chooses the codes of a layer of the model, if not the largest weight of each output.
pub type Choice<'a> = dyn Fn(&str) -> Option<ChosenCodes> + Sync + 'a;

/// Packs `layers` into the new file `name` beside the weights in `folder`, the component's folder in the bundle. What
/// comes back has the weights of `placed` and the packed ones.
///
/// # Errors
/// A weight that is missing, of another shape, or cannot be read; a file that cannot be written.
pub fn pack(
    folder: &Path,
    placed: &PlacedWeights,
    layers: &[PackedLayer],
    format: PackedFormat,
    name: &str,
    choice: &Choice<'_>,
) -> Result<PlacedWeights, Error> {
    let stored: Vec<_> = layers.iter().flat_map(|layer| layer.tensors(format)).collect();
    let path = folder.join(layout::WEIGHTS).join(name);
    let part = part_of(&path);
    let (header, offsets, bytes) = header(&stored, &path)?;
    let write = || {
        let file = File::create(&part).map_err(Error::file("write", &part))?;
        file.set_len(bytes as u64).map_err(Error::file("write", &part))?;
        file.write_all_at(&header, 0).map_err(Error::file("write", &part))?;
        let each = stored.len() / layers.len().max(1);
        layers.par_iter().enumerate().try_for_each(|(index, layer)| {
            let parts = packed_bytes(folder, placed, layer, format, choice)?;
            let offsets = &offsets[index * each..];
            parts.iter().zip(offsets).try_for_each(|(bytes, offset)| {
                file.write_all_at(bytes, *offset as u64).map_err(Error::file("write", &part))
            })
        })?;
        file.sync_all().map_err(Error::file("write", &part))?;
        std::fs::rename(&part, &path).map_err(Error::file("write", &path))
    };
    if let Err(error) = write() {
        // The first error is the one worth telling; a leftover that cannot be removed is seen by its name.
        let _ = std::fs::remove_file(&part);
        return Err(error);
    }
    let mut all = placed.clone();
    for ((tensor, element, shape), offset) in stored.into_iter().zip(offsets) {
        let length = (shape.iter().product::<usize>() * element.bytes()) as u64;
        let external =
            ExternalTensor { location: location(name), offset: offset as u64, length, element, shape };
        all.tensors.insert(tensor, external);
    }
    Ok(all)
}

/// The tensors of one layer, in the order of [`PackedLayer::tensors`].
fn packed_bytes(
    folder: &Path,
    placed: &PlacedWeights,
    layer: &PackedLayer,
    format: PackedFormat,
    choice: &Choice<'_>,
) -> Result<Vec<Vec<u8>>, Error> {
    let [outputs, inputs] = layer.shape;
    let mut bias = Vec::new();
    for part in &layer.parts {
        bias.extend(read(folder, placed, &format!("{part}.bias"), &[outputs])?);
    }
    let floats = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let damaged = |error: kernels::SizeError| Error::header(&folder.join(&layer.name), error.to_string());
    match format {
        PackedFormat::Int8 => {
            let (mut codes, mut scales) = (Vec::new(), Vec::new());
            for part in &layer.parts {
                if let Some(chosen) = choice(part) {
                    codes.extend(chosen.codes);
                    scales.extend(chosen.scales);
                    continue;
                }
                let weights = read(folder, placed, &format!("{part}.weight"), &layer.shape)?;
                let (of_part, its_scales) =
                    kernels::quantise_outputs(MatrixShape { outputs, inputs }, &weights).map_err(damaged)?;
                codes.extend(of_part);
                scales.extend(its_scales);
            }
            let matrix = Int8Matrix::pack(layer.matrix(), &codes, &scales).map_err(damaged)?;
            Ok(vec![
                matrix.packed.iter().map(|code| code.cast_unsigned()).collect(),
                matrix.sums.iter().flat_map(|sum| sum.to_le_bytes()).collect(),
                floats(&matrix.scales),
                floats(&bias),
            ])
        }
        PackedFormat::Bf16 => {
            let mut weights = Vec::with_capacity(layer.matrix().elements());
            for part in &layer.parts {
                let values = read(folder, placed, &format!("{part}.weight"), &layer.shape)?;
                weights.extend(values.into_iter().map(bf16::from_f32));
            }
            let matrix = Bf16Matrix::pack(layer.matrix(), &weights).map_err(damaged)?;
            Ok(vec![matrix.packed.iter().flat_map(|value| value.to_le_bytes()).collect(), floats(&bias)])
        }
    }
}

/// A placed weight as f32.
fn read(folder: &Path, placed: &PlacedWeights, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
    let weight = placed.expect(name, shape)?;
    let path = folder.join(&weight.location);
    let file = File::open(&path).map_err(Error::file("read", &path))?;
    let count = shape.iter().product::<usize>();
    let mut bytes = vec![0; count * weight.element.bytes()];
    file.read_exact_at(&mut bytes, weight.offset).map_err(Error::file("read", &path))?;
    let mut values = vec![0.0; count];
    widen(weight.element, &bytes, &mut values);
    Ok(values)
}

/// Length and JSON of a safetensors file, where each tensor goes in it, and its length.
fn header(
    stored: &[(String, ElementType, Vec<usize>)],
    path: &Path,
) -> Result<(Vec<u8>, Vec<usize>, usize), Error> {
    let (mut entries, mut begins, mut end) = (Vec::new(), Vec::new(), 0_usize);
    for (name, element, shape) in stored {
        let dtype = match element {
            ElementType::I8 => Dtype::I8,
            ElementType::I32 => Dtype::I32,
            ElementType::Bf16 => Dtype::BF16,
            _ => Dtype::F32,
        };
        let begin = end.next_multiple_of(ALIGNMENT);
        if begin > end {
            // The format allows no gaps, so padding is a tensor of its own; it takes no room on disk.
            let pad = TensorInfo { dtype: Dtype::U8, shape: vec![begin - end], data_offsets: (end, begin) };
            entries.push((format!("__pad.{}", begins.len()), pad));
        }
        end = begin + shape.iter().product::<usize>() * element.bytes();
        begins.push(begin);
        entries.push((name.clone(), TensorInfo { dtype, shape: shape.clone(), data_offsets: (begin, end) }));
    }
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let unwritable = |why: String| Error::header(path, format!("its header cannot be written: {why}"));
    let metadata = Metadata::new(Some(format), entries).map_err(|error| unwritable(error.to_string()))?;
    let mut header = vec![0; 8];
    serde_json::to_writer(&mut header, &metadata).map_err(|error| unwritable(error.to_string()))?;
    header.resize(header.len().next_multiple_of(ALIGNMENT), b' ');
    let length = header.len() as u64 - 8;
    header[..8].copy_from_slice(&length.to_le_bytes());
    let offsets = begins.iter().map(|begin| header.len() + begin).collect();
    let bytes = header.len() + end;
    Ok((header, offsets, bytes))
}
