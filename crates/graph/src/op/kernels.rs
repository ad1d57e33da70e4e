//! Operators of the domain `rushes`, which the crate `kernels` computes on the CPU.
//!
//! Quantised activations are u8 with a scale and a zero point for each row. Weights are packed in the order in which
//! the matrix products read them.

use super::token_rows::is_table;
use crate::builder::Operator;
use crate::{Dim, Error, GraphBuilder, Tensor};
use bundle::dtype::ElementType;

/// Quantised activations: `x[…][k] ≈ scale·(value - zero)`.
#[derive(Debug, Clone)]
pub struct Quantized {
    /// u8 `[B,L,K]`.
    pub values: Tensor,
    /// Scale and zero point of each row, f32 `[B,L,2]`.
    pub scales: Tensor,
}

/// Packed s8 weights of a linear layer.
#[derive(Debug, Clone)]
pub struct PackedInt8 {
    /// s8 `[N/16, K/4, 64]`.
    pub packed: Tensor,
    /// Sums of the quantised weights of each output, i32 `[N]`.
    pub sums: Tensor,
    /// Scale of each output, f32 `[N]`.
    pub scales: Tensor,
    /// f32 `[N]`.
    pub bias: Tensor,
}

/// Packed bf16 weights of a linear layer.
#[derive(Debug, Clone)]
pub struct PackedBf16 {
    /// bf16 `[N/16, K/2, 32]`.
    pub packed: Tensor,
    /// f32 `[N]`.
    pub bias: Tensor,
    /// Factors of the sums of each output, f32 `[N]`; none are ones.
    pub factors: Option<Tensor>,
}

/// The operands of a linear layer.
#[derive(Debug, Clone, Copy)]
pub enum LinearOperands<'a> {
    /// 8-bit integers.
    Int8(&'a Quantized, &'a PackedInt8),
    /// bf16 `[B,L,K]`.
    Bf16(&'a Tensor, &'a PackedBf16),
}

/// What is added to the values of a linear layer, before its activation, gate and residual.
#[derive(Debug, Clone, Copy, Default)]
pub struct Added<'a> {
    /// bf16 `[B,L,N]`.
    pub addend: Option<&'a Tensor>,
    /// The second product of a low-rank change.
    pub branch: Option<PackedBranch<'a>>,
}

/// The second product of a low-rank change, in the format of the layer.
#[derive(Debug, Clone, Copy)]
pub struct PackedBranch<'a> {
    /// `[B,L,parts·R]`, and weights of N outputs and R inputs, whose bias is not read.
    pub operands: LinearOperands<'a>,
    /// The number of parts: each part of the outputs reads its own part of the rows.
    pub parts: usize,
}

impl<'a> Added<'a> {
    /// Checks the shapes for a layer with these operands and this result.
    fn fits(&self, layer: LinearOperands<'_>, shape: &[Dim]) -> bool {
        let has_shape = |tensor: &Tensor| tensor.shape() == shape && tensor.element() == ElementType::Bf16;
        let of_branch = self.branch.is_none_or(|PackedBranch { operands, parts }| {
            let is_alike = matches!(
                (operands, layer),
                (LinearOperands::Int8(..), LinearOperands::Int8(..))
                    | (LinearOperands::Bf16(..), LinearOperands::Bf16(..))
            );
            is_alike
                && operands.x().shape()[..2] == shape[..2]
                && operands.outputs_with(parts).as_ref() == shape.get(2)
        });
        of_branch && self.addend.is_none_or(has_shape)
    }

    /// Returns the inputs of the node after all others, for a layer with these operands.
    fn inputs(&self, layer: LinearOperands<'a>) -> Vec<Option<&'a Tensor>> {
        let branch = self.branch.map(|branch| branch.operands);
        let (branch, factors) = match layer {
            LinearOperands::Int8(..) => (branch.map_or(vec![None; 5], |branch| branch.optional(5)), vec![]),
            LinearOperands::Bf16(_, w) => {
                (branch.map_or(vec![None; 2], |branch| branch.optional(2)), vec![w.factors.as_ref()])
            }
        };
        [self.addend].into_iter().chain(branch).chain(factors).collect()
    }

    fn attribute(&self, operator: Operator) -> Operator {
        match self.branch {
            Some(branch) => operator.int("parts", branch.parts),
            None => operator,
        }
    }
}

/// The activation after a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// None.
    None,
    /// GELU in its tanh form.
    GeluTanh,
}

