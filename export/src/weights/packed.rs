//! Weights of linear layers and convolutions as Rushes kernels read them: quantised per output or rounded to bf16, and packed.
//!
//! The operators read them where they lie in the file: nothing is rearranged when a graph is opened.

use super::new_file::{Alignment, NewFile, Stored, write_new};
use super::number_format::widen;
use super::{PlacedWeights, location};
use crate::Error;
use bundle::dtype::ElementType;
use bundle::layout;
use bundle::quantization::layers::FusedLayer;
use half::bf16;
use kernels::{Bf16Matrix, Int8Kernel, Int8Matrix, KernelShape, MatrixShape};
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
    /// To be rounded: to bf16, or to bytes by the largest of each output.
    Values(Vec<f32>),
    /// Rounded already, with a scale for each output.
    Codes { codes: Vec<i8>, scales: Vec<f32> },
}

/// Extents of a fused layer.
fn matrix(layer: &FusedLayer) -> MatrixShape {
    MatrixShape { outputs: layer.parts.len() * layer.shape[0], inputs: layer.shape[1] }
}

/// What is stored of a fused layer: `NAME.packed`, `NAME.bias`, and for bytes `NAME.sums` and `NAME.scales`.
pub(crate) fn stored(layer: &FusedLayer, format: PackedFormat) -> Vec<Stored> {
    let MatrixShape { outputs, inputs } = matrix(layer);
    let of = |what: &str, element, shape| Stored { name: format!("{}.{what}", layer.name), element, shape };
    let groups = outputs.div_ceil(kernels::GROUP);
    let bias = of("bias", ElementType::F32, vec![outputs]);
    match format {
        PackedFormat::Int8 => vec![
            of("packed", ElementType::I8, vec![groups, inputs.div_ceil(4), 64]),
            of("sums", ElementType::I32, vec![outputs]),
            of("scales", ElementType::F32, vec![outputs]),
            bias,
        ],
        PackedFormat::Bf16 => {
            vec![of("packed", ElementType::Bf16, vec![groups, inputs.div_ceil(2), 32]), bias]
        }
    }
}

/// The bytes of the tensors of [`stored`], in their order; `part` gives the weights of each part by its name.
///
/// # Errors
/// What `part` meets, and weights that are not as large as the layer.
pub(crate) fn packed(
    layer: &FusedLayer,
    format: PackedFormat,
    part: impl Fn(&str) -> Result<PartWeights, Error>,
) -> Result<Vec<Vec<u8>>, Error> {
    let [outputs, inputs] = layer.shape;
    let shape = MatrixShape { outputs, inputs };
    let floats = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let damaged = |error: kernels::SizeError| Error::header(Path::new(&layer.name), error.to_string());
    let parts: Vec<PartWeights> = layer.parts.iter().map(|name| part(name)).collect::<Result<_, _>>()?;
    let bias = floats(&parts.iter().flat_map(|part| part.bias.iter().copied()).collect::<Vec<f32>>());
    match format {
        PackedFormat::Int8 => {
            let (mut all, mut all_scales) = (Vec::new(), Vec::new());
            for part in parts {
                let (codes, scales) = match part.numbers {
                    Numbers::Codes { codes, scales } => (codes, scales),
                    Numbers::Values(values) => kernels::quantise_outputs(shape, &values).map_err(damaged)?,
                };
                all.extend(codes);
                all_scales.extend(scales);
            }
            let matrix = Int8Matrix::pack(matrix(layer), &all, &all_scales).map_err(damaged)?;
            Ok(vec![
                matrix.packed.iter().map(|code| code.cast_unsigned()).collect(),
                matrix.sums.iter().flat_map(|sum| sum.to_le_bytes()).collect(),
                floats(&matrix.scales),
                bias,
            ])
        }
        PackedFormat::Bf16 => {
            let mut all = Vec::with_capacity(matrix(layer).elements());
            for part in parts {
                match part.numbers {
                    Numbers::Values(values) => all.extend(values.into_iter().map(bf16::from_f32)),
                    Numbers::Codes { codes, scales } => {
                        let rows = codes.chunks(inputs.max(1)).zip(scales);
                        all.extend(rows.flat_map(|(row, scale)| {
                            row.iter().map(move |code| bf16::from_f32(f32::from(*code) * scale))
                        }));
                    }
                }
            }
            let matrix = Bf16Matrix::pack(matrix(layer), &all).map_err(damaged)?;
            Ok(vec![matrix.packed.iter().flat_map(|value| value.to_le_bytes()).collect(), bias])
        }
    }
}

/// The kernel of a convolution `[out,in,taps,side,side]`, or without time `[out,in,side,side]`; nothing where there is no
/// operator for it.
pub(crate) fn kernel_shape(weight: &[usize]) -> Option<KernelShape> {
    let (outputs, channels, taps, height, width) = match *weight {
        [outputs, channels, taps, height, width] => (outputs, channels, taps, height, width),
        [outputs, channels, height, width] => (outputs, channels, 1, height, width),
        _ => return None,
    };
    let is_known = height == width && [1, 3].contains(&height) && [1, 3].contains(&taps);
    (is_known && channels % 4 == 0).then_some(KernelShape { outputs, channels, taps, side: height })
}

/// What is stored of a convolution: `NAME.packed`, `NAME.sums`, `NAME.scales` and `NAME.bias`.
pub(crate) fn stored_kernel(layer: &str, weight: &[usize]) -> Option<Vec<Stored>> {
    let shape = kernel_shape(weight)?;
    let MatrixShape { outputs, inputs } = shape.matrix();
    let of = |what: &str, element, shape| Stored { name: format!("{layer}.{what}"), element, shape };
    Some(vec![
        of("packed", ElementType::I8, vec![outputs.div_ceil(kernels::GROUP), inputs.div_ceil(4), 64]),
        of("sums", ElementType::I32, vec![shape.taps, outputs]),
        of("scales", ElementType::F32, vec![outputs]),
        of("bias", ElementType::F32, vec![outputs]),
    ])
}

/// The bytes of the tensors of [`stored_kernel`], in their order, out of codes `[out,taps,in,side,side]`.
///
/// # Errors
/// Numbers that do not fit the shape.
pub(crate) fn packed_kernel(
    layer: &str,
    weight: &[usize],
    codes: &[i8],
    scales: &[f32],
    bias: &[f32],
) -> Result<Vec<Vec<u8>>, Error> {
    let damaged = |why: String| Error::header(Path::new(layer), why);
    let shape = kernel_shape(weight).ok_or_else(|| damaged("a convolution of another kind".into()))?;
    let kernel = Int8Kernel::pack(shape, codes, scales).map_err(|error| damaged(error.to_string()))?;
    let floats = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    Ok(vec![
        kernel.packed.iter().map(|code| code.cast_unsigned()).collect(),
        kernel.sums.iter().flat_map(|sum| sum.to_le_bytes()).collect(),
        floats(&kernel.scales),
        floats(bias),
    ])
}

/// Packs `layers` into the new file `name` beside the weights in `folder`, the component's folder in the bundle, with
/// scales by the largest weight of each output. What comes back has the weights of `placed` and the packed ones.
///
/// # Errors
/// A weight that is missing, of another shape, or cannot be read; a file that cannot be written.
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
                let numbers = Numbers::Values(read(folder, placed, &format!("{name}.weight"), &layer.shape)?);
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
