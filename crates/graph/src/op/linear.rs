//! Linear layers with weights in the layout of checkpoints: `[out,in]`.

use crate::builder::Operator;
use crate::{Dim, Error, GraphBuilder, Tensor};

impl GraphBuilder {
    /// `x·Wᵀ + b` over the last axis: `x […,in]`, `weight [out,in]`, `bias [out]`.
    ///
    /// `Gemm(transB=1)` reads the weight without a transposed copy.
    ///
    /// # Errors
    /// Returns an error if the widths do not match.
    pub fn linear(&mut self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, Error> {
        let fits = weight.rank() == 2
            && weight.shape()[1] == x.from_last(1)
            && bias.is_none_or(|bias| bias.shape() == &weight.shape()[..1]);
        if !fits || x.rank() < 2 {
            let mut operands = vec![x, weight];
            operands.extend(bias);
            return Err(self.mismatch("Gemm", "x […,in], weight [out,in] and bias [out]", &operands));
        }
        let rows = Dim::product(&x.shape()[..x.rank() - 1]);
        let flat = self.reshape(x, &[rows.clone(), x.from_last(1)])?;
        let out = weight.shape()[0].clone();
        let gemm = Operator::new("Gemm").int("transB", 1);
        let product =
            self.node(gemm, &[Some(&flat), Some(weight), bias], x.element(), vec![rows, out.clone()]);
        let mut shape = x.shape().to_vec();
        shape[x.rank() - 1] = out;
        self.reshape(&product, &shape)
    }
}
