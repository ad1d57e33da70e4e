//! The stored form of weights: quantised values and scales, adjusted biases, and higher precision for the rest.

use super::source::BundleWeights;
use crate::Error;
use crate::checkpoint::inventory::Required;
use crate::weights::new_file::Stored;
use crate::weights::packed::{self, Numbers, PackedFormat, PartWeights};
use crate::weights::row_quantization::{Adjustment, RowQuantization, as_matrix, rounded};
use crate::weights::transform::Transforms;
use crate::weights::{INPUT_FACTORS, SCALES};
use bundle::dtype::{ElementType, WeightType};
use bundle::manifest::Component;
use bundle::quantization::layers::FusedLayer;
use bundle::quantization::{ComponentNumerics, LayerNumerics, WeightScales, e4m3};
use rayon::prelude::*;

/// Matrices of at least this many elements are stored in 16 bits if they are not quantised.
const NARROWED: usize = 4096;
/// The largest f16.
const F16_MAX: f32 = 65504.0;

/// Tensors to store, and their content.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Planned {
    pub(super) stored: Vec<Stored>,
    content: Content,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Content {
    /// The weight of this name, rounded to the stored format.
    Rounded(String),
    /// The same, with the three taps in time before the channels.
    TapsFirst(String),
    /// The quantised values of a layer's weight.
    Quantized(String),
    /// The quantised values of a convolution's weight, in the order of the checkpoint.
    QuantizedKernel(String),
    /// The scales of a layer's weight.
    Scales(String),
    /// The adjusted bias of a layer.
    Bias(String),
    /// The newest of the three taps in time of a layer's quantised weight.
    NewestTap(String),
    /// The bias of a layer in units of its integer sums.
    IntegerBias(String),
    /// One over the divisors of a layer's smoothing.
    InputFactors(String),
    /// A fused layer packed for Rushes kernels.
    Packed(FusedLayer, PackedFormat),
    /// A convolution of the decoder packed for Rushes kernels.
    PackedKernel(String),
}

/// Returns all tensors of a variant in file order.
pub(super) fn plan(source: &BundleWeights, numerics: &ComponentNumerics) -> Result<Vec<Planned>, Error> {
    let is_decoder = numerics.component == Component::Decoder;
    let mut all = Vec::new();
    let mut push = |name: String, element: ElementType, shape: Vec<usize>, content: Content| {
        all.push(Planned::one(Stored { name, element, shape }, content));
    };
    for required in &source.required {
        let Required { name, shape } = required;
        let (layer, part) = name.rsplit_once('.').unwrap_or((name, ""));
        match (numerics.layers.get(layer), part) {
            (Some(numbers), "weight") => {
                let rows = shape[0];
                let columns = shape[1..].iter().product::<usize>();
                let quantized = Content::Quantized(layer.to_owned());
                let part = |suffix: &str| format!("{layer}.{suffix}");
                let scales = Content::Scales(layer.to_owned());
                match &numbers.weights {
                    WeightScales::Rows(_) if is_decoder => {
                        push(name.clone(), ElementType::I8, taps_first(shape), quantized);
                        push(part(SCALES), ElementType::F32, vec![rows], scales);
                    }
                    WeightScales::Rows(_) => {
                        push(name.clone(), ElementType::I8, vec![columns, rows], quantized);
                        push(part(SCALES), ElementType::F32, vec![rows], scales);
                    }
                    WeightScales::Tensor(_) => {
                        push(name.clone(), ElementType::F8E4M3, vec![columns, rows], quantized);
                    }
                    WeightScales::Blocks { size, scales: values } => {
                        let blocks = columns.div_ceil(*size);
                        push(name.clone(), ElementType::U8, vec![rows, blocks, *size], quantized);
                        push(part(SCALES), ElementType::F32, vec![values.len()], scales);
                    }
                }
                if let Some(smoothing) = &numbers.smoothing {
                    let factors = Content::InputFactors(layer.to_owned());
                    push(part(INPUT_FACTORS), ElementType::F32, vec![smoothing.divisors.len()], factors);
                }
                let has_bias = source.required.iter().any(|other| other.name == part("bias"));
                if is_decoder {
                    push(part("bias"), ElementType::I32, vec![rows], Content::IntegerBias(layer.to_owned()));
                } else if has_bias || numbers.bias_shift.is_some() {
                    push(part("bias"), ElementType::F32, vec![rows], Content::Bias(layer.to_owned()));
                }
            }
            (Some(_), "bias") => {}
            (_, "weight") if is_decoder => {
                push(name.clone(), ElementType::F32, taps_first(shape), Content::TapsFirst(name.clone()));
            }
            _ => {
                let Stored { name, element, shape } = unquantized(source, required)?;
                push(name.clone(), element, shape, Content::Rounded(name));
            }
        }
    }
    Ok(all)
}

