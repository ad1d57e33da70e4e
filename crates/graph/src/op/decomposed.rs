//! Attention, rotary embedding and RMS norm as small standard operators, which TensorRT fuses.

use super::attention::Attention;
use super::quantized::QuantizedRange;
use crate::builder::Operator;
use crate::{Dim, Error, GraphBuilder, Tensor};
use bundle::dtype::ElementType;

/// E4M3 ranges of the operands of an attention.
#[derive(Debug, Clone)]
pub struct AttentionRanges {
    /// Of the queries, after multiplication with the attention's scale.
    pub queries: QuantizedRange,
    /// Of the keys.
    pub keys: QuantizedRange,
    /// Of the values.
    pub values: QuantizedRange,
    /// Of the softmax outputs.
    pub weights: QuantizedRange,
}

impl GraphBuilder {
    /// [`GraphBuilder::attention`] as two matrix products and a softmax. The L×S scores are stored unless the provider
    /// fuses them. With `ranges`, all four operands are rounded to E4M3, each right before its product.
    ///
    /// # Errors
    /// Returns an error if the shapes do not match.
    pub fn decomposed_attention(
        &mut self,
        attention: Attention,
        [q, k, v]: [&Tensor; 3],
        bias: Option<&Tensor>,
        ranges: Option<&AttentionRanges>,
    ) -> Result<Tensor, Error> {
        let factor = self.constant(&format!("scalar {:e}", attention.scale), &[], &[attention.scale])?;
        let factor = self.cast(&factor, q.element());
        let queries = self.multiply(q, &factor)?;
        let queries = self.heads(attention, &queries, [0, 2, 1, 3])?; // [B,n,L,hd]
        let keys = self.heads(attention, k, [0, 2, 3, 1])?; // [B,n,hd,S]
        let values = self.heads(attention, v, [0, 2, 1, 3])?; // [B,n,S,vd]
        let queries = self.rounded(queries, ranges.map(|ranges| &ranges.queries))?;
        let keys = self.rounded(keys, ranges.map(|ranges| &ranges.keys))?;
        let mut scores = self.batched_product(&queries, &keys)?;
        if let Some(bias) = bias {
            scores = self.add(&scores, bias)?;
        }
        let softmax = Operator::new("Softmax").signed_int("axis", -1);
        let weights = self.node(softmax, &[Some(&scores)], scores.element(), scores.shape().to_vec());
        let weights = self.rounded(weights, ranges.map(|ranges| &ranges.weights))?;
        let values = self.rounded(values, ranges.map(|ranges| &ranges.values))?;
        let mixed = self.batched_product(&weights, &values)?; // [B,n,L,vd]
        let mixed = self.transpose(&mixed, &[0, 2, 1, 3])?;
        self.reshape(&mixed, &[q.shape()[0].clone(), q.shape()[1].clone(), v.shape()[2].clone()])
    }

    /// Reshapes `x [B,L,n·hd]` to `[B,L,n,hd]` and permutes its axes.
    fn heads(&mut self, attention: Attention, x: &Tensor, order: [usize; 4]) -> Result<Tensor, Error> {
        let width = x.from_last(1).fixed().map_or(0, |width| width / attention.heads.max(1));
        let shape = [x.shape()[0].clone(), x.shape()[1].clone(), attention.heads.into(), width.into()];
        let split = self.reshape(x, &shape)?;
        self.transpose(&split, &order)
    }

    fn rounded(&mut self, x: Tensor, range: Option<&QuantizedRange>) -> Result<Tensor, Error> {
        let Some(range) = range else { return Ok(x) };
        let quantized = self.quantize(&x, range)?;
        self.dequantize(&quantized, range)
    }

