//! Convolutions.

use crate::builder::Operator;
use crate::{Dim, Error, GraphBuilder, Tensor};

impl GraphBuilder {
    /// Convolution of `x [N,Cin,H,W]` with `weight [Cout,Cin,k,k]`, stride 1, zero-padded to the same size.
    ///
    /// # Errors
    /// Returns an error if the channels do not match or the kernel is even.
    pub fn convolve(&mut self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor, Error> {
        let kernel: Option<Vec<usize>> = weight.shape().iter().skip(2).map(Dim::fixed).collect();
        let fits = x.rank() == 4
            && weight.rank() == 4
            && weight.shape()[1] == x.shape()[1]
            && bias.shape() == &weight.shape()[..1];
        match kernel {
            Some(kernel) if fits && kernel.iter().all(|size| size % 2 == 1) => {
                let mut shape = x.shape().to_vec();
                shape[1] = weight.shape()[0].clone();
                let half = [kernel[0] / 2, kernel[1] / 2];
                let conv = Operator::new("Conv")
                    .ints("kernel_shape", &kernel)
                    .ints("pads", &[half[0], half[1], half[0], half[1]]);
                Ok(self.node(conv, &[Some(x), Some(weight), Some(bias)], x.element(), shape))
            }
            _ => Err(self.mismatch(
                "Conv",
                "x [N,Cin,H,W], weight [Cout,Cin,k,k] with odd k and bias [Cout]",
                &[x, weight, bias],
            )),
        }
    }

    /// Splits a video into patches without overlap and projects each: `x [B,Cin,F,H,W]`, `weight [d,Cin,kt,kh,kw]`,
    /// stride = kernel. Returns `[B,d,F/kt,H/kh,W/kw]`; `grid` is the last three extents.
    ///
    /// # Errors
    /// Returns an error if the channels do not match or the grid is not the input's extents divided by the kernel.
    pub fn patch_convolution(
        &mut self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        grid: &[Dim; 3],
    ) -> Result<Tensor, Error> {
        let kernel: Option<Vec<usize>> = weight.shape().iter().skip(2).map(Dim::fixed).collect();
        let fits = x.rank() == 5
            && weight.rank() == 5
            && weight.shape()[1] == x.shape()[1]
            && bias.shape() == &weight.shape()[..1];
        match kernel {
            Some(kernel)
                if fits
                    && grid
                        .iter()
                        .zip(&kernel)
                        .zip(&x.shape()[2..])
                        .all(|((g, k), axis)| g.times(*k) == *axis) =>
            {
                let mut shape = vec![x.shape()[0].clone(), weight.shape()[0].clone()];
                shape.extend_from_slice(grid);
                let conv = Operator::new("Conv").ints("kernel_shape", &kernel).ints("strides", &kernel);
                Ok(self.node(conv, &[Some(x), Some(weight), Some(bias)], x.element(), shape))
            }
            _ => Err(self.mismatch(
                "Conv",
                "x [B,Cin,F,H,W], weight [d,Cin,kt,kh,kw] and bias [d] of the same patch grid",
                &[x, weight, bias],
            )),
        }
    }
}
