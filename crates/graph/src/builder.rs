//! Creates nodes and checks the shapes of their inputs.

mod finish;

use crate::dim::show;
use crate::domain::{MICROSOFT, RUSHES};
use crate::model::data_type;
use crate::proto::{AttributeProto, AttributeType, NodeProto, TensorProto};
use crate::{Dim, Error, ExternalData, Tensor};
use bundle::dtype::ElementType;
use std::collections::BTreeMap;

/// Builds one graph. Node names contain their scope, for readable errors and profiles.
///
/// ```
/// use bundle::dtype::ElementType;
/// use graph::{Dim, GraphBuilder};
///
/// let mut graph = GraphBuilder::new("example");
/// let x = graph.input("x", ElementType::F32, &[Dim::symbol("rows"), 4.into()]);
/// let bias = graph.constant("bias", &[4], &[0.5; 4])?;
/// let sum = graph.scoped("layer", |graph| graph.add(&x, &bias))?;
/// assert_eq!(sum.to_string(), "layer/Add f32[rows,4]");
///
/// let wrong = graph.constant("wrong", &[5], &[0.5; 5])?;
/// assert!(graph.add(&x, &wrong).is_err());
///
/// graph.output("y", &sum)?;
/// let model = graph.finish()?;
/// assert_eq!(model.signature().outputs[0].name, "y");
/// # Ok::<(), graph::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct GraphBuilder {
    name: String,
    is_plain: bool,
    is_for_cuda: bool,
    scopes: Vec<String>,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    /// Declared constants and weights by name; each is declared once.
    declared: BTreeMap<String, Tensor>,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    counts: BTreeMap<String, usize>,
}

/// A node before it is added: operator, domain and attributes.
#[derive(Debug, Clone)]
pub(crate) struct Operator {
    op_type: &'static str,
    domain: &'static str,
    attributes: Vec<AttributeProto>,
}

impl Operator {
    pub(crate) fn new(op_type: &'static str) -> Self {
        Self { op_type, domain: "", attributes: Vec::new() }
    }

    pub(crate) fn microsoft(op_type: &'static str) -> Self {
        Self { domain: MICROSOFT, ..Self::new(op_type) }
    }

    pub(crate) fn rushes(op_type: &'static str) -> Self {
        Self { domain: RUSHES, ..Self::new(op_type) }
    }