/// Parameters of an attention of the domain `rushes`.
#[derive(Debug, Clone, Copy)]
pub struct HeadAttention<'a> {
    /// Number of heads.
    pub heads: usize,
    /// Gain of the queries' RMS norm, `[D]`.
    pub query_gain: &'a Tensor,
    /// Gain of the keys' RMS norm, `[D]`.
    pub key_gain: &'a Tensor,
    /// Added to the mean square.
    pub epsilon: f64,
}

impl<'a> LinearOperands<'a> {
    /// Returns the inputs of the node, in the order of the operator.
    fn inputs(&self) -> Vec<&'a Tensor> {
        match self {
            Self::Int8(x, w) => vec![&x.values, &x.scales, &w.packed, &w.sums, &w.scales, &w.bias],
            Self::Bf16(x, w) => vec![x, &w.packed, &w.bias],
        }
    }

    /// Returns the first `count` inputs.
    fn optional(&self, count: usize) -> Vec<Option<&'a Tensor>> {
        self.inputs().into_iter().take(count).map(Some).collect()
    }

    fn x(&self) -> &'a Tensor {
        match self {
            Self::Int8(x, _) => &x.values,
            Self::Bf16(x, _) => x,
        }
    }

    /// Returns the number of outputs if all shapes match.
    fn outputs(&self) -> Option<Dim> {
        self.outputs_with(1)
    }

    /// Returns the number of outputs if all shapes match, where the weights have the width of one of `parts` parts of the
    /// rows.
    fn outputs_with(&self, parts: usize) -> Option<Dim> {
        let (packed, bias, step) = match self {
            Self::Int8(_, w) => (&w.packed, &w.bias, 4),
            Self::Bf16(_, w) => (&w.packed, &w.bias, 2),
        };
        let (outputs, width) = (bias.from_last(1).fixed()?, self.x().from_last(1).fixed()?);
        let inputs = width.checked_div(parts).filter(|inputs| inputs * parts == width)?;
        let shape: [Dim; 3] = [outputs.div_ceil(16).into(), inputs.div_ceil(step).into(), (16 * step).into()];
        let fits = packed.shape() == shape && bias.rank() == 1 && self.x().rank() == 3;
        fits.then(|| outputs.into())
    }

    fn name(&self, int8: &'static str, bf16: &'static str) -> Operator {
        Operator::rushes(match self {
            Self::Int8(..) => int8,
            Self::Bf16(..) => bf16,
        })
    }
}

/// Scale and shift of a norm.
#[derive(Debug, Clone, Copy)]
pub enum NormVectors<'a> {
    /// The same for all tokens, `[D]`.
    Same([&'a Tensor; 2]),
    /// Rows of tables `[R,D]`, by a map i64 `[1,M]`: M is 1, or the number of tokens.
    ByRow([&'a Tensor; 2], &'a Tensor),
}

/// The gate of a residual: rows of a table `[R,N]`, by a map i64 `[1,M]`.
#[derive(Debug, Clone, Copy)]
pub struct RowGate<'a> {
    /// `[R,N]`.
    pub table: &'a Tensor,
    /// `[1,M]`: M is 1, or the number of tokens.
    pub rows: &'a Tensor,
}

impl NormVectors<'_> {
    /// Returns the inputs of the node after `x`.
    fn inputs(&self) -> Vec<&Tensor> {
        match self {
            Self::Same([scale, shift]) => vec![scale, shift],
            Self::ByRow([scale, shift], rows) => vec![scale, shift, rows],
        }
    }

    fn fit(&self, width: &Dim) -> bool {
        match self {
            Self::Same(vectors) => vectors.iter().all(|vector| vector.shape() == std::slice::from_ref(width)),
            Self::ByRow([scale, shift], rows) => {
                is_table(scale, rows, width) && scale.shape() == shift.shape()
            }
        }
    }
}

/// The outputs of an operator that quantises rows of this shape. Their names are part of the names of values in graphs.
fn quantized_outputs(shape: &[Dim]) -> [(&'static str, ElementType, Vec<Dim>); 2] {
    let mut of_scales = shape.to_vec();
    of_scales[2] = 2.into();
    [("codes", ElementType::U8, shape.to_vec()), ("scales", ElementType::F32, of_scales)]
}

fn narrow(value: f64) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "the format of the attribute")]
    let value = value as f32;
    value
}

impl GraphBuilder {
    /// Layer normalisation of `x [B,L,D]`, then `· scale + shift`, quantised by row.
    ///
    /// # Errors
    /// Returns an error if the shapes do not match.
    pub fn norm_quantized(
        &mut self,
        x: &Tensor,
        vectors: NormVectors<'_>,
        epsilon: f64,
    ) -> Result<Quantized, Error> {
        let inputs = self.norm_inputs("NormQuant", x, &vectors)?;
        let operator = Operator::rushes("NormQuant").float("epsilon", narrow(epsilon));
        Ok(self.quantized(operator, &inputs, x.shape()))
    }