/// Returns the stored form of a weight that is not quantised: f16 for a large matrix, else f32.
pub(super) fn unquantized(
    source: &BundleWeights,
    Required { name, shape }: &Required,
) -> Result<Stored, Error> {
    let is_matrix = name.ends_with(".weight") && shape.len() >= 2;
    let element = if is_matrix && shape.iter().product::<usize>() >= NARROWED {
        narrowed(source, name)?
    } else {
        ElementType::F32
    };
    Ok(Stored { name: name.clone(), element, shape: shape.clone() })
}

/// Returns f16 if every value is in its range, else f32.
fn narrowed(source: &BundleWeights, name: &str) -> Result<ElementType, Error> {
    let fits = source.read(name)?.1.par_iter().all(|value| value.abs() <= F16_MAX);
    Ok(if fits { ElementType::F16 } else { ElementType::F32 })
}

/// Returns `[out,3·in,k,k]` for `[out,in,3,k,k]`, and `[out,in,k,k]` for a kernel without a time axis.
pub(super) fn taps_first(shape: &[usize]) -> Vec<usize> {
    match shape {
        [out, channels, taps, height, width] => vec![*out, taps * channels, *height, *width],
        _ => shape.to_vec(),
    }
}

/// Reorders `[out,in,taps,k,k]` to `[out,taps,in,k,k]`.
fn move_taps<T: Copy + Send + Sync>(values: &[T], shape: &[usize]) -> Vec<T> {
    let [_, channels, taps, height, width] = *shape else { return values.to_vec() };
    let plane = height * width;
    let row = channels * taps * plane;
    values
        .par_chunks(row.max(1))
        .flat_map_iter(move |row| {
            (0..taps).flat_map(move |tap| {
                (0..channels).flat_map(move |channel| {
                    let begin = (channel * taps + tap) * plane;
                    row[begin..begin + plane].iter().copied()
                })
            })
        })
        .collect()
}

