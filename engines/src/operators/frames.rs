//! Convolutions and norms of frames, channels last.

use super::OperatorContext;
use super::tensors::{
    SessionThreads, attribute, count, infer, input, known_last_extent, operator_error, optional, output,
    required_inputs, size_error,
};
use kernels::{ChannelNorm, Convolution, InputTransform, KernelShape, KernelView, RowScale, Scratch};
use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput, ShapeInferenceContext,
};
use ort::value::TensorElementType::{Float32, Int8, Int32, Uint8};
use std::sync::PoisonError;

/// Quantised frames u8 `[t,h,w,C]`, weights s8 `[N/16,K/4,64]`, their sums i32 `[taps,N]` and scales f32 `[N]`, bias
/// f32 `[N]`, optionally the two previous frames u8 `[2,h,w,C]`, optionally a residual of the result's shape → f32
/// `[t,h,w,N]`.
pub(super) struct CausalConvolution(pub(super) OperatorContext);
/// `x` f32 `[t,h,w,C]`, gain f32 `[C]` → quantised values u8 `[t,h,w,C]`.
pub(super) struct ChannelNormQuant(pub(super) OperatorContext);

/// Reads the scale and zero point from the attributes `scale` and `zero`.
fn range(context: &KernelContext<'_>) -> ort::Result<RowScale> {
    let zero = u8::try_from(count(context, "zero")?)
        .ok()
        .ok_or_else(|| operator_error("`zero` is not in 0..=255"))?;
    Ok(RowScale { scale: attribute(context, "scale")?, zero: zero.into() })
}

impl Operator for CausalConvolution {
    type Kernel<'attr> = ConvolutionKernel;

    fn name(&self) -> &'static str {
        "CausalConvolution"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let may_be_absent = [OperatorInput::optional(Uint8), OperatorInput::optional(Float32)];
        required_inputs([Uint8, Int8, Int32, Float32, Float32]).into_iter().chain(may_be_absent)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(Float32)]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<ConvolutionKernel> {
        Ok(ConvolutionKernel {
            shared: self.0.clone(),
            input: range(context)?,
            side: count(context, "side")?,
            transform: InputTransform {
                doubles_pixels: count(context, "doubles_pixels")? != 0,
                splits_frames: count(context, "splits_frames")? != 0,
            },
        })
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
        // Attributes are not available here. A residual has the shape of the result.
        match known_last_extent(context, 4) {
            Some(outputs) if context.inputs().len() > 6 => infer(context, 0, Float32, 6, Some(outputs)),
            _ => Ok(()),
        }
    }
}

pub(super) struct ConvolutionKernel {
    shared: OperatorContext,
    input: RowScale,
    side: usize,
    transform: InputTransform,
}

impl Kernel for ConvolutionKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let (quantized, packed, sums) = (input(context, 0)?, input(context, 1)?, input(context, 2)?);
        let (scales, bias) = (input(context, 3)?, input(context, 4)?);
        let (history, residual) = (optional(context, 5)?, optional(context, 6)?);
        let [frames, height, width, wide] = quantized.shape()?;
        let [taps, outputs] = sums.shape()?;
        let parts = 1 + usize::from(self.transform.splits_frames);
        if !wide.is_multiple_of(parts) {
            return Err(operator_error(format!("{wide} channels cannot be split into two frames")));
        }
        let channels = wide / parts;
        let extent = [frames, height, width];
        let [t, h, w] = Convolution::result(extent, self.transform).map_err(size_error)?;
        let shape = KernelShape::new(outputs, channels, taps, self.side).map_err(size_error)?;
        let kernel =
            KernelView::new(shape, packed.slice()?, sums.slice()?, scales.slice()?).map_err(size_error)?;
        let mut to = output(context, 0, &[t, h, w, outputs])?;
        let (_, to) = to.try_extract_tensor_mut::<f32>()?;
        let convolution = Convolution {
            kernel,
            bias: bias.slice()?,
            input: self.input,
            frames: quantized.slice()?,
            extent,
            history: history.as_ref().map(|history| history.slice()).transpose()?,
            transform: self.transform,
            residual: residual.as_ref().map(|residual| residual.slice()).transpose()?,
            to,
        };
        let mut scratch = self.shared.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let scratch: &mut Scratch = &mut scratch;
        let workers = SessionThreads { context, shared: &self.shared };
        self.shared.kernels.convolve_int8(&workers, scratch, convolution).map_err(size_error)
    }
}

impl Operator for ChannelNormQuant {
    type Kernel<'attr> = NormKernel;

    fn name(&self) -> &'static str {
        "ChannelNormQuant"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        required_inputs([Float32, Float32])
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(Uint8)]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<NormKernel> {
        Ok(NormKernel {
            shared: self.0.clone(),
            range: range(context)?,
            epsilon: attribute(context, "epsilon")?,
            activates: count(context, "silu")? != 0,
        })
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
        infer(context, 0, Uint8, 0, None)
    }
}

pub(super) struct NormKernel {
    shared: OperatorContext,
    range: RowScale,
    epsilon: f32,
    activates: bool,
}

impl Kernel for NormKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let (x, gain) = (input(context, 0)?, input(context, 1)?);
        let (shape, [channels]) = (x.shape::<4>()?, gain.shape()?);
        if shape[3] != channels {
            return Err(operator_error(format!("the gain has {channels} values for {} channels", shape[3])));
        }
        let mut to = output(context, 0, &shape)?;
        let (_, to) = to.try_extract_tensor_mut::<u8>()?;
        let norm = ChannelNorm { gain: gain.slice()?, epsilon: self.epsilon, activates: self.activates };
        let workers = SessionThreads { context, shared: &self.shared };
        self.shared
            .kernels
            .channel_norm_quantise(&workers, x.slice()?, norm, self.range, to)
            .map_err(size_error)
    }
}
