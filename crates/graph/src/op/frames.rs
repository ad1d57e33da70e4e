//! Operators of the domain `rushes` on frames with their channels last, `[t,h,w,C]`: the decoder's.

use crate::builder::Operator;
use crate::{Dim, Error, GraphBuilder, Tensor};
use bundle::dtype::ElementType;
use bundle::quantization::Affine;

/// The kernel of a convolution as s8, packed: `K = taps·side²·C` products for each output.
#[derive(Debug, Clone)]
pub struct PackedKernel {
    /// s8 `[N/16, K/4, 64]`.
    pub packed: Tensor,
    /// Sums of the codes of each tap of time and output, i32 `[taps,N]`.
    pub sums: Tensor,
    /// Scale of each output, f32 `[N]`.
    pub scales: Tensor,
    /// f32 `[N]`.
    pub bias: Tensor,
    /// Its height and width, 1 or 3.
    pub side: usize,
}

/// What a convolution reads.
#[derive(Debug, Clone, Copy)]
pub struct CodedFrames<'a> {
    /// u8 `[t,h,w,C]`.
    pub codes: &'a Tensor,
    /// The range of the codes.
    pub range: Affine,
    /// The two frames before, u8 `[2,h,w,C]`; nothing where only zeros came before.
    pub history: Option<&'a Tensor>,
    /// Whether each pixel stands for four.
    pub doubles_pixels: bool,
    /// Whether each frame holds two, the halves of its channels.
    pub splits_frames: bool,
}

impl<'a> CodedFrames<'a> {
    /// Frames as they are, with nothing before them.
    pub fn new(codes: &'a Tensor, range: Affine) -> Self {
        Self { codes, range, history: None, doubles_pixels: false, splits_frames: false }
    }
}

impl GraphBuilder {
    /// A convolution over space and, causally, over time, to f32 `[t,h,w,N]`; `residual` of that shape is added.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn convolve_coded_frames(
        &mut self,
        x: CodedFrames<'_>,
        kernel: &PackedKernel,
        residual: Option<&Tensor>,
    ) -> Result<Tensor, Error> {
        const NAME: &str = "CausalConvolution";
        let expected = "codes u8 [t,h,w,C] and a packed kernel for C channels";
        let fixed = |tensor: &Tensor, axis: usize| tensor.shape().get(axis).and_then(Dim::fixed);
        let (Some(taps), Some(outputs), [t, h, w, _], Some(wide)) =
            (fixed(&kernel.sums, 0), fixed(&kernel.sums, 1), x.codes.shape(), fixed(x.codes, 3))
        else {
            return Err(self.mismatch(NAME, expected, &[x.codes, &kernel.sums]));
        };
        let (time, space) = (1 + usize::from(x.splits_frames), 1 + usize::from(x.doubles_pixels));
        let products = taps * kernel.side * kernel.side * (wide / time);
        let packed: [Dim; 3] = [outputs.div_ceil(16).into(), products.div_ceil(4).into(), 64.into()];
        let shape = vec![t.times(time), h.times(space), w.times(space), outputs.into()];
        let fits = kernel.packed.shape() == packed
            && x.codes.element() == ElementType::U8
            && residual.is_none_or(|residual| residual.shape() == shape);
        if !fits {
            return Err(self.mismatch(NAME, expected, &[x.codes, &kernel.packed]));
        }
        let operator = Operator::rushes(NAME)
            .float("scale", x.range.scale)
            .int("zero", x.range.zero_point.into())
            .int("side", kernel.side)
            .int("doubles_pixels", x.doubles_pixels.into())
            .int("splits_frames", x.splits_frames.into());
        let PackedKernel { packed, sums, scales, bias, .. } = kernel;
        let inputs = [Some(x.codes), Some(packed), Some(sums), Some(scales), Some(bias), x.history, residual];
        Ok(self.node(operator, &inputs, ElementType::F32, shape))
    }

    /// `x / √(mean(x²) + ε) · gain` over channels, through SiLU where `activates`, to codes of a known range.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn channel_norm_codes(
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
