//! Operators on 8-bit quantised values.

use crate::builder::Operator;
use crate::{Dim, Error, GraphBuilder, Tensor};
use bundle::dtype::ElementType;
use bundle::quantization::Affine;

/// A quantisation range as constants of a graph.
#[derive(Debug, Clone)]
pub struct QuantizedRange {
    /// The scale, a scalar in the number format of the reals.
    pub scale: Tensor,
    /// The quantised value of 0.
    pub zero_point: Tensor,
}

impl GraphBuilder {
    /// Declares a scalar f32 constant, once for each value.
    ///
    /// # Errors
    /// None; constants are always valid.
    pub fn scalar(&mut self, value: f32) -> Result<Tensor, Error> {
        self.constant(&format!("scalar {value:e}"), &[], &[value])
    }

    /// Declares the constants of a u8 range.
    ///
    /// # Errors
    /// None; constants are always valid.
    pub fn range_u8(&mut self, range: Affine) -> Result<QuantizedRange, Error> {
        let zero_point = self.zero_point(ElementType::U8, range.zero_point)?;
        Ok(QuantizedRange { scale: self.scalar(range.scale)?, zero_point })
    }

    /// Declares the constants of an E4M3 range. `values` is the number format of the reals and the scale.
    ///
    /// # Errors
    /// None; constants are always valid.
    pub fn range_e4m3(&mut self, scale: f32, values: ElementType) -> Result<QuantizedRange, Error> {
        let zero_point = self.zero_point(ElementType::F8E4M3, 0)?;
        Ok(QuantizedRange { scale: self.scale(scale, values)?, zero_point })
    }

    /// Declares the constants of an s8 range around 0. `values` is the number format of the reals and the scale.
    ///
    /// # Errors
    /// None; constants are always valid.
    pub fn range_i8(&mut self, scale: f32, values: ElementType) -> Result<QuantizedRange, Error> {
        let zero_point = self.zero_i8()?;
        Ok(QuantizedRange { scale: self.scale(scale, values)?, zero_point })
    }

    /// A scale in the number format `values`, to which it is rounded: TensorRT reads it in that of the reals.
    fn scale(&mut self, scale: f32, values: ElementType) -> Result<Tensor, Error> {
        let bytes = match values {
            ElementType::Bf16 => half::bf16::from_f32(scale).to_le_bytes(),
            ElementType::F16 => half::f16::from_f32(scale).to_le_bytes(),
            _ => return self.scalar(scale),
        };
        self.inline(&format!("scalar {scale:e} {values}"), values, &[], 1, bytes.to_vec())
    }

    /// Declares the zero point of s8 values.
    ///
    /// # Errors
    /// None; constants are always valid.
    pub fn zero_i8(&mut self) -> Result<Tensor, Error> {
        self.zero_point(ElementType::I8, 0)
    }

    fn zero_point(&mut self, element: ElementType, value: u8) -> Result<Tensor, Error> {
        self.inline(&format!("{element} {value}"), element, &[], 1, vec![value])
    }

    /// Quantises `x`.
    ///
    /// # Errors
    /// None for tensors of this graph.
    pub fn quantize(&mut self, x: &Tensor, range: &QuantizedRange) -> Result<Tensor, Error> {
        let inputs = [Some(x), Some(&range.scale), Some(&range.zero_point)];
        let element = range.zero_point.element();
        Ok(self.node(Operator::new("QuantizeLinear"), &inputs, element, x.shape().to_vec()))
    }

    /// Dequantises `quantized`.
    ///
    /// # Errors
    /// Returns an error if the number format is not that of the range.
    pub fn dequantize(&mut self, quantized: &Tensor, range: &QuantizedRange) -> Result<Tensor, Error> {
        if quantized.element() != range.zero_point.element() {
            let expected = "values in the number format of their zero point";
            return Err(self.mismatch("DequantizeLinear", expected, &[quantized, &range.zero_point]));
        }
        let inputs = [Some(quantized), Some(&range.scale), Some(&range.zero_point)];
        let shape = quantized.shape().to_vec();
        Ok(self.node(Operator::new("DequantizeLinear"), &inputs, range.scale.element(), shape))
    }

    /// Dequantises `quantized`, whose zero point is 0, with a scale for each position along `axis`: `scales [extent]`. The
    /// result has the number format of the scales.
    ///
    /// # Errors
    /// Returns an error if there are more or fewer scales than positions.
    pub fn dequantize_along(
        &mut self,
        quantized: &Tensor,
        scales: &Tensor,
        axis: usize,
    ) -> Result<Tensor, Error> {
        if quantized.shape().get(axis).map(std::slice::from_ref) != Some(scales.shape()) {
            return Err(self.mismatch("DequantizeLinear", "a scale for each position", &[quantized, scales]));
        }
        let operator = Operator::new("DequantizeLinear").int("axis", axis);
        let inputs = [Some(quantized), Some(scales)];
        Ok(self.node(operator, &inputs, scales.element(), quantized.shape().to_vec()))
    }

