//! The layers before and after the blocks of a step, in every lowering: patches, time, text and velocity.

use super::denoiser_block::{Conditions, one_plus_row, row};
use super::graph_weights::GraphWeights;
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
    time: Tensor,
}

impl StepStart {
    /// Declares the inputs of a step and builds the layers before its first block.
    ///
    /// # Errors
    /// Returns an error if a weight is missing or does not match the spec.
    pub(super) fn new(
        g: &mut GraphBuilder,
        spec: &DenoiserSpec,
        weights: GraphWeights<'_>,
        text_input: TextInput,
    ) -> Result<Self, Error> {
        let compute = weights.lowering().compute;
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
        let d = spec.width();

        let latent_shape = [batch.clone(), spec.in_channels.into(), frames, height, width];
        let latent = g.input("latent", ElementType::F32, &latent_shape);
        let timesteps = Dim::symbol("R");
        let timestep = g.input("timestep", ElementType::F32, std::slice::from_ref(&timesteps));
        let entries = Dim::symbol("M");
        let rows = g.input(ROWS_INPUT, ElementType::I64, std::slice::from_ref(&entries));
        let text_shape = [batch.clone(), text_rows.clone(), spec.text_width.into()];
        let text = g.input("text", ElementType::F32, &text_shape);
        let key_bias = (text_input == TextInput::Merged)
            .then(|| g.input("key_bias", ElementType::F32, &[batch.clone(), text_rows]));
        let cos = g.input("cos", ElementType::F32, &[tokens.clone(), half_head.into()]);
        let sin = g.input("sin", ElementType::F32, &[tokens.clone(), half_head.into()]);

        let kernel = [d, spec.in_channels, patch[0], patch[1], patch[2]];
        let weight = weights.load(g, "patch_embedding.weight", &kernel)?;
        let bias = weights.load(g, "patch_embedding.bias", &[d])?;
        let narrowed = g.cast(&latent, compute);
        let x = g.patch_convolution(&narrowed, &weight, &bias, &grid)?;
        let x = g.reshape(&x, &[batch, d.into(), tokens])?;
        let x = g.transpose(&x, &[0, 2, 1])?; // [B,L,d]

        // As in diffusers: time embedding and modulation in f32, the large projection in the format of the arithmetic.
        let time = g.scoped("time", |g| time_embedding(g, spec, weights.in_f32(), &timestep))?;
        let modulation = g.scoped("time", |g| {
            let active = g.silu(&time)?;
            let active = g.cast(&active, compute);
            let projected = weights.linear(g, "condition_embedder.time_proj", &active, [6 * d, d])?;
            let projected = g.cast(&projected, ElementType::F32);
            Ok::<_, Error>(g.reshape(&projected, &[timesteps, 6.into(), d.into()])?)
        })?;
        let rows = g.reshape(&rows, &[1.into(), entries])?;
        let text = g.scoped("text", |g| {
            let text = g.cast(&text, compute);
            let embedder = "condition_embedder.text_embedder";
            let h = weights.linear(g, &format!("{embedder}.linear_1"), &text, [d, spec.text_width])?;
            let h = g.gelu_tanh(&h);
            weights.linear(g, &format!("{embedder}.linear_2"), &h, [d, d])
        })?;
        let (cos, sin) = (g.cast(&cos, compute), g.cast(&sin, compute));
        let conditions = Conditions { modulation, rows, text, cos, sin };
        Ok(Self { x, conditions, key_bias, latent, grid, time })
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
            let patches = head(g, spec, weights, x, [&self.time, &self.conditions.rows])?;
            let patches = g.cast(&patches, ElementType::F32);
            unpatchify(g, spec, &patches, &self.latent, &self.grid)
        })?;
        Ok(g.output("velocity", &velocity)?)
    }
}

/// `timestep [R]` in 0..=1000 to the time embeddings `[R,d]`.
///
/// Source: sinusoid of `10000^(-i/half)`, cosines first, in f32 as in diffusers.
fn time_embedding(
    g: &mut GraphBuilder,
    spec: &DenoiserSpec,
    weights: GraphWeights<'_>,
    timestep: &Tensor,
) -> Result<Tensor, Error> {
    let half = spec.frequency_width / 2;
    #[expect(clippy::cast_precision_loss, reason = "indices of a few hundred frequencies")]
    let frequencies: Vec<f32> =
        (0..half).map(|i| (-(10_000.0_f32.ln()) * i as f32 / half as f32).exp()).collect();
    let frequencies = g.constant("frequencies", &[1, half], &frequencies)?;
    let timestep = g.reshape(timestep, &[timestep.shape()[0].clone(), 1.into()])?;
    let angles = g.multiply(&timestep, &frequencies)?;
    let (cos, sin) = (g.cos(&angles), g.sin(&angles));
    let sinusoid = g.concat(&[&cos, &sin], 1)?;
    let d = spec.width();
    let embedder = "condition_embedder.time_embedder";
    let h = weights.linear(g, &format!("{embedder}.linear_1"), &sinusoid, [d, spec.frequency_width])?;
    let h = g.silu(&h)?;
    weights.linear(g, &format!("{embedder}.linear_2"), &h, [d, d])
}

/// Tokens `[B,L,d]` to the velocities of their patches `[B,L,pt·ph·pw·C]`, channel fastest. `time [R,d]` are the time
/// embeddings, `rows [1,M]` the map of tokens to them.
fn head(
    g: &mut GraphBuilder,
    spec: &DenoiserSpec,
    weights: GraphWeights<'_>,
    x: &Tensor,
    [time, rows]: [&Tensor; 2],
) -> Result<Tensor, Error> {
    let d = spec.width();
    let table = weights.in_f32().load(g, "scale_shift_table", &[1, 2, d])?;
    let time = g.reshape(time, &[time.shape()[0].clone(), 1.into(), d.into()])?;
    let table = g.add(&table, &time)?;
    let compute = weights.lowering().compute;
    let (shift, scale) = (row(g, &table, 0, compute)?, one_plus_row(g, &table, 1, compute)?);
    let h = g.layer_norm_by_row(x, [&scale, &shift], rows, spec.epsilon)?;
    let patch = spec.patch.time * spec.patch.height * spec.patch.width;
    weights.linear(g, "proj_out", &h, [spec.out_channels * patch, d])
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