    /// `a [B,n,L,K]` times `b [B,n,K,S]`.
    fn batched_product(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor, Error> {
        let fits = a.rank() == 4
            && b.rank() == 4
            && a.shape()[..2] == b.shape()[..2]
            && a.shape()[3] == b.shape()[2]
            && a.element() == b.element();
        if !fits {
            return Err(self.mismatch("MatMul", "[B,n,L,K] and [B,n,K,S]", &[a, b]));
        }
        let mut shape = a.shape().to_vec();
        shape[3] = b.shape()[3].clone();
        Ok(self.node(Operator::new("MatMul"), &[Some(a), Some(b)], a.element(), shape))
    }

    /// [`GraphBuilder::rotate_interleaved`] as `(a·cos - b·sin, a·sin + b·cos)` over pairs.
    pub(super) fn decomposed_rotation(
        &mut self,
        heads: usize,
        x: &Tensor,
        [cos, sin]: [&Tensor; 2],
    ) -> Result<Tensor, Error> {
        let (rows, half) = (x.shape()[1].clone(), cos.shape()[1].clone());
        let pairs = [x.shape()[0].clone(), rows.clone(), heads.into(), half.clone(), 2.into()];
        let pairs = self.reshape(x, &pairs)?;
        let (a, b) = (self.slice(&pairs, 4, 0, 1)?, self.slice(&pairs, 4, 1, 2)?);
        let angles = [rows, Dim::from(1), half, Dim::from(1)];
        let (cos, sin) = (self.reshape(cos, &angles)?, self.reshape(sin, &angles)?);
        let (a_cos, b_sin) = (self.multiply(&a, &cos)?, self.multiply(&b, &sin)?);
        let (a_sin, b_cos) = (self.multiply(&a, &sin)?, self.multiply(&b, &cos)?);
        let (first, second) = (self.subtract(&a_cos, &b_sin)?, self.add(&a_sin, &b_cos)?);
        let rotated = self.concat(&[&first, &second], 4)?;
        self.reshape(&rotated, x.shape())
    }

    /// [`GraphBuilder::cos_and_sin`] as products and sums, for CUDA, whose kernels of `Cos` and `Sin` end at version 21 of
    /// ONNX's operators. Largest error up to 1,000 radians: 7e-7.
    ///
    /// `x - 2πn`, with 2π in three parts whose products with `n` are exact (Cody and Waite), is in -π..π. The Taylor
    /// series of its half give both: `sin 2t = 2 sin t cos t`, `cos 2t = 1 - 2 sin² t`.
    pub(super) fn decomposed_cos_and_sin(&mut self, x: &Tensor) -> Result<[Tensor; 2], Error> {
        const TURN: [f32; 3] = [6.281_25, 1.935_005_2e-3, 3.019_916e-7];
        const SINE: [f32; 7] =
            [1.0, -1.0 / 6.0, 1.0 / 120.0, -1.0 / 5_040.0, 2.755_732e-6, -2.505_210_8e-8, 1.605_904_4e-10];
        const COSINE: [f32; 8] = [
            1.0,
            -1.0 / 2.0,
            1.0 / 24.0,
            -1.0 / 720.0,
            2.480_158_7e-5,
            -2.755_732e-7,
            2.087_675_7e-9,
            -1.147_074_6e-11,
        ];
        let half = self.scalar(0.5)?;
        let turns = self.scalar(std::f32::consts::TAU.recip())?;
        let turns = self.multiply(x, &turns)?;
        let turns = self.add(&turns, &half)?;
        let turns = self.floor(&turns);
        let mut rest = x.clone();
        for part in TURN {
            let part = self.scalar(part)?;
            let part = self.multiply(&turns, &part)?;
            rest = self.subtract(&rest, &part)?;
        }
        let angle = self.multiply(&rest, &half)?;
        let square = self.multiply(&angle, &angle)?;
        let sine = self.polynomial(&square, &SINE)?;
        let sine = self.multiply(&sine, &angle)?;
        let cosine = self.polynomial(&square, &COSINE)?;
        let (one, two) = (self.scalar(1.0)?, self.scalar(2.0)?);
        let twice = self.multiply(&sine, &two)?;
        let square = self.multiply(&twice, &sine)?;
        Ok([self.subtract(&one, &square)?, self.multiply(&twice, &cosine)?])
    }

    /// The sum of `coefficients[i]·xⁱ`.
    fn polynomial(&mut self, x: &Tensor, coefficients: &[f32]) -> Result<Tensor, Error> {
        let mut terms = coefficients.iter().rev();
        let mut sum = self.scalar(terms.next().copied().unwrap_or_default())?;
        for coefficient in terms {
            let coefficient = self.scalar(*coefficient)?;
            sum = self.multiply(&sum, x)?;
            sum = self.add(&sum, &coefficient)?;
        }
        Ok(sum)
    }

    /// [`GraphBuilder::rms_norm`] as small operators, the mean in f32.
    pub(super) fn decomposed_rms_norm(
        &mut self,
        x: &Tensor,
        gain: &Tensor,
        epsilon: f32,
    ) -> Result<Tensor, Error> {
        let wide = self.cast(x, ElementType::F32);
        let squares = self.multiply(&wide, &wide)?;
        let mut shape = x.shape().to_vec();
        let last = shape.len() - 1;
        shape[last] = 1.into();
        let axis = self.integers("integer -1", &[1], &[-1])?;
        let mean = Operator::new("ReduceMean").int("keepdims", 1);
        let mean = self.node(mean, &[Some(&squares), Some(&axis)], ElementType::F32, shape);
        let epsilon = self.constant(&format!("scalar {epsilon:e}"), &[], &[epsilon])?;
        let mean = self.add(&mean, &epsilon)?;
        let root = self.square_root(&mean);
        let unit = self.divide(&wide, &root)?;
        let unit = self.cast(&unit, x.element());
        self.multiply(&unit, gain)
    }

    /// [`GraphBuilder::layer_norm_of_tokens`] as a norm without parameters, a product and a sum, in f32. TensorRT's norm
    /// takes parameters of shape `[D]` only.
    pub(super) fn decomposed_norm_of_tokens(
        &mut self,
        x: &Tensor,
        [scale, shift]: [&Tensor; 2],
        epsilon: f64,
    ) -> Result<Tensor, Error> {
        let width = x.from_last(1).fixed().unwrap_or_default();
        let ones = self.constant(&format!("ones [{width}]"), &[width], &vec![1.0; width])?;
        let zeros = self.constant(&format!("zeros [{width}]"), &[width], &vec![0.0; width])?;
        let wide = self.cast(x, ElementType::F32);
        let unit = self.layer_norm(&wide, &ones, &zeros, epsilon)?;
        let (scale, shift) = (self.cast(scale, ElementType::F32), self.cast(shift, ElementType::F32));
        let scaled = self.with_vectors("Mul", &unit, &scale);
        let shifted = self.with_vectors("Add", &scaled, &shift);
        Ok(self.cast(&shifted, x.element()))
    }
}
