//! Weights of a bundle as tensors of a graph.

use super::Lowering;
use super::branch::{self, Branches};
use super::quantized_linear::quantized_linear;
use crate::Error;
use crate::weights::INPUT_FACTORS;
use crate::weights::PlacedWeights;
use bundle::dtype::ElementType;
use bundle::quantization::{AttentionNumerics, ComponentNumerics, Fold, LayerNumerics};
use graph::{ExternalData, GraphBuilder, Tensor};

/// The weights of a component. Their shapes are checked when they are loaded.
#[derive(Debug, Clone, Copy)]
pub struct GraphWeights<'a> {
    placed: &'a PlacedWeights,
    lowering: Lowering,
    numerics: Option<&'a ComponentNumerics>,
    branches: Option<&'a Branches>,
}

impl<'a> GraphWeights<'a> {
    /// Uses weights in the bundle, for the CPU.
    pub fn new(placed: &'a PlacedWeights) -> Self {
        Self { placed, lowering: Lowering::CPU, numerics: None, branches: None }
    }

    /// Uses weights that are quantised with `numerics`.
    pub fn quantized(placed: &'a PlacedWeights, numerics: &'a ComponentNumerics) -> Self {
        Self { placed, lowering: Lowering::CPU, numerics: Some(numerics), branches: None }
    }

    /// Returns the same weights with branches beside some of the linear layers.
    pub fn branched(self, branches: &'a Branches) -> Self {
        Self { branches: Some(branches), ..self }
    }

    /// Returns the quantisation of a layer, if it is quantised.
    pub fn layer(&self, name: &str) -> Option<&'a LayerNumerics> {
        self.numerics?.layers.get(name)
    }

    /// Returns the quantisation of the matrix products of an attention, if they are quantised.
    pub fn attention(&self, name: &str) -> Option<AttentionNumerics> {
        self.numerics?.attention.get(name).copied()
    }

    /// Divides the scale and shift of the norm before the layer `name`, if the layer's smoothing is folded into them.
    ///
    /// # Errors
    /// Returns an error if the factors are missing or have another shape.
    pub fn smoothed<const N: usize>(
        &self,
        graph: &mut GraphBuilder,
        name: &str,
        vectors: [Tensor; N],
    ) -> Result<[Tensor; N], Error> {
        let smoothing = self.layer(name).and_then(|layer| layer.smoothing.as_ref());
        let Some(smoothing) = smoothing.filter(|smoothing| smoothing.fold == Fold::Upstream) else {
            return Ok(vectors);
        };
        let factors = self.load(graph, &format!("{name}.{INPUT_FACTORS}"), &[smoothing.divisors.len()])?;
        let mut divided = vectors;
        for vector in &mut divided {
            *vector = graph.multiply(vector, &factors)?;
        }
        Ok(divided)
    }

    /// Returns true if there is a weight of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.placed.tensors.contains_key(name)
    }

    /// Returns the same weights for another lowering.
    pub fn lowered(self, lowering: Lowering) -> Self {
        Self { lowering, ..self }
    }

    /// Returns the lowering of the graph.
    pub(super) fn lowering(&self) -> Lowering {
        self.lowering
    }

    /// Returns the same weights for small products that are computed in f32 on every target.
    pub(crate) fn in_f32(self) -> Self {
        Self { lowering: Lowering { compute: ElementType::F32, ..self.lowering }, ..self }
    }

    /// Loads a weight in the number format of the arithmetic. A weight in another format is converted by a `Cast`,
    /// which ONNX Runtime folds when it opens the graph.
    ///
    /// # Errors
    /// Returns an error if the weight is missing or has another shape.
    pub fn load(&self, graph: &mut GraphBuilder, name: &str, shape: &[usize]) -> Result<Tensor, Error> {
        self.load_view(graph, name, shape, shape)
    }

    /// Loads a weight of `shape` as `view`, which has the same elements in the same order.
    ///
    /// # Errors
    /// Returns an error if the weight is missing or has another shape.
    pub fn load_view(
        &self,
        graph: &mut GraphBuilder,
        name: &str,
        shape: &[usize],
        view: &[usize],
    ) -> Result<Tensor, Error> {
        let stored = self.load_stored(graph, name, shape, view)?;
        Ok(graph.cast(&stored, self.lowering.compute))
    }

    /// Loads a weight in its stored number format.
    ///
    /// # Errors
    /// Returns an error if the weight is missing or has another shape.
    pub fn load_stored(
        &self,
        graph: &mut GraphBuilder,
        name: &str,
        shape: &[usize],
        view: &[usize],
    ) -> Result<Tensor, Error> {
        let weight = self.placed.expect(name, shape)?;
        let data =
            ExternalData { location: weight.location.clone(), offset: weight.offset, length: weight.length };
        Ok(graph.external(name, weight.element, view, &data)?)
    }

    /// Builds a linear layer `name.weight [out,in]`, `name.bias [out]` over the last axis of `x`.
    ///
    /// # Errors
    /// Returns an error if a weight is missing or has another shape.
    pub fn linear(
        &self,
        graph: &mut GraphBuilder,
        name: &str,
        x: &Tensor,
        [out, width]: [usize; 2],
    ) -> Result<Tensor, Error> {
        self.linear_with(graph, name, x, [out, width], true)
    }

    /// Builds a linear layer without a bias.
    ///
    /// # Errors
    /// Returns an error if the weight is missing or has another shape.
    pub fn linear_without_bias(
        &self,
        graph: &mut GraphBuilder,
        name: &str,
        x: &Tensor,
        [out, width]: [usize; 2],
    ) -> Result<Tensor, Error> {
        self.linear_with(graph, name, x, [out, width], false)
    }

    fn linear_with(
        &self,
        graph: &mut GraphBuilder,
        name: &str,
        x: &Tensor,
        [out, width]: [usize; 2],
        has_bias: bool,
    ) -> Result<Tensor, Error> {
        let branch = self.branches.and_then(|branches| branches.get(name)).map(|branch| (name, branch));
        let Some(branch) = branch else {
            return self.plain_linear(graph, name, x, [out, width], has_bias);
        };
        let scaled = branch::input(graph, *self, branch, x, width)?;
        let y = self.plain_linear(graph, name, &scaled, [out, width], has_bias)?;
        branch::output(graph, *self, branch, [x, &y], [out, width])
    }

    fn plain_linear(
        &self,
        graph: &mut GraphBuilder,
        name: &str,
        x: &Tensor,
        [out, width]: [usize; 2],
        has_bias: bool,
    ) -> Result<Tensor, Error> {
        if let Some(numbers) = self.layer(name) {
            return quantized_linear(graph, *self, name, numbers, x, [out, width]);
        }
        let weight = self.load(graph, &format!("{name}.weight"), &[out, width])?;
        let bias = has_bias.then(|| self.load(graph, &format!("{name}.bias"), &[out])).transpose()?;
        Ok(graph.linear(x, &weight, bias.as_ref())?)
    }
}
