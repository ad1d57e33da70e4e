//! Operators that move values without changing them.

use crate::builder::{Operator, shape_text, signed};
use crate::{Dim, Error, GraphBuilder, Tensor};
use bundle::dtype::ElementType;

impl GraphBuilder {
    /// Changes the shape.
    ///
    /// # Errors
    /// Returns an error if the number of elements differs, also for symbolic sizes.
    pub fn reshape(&mut self, x: &Tensor, shape: &[Dim]) -> Result<Tensor, Error> {
        if Dim::product(x.shape()) != Dim::product(shape) {
            let expected = format!("as many elements as {}", shape_text(shape));
            return Err(self.mismatch("Reshape", expected, &[x]));
        }
        if x.shape() == shape {
            return Ok(x.clone());
        }
        let target = self.reshape_target(x, shape)?;
        Ok(self.node(Operator::new("Reshape"), &[Some(x), Some(&target)], x.element(), shape.to_vec()))
    }

    /// Returns the second input of `Reshape`: known numbers, 0 for unchanged extents, -1 once, and sizes read from
    /// inputs for the rest.
    fn reshape_target(&mut self, x: &Tensor, shape: &[Dim]) -> Result<Tensor, Error> {
        let is_unchanged = |axis: usize| x.shape().get(axis) == shape.get(axis);
        let mut inferred = None;
        let mut known = Vec::with_capacity(shape.len());
        let mut unknown = Vec::new();
        for (axis, dim) in shape.iter().enumerate() {
            known.push(match dim.fixed() {
                Some(size) => signed(size),
                None if is_unchanged(axis) => 0,
                None => {
                    if inferred.replace(axis).is_some() {
                        unknown.push(axis);
                    }
                    -1
                }
            });
        }
        if unknown.is_empty() {
            let name = format!("shape {known:?}");
            return self.integers(&name, &[known.len()], &known);
        }
        let mut parts = Vec::with_capacity(shape.len());
        for (axis, dim) in shape.iter().enumerate() {
            parts.push(if known[axis] == -1 && inferred != Some(axis) {
                self.dim_size(dim)?
            } else {
                self.integers(&format!("integer {}", known[axis]), &[1], &[known[axis]])?
            });
        }
        let parts: Vec<&Tensor> = parts.iter().collect();
        self.concat(&parts, 0)
    }

