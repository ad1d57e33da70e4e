//! Attention and rotary embedding as fused operators of ONNX Runtime.

use crate::builder::Operator;
use crate::{Dim, Error, GraphBuilder, Tensor};

/// Parameters of an attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Number of heads; the widths of q, k and v are heads × head width.
    pub heads: usize,
    /// Factor on `q·kᵀ` before the softmax.
    pub scale: f32,
}

impl GraphBuilder {
    /// `softmax(scale·q·kᵀ + bias)·v` for each head: `q [B,L,n·hd]`, `k [B,S,n·hd]`, `v [B,S,n·vd]`, and `bias`
    /// `[1,n,L,S]`. Returns `[B,L,n·vd]`.
    ///
    /// Without a bias the CPU provider computes it block by block and never stores all L×S scores.
    ///
    /// # Errors
    /// Returns an error if the shapes do not match or a width is not a multiple of the heads.
    pub fn attention(
        &mut self,
        attention: Attention,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Tensor, Error> {
        let divides =
            |x: &Tensor| x.from_last(1).fixed().is_some_and(|width| width.is_multiple_of(attention.heads));
        let fits = q.rank() == 3
            && k.rank() == 3
            && v.rank() == 3
            && q.shape()[0] == k.shape()[0]
            && k.shape()[..2] == v.shape()[..2]
            && q.shape()[2] == k.shape()[2]
            && [q, v].into_iter().all(divides)
            && bias.is_none_or(|bias| {
                bias.shape() == [1.into(), attention.heads.into(), q.shape()[1].clone(), k.shape()[1].clone()]
            });
        if !fits {
            let mut operands = vec![q, k, v];
            operands.extend(bias);
            let expected =
                format!("q [B,L,d], k and v [B,S,d] for {} heads, bias [1,n,L,S]", attention.heads);
            return Err(self.mismatch("MultiHeadAttention", expected, &operands));
        }
        if self.is_plain() {
            return self.decomposed_attention(attention, [q, k, v], bias, None);
        }
        let operator = Operator::microsoft("MultiHeadAttention")
            .int("num_heads", attention.heads)
            .float("scale", attention.scale);
        let mut inputs = vec![Some(q), Some(k), Some(v)];
        if bias.is_some() {
            inputs.extend([None, None, bias]);
        }
        let shape = vec![q.shape()[0].clone(), q.shape()[1].clone(), v.shape()[2].clone()];
        Ok(self.node(operator, &inputs, q.element(), shape))
    }

    /// Rotary embedding over interleaved pairs `(x[2j], x[2j+1])`, the same angles for all heads: `x [B,L,n·hd]`,
    /// `cos` and `sin [L,hd/2]`.
    ///
    /// # Errors
    /// Returns an error if the shapes do not match.
    pub fn rotate_interleaved(
        &mut self,
        heads: usize,
        x: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
    ) -> Result<Tensor, Error> {
        let half = x.from_last(1).fixed().map(|width| Dim::from(width / heads / 2));
        let fits = x.rank() == 3
            && cos.shape() == sin.shape()
            && cos.rank() == 2
            && cos.shape()[0] == x.shape()[1]
            && half.is_some_and(|half| half == cos.shape()[1] && half.times(2 * heads) == x.shape()[2]);
        if !fits {
            return Err(self.mismatch(
                "RotaryEmbedding",
                "x [B,L,n·hd], cos and sin [L,hd/2]",
                &[x, cos, sin],
            ));
        }
        if self.is_plain() {
            return self.decomposed_rotation(heads, x, [cos, sin]);
        }
        let operator = Operator::microsoft("RotaryEmbedding").int("interleaved", 1).int("num_heads", heads);
        let first_position = self.integers("integer 0", &[1], &[0])?;
        let inputs = [Some(x), Some(&first_position), Some(cos), Some(sin)];
        Ok(self.node(operator, &inputs, x.element(), x.shape().to_vec()))
    }
}