    /// The same, with the rows before they are quantised, as bf16.
    ///
    /// # Errors
    /// Returns an error if the shapes do not match.
    pub fn norm_quantized_and_rounded(
        &mut self,
        x: &Tensor,
        vectors: NormVectors<'_>,
        epsilon: f64,
    ) -> Result<(Quantized, Tensor), Error> {
        let inputs = self.norm_inputs("NormQuant", x, &vectors)?;
        let operator = Operator::rushes("NormQuant").float("epsilon", narrow(epsilon));
        let [values, scales] = quantized_outputs(x.shape());
        let outputs = [values, scales, ("rounded", ElementType::Bf16, x.shape().to_vec())];
        let [values, scales, rounded] = self.node_of(operator, &inputs, outputs);
        Ok((Quantized { values, scales }, rounded))
    }

    /// Layer normalisation of `x [B,L,D]`, then `· scale + shift`, to bf16.
    ///
    /// # Errors
    /// Returns an error if the shapes do not match.
    pub fn norm_bf16(&mut self, x: &Tensor, vectors: NormVectors<'_>, epsilon: f64) -> Result<Tensor, Error> {
        let inputs = self.norm_inputs("NormBf16", x, &vectors)?;
        let operator = Operator::rushes("NormBf16").float("epsilon", narrow(epsilon));
        Ok(self.node(operator, &inputs, ElementType::Bf16, x.shape().to_vec()))
    }