fn transposed<T: Copy + Default + Send + Sync>(values: &[T], rows: usize, columns: usize) -> Vec<T> {
    let mut out = vec![T::default(); values.len()];
    out.par_chunks_mut(rows.max(1)).enumerate().for_each(|(column, target)| {
        for (row, target) in target.iter_mut().enumerate() {
            *target = values[row * columns + column];
        }
    });
    out
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

impl Planned {
    /// Creates the plan of one tensor.
    pub(super) fn one(stored: Stored, content: Content) -> Self {
        Self { stored: vec![stored], content }
    }

    /// Creates the plan of a fused layer.
    pub(super) fn packed(layer: FusedLayer, format: PackedFormat) -> Self {
        Self { stored: packed::stored(&layer, format), content: Content::Packed(layer, format) }
    }

    /// Creates the plan of a convolution of the decoder whose weight has this shape. Returns none if Rushes kernels do
    /// not support it.
    pub(super) fn packed_kernel(layer: &str, shape: &[usize]) -> Option<Self> {
        let stored = packed::stored_kernel(layer, shape)?;
        Some(Self { stored, content: Content::PackedKernel(layer.to_owned()) })
    }

    /// Returns the bytes of numbers in the format of the first tensor, a float.
    fn rounded(&self, values: &[f32]) -> Vec<u8> {
        match self.stored[0].element {
            ElementType::Bf16 => {
                values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect()
            }
            ElementType::F16 => {
                values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect()
            }
            _ => f32_bytes(values),
        }
    }

    /// Returns the bytes of each tensor.
    pub(super) fn bytes(
        &self,
        source: &BundleWeights,
        numerics: &ComponentNumerics,
    ) -> Result<Vec<Vec<u8>>, Error> {
        let layer = |name: &String| (name.clone(), &numerics.layers[name]);
        let rows = self.stored[0].shape.first().copied().unwrap_or(0);
        let one = match &self.content {
            Content::Rounded(name) => {
                let element = self.stored[0].element;
                let wrong = || Error::WrongType { name: name.clone(), found: element };
                let transforms = Transforms::conversion(WeightType::of(element).ok_or_else(wrong)?);
                source.transformed(name, &transforms)?.1
            }
            Content::TapsFirst(name) => {
                let (shape, values) = source.read(name)?;
                f32_bytes(&move_taps(&values, &shape))
            }
            Content::Quantized(name) => {
                let (name, numbers) = layer(name);
                quantized(source, &name, numbers, numerics.component == Component::Decoder)?
            }
            Content::QuantizedKernel(name) => {
                let (name, numbers) = layer(name);
                quantized_kernel(source, &name, numbers)?.1
            }
            Content::NewestTap(name) => {
                let (name, numbers) = layer(name);
                newest_tap(&quantized_kernel(source, &name, numbers)?)
            }
            Content::Scales(name) => match &layer(name).1.weights {
                WeightScales::Rows(scales) | WeightScales::Blocks { scales, .. } => self.rounded(scales),
                WeightScales::Tensor(scale) => self.rounded(&[*scale]),
            },
            Content::Bias(name) => self.rounded(&bias(source, name, layer(name).1, rows, Input::Static)?),
            Content::IntegerBias(name) => {
                let numbers = layer(name).1;
                let input = numbers.input.map_or(1.0, |input| input.scale);
                let WeightScales::Rows(scales) = &numbers.weights else { return Ok(vec![Vec::new()]) };
                let bias = bias(source, name, numbers, rows, Input::Static)?;
                bias.iter()
                    .zip(scales)
                    .flat_map(|(bias, scale)| integer_bias(*bias, f64::from(input) * f64::from(*scale)))
                    .collect()
            }
            Content::InputFactors(name) => {
                let divisors = layer(name).1.smoothing.as_ref().map(|smoothing| &smoothing.divisors);
                self.rounded(&divisors.into_iter().flatten().map(|divisor| 1.0 / divisor).collect::<Vec<_>>())
            }
            Content::Packed(layer, format) => {
                return packed::packed(layer, *format, |part| part_weights(source, numerics, part));
            }
            Content::PackedKernel(name) => return packed_kernel(source, name, layer(name).1),
        };
        Ok(vec![one])
    }
}

/// Returns a layer as a part of a fused layer: quantised values and scales if it is quantised, else f32.
fn part_weights(
    source: &BundleWeights,
    numerics: &ComponentNumerics,
    name: &str,
) -> Result<PartWeights, Error> {
    let Some(numbers) = numerics.layers.get(name) else {
        let (_, values) = source.read(&format!("{name}.weight"))?;
        let bias = source.read(&format!("{name}.bias"))?.1;
        return Ok(PartWeights { numbers: Numbers::Floats(values), bias });
    };
    let WeightScales::Rows(scales) = &numbers.weights else {
        return Err(Error::Numerics { layer: name.to_owned() });
    };
    let (_, values) = quantized_rows(source, name, numbers, scales)?;
    let bias = bias(source, name, numbers, scales.len(), Input::Dynamic)?;
    Ok(PartWeights { numbers: Numbers::Quantized { values, scales: scales.clone() }, bias })
}

/// Returns quantised values, sums, scales and bias of a convolution, in the order of [`packed::stored_kernel`].
fn packed_kernel(source: &BundleWeights, name: &str, numbers: &LayerNumerics) -> Result<Vec<Vec<u8>>, Error> {
    let WeightScales::Rows(scales) = &numbers.weights else {
        return Err(Error::Numerics { layer: name.to_owned() });
    };
    let (shape, values) = quantized_rows(source, name, numbers, scales)?;
    let bias = bias(source, name, numbers, scales.len(), Input::Static)?;
    packed::packed_kernel(name, &shape, &move_taps(&values, &shape), scales, &bias)
}

/// The kind of scale of a layer's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    /// Fixed by calibration.
    Static,
    /// Computed for each row at run time.
    Dynamic,
}

