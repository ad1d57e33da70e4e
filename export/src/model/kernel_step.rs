//! The graph of a denoising step with Rushes kernels.
//!
//! The same model as the graph for ONNX Runtime kernels, with other operators: norms that quantise, matrix products
//! fused with the operators after them, and attention as one node. Equal padding rows of the text are merged: the graph
//! takes `text [B,T,D]` and `key_bias [B,T]`, the logarithm of the number of merged rows. Small layers are f32.

use super::branch::tensor_name;
use super::denoiser_block::Conditions;
use super::graph_weights::GraphWeights;
use super::kernel_branch::{AddedTensors, BranchedLayer, FusedBranch, FusedBranches};
use super::modulation::Vectors;
use super::step_ends::{StepInputs, StepStart, TextInput};
use crate::Error;
use crate::weights::INPUT_FACTORS;
use crate::weights::packed::{self, PackedFormat};
use bundle::dtype::ElementType;
use bundle::quantization::layers::{FusedLayer, fused};
use bundle::spec::DenoiserSpec;
use graph::{
    Activation, Added, GraphBuilder, HeadAttention, LinearOperands, Model, NormVectors, PackedBf16,
    PackedInt8, Quantized, RowGate, Tensor,
};

/// Options of a step graph with Rushes kernels.
#[derive(Debug, Clone, Copy)]
pub struct KernelLowering<'a> {
    /// The model's weights, and the packed weights of its fused layers, each in int8 or bf16.
    pub weights: GraphWeights<'a>,
    /// True to quantise the values of self-attention to 8 bits if its layers are int8. Otherwise they are bf16, which
    /// is 0.1 % more accurate and 7 % slower.
    pub values_as_bytes: bool,
    /// The branches of the fused layers, if there are any.
    pub branches: Option<&'a FusedBranches>,
}

/// Activations of a layer.
#[derive(Debug, Clone)]
pub(super) struct Rows {
    /// In the format of the layer's product.
    pub(super) values: RowValues,
    /// In bf16, if the branch of the layer reads them.
    pub(super) rounded: Option<Tensor>,
}

/// Activations in the format of a matrix product.
#[derive(Debug, Clone)]
pub(super) enum RowValues {
    Int8(Quantized),
    Bf16(Tensor),
}

/// Packed weights in the format of the matrix products.
enum Packed {
    Int8(PackedInt8),
    Bf16(PackedBf16),
}

/// Builds the step graph of one expert on Rushes kernels.
///
/// # Errors
/// Returns an error if a weight is missing or does not match the spec.
pub fn kernel_step_graph(spec: &DenoiserSpec, lowering: KernelLowering<'_>) -> Result<Model, Error> {
    let mut graph = GraphBuilder::new("step");
    let g = &mut graph;
    // Layers without packed weights are computed in f32.
    let lowering = KernelLowering { weights: lowering.weights.in_f32(), ..lowering };
    let inputs = StepInputs::new(g, spec, lowering.weights, TextInput::Merged)?;
    let rows = inputs.modulation.rows.clone();
    let mut of_blocks = Vec::with_capacity(spec.layers);
    for index in 0..spec.layers {
        let build = |g: &mut GraphBuilder| inputs.modulation.of_block(g, spec, lowering.weights, index);
        of_blocks.push(g.scoped(&format!("block.{index}"), build)?);
    }
    let start = StepStart::new(g, spec, lowering.weights, inputs)?;
    let Some(key_bias) = &start.key_bias else { unreachable!("merged rows have a bias") };
    let layers = fused(spec);
    let mut x = start.x.clone();
    let layers = layers.chunks(layers.len() / spec.layers.max(1));
    for (index, (layers, vectors)) in layers.zip(&of_blocks).enumerate() {
        let conditions = &start.conditions;
        let block = Block { spec, lowering, index, layers, vectors, rows: &rows, conditions, key_bias };
        x = g.scoped(&format!("block.{index}"), |g| block.build(g, x))?;
    }
    start.finish(g, spec, lowering.weights, &x)?;
    Ok(graph.finish()?)
}

/// A block of the denoiser.
struct Block<'a> {
    spec: &'a DenoiserSpec,
    lowering: KernelLowering<'a>,
    index: usize,
    /// The layers of [`fused`], in the same order.
    layers: &'a [FusedLayer],
    /// The modulation of self-attention and of the feed-forward layer, `[R,d]`.
    vectors: &'a [Vectors; 2],
    /// The timestep of each token, `[1,M]`.
    rows: &'a Tensor,
    conditions: &'a Conditions,
    key_bias: &'a Tensor,
}

