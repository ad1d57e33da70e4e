//! Packed weights of linear layers and convolutions for Rushes kernels: quantised per output, or rounded to bf16.
//!
//! The operators read them directly from the file; nothing is rearranged when a graph is opened.

use super::new_file::{Alignment, NewFile, Stored, write_new};
use super::number_format::widen;
use super::{PlacedWeights, location};
use crate::Error;
use bundle::dtype::ElementType;
use bundle::layout;
use bundle::quantization::layers::FusedLayer;
use half::bf16;
use kernels::{Bf16Matrix, Int8Kernel, Int8Matrix, KernelShape, MatrixShape, SizeError};
use rayon::prelude::*;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The format of packed weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackedFormat {
    /// s8 with a scale for each output.
    Int8,
    /// bf16.
    Bf16,
}

/// Weight and bias of one part of a fused layer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PartWeights {
    pub(crate) numbers: Numbers,
    /// `[out]`.
    pub(crate) bias: Vec<f32>,
}

/// A weight `[out,in]`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Numbers {
    /// Floats, which are rounded to bf16 or quantised with the maximum of each output.
    Floats(Vec<f32>),
    /// Quantised values, with a scale for each output.
    Quantized { values: Vec<i8>, scales: Vec<f32> },
}

/// Returns the number of outputs of all parts of a fused layer, and the number of inputs.
fn extents(layer: &FusedLayer) -> [usize; 2] {
    // A product that is too large is refused by `matrix`.
    [layer.parts.len().saturating_mul(layer.shape[0]), layer.shape[1]]
}

/// Returns the extents of a fused layer.
fn matrix(layer: &FusedLayer) -> Result<MatrixShape, SizeError> {
    let [outputs, inputs] = extents(layer);
    MatrixShape::new(outputs, inputs)
}

/// Returns the tensors of a fused layer: `NAME.packed`, `NAME.bias`, and for int8 `NAME.sums` and `NAME.scales`.
pub(crate) fn stored(layer: &FusedLayer, format: PackedFormat) -> Vec<Stored> {
    let [outputs, inputs] = extents(layer);
    let tensor =
        |suffix: &str, element, shape| Stored { name: format!("{}.{suffix}", layer.name), element, shape };
    let groups = outputs.div_ceil(kernels::GROUP);
    let bias = tensor("bias", ElementType::F32, vec![outputs]);
    match format {
        PackedFormat::Int8 => vec![
            tensor("packed", ElementType::I8, vec![groups, inputs.div_ceil(4), 64]),
            tensor("sums", ElementType::I32, vec![outputs]),
            tensor("scales", ElementType::F32, vec![outputs]),
            bias,
        ],
        PackedFormat::Bf16 => {
            vec![tensor("packed", ElementType::Bf16, vec![groups, inputs.div_ceil(2), 32]), bias]
        }
    }
}

/// Returns the bytes of the tensors of [`stored`], in the same order. `part` returns the weights of a part by name.
///
/// # Errors
/// Those of `part`, and an error if the weights have not the size of the layer.
pub(crate) fn packed(
    layer: &FusedLayer,
    format: PackedFormat,
    part: impl Fn(&str) -> Result<PartWeights, Error>,
) -> Result<Vec<Vec<u8>>, Error> {
    let [outputs, inputs] = layer.shape;
    let floats = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let damaged = |error: SizeError| Error::header(Path::new(&layer.name), error.to_string());
    let shape = MatrixShape::new(outputs, inputs).map_err(damaged)?;
    let all_parts = matrix(layer).map_err(damaged)?;
    let parts: Vec<PartWeights> = layer.parts.iter().map(|name| part(name)).collect::<Result<_, _>>()?;
    let bias = floats(&parts.iter().flat_map(|part| part.bias.iter().copied()).collect::<Vec<f32>>());
    match format {
        PackedFormat::Int8 => {
            let (mut all, mut all_scales) = (Vec::new(), Vec::new());
            for part in parts {
                let (values, scales) = match part.numbers {
                    Numbers::Quantized { values, scales } => (values, scales),
                    Numbers::Floats(floats) => kernels::quantise_outputs(shape, &floats).map_err(damaged)?,
                };
                all.extend(values);
                all_scales.extend(scales);
            }
            let matrix = Int8Matrix::pack(all_parts, &all, &all_scales).map_err(damaged)?;
            Ok(vec![
                matrix.packed().iter().map(|value| value.cast_unsigned()).collect(),
                matrix.sums().iter().flat_map(|sum| sum.to_le_bytes()).collect(),
                floats(matrix.scales()),
                bias,
            ])
        }
        PackedFormat::Bf16 => {
            let mut all = Vec::with_capacity(all_parts.elements());
            for part in parts {
                match part.numbers {
                    Numbers::Floats(floats) => all.extend(floats.into_iter().map(bf16::from_f32)),
                    Numbers::Quantized { values, scales } => {
                        let rows = values.chunks(inputs.max(1)).zip(scales);
                        all.extend(rows.flat_map(|(row, scale)| {
                            row.iter().map(move |value| bf16::from_f32(f32::from(*value) * scale))
                        }));
                    }
                }
            }
            let matrix = Bf16Matrix::pack(all_parts, &all).map_err(damaged)?;
            Ok(vec![matrix.packed().iter().flat_map(|value| value.to_le_bytes()).collect(), bias])
        }
    }
}

