//! The layers before and after the blocks of a step, in every lowering: patches, time, text and velocity.

use super::denoiser_block::Conditions;
use super::graph_weights::GraphWeights;
use super::modulation::Modulation;
use crate::Error;
use bundle::dtype::ElementType;
use bundle::signature::ROWS_INPUT;
use bundle::spec::{DenoiserSpec, TEXT_ROWS};
use graph::{Dim, GraphBuilder, Tensor};

/// The form of the text input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextInput {
    /// All 512 rows.
    Whole,
    /// Equal rows are merged; a bias encodes the number of merged rows.
    Merged,
}

/// The inputs of a step.
pub(super) struct StepInputs {
    latent: Tensor,
    text: Tensor,
    key_bias: Option<Tensor>,
    cos: Tensor,
    sin: Tensor,
    /// The number of tokens along time, height and width.
    grid: [Dim; 3],
    /// The inputs of the modulations.
    pub(super) modulation: Modulation,
    /// Scale and shift of the head, `[1,M,d]`.
    head: [Tensor; 2],
}

impl StepInputs {
    /// Declares the inputs of a step and builds the time embeddings and the modulation of the head.
    ///
    /// # Errors
    /// Returns an error if a weight is missing or does not match the spec.
    pub(super) fn new(
        g: &mut GraphBuilder,
        spec: &DenoiserSpec,
        weights: GraphWeights<'_>,
        text_input: TextInput,
    ) -> Result<Self, Error> {
        let batch = Dim::symbol("B");
        let text_rows = match text_input {
            TextInput::Whole => TEXT_ROWS.into(),
            TextInput::Merged => Dim::symbol("T"),
        };
        let grid = [Dim::symbol("frames"), Dim::symbol("rows"), Dim::symbol("columns")];
        let patch = [spec.patch.time, spec.patch.height, spec.patch.width];
        let tokens = Dim::product(&grid);
        let [frames, height, width] = [0, 1, 2].map(|axis| grid[axis].times(patch[axis]));
        let half_head = spec.head_width / 2;

        let latent_shape = [batch.clone(), spec.in_channels.into(), frames, height, width];
        let latent = g.input("latent", ElementType::F32, &latent_shape);
        let timestep = g.input("timestep", ElementType::F32, &[Dim::symbol("R")]);
        let rows = g.input(ROWS_INPUT, ElementType::I64, &[Dim::symbol("M")]);
        let text_shape = [batch.clone(), text_rows.clone(), spec.text_width.into()];
        let text = g.input("text", ElementType::F32, &text_shape);
        let key_bias = (text_input == TextInput::Merged)
            .then(|| g.input("key_bias", ElementType::F32, &[batch, text_rows]));
        let cos = g.input("cos", ElementType::F32, &[tokens.clone(), half_head.into()]);
        let sin = g.input("sin", ElementType::F32, &[tokens, half_head.into()]);

        let modulation = Modulation::new(g, spec, weights, [&timestep, &rows])?;
        let head = g.scoped("head", |g| modulation.of_head(g, spec, weights))?;
        Ok(Self { latent, text, key_bias, cos, sin, grid, modulation, head })
    }
}

/// The inputs of the blocks.
pub(super) struct StepStart {
    /// Tokens `[B,L,d]`.
    pub(super) x: Tensor,
    /// Other inputs of every block.
    pub(super) conditions: Conditions,
    /// The bias of merged text rows, `[B,T]`.
    pub(super) key_bias: Option<Tensor>,
    latent: Tensor,
    grid: [Dim; 3],
    head: [Tensor; 2],
}

impl StepStart {
    /// Builds the layers before the first block. The modulations of all blocks are built before (see [`Modulation`]).
    ///
    /// # Errors
    /// Returns an error if a weight is missing or does not match the spec.
    pub(super) fn new(
        g: &mut GraphBuilder,
        spec: &DenoiserSpec,
        weights: GraphWeights<'_>,
        inputs: StepInputs,
    ) -> Result<Self, Error> {
        let StepInputs { latent, text, key_bias, cos, sin, grid, head, .. } = inputs;
        let compute = weights.lowering().compute;
        let patch = [spec.patch.time, spec.patch.height, spec.patch.width];
        let d = spec.width();
        let kernel = [d, spec.in_channels, patch[0], patch[1], patch[2]];
        let weight = weights.load(g, "patch_embedding.weight", &kernel)?;
        let bias = weights.load(g, "patch_embedding.bias", &[d])?;
        let narrowed = g.cast(&latent, compute);
        let x = g.patch_convolution(&narrowed, &weight, &bias, &grid)?;
        let x = g.reshape(&x, &[latent.shape()[0].clone(), d.into(), Dim::product(&grid)])?;
        let x = g.transpose(&x, &[0, 2, 1])?; // [B,L,d]

        let text = g.scoped("text", |g| {
            let text = g.cast(&text, compute);
            let embedder = "condition_embedder.text_embedder";
            let h = weights.linear(g, &format!("{embedder}.linear_1"), &text, [d, spec.text_width])?;
            let h = g.gelu_tanh(&h);
            weights.linear(g, &format!("{embedder}.linear_2"), &h, [d, d])
        })?;
        let (cos, sin) = (g.cast(&cos, compute), g.cast(&sin, compute));
        Ok(Self { x, conditions: Conditions { text, cos, sin }, key_bias, latent, grid, head })
    }

    /// Builds the output `velocity` from the tokens `x [B,L,d]` after the last block.
    ///
    /// # Errors
    /// Returns an error if a weight is missing or does not match the spec.
    pub(super) fn finish(
        &self,
        g: &mut GraphBuilder,
        spec: &DenoiserSpec,
        weights: GraphWeights<'_>,
        x: &Tensor,
    ) -> Result<(), Error> {
        let velocity = g.scoped("head", |g| {
            let patches = head(g, spec, weights, x, &self.head)?;
            let patches = g.cast(&patches, ElementType::F32);
            unpatchify(g, spec, &patches, &self.latent, &self.grid)
        })?;
        Ok(g.output("velocity", &velocity)?)
    }
}

/// Tokens `[B,L,d]` to the velocities of their patches `[B,L,pt·ph·pw·C]`, channel fastest, with the scale and shift of
/// each token, `[1,M,d]`.
fn head(
    g: &mut GraphBuilder,
    spec: &DenoiserSpec,
    weights: GraphWeights<'_>,
    x: &Tensor,
    [scale, shift]: &[Tensor; 2],
) -> Result<Tensor, Error> {
    let h = g.layer_norm_of_tokens(x, [scale, shift], spec.epsilon)?;
    let patch = spec.patch.time * spec.patch.height * spec.patch.width;
    weights.linear(g, "proj_out", &h, [spec.out_channels * patch, spec.width()])
}

/// Assembles the patches of all tokens to a video with the latent's frames and size.
fn unpatchify(
    g: &mut GraphBuilder,
    spec: &DenoiserSpec,
    patches: &Tensor,
    latent: &Tensor,
    grid: &[Dim; 3],
) -> Result<Tensor, Error> {
    let patch = [spec.patch.time, spec.patch.height, spec.patch.width];
    let mut split = vec![latent.shape()[0].clone()];
    split.extend_from_slice(grid);
    split.extend(patch.map(Dim::from));
    split.push(spec.out_channels.into());
    let h = g.reshape(patches, &split)?; // [B,F,R,C,pt,ph,pw,c]
    let h = g.transpose(&h, &[0, 7, 1, 4, 2, 5, 3, 6])?;
    let mut shape = latent.shape().to_vec();
    shape[1] = spec.out_channels.into();
    Ok(g.reshape(&h, &shape)?)
}
