//! A value inside a graph.

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

    /// Its name in the graph.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number format.
    pub fn element(&self) -> ElementType {
        self.element
    }

    /// Its shape.
    pub fn shape(&self) -> &[Dim] {
        &self.shape
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The extent of an axis, counted from the end: 1 is the last. 1 (the number) for an axis there is not.
    pub fn from_last(&self, axis: usize) -> Dim {
        self.shape.len().checked_sub(axis).map_or(Dim::from(1), |axis| self.shape[axis].clone())
    }

    /// The tensor as the contract writes it.
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