impl Block<'_> {
    fn build(&self, g: &mut GraphBuilder, x: Tensor) -> Result<Tensor, Error> {
        let (weights, conditions) = (self.lowering.weights, self.conditions);
        let d = self.spec.width();
        let part = |part: &str| format!("blocks.{}.{part}", self.index);
        let [qkv, self_out, query, key_and_value, cross_out, up, down] = self.layers else {
            unreachable!("a block has seven fused layers");
        };
        let [attention, feed_forward] = self.vectors;

        let vectors = [attention.scale.clone(), attention.shift.clone()];
        let h = self.norm(g, &x, vectors, Some(self.rows), qkv)?;
        let h = self.linear(g, &h, qkv, Activation::None)?;
        let gains = self.gains(g, "attn1")?;
        let h = g.packed_self_attention(
            self.attention(&gains),
            &h,
            [&conditions.cos, &conditions.sin],
            self.lowering.values_as_bytes && self.format(qkv) == PackedFormat::Int8,
        )?;
        let h = self.rows(g, h, Activation::None, self_out)?;
        let x = self.residual(g, &h, self_out, &x, Some(&attention.gate))?;

        let scale = weights.load(g, &part("norm2.weight"), &[d])?;
        let shift = weights.load(g, &part("norm2.bias"), &[d])?;
        let h = self.norm(g, &x, [scale, shift], None, query)?;
        let q = self.linear(g, &h, query, Activation::None)?;
        let text = self.text_rows(g, key_and_value)?;
        let kv = self.linear(g, &text, key_and_value, Activation::None)?;
        let gains = self.gains(g, "attn2")?;
        let h = g.packed_cross_attention(self.attention(&gains), &q, &kv, self.key_bias)?;
        let h = self.rows(g, h, Activation::None, cross_out)?;
        let x = self.residual(g, &h, cross_out, &x, None)?;

        let vectors = [feed_forward.scale.clone(), feed_forward.shift.clone()];
        let h = self.norm(g, &x, vectors, Some(self.rows), up)?;
        let h = self.linear(g, &h, up, Activation::GeluTanh)?;
        let h = self.rows(g, h, Activation::GeluTanh, down)?;
        self.residual(g, &h, down, &x, Some(&feed_forward.gate))
    }

    fn gains(&self, g: &mut GraphBuilder, attention: &str) -> Result<[Tensor; 2], Error> {
        let d = self.spec.width();
        let mut gain = |which: &str| {
            let name = format!("blocks.{}.{attention}.norm_{which}.weight", self.index);
            self.lowering.weights.load(g, &name, &[d])
        };
        Ok([gain("q")?, gain("k")?])
    }

    fn attention<'t>(&self, [query_gain, key_gain]: &'t [Tensor; 2]) -> HeadAttention<'t> {
        HeadAttention { heads: self.spec.heads, query_gain, key_gain, epsilon: self.spec.epsilon }
    }

    /// Returns the format of a layer's packed weights.
    fn format(&self, layer: &FusedLayer) -> PackedFormat {
        if self.lowering.weights.has(&format!("{}.scales", layer.name)) {
            PackedFormat::Int8
        } else {
            PackedFormat::Bf16
        }
    }

    /// Returns the smoothing factors of a layer's input channels, if it is smoothed.
    fn input_factors(&self, g: &mut GraphBuilder, layer: &FusedLayer) -> Result<Option<Tensor>, Error> {
        let name = format!("{}.{INPUT_FACTORS}", layer.parts[0]);
        let weights = self.lowering.weights;
        weights.has(&name).then(|| weights.load(g, &name, &layer.shape[1..])).transpose()
    }

    /// A norm, with the smoothing of the next layer folded into its scale and shift: vectors `[d]`, or tables `[R,d]`
    /// with the rows of the tokens.
    fn norm(
        &self,
        g: &mut GraphBuilder,
        x: &Tensor,
        [mut scale, mut shift]: [Tensor; 2],
        rows: Option<&Tensor>,
        next: &FusedLayer,
    ) -> Result<Rows, Error> {
        if let Some(factors) = self.input_factors(g, next)? {
            scale = g.multiply(&scale, &factors)?;
            shift = g.multiply(&shift, &factors)?;
        }
        let epsilon = self.spec.epsilon;
        let vectors = [&scale, &shift];
        let vectors = rows.map_or(NormVectors::Same(vectors), |rows| NormVectors::ByRow(vectors, rows));
        let needs_rounded = self.branch(next).is_some_and(FusedBranch::needs_rounded);
        Ok(match self.format(next) {
            PackedFormat::Int8 if needs_rounded => {
                let (quantized, rounded) = g.norm_quantized_and_rounded(x, vectors, epsilon)?;
                Rows { values: RowValues::Int8(quantized), rounded: Some(rounded) }
            }
            PackedFormat::Int8 => {
                Rows { values: RowValues::Int8(g.norm_quantized(x, vectors, epsilon)?), rounded: None }
            }
            PackedFormat::Bf16 => {
                let rows = g.norm_bf16(x, vectors, epsilon)?;
                Rows { values: RowValues::Bf16(rows.clone()), rounded: needs_rounded.then_some(rows) }
            }
        })
    }

    fn branch(&self, layer: &FusedLayer) -> Option<&FusedBranch> {
        self.lowering.branches?.get(&layer.name)
    }

    /// Converts bf16 or f32 rows to the input of the next layer.
    fn rows(
        &self,
        g: &mut GraphBuilder,
        x: Tensor,
        after: Activation,
        next: &FusedLayer,
    ) -> Result<Rows, Error> {
        let needs_rounded = self.branch(next).is_some_and(FusedBranch::needs_rounded);
        let rounded = needs_rounded.then(|| g.cast(&x, ElementType::Bf16));
        let values = match (self.format(next), &rounded) {
            (PackedFormat::Int8, _) => RowValues::Int8(g.rows_quantized(&x, after)?),
            (PackedFormat::Bf16, Some(rounded)) => RowValues::Bf16(rounded.clone()),
            (PackedFormat::Bf16, None) => RowValues::Bf16(g.cast(&x, ElementType::Bf16)),
        };
        Ok(Rows { values, rounded })
    }

    /// Returns the text rows as input of the layer that computes keys and values.
    fn text_rows(&self, g: &mut GraphBuilder, layer: &FusedLayer) -> Result<Rows, Error> {
        let text = match self.input_factors(g, layer)? {
            Some(factors) => g.multiply(&self.conditions.text, &factors)?,
            None => self.conditions.text.clone(),
        };
        self.rows(g, text, Activation::None, layer)
    }

    fn packed(&self, g: &mut GraphBuilder, layer: &FusedLayer) -> Result<Packed, Error> {
        let mut tensors = Vec::new();
        for stored in packed::stored(layer, self.format(layer)) {
            let weights = self.lowering.weights;
            tensors.push(weights.load_stored(g, &stored.name, &stored.shape, &stored.shape)?);
        }
        match <[Tensor; 4]>::try_from(tensors) {
            Ok([packed, sums, scales, bias]) => Ok(Packed::Int8(PackedInt8 { packed, sums, scales, bias })),
            Err(two) => match <[Tensor; 2]>::try_from(two) {
                Ok([packed, bias]) => {
                    let (name, outputs) =
                        (tensor_name(&layer.name, "outputs"), layer.parts.len() * layer.shape[0]);
                    let weights = self.lowering.weights;
                    let factors =
                        weights.has(&name).then(|| weights.load(g, &name, &[outputs])).transpose()?;
                    Ok(Packed::Bf16(PackedBf16 { packed, bias, factors }))
                }
                Err(_) => unreachable!("packed layers are four tensors or two"),
            },
        }
    }

    fn with_operands<T>(
        &self,
        g: &mut GraphBuilder,
        x: &Rows,
        layer: &FusedLayer,
        build: impl FnOnce(&mut GraphBuilder, LinearOperands<'_>, Added<'_>) -> Result<T, graph::Error>,
    ) -> Result<T, Error> {
        let packed = self.packed(g, layer)?;
        let bias = match &packed {
            Packed::Int8(w) => &w.bias,
            Packed::Bf16(w) => &w.bias,
        };
        let added = match self.branch(layer) {
            Some(branch) => {
                let branched = BranchedLayer { weights: self.lowering.weights, layer, branch };
                g.scoped("lora", |g| branched.build(g, x, bias))?
            }
            None => AddedTensors::default(),
        };
        match (&x.values, &packed) {
            (RowValues::Int8(x), Packed::Int8(w)) => Ok(build(g, LinearOperands::Int8(x, w), added.added())?),
            (RowValues::Bf16(x), Packed::Bf16(w)) => Ok(build(g, LinearOperands::Bf16(x, w), added.added())?),
            _ => unreachable!("rows are made in the format of the layer that reads them"),
        }
    }

    fn linear(
        &self,
        g: &mut GraphBuilder,
        x: &Rows,
        layer: &FusedLayer,
        activation: Activation,
    ) -> Result<Tensor, Error> {
        self.with_operands(g, x, layer, |g, operands, added| g.packed_linear(operands, added, activation))
    }

    fn residual(
        &self,
        g: &mut GraphBuilder,
        x: &Rows,
        layer: &FusedLayer,
        stream: &Tensor,
        gate: Option<&Tensor>,
    ) -> Result<Tensor, Error> {
        let gate = gate.map(|table| RowGate { table, rows: self.rows });
        self.with_operands(g, x, layer, |g, operands, added| {
            g.packed_linear_residual(operands, added, stream, gate)
        })
    }
}
