//! The outputs of a run.

use crate::pool::PoolToken;
use crate::{TensorError, Value};

/// The outputs of a run, by name.
#[derive(Debug)]
pub struct Outputs {
    graph: String,
    values: Vec<(String, Value)>,
}

impl Outputs {
    /// Creates the outputs of a run of `graph`, in the order of the graph.
    pub fn new(graph: impl Into<String>, values: Vec<(String, Value)>) -> Self {
        Self { graph: graph.into(), values }
    }

    /// Keeps the memory pool of the session charged while a value is alive.
    pub(crate) fn hold(&mut self, pool: &PoolToken) {
        for (_, value) in &mut self.values {
            value.hold(pool);
        }
    }

    /// Names and values, in the order of the graph.
    pub(crate) fn values(&self) -> &[(String, Value)] {
        &self.values
    }

    /// Removes and returns the output `name`.
    ///
    /// # Errors
    /// The graph has no such output, or it was already taken.
    pub fn take(&mut self, name: &str) -> Result<Value, TensorError> {
        match self.values.iter().position(|(known, _)| known == name) {
            Some(index) => Ok(self.values.remove(index).1),
            None => Err(TensorError::MissingOutput {
                graph: self.graph.clone(),
                output: name.into(),
                available: self.values.iter().map(|(known, _)| known.clone()).collect(),
            }),
        }
    }
}

/// Iterates over the outputs that were not taken, in the order of the graph.
impl IntoIterator for Outputs {
    type Item = (String, Value);
    type IntoIter = std::vec::IntoIter<(String, Value)>;

    fn into_iter(self) -> Self::IntoIter {
        self.values.into_iter()
    }
}
