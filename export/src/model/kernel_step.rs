//! One denoising step on the CPU's own operators.
//!
//! The same model as the stock graph, in other operators: norms that quantise, products that do what follows them, and
//! attention as one node. The equal pad rows of the text are merged into one: the graph takes `text [B,T,D]` and
//! `key_bias [B,T]`, whose entry is the logarithm of how many rows a row stands for. What is small stays f32.

use super::denoiser::{head, one_plus_row, row, time_embedding, unpatchify};
use super::graph_weights::GraphWeights;
use crate::Error;
use crate::weights::packed::{PackedFormat, PackedLayer};
use bundle::dtype::ElementType;
use bundle::spec::DenoiserSpec;
use graph::{
    Activation, Dim, GraphBuilder, HeadAttention, LinearOperands, Model, PackedBf16, PackedInt8, Quantized,
    Tensor,
};

/// How a step is made of the CPU's own operators.
#[derive(Debug, Clone, Copy)]
pub struct KernelLowering<'a> {
    /// The model's weights, and the packed ones of [`kernel_layers`].
    pub weights: GraphWeights<'a>,
    /// The format of the packed weights.
    pub format: PackedFormat,
    /// Whether the values of self attention are bytes; else they are bf16, which is 0.1 % nearer and 7 % slower.
    pub values_as_bytes: bool,
}

/// The linear layers of the blocks, as they are packed: projections that read the same rows stand side by side.
pub fn kernel_layers(spec: &DenoiserSpec) -> Vec<PackedLayer> {
    let (d, hidden) = (spec.width(), spec.feed_forward);
    let layer = |block: usize, name: &str, parts: &[&str], shape: [usize; 2]| {
        let of = |part: &str| format!("blocks.{block}.{part}");
        PackedLayer { name: of(name), parts: parts.iter().map(|part| of(part)).collect(), shape }
    };
    let of_block = |block: usize| {
        [
            layer(block, "attn1.to_qkv", &["attn1.to_q", "attn1.to_k", "attn1.to_v"], [d, d]),
            layer(block, "attn1.to_out", &["attn1.to_out.0"], [d, d]),
            layer(block, "attn2.to_query", &["attn2.to_q"], [d, d]),
            layer(block, "attn2.to_kv", &["attn2.to_k", "attn2.to_v"], [d, d]),
            layer(block, "attn2.to_out", &["attn2.to_out.0"], [d, d]),
            layer(block, "ffn.up", &["ffn.net.0.proj"], [hidden, d]),
            layer(block, "ffn.down", &["ffn.net.2"], [d, hidden]),
        ]
    };
    (0..spec.layers).flat_map(of_block).collect()
}

/// Rows in the format of the products.
#[derive(Debug, Clone)]
enum Rows {
    Int8(Quantized),
    Bf16(Tensor),
}

/// Packed weights in the format of the products.
enum Packed {
    Int8(PackedInt8),
    Bf16(PackedBf16),
}

/// What every block is told besides the tokens.
struct Conditions {
    /// Shift, scale and gate of self attention, then of the feed-forward layer: `[1,6,d]`.
    modulation: Tensor,
    /// Text states after their projection, `[B,T,d]`.
    text: Rows,
    key_bias: Tensor,
    cos: Tensor,
    sin: Tensor,
}