/// Returns the kernel shape of a convolution `[out,in,taps,side,side]`, or without time axis `[out,in,side,side]`; none
/// if Rushes kernels do not support it.
pub(crate) fn kernel_shape(weight: &[usize]) -> Option<KernelShape> {
    let (outputs, channels, taps, height, width) = match *weight {
        [outputs, channels, taps, height, width] => (outputs, channels, taps, height, width),
        [outputs, channels, height, width] => (outputs, channels, 1, height, width),
        _ => return None,
    };
    if height != width {
        return None;
    }
    KernelShape::new(outputs, channels, taps, height).ok()
}

/// Returns the tensors of a convolution: `NAME.packed`, `NAME.sums`, `NAME.scales` and `NAME.bias`.
pub(crate) fn stored_kernel(layer: &str, weight: &[usize]) -> Option<Vec<Stored>> {
    let shape = kernel_shape(weight)?;
    let (outputs, inputs) = (shape.outputs(), shape.matrix().inputs());
    let tensor = |suffix: &str, element, shape| Stored { name: format!("{layer}.{suffix}"), element, shape };
    Some(vec![
        tensor("packed", ElementType::I8, vec![outputs.div_ceil(kernels::GROUP), inputs.div_ceil(4), 64]),
        tensor("sums", ElementType::I32, vec![shape.taps(), outputs]),
        tensor("scales", ElementType::F32, vec![outputs]),
        tensor("bias", ElementType::F32, vec![outputs]),
    ])
}

/// Returns the bytes of the tensors of [`stored_kernel`], in the same order, for quantised values
/// `[out,taps,in,side,side]`.
///
/// # Errors
/// Returns an error if the values do not match the shape.
pub(crate) fn packed_kernel(
    layer: &str,
    weight: &[usize],
    values: &[i8],
    scales: &[f32],
    bias: &[f32],
) -> Result<Vec<Vec<u8>>, Error> {
    let damaged = |why: String| Error::header(Path::new(layer), why);
    let shape = kernel_shape(weight).ok_or_else(|| damaged("the kernel shape is not supported".into()))?;
    let kernel = Int8Kernel::pack(shape, values, scales).map_err(|error| damaged(error.to_string()))?;
    let floats = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    Ok(vec![
        kernel.packed().iter().map(|value| value.cast_unsigned()).collect(),
        kernel.sums().iter().flat_map(|sum| sum.to_le_bytes()).collect(),
        floats(kernel.scales()),
        floats(bias),
    ])
}

/// Packs `layers` into the new file `name`, next to the weights in `folder`, the component's folder in the bundle.
/// Scales are computed from the largest weight of each output. Returns the weights of `placed` and the packed ones.
///
/// # Errors
/// Returns an error if a weight is missing, has another shape or cannot be read, or if the file cannot be written.
pub fn pack(
    folder: &Path,
    placed: &PlacedWeights,
    layers: &[FusedLayer],
    format: PackedFormat,
    name: &str,
) -> Result<PlacedWeights, Error> {
    let tensors: Vec<_> = layers.iter().flat_map(|layer| stored(layer, format)).collect();
    let each = tensors.len() / layers.len().max(1);
    let path = folder.join(layout::WEIGHTS).join(name);
    let written = write_new(&path, &location(name), &tensors, Alignment::Pages, |file: &NewFile| {
        layers.par_iter().enumerate().try_for_each(|(index, layer)| {
            let part = |name: &str| -> Result<PartWeights, Error> {
                let numbers = Numbers::Floats(read(folder, placed, &format!("{name}.weight"), &layer.shape)?);
                let bias = read(folder, placed, &format!("{name}.bias"), &layer.shape[..1])?;
                Ok(PartWeights { numbers, bias })
            };
            let mut tensors = packed(layer, format, part)?.into_iter().enumerate();
            tensors.try_for_each(|(tensor, bytes)| file.write(index * each + tensor, 0, &bytes))
        })
    })?;
    let mut all = placed.clone();
    all.tensors.extend(written.tensors);
    Ok(all)
}

/// Reads a weight of the bundle as f32.
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