    /// Permutes the axes: axis `i` of the result is axis `order[i]` of `x`.
    ///
    /// # Errors
    /// Returns an error if the order is not a permutation of the axes.
    pub fn transpose(&mut self, x: &Tensor, order: &[usize]) -> Result<Tensor, Error> {
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..x.rank()) {
            return Err(self.mismatch("Transpose", format!("the axes of the order {order:?}"), &[x]));
        }
        let shape = order.iter().map(|axis| x.shape()[*axis].clone()).collect();
        Ok(self.node(Operator::new("Transpose").ints("perm", order), &[Some(x)], x.element(), shape))
    }

    /// Concatenates tensors along an axis of known extents.
    ///
    /// # Errors
    /// Returns an error if the tensors differ in another axis, or if an extent of this axis is unknown.
    pub fn concat(&mut self, parts: &[&Tensor], axis: usize) -> Result<Tensor, Error> {
        let expected = || format!("parts that differ along axis {axis} only");
        let Some(first) = parts.first() else {
            return Err(self.mismatch("Concat", expected(), parts));
        };
        let others_equal = |part: &Tensor| {
            part.element() == first.element()
                && part.rank() == first.rank()
                && (0..part.rank()).all(|a| a == axis || part.shape()[a] == first.shape()[a])
        };
        let total: Option<usize> = parts.iter().map(|part| part.shape().get(axis)?.fixed()).sum();
        match total {
            Some(total) if parts.iter().all(|part| others_equal(part)) => {
                let mut shape = first.shape().to_vec();
                shape[axis] = total.into();
                let inputs: Vec<_> = parts.iter().map(|part| Some(*part)).collect();
                Ok(self.node(Operator::new("Concat").int("axis", axis), &inputs, first.element(), shape))
            }
            _ => Err(self.mismatch("Concat", expected(), parts)),
        }
    }

    /// Returns the span `start..end` of an axis of known extent.
    ///
    /// # Errors
    /// Returns an error if the span is out of range.
    pub fn slice(&mut self, x: &Tensor, axis: usize, start: usize, end: usize) -> Result<Tensor, Error> {
        let size = x.shape().get(axis).and_then(Dim::fixed);
        if size.is_none_or(|size| start >= end || end > size) {
            return Err(self.mismatch("Slice", format!("{start}..{end} along axis {axis}"), &[x]));
        }
        if size == Some(end - start) {
            return Ok(x.clone());
        }
        let mut shape = x.shape().to_vec();
        shape[axis] = (end - start).into();
        let [start, end, axis] = [start, end, axis].map(signed);
        let mut integer = |value: i64| self.integers(&format!("integer {value}"), &[1], &[value]);
        let (start, end, axis) = (integer(start)?, integer(end)?, integer(axis)?);
        let inputs = [Some(x), Some(&start), Some(&end), Some(&axis)];
        Ok(self.node(Operator::new("Slice"), &inputs, x.element(), shape))
    }

    /// Creates f32 zeros of a shape that may depend on inputs.
    ///
    /// # Errors
    /// Returns an error if no input has a symbol of the shape.
    pub fn zeros(&mut self, shape: &[Dim]) -> Result<Tensor, Error> {
        let mut parts = Vec::with_capacity(shape.len());
        for dim in shape {
            parts.push(self.dim_size(dim)?);
        }
        let parts: Vec<&Tensor> = parts.iter().collect();
        let target = self.concat(&parts, 0)?;
        if self.is_plain() || self.is_for_cuda() {
            // WebGPU has no kernel for `ConstantOfShape`, CUDA none for this version of it.
            let zero = self.scalar(0.0)?;
            let inputs = [Some(&zero), Some(&target)];
            return Ok(self.node(Operator::new("Expand"), &inputs, ElementType::F32, shape.to_vec()));
        }
        // Without a value, ConstantOfShape gives f32 zeros.
        Ok(self.node(Operator::new("ConstantOfShape"), &[Some(&target)], ElementType::F32, shape.to_vec()))
    }

    /// Channels to pixels: `x [N,side²·C,H,W]` to `[N,C,side·H,side·W]`, as PyTorch's `PixelShuffle`.
    ///
    /// # Errors
    /// Returns an error if the tensor has not four axes or the channels are not a multiple of `side²`.
    pub fn pixel_shuffle(&mut self, x: &Tensor, side: usize) -> Result<Tensor, Error> {
        let square = side * side;
        match x.shape() {
            [n, c, h, w] if c.fixed().is_some_and(|c| square > 0 && c.is_multiple_of(square)) => {
                let channels = c.fixed().unwrap_or_default() / square;
                let shape = vec![n.clone(), channels.into(), h.times(side), w.times(side)];
                let shuffle = Operator::new("DepthToSpace").int("blocksize", side).text("mode", "CRD");
                Ok(self.node(shuffle, &[Some(x)], x.element(), shape))
            }
            _ => Err(self.mismatch(
                "DepthToSpace",
                format!("four axes and a multiple of {square} channels"),
                &[x],
            )),
        }
    }

    /// [`double_pixels`](Self::double_pixels) as reshapes and `Expand`, for providers without a `Resize` kernel in the
    /// number format of `x`.
    ///
    /// # Errors
    /// Returns an error if the tensor has not four axes.
    pub fn double_pixels_by_expanding(&mut self, x: &Tensor) -> Result<Tensor, Error> {
        let [n, c, h, w] = x.shape() else {
            return Err(self.mismatch("Expand", "four axes", &[x]));
        };
        let (n, c, h, w) = (n.clone(), c.clone(), h.clone(), w.clone());
        let one = || Dim::from(1);
        let separated = self.reshape(x, &[n.clone(), c.clone(), h.clone(), one(), w.clone(), one()])?;
        let twice = self.integers("double height and width", &[6], &[1, 1, 1, 2, 1, 2])?;
        let shape = vec![n.clone(), c.clone(), h.clone(), 2.into(), w.clone(), 2.into()];
        let expanded =
            self.node(Operator::new("Expand"), &[Some(&separated), Some(&twice)], x.element(), shape);
        self.reshape(&expanded, &[n, c, h.times(2), w.times(2)])
    }

    /// Repeats every pixel of `x [N,C,H,W]` along height and width: `[N,C,2H,2W]`.
    ///
    /// # Errors
    /// Returns an error if the tensor has not four axes.
    pub fn double_pixels(&mut self, x: &Tensor) -> Result<Tensor, Error> {
        let [n, c, h, w] = x.shape() else {
            return Err(self.mismatch("Resize", "four axes", &[x]));
        };
        let shape = vec![n.clone(), c.clone(), h.times(2), w.times(2)];
        let scales = self.constant("scales of height and width", &[4], &[1.0, 1.0, 2.0, 2.0])?;
        let resize = Operator::new("Resize")
            .text("mode", "nearest")
            .text("nearest_mode", "floor")
            .text("coordinate_transformation_mode", "asymmetric");
        Ok(self.node(resize, &[Some(x), None, Some(&scales)], x.element(), shape))
    }
}
