//! Placed weights as tensors of a graph.

use super::Lowering;
use super::quantized_linear::quantized_linear;
use crate::Error;
use crate::quantized::INPUT_FACTORS;
use crate::weights::PlacedWeights;
use bundle::dtype::ElementType;
use bundle::quantization::{AttentionNumerics, ComponentNumerics, Fold, LayerNumerics};
use graph::{ExternalData, GraphBuilder, Tensor};

/// The weights of one component, checked against the shapes that its model needs.
#[derive(Debug, Clone, Copy)]
pub struct GraphWeights<'a> {
    placed: &'a PlacedWeights,
    lowering: Lowering,
    numerics: Option<&'a ComponentNumerics>,
}

impl<'a> GraphWeights<'a> {
    /// Over weights that are in their place in the bundle, for the CPU.
    pub fn new(placed: &'a PlacedWeights) -> Self {
        Self { placed, lowering: Lowering::CPU, numerics: None }
    }

    /// Over weights that were quantised as `numerics` say.
    pub fn quantized(placed: &'a PlacedWeights, numerics: &'a ComponentNumerics) -> Self {
        Self { placed, lowering: Lowering::CPU, numerics: Some(numerics) }
    }

    /// The numbers of a layer, if it is quantised.
    pub fn layer(&self, name: &str) -> Option<&'a LayerNumerics> {
        self.numerics?.layers.get(name)
    }

    /// The numbers of the products inside an attention, if they are quantised.
    pub fn attention(&self, name: &str) -> Option<AttentionNumerics> {
        self.numerics?.attention.get(name).copied()
    }

    /// Vectors over channels that make the input of the layer `name`, the scale and shift of a norm: divided where the
    /// layer's smoothing is folded into them.
    ///
    /// # Errors
    /// Factors that are missing or of another shape.
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

    /// Whether there is a weight of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.placed.tensors.contains_key(name)
    }

    /// The same weights for another kind of machine.
    pub fn lowered(self, lowering: Lowering) -> Self {
        Self { lowering, ..self }
    }

    /// For what kind of machine the graph is.
    pub(super) fn lowering(&self) -> Lowering {
        self.lowering
    }

    /// The same weights for the few small products that are computed in f32 global.
    pub(crate) fn in_f32(self) -> Self {
        Self { lowering: Lowering { compute: ElementType::F32, ..self.lowering }, ..self }
    }

    /// A weight in the number format that the graph computes in. One that is stored in another is converted by a
    /// `Cast`, which ONNX Runtime folds when it opens the graph.
    ///
    /// # Errors
    /// A weight that is missing or of another shape.
    pub fn load(&self, graph: &mut GraphBuilder, name: &str, shape: &[usize]) -> Result<Tensor, Error> {
        self.load_view(graph, name, shape, shape)
    }

    /// A weight of `shape` seen as `view`, which has the same elements in the same order.
    ///
    /// # Errors
    /// A weight that is missing or of another shape.
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

    /// A weight in the number format that it is stored in.
    ///
    /// # Errors
    /// A weight that is missing or of another shape.
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

    /// A linear layer `name.weight [out,in]`, `name.bias [out]` over the last axis of `x`.
    ///
    /// # Errors
    /// A weight that is missing or of another shape.
    pub fn linear(
        &self,
        graph: &mut GraphBuilder,
        name: &str,
        x: &Tensor,
        [out, width]: [usize; 2],
    ) -> Result<Tensor, Error> {
        self.linear_with(graph, name, x, [out, width], true)
    }

    /// A linear layer without a bias.
    ///
    /// # Errors
    /// A weight that is missing or of another shape.
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
        if let Some(numbers) = self.layer(name) {
            return quantized_linear(graph, *self, name, numbers, x, [out, width]);
        }
        let weight = self.load(graph, &format!("{name}.weight"), &[out, width])?;
        let bias = has_bias.then(|| self.load(graph, &format!("{name}.bias"), &[out])).transpose()?;
        Ok(graph.linear(x, &weight, bias.as_ref())?)
    }
}