    /// Returns the inputs of a norm if their shapes match.
    fn norm_inputs<'t>(
        &self,
        name: &str,
        x: &'t Tensor,
        vectors: &'t NormVectors<'t>,
    ) -> Result<Vec<Option<&'t Tensor>>, Error> {
        let mut inputs = vec![x];
        inputs.extend(vectors.inputs());
        if x.rank() == 3 && vectors.fit(&x.from_last(1)) {
            return Ok(inputs.into_iter().map(Some).collect());
        }
        let expected = "x [B,L,D], and a scale and a shift [D], or [R,D] with rows [1,M]";
        Err(self.mismatch(name, expected, &inputs))
    }

    /// Quantises the rows of `x [B,L,K]`, f32 or bf16: symmetrically with zero point 128, or, after GELU, from the
    /// minimum to the maximum.
    ///
    /// # Errors
    /// Returns an error for another number of axes.
    pub fn rows_quantized(&mut self, x: &Tensor, after: Activation) -> Result<Quantized, Error> {
        if x.rank() != 3 {
            return Err(self.mismatch("RowQuant", "x [B,L,K]", &[x]));
        }
        let asymmetric = usize::from(after == Activation::GeluTanh);
        let operator = Operator::rushes("RowQuant").int("asymmetric", asymmetric);
        Ok(self.quantized(operator, &[Some(x)], x.shape()))
    }

    fn quantized(&mut self, operator: Operator, inputs: &[Option<&Tensor>], shape: &[Dim]) -> Quantized {
        let [values, scales] = self.node_of(operator, inputs, quantized_outputs(shape));
        Quantized { values, scales }
    }

    /// A linear layer to bf16 `[B,L,N]`.
    ///
    /// # Errors
    /// Returns an error if the shapes do not match.
    pub fn packed_linear(
        &mut self,
        operands: LinearOperands<'_>,
        added: Added<'_>,
        activation: Activation,
    ) -> Result<Tensor, Error> {
        let shape = self.linear_shape(operands, added)?;
        let gelu = usize::from(activation == Activation::GeluTanh);
        let operator = added.attribute(operands.name("LinearQ", "LinearBf16").int("gelu", gelu));
        let mut inputs: Vec<_> = operands.inputs().into_iter().map(Some).collect();
        inputs.extend(added.inputs(operands));
        Ok(self.node(operator, &inputs, ElementType::Bf16, shape))
    }

    /// `stream + gate·(linear layer)`, f32 `[B,L,N]`; in place if `stream` has no other reader.
    ///
    /// # Errors
    /// Returns an error if the shapes do not match.
    pub fn packed_linear_residual(
        &mut self,
        operands: LinearOperands<'_>,
        added: Added<'_>,
        stream: &Tensor,
        gate: Option<RowGate<'_>>,
    ) -> Result<Tensor, Error> {
        let shape = self.linear_shape(operands, added)?;
        let gate_inputs = gate.map(|gate| [gate.table, gate.rows]);
        if stream.shape() != shape || gate.is_some_and(|gate| !is_table(gate.table, gate.rows, &shape[2])) {
            let mut found = vec![stream];
            found.extend(gate_inputs.into_iter().flatten());
            let expected = "a stream [B,L,N], a table of gates [R,N] and rows [1,M]";
            return Err(self.mismatch("LinearQResidual", expected, &found));
        }
        let operator = added.attribute(operands.name("LinearQResidual", "LinearBf16Residual"));
        let mut inputs: Vec<_> = operands.inputs().into_iter().map(Some).collect();
        inputs.push(Some(stream));
        inputs.extend(gate_inputs.map_or([None; 2], |inputs| inputs.map(Some)));
        inputs.extend(added.inputs(operands));
        Ok(self.node(operator, &inputs, ElementType::F32, shape))
    }

    fn linear_shape(&self, operands: LinearOperands<'_>, added: Added<'_>) -> Result<Vec<Dim>, Error> {
        let Some(outputs) = operands.outputs() else {
            let expected = "x [B,L,K], packed weights [N/16,K/4,64] or [N/16,K/2,32] and a bias [N]";
            return Err(self.mismatch("LinearQ", expected, &operands.inputs()));
        };
        let mut shape = operands.x().shape().to_vec();
        shape[2] = outputs;
        if added.fits(operands, &shape) {
            return Ok(shape);
        }
        let expected = "an addend [B,L,N], and a branch with rows [B,L,parts·R] and weights of N outputs";
        let found: Vec<_> = added.inputs(operands).into_iter().flatten().collect();
        Err(self.mismatch("LinearQ", expected, &found))
    }

    /// Self-attention: `qkv` bf16 `[B,L,3D]` before norms and rotation, `cos` and `sin [L,head/2]`. Returns bf16
    /// `[B,L,D]`.
    ///
    /// # Errors
    /// Returns an error if the shapes do not match.
    pub fn packed_self_attention(
        &mut self,
        attention: HeadAttention<'_>,
        qkv: &Tensor,
        [cos, sin]: [&Tensor; 2],
        values_as_bytes: bool,
    ) -> Result<Tensor, Error> {
        let d = attention.query_gain.from_last(1);
        let fits = qkv.rank() == 3
            && qkv.shape()[2] == d.times(3)
            && cos.shape() == sin.shape()
            && cos.shape()[0] == qkv.shape()[1];
        if !fits {
            return Err(self.mismatch(
                "SelfAttention",
                "qkv [B,L,3D], cos and sin [L,hd/2]",
                &[qkv, cos, sin],
            ));
        }
        let operator = Operator::rushes("SelfAttention")
            .int("heads", attention.heads)
            .float("epsilon", narrow(attention.epsilon))
            .int("values_as_bytes", usize::from(values_as_bytes));
        let inputs = [qkv, attention.query_gain, attention.key_gain, cos, sin].map(Some);
        let shape = vec![qkv.shape()[0].clone(), qkv.shape()[1].clone(), d];
        Ok(self.node(operator, &inputs, ElementType::Bf16, shape))
    }

    /// Cross-attention of `q` bf16 `[B,L,D]` to keys and values bf16 `[B,T,2D]`, with `key_bias` f32 `[B,T]` added to
    /// the scores. Returns bf16 `[B,L,D]`.
    ///
    /// # Errors
    /// Returns an error if the shapes do not match.
    pub fn packed_cross_attention(
        &mut self,
        attention: HeadAttention<'_>,
        q: &Tensor,
        keys_and_values: &Tensor,
        key_bias: &Tensor,
    ) -> Result<Tensor, Error> {
        let d = attention.query_gain.from_last(1);
        let fits = q.rank() == 3
            && keys_and_values.rank() == 3
            && q.shape()[2] == d
            && keys_and_values.shape()[2] == d.times(2)
            && key_bias.shape() == &keys_and_values.shape()[..2];
        if !fits {
            return Err(self.mismatch(
                "CrossAttention",
                "q [B,L,D], keys and values [B,T,2D] and a bias [B,T]",
                &[q, keys_and_values, key_bias],
            ));
        }
        let operator = Operator::rushes("CrossAttention")
            .int("heads", attention.heads)
            .float("epsilon", narrow(attention.epsilon));
        let inputs = [q, keys_and_values, attention.query_gain, attention.key_gain, key_bias].map(Some);
        Ok(self.node(operator, &inputs, ElementType::Bf16, q.shape().to_vec()))
    }
}