/// Builds the step graph of one expert on the CPU's own operators.
///
/// # Errors
/// A weight that is missing or does not fit the spec.
pub fn kernel_step_graph(spec: &DenoiserSpec, lowering: KernelLowering<'_>) -> Result<Model, Error> {
    let mut graph = GraphBuilder::new("step");
    let g = &mut graph;
    // Whatever is not packed is computed in f32.
    let lowering = KernelLowering { weights: lowering.weights.in_f32(), ..lowering };
    let weights = lowering.weights;
    let (batch, text_rows) = (Dim::symbol("B"), Dim::symbol("T"));
    let grid = [Dim::symbol("frames"), Dim::symbol("rows"), Dim::symbol("columns")];
    let patch = [spec.patch.time, spec.patch.height, spec.patch.width];
    let tokens = Dim::product(&grid);
    let [frames, height, width] = [0, 1, 2].map(|axis| grid[axis].times(patch[axis]));
    let half_head = spec.head_width / 2;
    let d = spec.width();

    let latent_shape = [batch.clone(), spec.in_channels.into(), frames, height, width];
    let latent = g.input("latent", ElementType::F32, &latent_shape);
    let timestep = g.input("timestep", ElementType::F32, &[1.into()]);
    let text = g.input("text", ElementType::F32, &[batch.clone(), text_rows.clone(), spec.text_width.into()]);
    let key_bias = g.input("key_bias", ElementType::F32, &[batch.clone(), text_rows]);
    let cos = g.input("cos", ElementType::F32, &[tokens.clone(), half_head.into()]);
    let sin = g.input("sin", ElementType::F32, &[tokens.clone(), half_head.into()]);

    let kernel = [d, spec.in_channels, patch[0], patch[1], patch[2]];
    let weight = weights.load(g, "patch_embedding.weight", &kernel)?;
    let bias = weights.load(g, "patch_embedding.bias", &[d])?;
    let x = g.patch_convolution(&latent, &weight, &bias, &grid)?;
    let x = g.reshape(&x, &[batch, d.into(), tokens])?;
    let mut x = g.transpose(&x, &[0, 2, 1])?; // [B,L,d]

    let time = g.scoped("time", |g| time_embedding(g, spec, weights, &timestep))?;
    let modulation = g.scoped("time", |g| {
        let active = g.silu(&time)?;
        let projected = weights.linear(g, "condition_embedder.time_proj", &active, [6 * d, d])?;
        Ok::<_, Error>(g.reshape(&projected, &[1.into(), 6.into(), d.into()])?)
    })?;
    let text = g.scoped("text", |g| {
        let embedder = "condition_embedder.text_embedder";
        let h = weights.linear(g, &format!("{embedder}.linear_1"), &text, [d, spec.text_width])?;
        let h = g.gelu_tanh(&h);
        let h = weights.linear(g, &format!("{embedder}.linear_2"), &h, [d, d])?;
        match lowering.format {
            PackedFormat::Int8 => Ok::<_, Error>(Rows::Int8(g.rows_quantized(&h, Activation::None)?)),
            PackedFormat::Bf16 => Ok(Rows::Bf16(g.cast(&h, ElementType::Bf16))),
        }
    })?;

    let conditions = Conditions { modulation, text, key_bias, cos, sin };
    let layers = kernel_layers(spec);
    for (index, layers) in layers.chunks(layers.len() / spec.layers.max(1)).enumerate() {
        let block = Block { spec, lowering, index, layers };
        x = g.scoped(&format!("block.{index}"), |g| block.build(g, x, &conditions))?;
    }

    let velocity = g.scoped("head", |g| {
        let patches = head(g, spec, weights, &x, &time)?;
        unpatchify(g, spec, &patches, &latent, &grid)
    })?;
    g.output("velocity", &velocity)?;
    Ok(graph.finish())
}

/// One block.
struct Block<'a> {
    spec: &'a DenoiserSpec,
    lowering: KernelLowering<'a>,
    index: usize,
    /// Those of [`kernel_layers`], in their order.
    layers: &'a [PackedLayer],
}