/// Returns `b · factor + shift`, with zeros for `b` if the layer has no bias.
fn bias(
    source: &BundleWeights,
    layer: &str,
    numbers: &LayerNumerics,
    rows: usize,
    input: Input,
) -> Result<Vec<f32>, Error> {
    let name = format!("{layer}.bias");
    let mut bias = if source.required.iter().any(|required| required.name == name) {
        source.read(&name)?.1
    } else {
        vec![0.0; rows]
    };
    if let Some(factors) = &numbers.row_factors {
        bias.iter_mut().zip(factors).for_each(|(bias, factor)| *bias *= factor);
    }
    let range_shift = numbers.range_shift.as_ref().filter(|_| input == Input::Static);
    for shift in [numbers.bias_shift.as_ref(), range_shift].into_iter().flatten() {
        bias.iter_mut().zip(shift).for_each(|(bias, shift)| *bias += shift);
    }
    Ok(bias)
}

#[expect(clippy::cast_possible_truncation, reason = "a cast to i32 saturates")]
fn integer_bias(bias: f32, unit: f64) -> [u8; 4] {
    ((f64::from(bias) / unit).round_ties_even() as i32).to_le_bytes()
}

/// Returns the shape and the values of a layer's weight before rounding, with its row factors and smoothing.
fn adjusted(
    source: &BundleWeights,
    layer: &str,
    numbers: &LayerNumerics,
) -> Result<(Vec<usize>, Vec<f32>), Error> {
    let (shape, mut values) = source.read(&format!("{layer}.weight"))?;
    let adjustment = Adjustment::of(numbers);
    let matrix = as_matrix(&shape).ok_or_else(|| Error::Numerics { layer: layer.to_owned() })?;
    let columns = matrix[1].max(1);
    values
        .par_chunks_mut(columns)
        .enumerate()
        .try_for_each(|(row, values)| adjustment.apply(layer, matrix, row * columns, values))?;
    Ok((shape, values))
}

/// Returns the shape of a layer's weight and its quantised values, row by row.
fn quantized_rows(
    source: &BundleWeights,
    layer: &str,
    numbers: &LayerNumerics,
    scales: &[f32],
) -> Result<(Vec<usize>, Vec<i8>), Error> {
    let quantization = RowQuantization {
        layer: layer.to_owned(),
        adjustment: Adjustment::of(numbers),
        scales: scales.to_vec(),
    };
    let transforms = Transforms::quantization(quantization);
    let (shape, bytes) = source.transformed(&format!("{layer}.weight"), &transforms)?;
    Ok((shape, bytes.into_iter().map(u8::cast_signed).collect()))
}

/// Returns the shape of a convolution's weight and its quantised values, in the order of the checkpoint.
fn quantized_kernel(
    source: &BundleWeights,
    layer: &str,
    numbers: &LayerNumerics,
) -> Result<(Vec<usize>, Vec<u8>), Error> {
    match &numbers.weights {
        WeightScales::Rows(scales) => {
            let (shape, values) = quantized_rows(source, layer, numbers, scales)?;
            Ok((shape, values.into_iter().map(i8::cast_unsigned).collect()))
        }
        WeightScales::Tensor(scale) => {
            let (shape, values) = adjusted(source, layer, numbers)?;
            Ok((shape, values.par_iter().map(|value| e4m3::encode(value / scale)).collect()))
        }
        WeightScales::Blocks { .. } => Err(Error::Numerics { layer: layer.to_owned() }),
    }
}

