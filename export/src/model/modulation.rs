//! Modulation: the vectors by which the timestep of a token scales and shifts its norms and gates its residuals.

use super::graph_weights::GraphWeights;
use crate::Error;
use bundle::dtype::ElementType;
use bundle::spec::DenoiserSpec;
use graph::{GraphBuilder, Tensor};

/// The inputs of all modulations of a step.
///
/// Vectors of tokens are built before the layers that use them, and before the tokens themselves: ONNX Runtime computes
/// the inputs of a node in the reverse of their order in the graph. The vectors of one layer are then computed right
/// before it. In another order, the vectors of all layers would be computed first and kept, `[L,d]` each if there are
/// several timesteps.
#[derive(Debug)]
pub(super) struct Modulation {
    /// Time embeddings, `[R,d]`, f32.
    time: Tensor,
    /// Shift, scale and gate of self-attention, then of the feed-forward layer, for each timestep: `[R,6,d]`, f32.
    projected: Tensor,
    /// The timestep of each token: `[1,M]`, or `[M]` in plain graphs, i64. M is 1 if all tokens have the same.
    pub(super) rows: Tensor,
}

/// The modulation of a layer, for each timestep `[R,d]`, or for each token `[1,M,d]`.
#[derive(Debug)]
pub(super) struct Vectors {
    /// One plus the scale after the norm.
    pub(super) scale: Tensor,
    /// The shift after the norm.
    pub(super) shift: Tensor,
    /// The gate of the residual.
    pub(super) gate: Tensor,
}

impl Modulation {
    /// Builds the time embeddings of `timestep [R]` and their projection; `rows [M]` are the timesteps of the tokens.
    ///
    /// # Errors
    /// Returns an error if a weight is missing or does not match the spec.
    pub(super) fn new(
        g: &mut GraphBuilder,
        spec: &DenoiserSpec,
        weights: GraphWeights<'_>,
        [timestep, rows]: [&Tensor; 2],
    ) -> Result<Self, Error> {
        let d = spec.width();
        let compute = weights.lowering().compute;
        g.scoped("time", |g| {
            // As in diffusers: time embedding and modulation in f32, the large projection in the format of the
            // arithmetic.
            let time = time_embedding(g, spec, weights.in_f32(), timestep)?;
            let active = g.silu(&time)?;
            let active = g.cast(&active, compute);
            let projected = weights.linear(g, "condition_embedder.time_proj", &active, [6 * d, d])?;
            let projected = g.cast(&projected, ElementType::F32);
            let projected = g.reshape(&projected, &[timestep.shape()[0].clone(), 6.into(), d.into()])?;
            // WebGPU has no kernel that reshapes integers, and would take them from the CPU in each run.
            let rows = if g.is_plain() {
                rows.clone()
            } else {
                g.reshape(rows, &[1.into(), rows.shape()[0].clone()])?
            };
            Ok(Self { time, projected, rows })
        })
    }

    /// Builds the modulation of self-attention and of the feed-forward layer of block `index`, for each timestep.
    ///
    /// # Errors
    /// Returns an error if a weight is missing or does not match the spec.
    pub(super) fn of_block(
        &self,
        g: &mut GraphBuilder,
        spec: &DenoiserSpec,
        weights: GraphWeights<'_>,
        index: usize,
    ) -> Result<[Vectors; 2], Error> {
        let compute = weights.lowering().compute;
        let name = format!("blocks.{index}.scale_shift_table");
        let table = weights.in_f32().load(g, &name, &[1, 6, spec.width()])?;
        let table = g.add(&table, &self.projected)?;
        let mut vectors = |first: usize| {
            let shift = vector(g, &table, first, compute)?;
            let scale = one_plus_vector(g, &table, first + 1, compute)?;
            Ok::<_, Error>(Vectors { scale, shift, gate: vector(g, &table, first + 2, compute)? })
        };
        Ok([vectors(0)?, vectors(3)?])
    }

    /// Builds the scale and the shift of the head, for each token: `[1,M,d]`.
    ///
    /// # Errors
    /// Returns an error if a weight is missing or does not match the spec.
    pub(super) fn of_head(
        &self,
        g: &mut GraphBuilder,
        spec: &DenoiserSpec,
        weights: GraphWeights<'_>,
    ) -> Result<[Tensor; 2], Error> {
        let d = spec.width();
        let table = weights.in_f32().load(g, "scale_shift_table", &[1, 2, d])?;
        let time = g.reshape(&self.time, &[self.time.shape()[0].clone(), 1.into(), d.into()])?;
        let table = g.add(&table, &time)?;
        let compute = weights.lowering().compute;
        let (shift, scale) = (vector(g, &table, 0, compute)?, one_plus_vector(g, &table, 1, compute)?);
        Ok([self.of_tokens(g, &scale)?, self.of_tokens(g, &shift)?])
    }

    /// Gathers the vector of each token, `[1,M,d]`, from those of the timesteps, `[R,d]`. With one timestep this is the
    /// same vector in another shape.
    ///
    /// # Errors
    /// None for a tensor of this graph.
    pub(super) fn of_tokens(&self, g: &mut GraphBuilder, vectors: &Tensor) -> Result<Tensor, Error> {
        let gathered = g.gather(vectors, &self.rows)?;
        match gathered.shape() {
            [tokens, width] => {
                let shape = [1.into(), tokens.clone(), width.clone()];
                Ok(g.reshape(&gathered, &shape)?)
            }
            _ => Ok(gathered),
        }
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
    let [cos, sin] = g.cos_and_sin(&angles)?;
    let sinusoid = g.concat(&[&cos, &sin], 1)?;
    let d = spec.width();
    let embedder = "condition_embedder.time_embedder";
    let h = weights.linear(g, &format!("{embedder}.linear_1"), &sinusoid, [d, spec.frequency_width])?;
    let h = g.silu(&h)?;
    weights.linear(g, &format!("{embedder}.linear_2"), &h, [d, d])
}

/// Returns vector `index` of tables `[R,vectors,d]` f32, as `[R,d]` in the number format `compute`.
fn vector(g: &mut GraphBuilder, table: &Tensor, index: usize, compute: ElementType) -> Result<Tensor, Error> {
    let vector = f32_vector(g, table, index)?;
    Ok(g.cast(&vector, compute))
}

/// Returns `1 +` vector `index` of tables `[R,vectors,d]` f32, as `[R,d]` in the number format `compute`.
fn one_plus_vector(
    g: &mut GraphBuilder,
    table: &Tensor,
    index: usize,
    compute: ElementType,
) -> Result<Tensor, Error> {
    let one = g.constant("1.0", &[], &[1.0])?;
    let vector = f32_vector(g, table, index)?;
    let sum = g.add(&vector, &one)?;
    Ok(g.cast(&sum, compute))
}

fn f32_vector(g: &mut GraphBuilder, table: &Tensor, index: usize) -> Result<Tensor, Error> {
    let vector = g.slice(table, 1, index, index + 1)?;
    Ok(g.reshape(&vector, &[table.shape()[0].clone(), table.from_last(1)])?)
}