impl Block<'_> {
    fn build(&self, g: &mut GraphBuilder, x: Tensor, conditions: &Conditions) -> Result<Tensor, Error> {
        let (spec, weights) = (self.spec, self.lowering.weights);
        let d = spec.width();
        let of = |part: &str| format!("blocks.{}.{part}", self.index);
        let [qkv, self_out, query, key_and_value, cross_out, up, down] = self.layers else {
            return Err(Error::MissingTensor { name: of("packed"), folder: weights.folder().to_owned() });
        };
        let table = weights.load(g, &of("scale_shift_table"), &[1, 6, d])?;
        let table = g.add(&table, &conditions.modulation)?;

        let (shift, scale, gate) = (
            row(g, &table, 0, ElementType::F32)?,
            one_plus_row(g, &table, 1, ElementType::F32)?,
            row(g, &table, 2, ElementType::F32)?,
        );
        let h = self.norm(g, &x, [scale, shift], "attn1.to_q")?;
        let h = self.linear(g, &h, qkv, Activation::None)?;
        let gains = self.gains(g, "attn1")?;
        let h = g.packed_self_attention(
            self.attention(&gains),
            &h,
            [&conditions.cos, &conditions.sin],
            self.lowering.values_as_bytes,
        )?;
        let h = self.rows(g, h, Activation::None)?;
        let x = self.residual(g, &h, self_out, &x, Some(&gate))?;

        let scale = weights.load(g, &of("norm2.weight"), &[d])?;
        let shift = weights.load(g, &of("norm2.bias"), &[d])?;
        let h = self.norm(g, &x, [scale, shift], "attn2.to_q")?;
        let q = self.linear(g, &h, query, Activation::None)?;
        let kv = self.linear(g, &conditions.text, key_and_value, Activation::None)?;
        let gains = self.gains(g, "attn2")?;
        let h = g.packed_cross_attention(self.attention(&gains), &q, &kv, &conditions.key_bias)?;
        let h = self.rows(g, h, Activation::None)?;
        let x = self.residual(g, &h, cross_out, &x, None)?;

        let (shift, scale, gate) = (
            row(g, &table, 3, ElementType::F32)?,
            one_plus_row(g, &table, 4, ElementType::F32)?,
            row(g, &table, 5, ElementType::F32)?,
        );
        let h = self.norm(g, &x, [scale, shift], "ffn.net.0.proj")?;
        let h = self.linear(g, &h, up, Activation::GeluTanh)?;
        let h = self.rows(g, h, Activation::GeluTanh)?;
        self.residual(g, &h, down, &x, Some(&gate))
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

    /// A norm with the smoothing of the layer after it, where there is one, folded into its map.
    fn norm(
        &self,
        g: &mut GraphBuilder,
        x: &Tensor,
        [mut scale, mut shift]: [Tensor; 2],
        next: &str,
    ) -> Result<Rows, Error> {
        let factors = format!("blocks.{}.{next}.input_factors", self.index);
        if self.lowering.weights.has(&factors) {
            let factors = self.lowering.weights.load(g, &factors, &[self.spec.width()])?;
            scale = g.multiply(&scale, &factors)?;
            shift = g.multiply(&shift, &factors)?;
        }
        let epsilon = self.spec.epsilon;
        Ok(match self.lowering.format {
            PackedFormat::Int8 => Rows::Int8(g.norm_quantized(x, [&scale, &shift], epsilon)?),
            PackedFormat::Bf16 => Rows::Bf16(g.norm_bf16(x, [&scale, &shift], epsilon)?),
        })
    }

    fn rows(&self, g: &mut GraphBuilder, x: Tensor, after: Activation) -> Result<Rows, Error> {
        Ok(match self.lowering.format {
            PackedFormat::Int8 => Rows::Int8(g.rows_quantized(&x, after)?),
            PackedFormat::Bf16 => Rows::Bf16(x),
        })
    }

    fn packed(&self, g: &mut GraphBuilder, layer: &PackedLayer) -> Result<Packed, Error> {
        let mut tensors = Vec::new();
        for (name, _, shape) in layer.tensors(self.lowering.format) {
            tensors.push(self.lowering.weights.load_stored(g, &name, &shape, &shape)?);
        }
        match <[Tensor; 4]>::try_from(tensors) {
            Ok([packed, sums, scales, bias]) => Ok(Packed::Int8(PackedInt8 { packed, sums, scales, bias })),
            Err(mut two) => match (two.pop(), two.pop()) {
                (Some(bias), Some(packed)) => Ok(Packed::Bf16(PackedBf16 { packed, bias })),
                _ => Err(Error::MissingTensor {
                    name: layer.name.clone(),
                    folder: self.lowering.weights.folder().to_owned(),
                }),
            },
        }
    }

    fn with_operands<T>(
        &self,
        g: &mut GraphBuilder,
        x: &Rows,
        layer: &PackedLayer,
        build: impl FnOnce(&mut GraphBuilder, LinearOperands<'_>) -> Result<T, graph::Error>,
    ) -> Result<T, Error> {
        match (x, self.packed(g, layer)?) {
            (Rows::Int8(x), Packed::Int8(w)) => Ok(build(g, LinearOperands::Int8(x, &w))?),
            (Rows::Bf16(x), Packed::Bf16(w)) => Ok(build(g, LinearOperands::Bf16(x, &w))?),
            _ => Err(Error::MissingTensor {
                name: format!("{}.packed", layer.name),
                folder: self.lowering.weights.folder().to_owned(),
            }),
        }
    }

    fn linear(
        &self,
        g: &mut GraphBuilder,
        x: &Rows,
        layer: &PackedLayer,
        activation: Activation,
    ) -> Result<Tensor, Error> {
        self.with_operands(g, x, layer, |g, operands| g.packed_linear(operands, activation))
    }

    fn residual(
        &self,
        g: &mut GraphBuilder,
        x: &Rows,
        layer: &PackedLayer,
        stream: &Tensor,
        gate: Option<&Tensor>,
    ) -> Result<Tensor, Error> {
        self.with_operands(g, x, layer, |g, operands| g.packed_linear_residual(operands, stream, gate))
    }
}