    /// `x·W + b` in integers, with an f32 result: `x [rows,in]` u8, `weight [in,out]` s8 with `scales [out]`, `bias
    /// [out]`.
    ///
    /// # Errors
    /// Returns an error if the operands do not match.
    pub fn integer_linear(
        &mut self,
        x: &Tensor,
        range: &QuantizedRange,
        weight: &Tensor,
        scales: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Tensor, Error> {
        let fits = x.rank() == 2
            && x.element() == ElementType::U8
            && weight.element() == ElementType::I8
            && weight.rank() == 2
            && weight.shape()[0] == x.shape()[1]
            && scales.shape() == &weight.shape()[1..]
            && bias.is_none_or(|bias| bias.shape() == &weight.shape()[1..]);
        if !fits {
            let expected = "x u8 [rows,in], weight s8 [in,out] and scales [out]";
            return Err(self.mismatch("MatMulIntegerToFloat", expected, &[x, weight, scales]));
        }
        let inputs =
            [Some(x), Some(weight), Some(&range.scale), Some(scales), Some(&range.zero_point), None, bias];
        let shape = vec![x.shape()[0].clone(), weight.shape()[1].clone()];
        Ok(self.node(Operator::microsoft("MatMulIntegerToFloat"), &inputs, ElementType::F32, shape))
    }

    /// `x·Wᵀ + b` with 8-bit weights and a scale for each block of inputs: `weight [out,⌈in/block⌉,block]` u8 with zero
    /// point 128, `scales [out·⌈in/block⌉]`, `x […,in]` f32.
    ///
    /// # Errors
    /// Returns an error if the operands do not match.
    pub fn weight_only_linear(
        &mut self,
        x: &Tensor,
        block: usize,
        weight: &Tensor,
        scales: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Tensor, Error> {
        let width = x.from_last(1).fixed();
        let fits = weight.rank() == 3
            && weight.element() == ElementType::U8
            && width.is_some_and(|width| weight.shape()[1] == Dim::from(width.div_ceil(block)))
            && weight.shape()[2] == Dim::from(block)
            && scales.shape() == [weight.shape()[0].times(weight.shape()[1].clone())];
        let (Some(width), Some(out), true) = (width, weight.shape().first().and_then(Dim::fixed), fits)
        else {
            let expected = "x […,in], weight u8 [out,⌈in/block⌉,block] and a scale for each block";
            return Err(self.mismatch("MatMulNBits", expected, &[x, weight, scales]));
        };
        let operator = Operator::microsoft("MatMulNBits")
            .int("K", width)
            .int("N", out)
            .int("bits", 8)
            .int("block_size", block)
            .int("accuracy_level", 4);
        let mut shape = x.shape().to_vec();
        shape[x.rank() - 1] = out.into();
        let inputs = [Some(x), Some(weight), Some(scales), None, None, bias];
        Ok(self.node(operator, &inputs, ElementType::F32, shape))
    }

    /// Convolution in integers over channels-last frames, stride 1, same size: `x [N,H,W,Cin]` u8, `weight
    /// [Cout,Cin,k,k]` s8 with `scales [Cout]`, `bias [Cout]` s32 in units of input scale times weight scale. Returns
    /// u8 values in the range `output`.
    ///
    /// # Errors
    /// Returns an error if the operands do not match.
    pub fn integer_convolve(
        &mut self,
        x: &Tensor,
        input: &QuantizedRange,
        weight: [&Tensor; 3],
        output: &QuantizedRange,
    ) -> Result<Tensor, Error> {
        let [weight, scales, bias] = weight;
        let kernel: Option<Vec<usize>> = weight.shape().iter().skip(2).map(Dim::fixed).collect();
        let fits = x.rank() == 4
            && x.element() == ElementType::U8
            && weight.rank() == 4
            && weight.element() == ElementType::I8
            && weight.shape()[1] == x.shape()[3]
            && scales.shape() == &weight.shape()[..1]
            && bias.shape() == &weight.shape()[..1]
            && bias.element() == ElementType::I32;
        let Some(kernel) = kernel.filter(|kernel| fits && kernel.iter().all(|size| size % 2 == 1)) else {
            let expected = "x u8 [N,H,W,Cin], weight s8 [Cout,Cin,k,k], scales and s32 bias [Cout]";
            return Err(self.mismatch("QLinearConv", expected, &[x, weight, scales, bias]));
        };
        let half = [kernel[0] / 2, kernel[1] / 2];
        let operator = Operator::microsoft("QLinearConv")
            .int("channels_last", 1)
            .ints("kernel_shape", &kernel)
            .ints("pads", &[half[0], half[1], half[0], half[1]]);
        let zero = self.zero_i8()?;
        let inputs = [
            Some(x),
            Some(&input.scale),
            Some(&input.zero_point),
            Some(weight),
            Some(scales),
            Some(&zero),
            Some(&output.scale),
            Some(&output.zero_point),
            Some(bias),
        ];
        let mut shape = x.shape().to_vec();
        shape[3] = weight.shape()[0].clone();
        Ok(self.node(operator, &inputs, ElementType::U8, shape))
    }

    /// `a·b` of `a [rows,in]` and `b [in,out]`.
    ///
    /// # Errors
    /// Returns an error if the widths do not match.
    pub fn product(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor, Error> {
        if a.rank() != 2 || b.rank() != 2 || a.shape()[1] != b.shape()[0] {
            return Err(self.mismatch("MatMul", "[rows,in] and [in,out]", &[a, b]));
        }
        let shape = vec![a.shape()[0].clone(), b.shape()[1].clone()];
        Ok(self.node(Operator::new("MatMul"), &[Some(a), Some(b)], a.element(), shape))
    }
}
