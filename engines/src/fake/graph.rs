//! A graph of the fake: its interface, and how much memory and time it takes.

use crate::Value;
use bundle::signature::{Extent, Signature, TensorSpec};
use bundle::units::ByteCount;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A graph that the fake can open.
///
/// ```
/// use bundle::dtype::ElementType;
/// use bundle::signature::{Extent, Signature, TensorSpec};
/// use engines::Value;
/// use engines::fake::FakeGraph;
/// use ndarray::Array1;
///
/// let tensor = |name: &str, extent: &str| TensorSpec {
///     name: name.into(),
///     element: ElementType::F32,
///     shape: vec![Extent::Dynamic(extent.into())],
/// };
/// let signature = Signature { inputs: vec![tensor("x", "N")], outputs: vec![tensor("y", "M")] };
/// let graph = FakeGraph::new("doubled", signature)
///     .with_shape("y", |inputs| vec![2 * inputs.extent("N")]);
///
/// let x = Value::from_f32(Array1::<f32>::zeros(4));
/// let outputs = graph.outputs(&[("x", &x)])?;
/// assert_eq!((&*outputs[0].0, outputs[0].1.shape()), ("y", &[8][..]));
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Clone)]
pub struct FakeGraph {
    pub(super) name: Arc<str>,
    pub(super) signature: Signature,
    pub(super) weights: ByteCount,
    pub(super) activations: ByteCount,
    pub(super) opening: Duration,
    pub(super) running: Duration,
    pub(super) shapes: Vec<(String, ShapeOf)>,
}

/// Returns the shape of an output.
#[derive(Clone)]
pub(super) struct ShapeOf(Arc<ShapeFunction>);

type ShapeFunction = dyn Fn(&InputShapes<'_>) -> Vec<usize> + Send + Sync;

impl ShapeOf {
    pub(super) fn shape(&self, inputs: &InputShapes<'_>) -> Vec<usize> {
        (self.0)(inputs)
    }
}

impl fmt::Debug for ShapeOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShapeOf")
    }
}

impl FakeGraph {
    /// A graph without memory and latency. Outputs depend on `name`.
    pub fn new(name: &str, signature: Signature) -> Self {
        let (none, instant) = (ByteCount(0), Duration::ZERO);
        Self {
            name: name.into(),
            signature,
            weights: none,
            activations: none,
            opening: instant,
            running: instant,
            shapes: Vec::new(),
        }
    }

    /// Its predicted memory: weights from its opening on, activations from its first run on. A session holds both until
    /// it is closed.
    #[must_use]
    pub fn with_memory(self, weights: ByteCount, activations: ByteCount) -> Self {
        Self { weights, activations, ..self }
    }

    /// How long it takes to open and to run.
    #[must_use]
    pub fn with_latencies(self, opening: Duration, running: Duration) -> Self {
        Self { opening, running, ..self }
    }

    /// The shape of an output whose extents cannot be found by name among the inputs.
    #[must_use]
    pub fn with_shape(
        mut self,
        output: &str,
        shape: impl Fn(&InputShapes<'_>) -> Vec<usize> + Send + Sync + 'static,
    ) -> Self {
        self.shapes.push((output.into(), ShapeOf(Arc::new(shape))));
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its inputs and outputs.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// The first output with an extent that is neither fixed, nor named in an input, nor given by a function.
    pub(super) fn unknown_output(&self) -> Option<&TensorSpec> {
        let is_known = |extent: &Extent| match extent {
            Extent::Fixed(_) => true,
            Extent::Dynamic(_) => self.signature.inputs.iter().any(|input| input.shape.contains(extent)),
        };
        let has_shape = |output: &TensorSpec| {
            output.shape.iter().all(is_known) || self.shapes.iter().any(|(name, _)| *name == output.name)
        };
        self.signature.outputs.iter().find(|output| !has_shape(output))
    }
}

/// The shapes of the inputs of a run.
#[derive(Debug, Clone, Copy)]
pub struct InputShapes<'a> {
    signature: &'a Signature,
    given: &'a [(&'a str, &'a Value)],
}

impl<'a> InputShapes<'a> {
    pub(super) fn new(signature: &'a Signature, given: &'a [(&'a str, &'a Value)]) -> Self {
        Self { signature, given }
    }

    /// The shape of an input.
    ///
    /// # Panics
    /// Panics if the run has no such input.
    pub fn shape(&self, input: &str) -> &'a [usize] {
        let found = self.given.iter().find(|(name, _)| *name == input);
        let (_, value) = found.unwrap_or_else(|| panic!("the graph has no input `{input}`"));
        value.shape()
    }

    /// The size of a dynamic extent, by its name in the signature of the inputs.
    ///
    /// # Panics
    /// Panics if no input has such an extent.
    pub fn extent(&self, name: &str) -> usize {
        self.find(name).unwrap_or_else(|| panic!("no input of the graph has an extent `{name}`"))
    }

    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.sizes(name).next()
    }

    /// Every size that the inputs give to a dynamic extent.
    pub(super) fn sizes(&self, name: &str) -> impl Iterator<Item = usize> {
        let is_named = move |extent: &Extent| matches!(extent, Extent::Dynamic(other) if other == name);
        self.signature.inputs.iter().flat_map(move |spec| {
            let given = self.given.iter().find(|(input, _)| *input == spec.name);
            let sizes = given.map_or(&[][..], |(_, value)| value.shape());
            spec.shape.iter().zip(sizes).filter(move |(extent, _)| is_named(extent)).map(|(_, size)| *size)
        })
    }

    /// The first dynamic extent to which two inputs give different sizes, and the sizes.
    pub(super) fn contradiction(&self) -> Option<(String, usize, usize)> {
        let extents = self.signature.inputs.iter().flat_map(|input| &input.shape);
        let names = extents.filter_map(|extent| match extent {
            Extent::Dynamic(name) => Some(name),
            Extent::Fixed(_) => None,
        });
        names.into_iter().find_map(|name| {
            let first = self.find(name)?;
            let other = self.sizes(name).find(|size| *size != first)?;
            Some((name.clone(), first, other))
        })
    }
}
