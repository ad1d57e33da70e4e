//! Placed weights as tensors of a graph.

use crate::Error;
use crate::weights::PlacedWeights;
use bundle::dtype::ElementType;
use graph::{ExternalData, GraphBuilder, Tensor};

/// The weights of one component, checked against the shapes that its model needs.
#[derive(Debug, Clone, Copy)]
pub struct GraphWeights<'a> {
    placed: &'a PlacedWeights,
}

impl<'a> GraphWeights<'a> {
    /// Over weights that are in their place in the bundle.
    pub fn new(placed: &'a PlacedWeights) -> Self {
        Self { placed }
    }

    /// A weight as f32. One that is stored narrower is widened by a `Cast`, which ONNX Runtime folds when it opens
    /// the graph.
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
        Ok(graph.cast(&stored, ElementType::F32))
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
        let weight = self.load(graph, &format!("{name}.weight"), &[out, width])?;
        let bias = self.load(graph, &format!("{name}.bias"), &[out])?;
        Ok(graph.linear(x, &weight, Some(&bias))?)
    }
}