    fn attribute(
        mut self,
        name: &str,
        r#type: AttributeType,
        fill: impl FnOnce(&mut AttributeProto),
    ) -> Self {
        let mut attribute =
            AttributeProto { name: name.into(), r#type: r#type.into(), ..AttributeProto::default() };
        fill(&mut attribute);
        self.attributes.push(attribute);
        self
    }

    pub(crate) fn int(self, name: &str, value: usize) -> Self {
        self.attribute(name, AttributeType::Int, |a| a.i = signed(value))
    }

    /// Like [`Self::int`] for a value that may be negative, such as an axis counted from the end.
    pub(crate) fn signed_int(self, name: &str, value: i64) -> Self {
        self.attribute(name, AttributeType::Int, |a| a.i = value)
    }

    pub(crate) fn float(self, name: &str, value: f32) -> Self {
        self.attribute(name, AttributeType::Float, |a| a.f = value)
    }

    pub(crate) fn text(self, name: &str, value: &str) -> Self {
        self.attribute(name, AttributeType::String, |a| a.s = value.as_bytes().to_vec())
    }

    pub(crate) fn ints(self, name: &str, values: &[usize]) -> Self {
        self.attribute(name, AttributeType::Ints, |a| a.ints = values.iter().map(|v| signed(*v)).collect())
    }
}

/// Converts to ONNX's i64. Tensor sizes are far below its maximum.
pub(crate) fn signed(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl GraphBuilder {
    /// Creates an empty graph.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Creates an empty graph of standard operators, of version 21, or 22 if a convolution is in bf16. Fused operators
    /// are decomposed; TensorRT fuses them again.
    pub fn plain(name: &str) -> Self {
        Self { is_plain: true, ..Self::new(name) }
    }

    /// Creates an empty graph for the CUDA provider. It has a fused attention, but no operators whose CUDA kernels end
    /// before version 23 of ONNX's operators.
    pub fn cuda(name: &str) -> Self {
        Self { is_for_cuda: true, ..Self::new(name) }
    }

    /// Returns true if the graph is for the CUDA provider.
    pub(crate) fn is_for_cuda(&self) -> bool {
        self.is_for_cuda
    }

    /// Returns true if the graph uses standard operators only.
    pub fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// Runs `build` with `scope` prefixed to the names of its nodes.
    ///
    /// # Errors
    /// Those of `build`.
    pub fn scoped<T, E>(
        &mut self,
        scope: &str,
        build: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        self.scopes.push(scope.into());
        let result = build(self);
        self.scopes.pop();
        result
    }

    /// Declares an input.
    pub fn input(&mut self, name: &str, element: ElementType, shape: &[Dim]) -> Tensor {
        let tensor = Tensor::new(name, element, shape.to_vec());
        self.inputs.push(tensor.clone());
        tensor
    }

    /// Declares an output with its own name.
    ///
    /// # Errors
    /// None for a tensor of this graph.
    pub fn output(&mut self, name: &str, tensor: &Tensor) -> Result<(), Error> {
        let identity = Operator::new("Identity");
        let node = self.node_name("Identity");
        let output = Tensor::new(name, tensor.element(), tensor.shape().to_vec());
        self.push(node, identity, &[Some(tensor)], std::slice::from_ref(&output));
        self.outputs.push(output);
        Ok(())
    }

    /// Declares a weight in an external file. Declaring the same weight again returns the first declaration.
    ///
    /// # Errors
    /// Returns an error if the span is not in the graph's folder or has not the length of the shape.
    pub fn external(
        &mut self,
        name: &str,
        element: ElementType,
        shape: &[usize],
        data: &ExternalData,
    ) -> Result<Tensor, Error> {
        data.check(name, shape.iter().product::<usize>() * element.bytes())?;
        let tensor = Tensor::new(name, element, shape.iter().map(|size| Dim::from(*size)).collect());
        if let Some(declared) = self.declared.get(name) {
            return if *declared == tensor {
                Ok(tensor)
            } else {
                Err(self.mismatch("weight", format!("one shape for `{name}`"), &[declared, &tensor]))
            };
        }
        self.initializers.push(TensorProto {
            dims: shape.iter().map(|size| signed(*size)).collect(),
            data_type: data_type(element),
            name: name.into(),
            external_data: data.entries(),
            data_location: 1,
            ..TensorProto::default()
        });
        self.declared.insert(name.into(), tensor.clone());
        Ok(tensor)
    }

    /// Declares an f32 constant in the graph.
    ///
    /// # Errors
    /// Returns an error if the number of values does not match the shape.
    pub fn constant(&mut self, name: &str, shape: &[usize], values: &[f32]) -> Result<Tensor, Error> {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.inline(name, ElementType::F32, shape, values.len(), bytes)
    }

    /// Declares an i64 constant in the graph.
    ///
    /// # Errors
    /// Returns an error if the number of values does not match the shape.
    pub fn integers(&mut self, name: &str, shape: &[usize], values: &[i64]) -> Result<Tensor, Error> {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.inline(name, ElementType::I64, shape, values.len(), bytes)
    }

    /// Declares a constant of any number format, once per name.
    pub(crate) fn inline(
        &mut self,
        name: &str,
        element: ElementType,
        shape: &[usize],
        count: usize,
        bytes: Vec<u8>,
    ) -> Result<Tensor, Error> {
        let tensor = Tensor::new(name, element, shape.iter().map(|size| Dim::from(*size)).collect());
        if shape.iter().product::<usize>() != count {
            return Err(self.mismatch("constant", format!("{count} elements"), &[&tensor]));
        }
        if let Some(declared) = self.declared.get(name) {
            let same = self.initializers.iter().any(|known| known.name == name && known.raw_data == bytes);
            return if same && *declared == tensor {
                Ok(tensor)
            } else {
                Err(self.mismatch("constant", format!("one value for `{name}`"), &[declared, &tensor]))
            };
        }
        self.initializers.push(TensorProto {
            dims: shape.iter().map(|size| signed(*size)).collect(),
            data_type: data_type(element),
            name: name.into(),
            raw_data: bytes,
            ..TensorProto::default()
        });
        self.declared.insert(name.into(), tensor.clone());
        Ok(tensor)
    }

    /// Adds a node with one output.
    pub(crate) fn node(
        &mut self,
        operator: Operator,
        inputs: &[Option<&Tensor>],
        element: ElementType,
        shape: Vec<Dim>,
    ) -> Tensor {
        let name = self.node_name(operator.op_type);
        let output = Tensor::new(&name, element, shape);
        self.push(name, operator, inputs, std::slice::from_ref(&output));
        output
    }

    /// Adds a node with several outputs.
    pub(crate) fn node_of<const N: usize>(
        &mut self,
        operator: Operator,
        inputs: &[Option<&Tensor>],
        outputs: [(&str, ElementType, Vec<Dim>); N],
    ) -> [Tensor; N] {
        let name = self.node_name(operator.op_type);
        let outputs =
            outputs.map(|(suffix, element, shape)| Tensor::new(&format!("{name}.{suffix}"), element, shape));
        self.push(name, operator, inputs, &outputs);
        outputs
    }

    /// Returns true if a tensor is a weight or constant.
    pub(crate) fn is_initializer(&self, tensor: &Tensor) -> bool {
        self.declared.contains_key(tensor.name())
            && self.initializers.iter().any(|known| known.name == tensor.name())
    }

    /// Adds a node with one input and its own name. Returns the existing output if it was added before.
    pub(crate) fn node_once(
        &mut self,
        name: &str,
        operator: Operator,
        x: &Tensor,
        element: ElementType,
    ) -> Tensor {
        if let Some(known) = self.declared.get(name) {
            return known.clone();
        }
        let output = Tensor::new(name, element, x.shape().to_vec());
        self.push(name.to_owned(), operator, &[Some(x)], std::slice::from_ref(&output));
        self.declared.insert(name.to_owned(), output.clone());
        output
    }

    /// Adds a node. Inputs that are left out at the end are not written: TensorRT's parser refuses empty names there.
    fn push(&mut self, name: String, operator: Operator, inputs: &[Option<&Tensor>], outputs: &[Tensor]) {
        let given = inputs.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        let inputs = inputs.get(..given).unwrap_or_default();
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|input| input.map_or(String::new(), |t| t.name().into())).collect(),
            output: outputs.iter().map(|output| output.name().into()).collect(),
            name,
            op_type: operator.op_type.into(),
            attribute: operator.attributes,
            domain: operator.domain.into(),
        });
    }

    fn node_name(&mut self, op_type: &str) -> String {
        let scope = self.scopes.join("/");
        let base = if scope.is_empty() { op_type.to_owned() } else { format!("{scope}/{op_type}") };
        let count = self.counts.entry(base.clone()).or_default();
        *count += 1;
        if *count == 1 { base } else { format!("{base}.{count}") }
    }

    /// Returns the error for operands that do not match.
    pub(crate) fn mismatch(&self, op_type: &str, expected: impl Into<String>, found: &[&Tensor]) -> Error {
        let found: Vec<String> = found.iter().map(|tensor| tensor.to_string()).collect();
        Error::Shape { node: self.path(op_type), expected: expected.into(), found: found.join(" and ") }
    }

    fn path(&self, op_type: &str) -> String {
        let mut path = self.scopes.clone();
        path.push(op_type.into());
        format!("`{}`", path.join("/"))
    }

    /// Returns the size of a dimension as a one-element i64 tensor, read from an input if it is not a number.
    ///
    /// # Errors
    /// Returns an error if no input has the symbol.
    pub(crate) fn dim_size(&mut self, dim: &Dim) -> Result<Tensor, Error> {
        if let Some(size) = dim.fixed() {
            return self.integers(&format!("integer {size}"), &[1], &[signed(size)]);
        }
        if let Some(size) = self.read_extent(dim) {
            return Ok(size);
        }
        let factor = dim.factor();
        let mut product: Option<Tensor> = None;
        if factor != 1 {
            product = Some(self.integers(&format!("integer {factor}"), &[1], &[signed(factor)])?);
        }
        for symbol in dim.symbols() {
            let size = self.symbol_size(symbol)?;
            product = Some(match product {
                None => size,
                Some(product) => self.integer_node("Mul", &product, &size),
            });
        }
        product.ok_or_else(|| Error::UnknownSymbol { node: self.path("Shape"), symbol: dim.to_string() })
    }

    /// Returns the size of a symbol, read from an input extent of this symbol, alone or with a factor.
    fn symbol_size(&mut self, symbol: &str) -> Result<Tensor, Error> {
        let extents = self.inputs.iter().flat_map(|input| input.shape().to_vec());
        let with_factor =
            extents.filter(|dim| matches!(dim.symbols(), [one] if **one == *symbol)).min_by_key(Dim::factor);
        let dim = with_factor.unwrap_or_else(|| Dim::symbol(symbol));
        let size = self
            .read_extent(&dim)
            .ok_or_else(|| Error::UnknownSymbol { node: self.path("Shape"), symbol: symbol.into() })?;
        if dim.factor() == 1 {
            return Ok(size);
        }
        let divisor = self.integers(&format!("integer {}", dim.factor()), &[1], &[signed(dim.factor())])?;
        Ok(self.integer_node("Div", &size, &divisor))
    }

    /// Returns the extent of the first input with exactly this dimension.
    fn read_extent(&mut self, dim: &Dim) -> Option<Tensor> {
        let key = format!("size of {dim}");
        if let Some(known) = self.declared.get(&key) {
            return Some(known.clone());
        }
        let (input, axis) = self.inputs.iter().find_map(|input| {
            Some((input.clone(), input.shape().iter().position(|extent| extent == dim)?))
        })?;
        let read = Operator::new("Shape").int("start", axis).int("end", axis + 1);
        let size = self.node(read, &[Some(&input)], ElementType::I64, vec![Dim::from(1)]);
        self.declared.insert(key, size.clone());
        Some(size)
    }

    fn integer_node(&mut self, op_type: &'static str, a: &Tensor, b: &Tensor) -> Tensor {
        self.node(Operator::new(op_type), &[Some(a), Some(b)], ElementType::I64, vec![Dim::from(1)])
    }
}

/// Formats a shape for error messages.
pub(crate) fn shape_text(shape: &[Dim]) -> String {
    show(shape)
}

#[cfg(test)]
#[path = "builder_tests.rs"]
mod tests;
