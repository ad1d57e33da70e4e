//! Attention operators: norms, rotary embedding, scores, softmax and the product with the values.

use super::OperatorContext;
use super::tensors::{
    Input, SessionThreads, attribute, count, infer, input, known_last_extent, operator_error, output,
    product, required_inputs, required_outputs, size_error,
};
use half::bf16;
use kernels::{Attention, Columns, Heads, Rotary, Scratch, ValueProduct};
use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput, ShapeInferenceContext,
};
use ort::value::TensorElementType::{Bfloat16, Float32};
use std::sync::PoisonError;

/// qkv bf16 `[B,L,3D]`, gains of queries and keys f32 `[D]`, `cos` and `sin` f32 `[L,hd/2]` → bf16 `[B,L,D]`.
pub(super) struct SelfAttention(pub(super) OperatorContext);
/// q bf16 `[B,L,D]`, keys and values bf16 `[B,T,2D]`, gains f32 `[D]`, bias of the keys f32 `[B,T]` → bf16 `[B,L,D]`.
pub(super) struct CrossAttention(pub(super) OperatorContext);

/// Attributes of both operators.
struct AttentionSettings {
    shared: OperatorContext,
    heads: usize,
    epsilon: f32,
    product: ValueProduct,
}

impl AttentionSettings {
    fn heads(&self, total: usize) -> ort::Result<Heads> {
        match total.checked_div(self.heads) {
            Some(width) if width * self.heads == total => Heads::new(self.heads, width).map_err(size_error),
            _ => Err(operator_error(format!("{} heads do not divide a width of {total}", self.heads))),
        }
    }

    fn attend(
        &self,
        context: &ComputeContext,
        attention: &Attention<'_>,
        to: &mut [bf16],
    ) -> ort::Result<()> {
        let mut scratch = self.shared.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let scratch: &mut Scratch = &mut scratch;
        let workers = SessionThreads { context, shared: &self.shared };
        self.shared.kernels.attention(&workers, scratch, attention, to).map_err(size_error)
    }
}

impl Operator for SelfAttention {
    type Kernel<'attr> = SelfAttentionKernel;

    fn name(&self) -> &'static str {
        "SelfAttention"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        required_inputs([Bfloat16, Float32, Float32, Float32, Float32])
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        required_outputs([Bfloat16])
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<SelfAttentionKernel> {
        let as_bytes = count(context, "values_as_bytes")? != 0;
        Ok(SelfAttentionKernel(AttentionSettings {
            shared: self.0.clone(),
            heads: count(context, "heads")?,
            epsilon: attribute(context, "epsilon")?,
            product: if as_bytes { ValueProduct::Int8 } else { ValueProduct::Bf16 },
        }))
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
        match known_last_extent(context, 1) {
            Some(width) => infer(context, 0, Bfloat16, 0, Some(width)),
            None => Ok(()),
        }
    }
}

pub(super) struct SelfAttentionKernel(AttentionSettings);

impl Kernel for SelfAttentionKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let inputs: [Input<'_>; 5] = [
            input(context, 0)?,
            input(context, 1)?,
            input(context, 2)?,
            input(context, 3)?,
            input(context, 4)?,
        ];
        let [qkv, query_gain, key_gain, cos, sin] = &inputs;
        let [batch, rows, wide] = qkv.shape()?;
        let total = wide / 3;
        if total * 3 != wide {
            return Err(operator_error(format!(
                "queries, keys and values have {wide} columns, not three times as many as one of them"
            )));
        }
        let heads = self.0.heads(total)?;
        let [of_inputs, of_outputs] =
            [product("qkv", &[rows, wide])?, product("the result", &[rows, total])?];
        let mut to = output(context, 0, &[batch, rows, total])?;
        let (_, to) = to.try_extract_tensor_mut::<bf16>()?;
        let qkv = qkv.slice::<bf16>()?;
        for (qkv, to) in qkv.chunks_exact(of_inputs.max(1)).zip(to.chunks_exact_mut(of_outputs.max(1))) {
            let columns = |index| Columns::new(qkv, wide, index * total, total).map_err(size_error);
            let attention = Attention {
                heads,
                queries: columns(0)?,
                keys: columns(1)?,
                values: columns(2)?,
                gains: [query_gain.slice()?, key_gain.slice()?],
                epsilon: self.0.epsilon,
                rotary: Some(Rotary { cos: cos.slice()?, sin: sin.slice()? }),
                key_bias: None,
                product: self.0.product,
            };
            self.0.attend(context, &attention, to)?;
        }
        Ok(())
    }
}

impl Operator for CrossAttention {
    type Kernel<'attr> = CrossAttentionKernel;

    fn name(&self) -> &'static str {
        "CrossAttention"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        required_inputs([Bfloat16, Bfloat16, Float32, Float32, Float32])
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        required_outputs([Bfloat16])
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<CrossAttentionKernel> {
        Ok(CrossAttentionKernel(AttentionSettings {
            shared: self.0.clone(),
            heads: count(context, "heads")?,
            epsilon: attribute(context, "epsilon")?,
            product: ValueProduct::Bf16,
        }))
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
        infer(context, 0, Bfloat16, 0, None)
    }
}

pub(super) struct CrossAttentionKernel(AttentionSettings);

impl Kernel for CrossAttentionKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let inputs: [Input<'_>; 5] = [
            input(context, 0)?,
            input(context, 1)?,
            input(context, 2)?,
            input(context, 3)?,
            input(context, 4)?,
        ];
        let [q, text, query_gain, key_gain, bias] = &inputs;
        let ([batch, rows, total], [texts, keys, wide]) = (q.shape()?, text.shape::<3>()?);
        let heads = self.0.heads(total)?;
        if total.checked_mul(2) != Some(wide) {
            return Err(operator_error(format!(
                "keys and values have {wide} columns for queries of {total}"
            )));
        }
        let bias_shape = bias.shape::<2>()?;
        if texts != batch || bias_shape != [batch, keys] {
            return Err(operator_error(format!(
                "queries are a batch of {batch}, the text is a batch of {texts} with {keys} keys, and the bias is {bias_shape:?}"
            )));
        }
        let of_queries = product("q", &[rows, total])?.max(1);
        let of_text = product("the text", &[keys, wide])?.max(1);
        let mut to = output(context, 0, &[batch, rows, total])?;
        let (_, to) = to.try_extract_tensor_mut::<bf16>()?;
        let (q, text, bias) = (q.slice::<bf16>()?, text.slice::<bf16>()?, bias.slice::<f32>()?);
        let query_batches = q.chunks_exact(of_queries).zip(to.chunks_exact_mut(of_queries));
        let text_batches = text.chunks_exact(of_text).zip(bias.chunks_exact(keys.max(1)));
        for ((q, to), (text, bias)) in query_batches.zip(text_batches) {
            let attention = Attention {
                heads,
                queries: Columns::new(q, total, 0, total).map_err(size_error)?,
                keys: Columns::new(text, wide, 0, total).map_err(size_error)?,
                values: Columns::new(text, wide, total, total).map_err(size_error)?,
                gains: [query_gain.slice()?, key_gain.slice()?],
                epsilon: self.0.epsilon,
                rotary: None,
                key_bias: Some(bias),
                product: self.0.product,
            };
            self.0.attend(context, &attention, to)?;
        }
        Ok(())
    }
}
