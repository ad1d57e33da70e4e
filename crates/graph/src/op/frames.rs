//! Operators of the domain `rushes` on channels-last frames `[t,h,w,C]`, for the decoder.

use crate::builder::Operator;
use crate::{Dim, Error, GraphBuilder, Tensor};
use bundle::dtype::ElementType;
use bundle::quantization::Affine;

/// The packed s8 kernel of a convolution: `K = taps·side²·C` products for each output.
#[derive(Debug, Clone)]
pub struct PackedKernel {
    /// s8 `[N/16, K/4, 64]`.
    pub packed: Tensor,
    /// Sums of the quantised weights of each tap in time and output, i32 `[taps,N]`.
    pub sums: Tensor,
    /// Scale of each output, f32 `[N]`.
    pub scales: Tensor,
    /// f32 `[N]`.
    pub bias: Tensor,
    /// Its height and width, 1 or 3.
    pub side: usize,
}

/// The input of a convolution.
#[derive(Debug, Clone, Copy)]
pub struct QuantizedFrames<'a> {
    /// u8 `[t,h,w,C]`.
    pub values: &'a Tensor,
    /// The range of the values.
    pub range: Affine,
    /// The two previous frames, u8 `[2,h,w,C]`; none if they are zeros.
    pub history: Option<&'a Tensor>,
    /// True if each pixel is repeated to 2x2 before the convolution.
    pub doubles_pixels: bool,
    /// True if each frame contains two frames, as halves of its channels.
    pub splits_frames: bool,
}

impl<'a> QuantizedFrames<'a> {
    /// Creates an input without history, repetition or splitting.
    pub fn new(values: &'a Tensor, range: Affine) -> Self {
        Self { values, range, history: None, doubles_pixels: false, splits_frames: false }
    }
}

impl GraphBuilder {
    /// A convolution over space and, causally, over time, to f32 `[t,h,w,N]`; `residual` of that shape is added.
    ///
    /// # Errors
    /// Returns an error if the shapes do not match.
    pub fn convolve_quantized_frames(
        &mut self,
        x: QuantizedFrames<'_>,
        kernel: &PackedKernel,
        residual: Option<&Tensor>,
    ) -> Result<Tensor, Error> {
        const NAME: &str = "CausalConvolution";
        let expected = "values u8 [t,h,w,C] and a packed kernel for C channels";
        let fixed = |tensor: &Tensor, axis: usize| tensor.shape().get(axis).and_then(Dim::fixed);
        let (Some(taps), Some(outputs), [t, h, w, _], Some(wide)) =
            (fixed(&kernel.sums, 0), fixed(&kernel.sums, 1), x.values.shape(), fixed(x.values, 3))
        else {
            return Err(self.mismatch(NAME, expected, &[x.values, &kernel.sums]));
        };
        let (time, space) = (1 + usize::from(x.splits_frames), 1 + usize::from(x.doubles_pixels));
        let products = taps * kernel.side * kernel.side * (wide / time);
        let packed: [Dim; 3] = [outputs.div_ceil(16).into(), products.div_ceil(4).into(), 64.into()];
        let shape = vec![t.times(time), h.times(space), w.times(space), outputs.into()];
        let fits = kernel.packed.shape() == packed
            && x.values.element() == ElementType::U8
            && residual.is_none_or(|residual| residual.shape() == shape);
        if !fits {
            return Err(self.mismatch(NAME, expected, &[x.values, &kernel.packed]));
        }
        let operator = Operator::rushes(NAME)
            .float("scale", x.range.scale)
            .int("zero", x.range.zero_point.into())
            .int("side", kernel.side)
            .int("doubles_pixels", x.doubles_pixels.into())
            .int("splits_frames", x.splits_frames.into());
        let PackedKernel { packed, sums, scales, bias, .. } = kernel;
        let inputs =
            [Some(x.values), Some(packed), Some(sums), Some(scales), Some(bias), x.history, residual];
        Ok(self.node(operator, &inputs, ElementType::F32, shape))
    }

    /// `x / √(mean(x²) + ε) · gain` over channels, then SiLU if `activates`, quantised with `range`.
    ///
    /// # Errors
    /// Returns an error if the shapes do not match.
    pub fn channel_norm_quantized(
        &mut self,
        x: &Tensor,
        gain: &Tensor,
        epsilon: f32,
        activates: bool,
        range: Affine,
    ) -> Result<Tensor, Error> {
        if x.rank() != 4 || gain.shape() != [x.from_last(1)] {
            return Err(self.mismatch("ChannelNormQuant", "x [t,h,w,C] and a gain [C]", &[x, gain]));
        }
        let operator = Operator::rushes("ChannelNormQuant")
            .float("epsilon", epsilon)
            .int("silu", activates.into())
            .float("scale", range.scale)
            .int("zero", range.zero_point.into());
        Ok(self.node(operator, &[Some(x), Some(gain)], ElementType::U8, x.shape().to_vec()))
    }
}
