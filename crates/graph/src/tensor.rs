//! Values of a graph.

use crate::Dim;
use crate::dim::show;
use bundle::dtype::ElementType;
use bundle::signature::TensorSpec;
use std::fmt;
use std::sync::Arc;

/// A value of a graph: its name, number format and shape. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    name: Arc<str>,
    element: ElementType,
    shape: Vec<Dim>,
}

impl Tensor {
    pub(crate) fn new(name: &str, element: ElementType, shape: Vec<Dim>) -> Self {
        Self { name: name.into(), element, shape }
    }

    /// Returns its name in the graph.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns its number format.
    pub fn element(&self) -> ElementType {
        self.element
    }

    /// Returns its shape.
    pub fn shape(&self) -> &[Dim] {
        &self.shape
    }

    /// Returns the number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Returns the extent of an axis counted from the end, from 1; an extent of 1 if there is no such axis.
    pub fn from_last(&self, axis: usize) -> Dim {
        self.shape.len().checked_sub(axis).map_or(Dim::from(1), |axis| self.shape[axis].clone())
    }

    /// Returns the tensor as in a signature.
    pub fn spec(&self) -> TensorSpec {
        TensorSpec {
            name: self.name.to_string(),
            element: self.element,
            shape: self.shape.iter().map(Dim::extent).collect(),
        }
    }
}

impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{}", self.name, self.element, show(&self.shape))
    }
}