/// Returns `[out,in,k,k]`, the last of the three taps, of a kernel `[out,in,3,k,k]`.
fn newest_tap((shape, values): &(Vec<usize>, Vec<u8>)) -> Vec<u8> {
    let [_, _, taps, height, width] = shape[..] else { return values.clone() };
    let plane = height * width;
    values
        .chunks_exact((taps * plane).max(1))
        .flat_map(|kernel| &kernel[(taps - 1) * plane..])
        .copied()
        .collect()
}

/// Returns the quantised values of a layer's weight in the layout of its operator.
fn quantized(
    source: &BundleWeights,
    layer: &str,
    numbers: &LayerNumerics,
    is_decoder: bool,
) -> Result<Vec<u8>, Error> {
    Ok(match &numbers.weights {
        WeightScales::Rows(scales) => {
            let (shape, values) = quantized_rows(source, layer, numbers, scales)?;
            let (rows, columns) = (shape[0], values.len() / shape[0].max(1));
            let values =
                if is_decoder { move_taps(&values, &shape) } else { transposed(&values, rows, columns) };
            values.into_iter().map(i8::cast_unsigned).collect()
        }
        WeightScales::Tensor(scale) => {
            let (shape, values) = adjusted(source, layer, numbers)?;
            let (rows, columns) = (shape[0], values.len() / shape[0].max(1));
            let encoded: Vec<u8> = values.par_iter().map(|value| e4m3::encode(value / scale)).collect();
            transposed(&encoded, rows, columns)
        }
        WeightScales::Blocks { size, scales } => {
            let (shape, values) = adjusted(source, layer, numbers)?;
            let columns = values.len() / shape[0].max(1);
            let blocks = columns.div_ceil(*size);
            values
                .par_chunks(columns.max(1))
                .zip(scales.par_chunks(blocks.max(1)))
                .flat_map_iter(|(row, scales)| {
                    row.chunks(*size).zip(scales).flat_map(|(block, scale)| {
                        // The zero point is 128; a short block is padded with zeros.
                        let unsigned = |value: &f32| rounded(*value, *scale).cast_unsigned() ^ 0x80;
                        block.iter().map(unsigned).chain(std::iter::repeat_n(0x80, size - block.len()))
                    })
                })
                .collect()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_move_before_channels_and_kernels_without_time_are_unchanged() {
        let values: Vec<u8> = (0..24).collect();
        // [2,2,3,1,2]
        let moved = move_taps(&values, &[2, 2, 3, 1, 2]);
        assert_eq!(moved[..12], [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]);
        assert_eq!(move_taps(&values, &[24]), values);
        assert_eq!(taps_first(&[8, 4, 3, 3, 3]), [8, 12, 3, 3]);
    }

    #[test]
    fn the_newest_tap_is_the_last_one_of_every_channel() {
        let values: Vec<u8> = (0..24).collect();
        let newest = newest_tap(&(vec![2, 2, 3, 1, 2], values.clone()));
        assert_eq!(newest, [4, 5, 10, 11, 16, 17, 22, 23]);
        assert_eq!(newest_tap(&(vec![24], values.clone())), values);
    }

    #[test]
    fn a_matrix_is_transposed() {
        assert_eq!(transposed(&[1, 2, 3, 4, 5, 6], 2, 3), [1, 4, 2, 5, 3, 6]);
    }

    #[test]
    fn a_bias_outside_the_integer_range_saturates() {
        assert_eq!(integer_bias(1.0, 0.25), 4_i32.to_le_bytes());
        assert_eq!(integer_bias(1e30, 1e-10), i32::MAX.to_le_bytes());
        assert_eq!(integer_bias(f32::NAN, 1.0), 0_i32.to_le_bytes());
    }
}
