//! Elementwise arithmetic and activations, with broadcasting.

use crate::builder::Operator;
use crate::dim::broadcast;
use crate::{Dim, Error, GraphBuilder, Tensor};
use bundle::dtype::ElementType;

impl GraphBuilder {
    fn binary(&mut self, op_type: &'static str, a: &Tensor, b: &Tensor) -> Result<Tensor, Error> {
        match broadcast(a.shape(), b.shape()) {
            Some(shape) if a.element() == b.element() => {
                Ok(self.node(Operator::new(op_type), &[Some(a), Some(b)], a.element(), shape))
            }
            _ => Err(self.mismatch(op_type, "shapes that broadcast and equal number formats", &[a, b])),
        }
    }

    fn unary(&mut self, operator: Operator, x: &Tensor) -> Tensor {
        self.node(operator, &[Some(x)], x.element(), x.shape().to_vec())
    }

    /// `a + b`.
    ///
    /// # Errors
    /// Returns an error if the shapes do not broadcast.
    pub fn add(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor, Error> {
        self.binary("Add", a, b)
    }

    /// `a - b`.
    ///
    /// # Errors
    /// Returns an error if the shapes do not broadcast.
    pub fn subtract(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor, Error> {
        self.binary("Sub", a, b)
    }

    /// `a · b`.
    ///
    /// # Errors
    /// Returns an error if the shapes do not broadcast.
    pub fn multiply(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor, Error> {
        self.binary("Mul", a, b)
    }

    /// `a / b`.
    ///
    /// # Errors
    /// Returns an error if the shapes do not broadcast.
    pub fn divide(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor, Error> {
        self.binary("Div", a, b)
    }

    /// The larger of `a` and `b`.
    ///
    /// # Errors
    /// Returns an error if the shapes do not broadcast.
    pub fn maximum(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor, Error> {
        self.binary("Max", a, b)
    }

    /// Square root.
    pub fn square_root(&mut self, x: &Tensor) -> Tensor {
        self.unary(Operator::new("Sqrt"), x)
    }

    /// Clamps `x` to `low..=high` with a `Clip` node.
    ///
    /// # Errors
    /// None for an f32 tensor of this graph.
    pub fn clamp(&mut self, x: &Tensor, low: f32, high: f32) -> Result<Tensor, Error> {
        let low = self.constant(&format!("{low:?}"), &[], &[low])?;
        let high = self.constant(&format!("{high:?}"), &[], &[high])?;
        Ok(self.node(
            Operator::new("Clip"),
            &[Some(x), Some(&low), Some(&high)],
            x.element(),
            x.shape().to_vec(),
        ))
    }

    /// Cosine and sine of angles in radians, f32, of at most 25,000.
    ///
    /// # Errors
    /// Returns an error if the angles are not f32.
    pub fn cos_and_sin(&mut self, x: &Tensor) -> Result<[Tensor; 2], Error> {
        if x.element() != ElementType::F32 {
            return Err(self.mismatch("Cos", "angles in f32", &[x]));
        }
        if self.is_for_cuda() {
            return self.decomposed_cos_and_sin(x);
        }
        Ok(["Cos", "Sin"].map(|op_type| self.unary(Operator::new(op_type), x)))
    }

    /// The largest integers that are not above `x`.
    pub(super) fn floor(&mut self, x: &Tensor) -> Tensor {
        self.unary(Operator::new("Floor"), x)
    }

    /// `max(x, 0)`.
    pub fn relu(&mut self, x: &Tensor) -> Tensor {
        self.unary(Operator::new("Relu"), x)
    }

    /// Hyperbolic tangent.
    pub fn tanh(&mut self, x: &Tensor) -> Tensor {
        self.unary(Operator::new("Tanh"), x)
    }

    /// `x · sigmoid(x)`; ONNX Runtime fuses the two nodes into one pass.
    ///
    /// # Errors
    /// None for a tensor of this graph.
    pub fn silu(&mut self, x: &Tensor) -> Result<Tensor, Error> {
        let gate = self.unary(Operator::new("Sigmoid"), x);
        self.multiply(x, &gate)
    }

    /// GELU in its tanh form.
    pub fn gelu_tanh(&mut self, x: &Tensor) -> Tensor {
        self.unary(Operator::new("Gelu").text("approximate", "tanh"), x)
    }

    /// Converts to another number format. The cast of a weight or constant is named after it and added once.
    pub fn cast(&mut self, x: &Tensor, element: ElementType) -> Tensor {
        if x.element() == element {
            return x.clone();
        }
        let to = crate::model::data_type(element);
        let cast = Operator::new("Cast").signed_int("to", i64::from(to));
        if self.is_initializer(x) {
            let name = format!("{} as {element}", x.name());
            return self.node_once(&name, cast, x, element);
        }
        self.node(cast, &[Some(x)], element, x.shape().to_vec())
    }

    /// Rows of `table [N, …]` picked by `indices` (any shape, i64).
    ///
    /// # Errors
    /// Returns an error if the indices are not i64.
    pub fn gather(&mut self, table: &Tensor, indices: &Tensor) -> Result<Tensor, Error> {
        if indices.element() != ElementType::I64 || table.rank() == 0 {
            return Err(self.mismatch("Gather", "a table and i64 indices", &[table, indices]));
        }
        let shape: Vec<Dim> = indices.shape().iter().chain(&table.shape()[1..]).cloned().collect();
        Ok(self.node(
            Operator::new("Gather").int("axis", 0),
            &[Some(table), Some(indices)],
            table.element(),
            shape,
        ))
    }

    /// `0, 1, … size-1` as i64 `[size]`.
    ///
    /// # Errors
    /// Returns an error if no input has a symbol of `size`.
    pub fn range(&mut self, size: &Dim) -> Result<Tensor, Error> {
        let zero = self.integers("integer scalar 0", &[], &[0])?;
        // Not with `Reshape`: TensorRT's parser warns of the empty shape of a scalar.
        let limit = self.dim_size(size)?;
        let limit = self.gather(&limit, &zero)?;
        let one = self.integers("integer scalar 1", &[], &[1])?;
        let inputs = [Some(&zero), Some(&limit), Some(&one)];
        Ok(self.node(Operator::new("Range"), &inputs, ElementType::I64, vec![size.clone()]))
    }
}
