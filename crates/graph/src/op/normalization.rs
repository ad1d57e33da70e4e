//! Normalisations over the last axis, and over channels.

use crate::builder::Operator;
use crate::{Dim, Error, GraphBuilder, Tensor};
use bundle::dtype::ElementType;

impl GraphBuilder {
    /// Layer normalisation over the last axis, then `· scale + shift`, both `[d]`.
    ///
    /// # Errors
    /// Returns an error if scale or shift have not the width of the last axis.
    pub fn layer_norm(
        &mut self,
        x: &Tensor,
        scale: &Tensor,
        shift: &Tensor,
        epsilon: f64,
    ) -> Result<Tensor, Error> {
        let width = [x.from_last(1)];
        if scale.shape() != width || shift.shape() != width {
            return Err(self.mismatch(
                "LayerNormalization",
                "a scale and shift of the last axis",
                &[x, scale, shift],
            ));
        }
        Ok(self.layer_norm_node(x, [scale, shift], epsilon))
    }

    /// Adds a layer norm whose scale and shift broadcast to `x`.
    pub(super) fn layer_norm_node(
        &mut self,
        x: &Tensor,
        [scale, shift]: [&Tensor; 2],
        epsilon: f64,
    ) -> Tensor {
        let norm =
            Operator::new("LayerNormalization").signed_int("axis", -1).float("epsilon", narrow(epsilon));
        self.node(norm, &[Some(x), Some(scale), Some(shift)], x.element(), x.shape().to_vec())
    }

    /// `x / sqrt(mean(x²) + ε) · gain` over the last axis; `gain [d]`.
    ///
    /// # Errors
    /// Returns an error if the gain has not the width of the last axis.
    pub fn rms_norm(&mut self, x: &Tensor, gain: &Tensor, epsilon: f64) -> Result<Tensor, Error> {
        if gain.shape() != [x.from_last(1)] {
            return Err(self.mismatch("RMSNormalization", "a gain of the last axis", &[x, gain]));
        }
        if self.is_plain() {
            return self.decomposed_rms_norm(x, gain, narrow(epsilon));
        }
        let norm = Operator::new("RMSNormalization").signed_int("axis", -1).float("epsilon", narrow(epsilon));
        Ok(self.node(norm, &[Some(x), Some(gain)], x.element(), x.shape().to_vec()))
    }

    /// `x / max(‖x‖₂, 1e-12)` over the channels of `x [N,C,H,W]`, times `gain`, which broadcasts to `x`.
    ///
    /// # Errors
    /// Returns an error if the gain does not broadcast.
    pub fn channel_norm(&mut self, x: &Tensor, gain: &Tensor) -> Result<Tensor, Error> {
        let mut shape = x.shape().to_vec();
        if shape.len() != 4 {
            return Err(self.mismatch("ReduceL2", "four axes", &[x]));
        }
        shape[1] = Dim::from(1);
        let channels = self.integers("integer 1", &[1], &[1])?;
        let norm = self.node(Operator::new("ReduceL2"), &[Some(x), Some(&channels)], x.element(), shape);
        let floor = self.constant("1e-12", &[], &[1e-12])?;
        let norm = self.maximum(&norm, &floor)?;
        let unit = self.divide(x, &norm)?;
        self.multiply(&unit, gain)
    }
}

impl GraphBuilder {
    /// [`channel_norm`](Self::channel_norm) as multiplications and a sum, for providers without a norm kernel in the
    /// number format of `x`. The root is computed in f32.
    ///
    /// # Errors
    /// Returns an error if the gain does not broadcast.
    pub fn channel_norm_by_sum(&mut self, x: &Tensor, gain: &Tensor) -> Result<Tensor, Error> {
        let mut shape = x.shape().to_vec();
        if shape.len() != 4 {
            return Err(self.mismatch("ReduceSum", "four axes", &[x]));
        }
        shape[1] = Dim::from(1);
        let channels = self.integers("integer 1", &[1], &[1])?;
        let squares = self.multiply(x, x)?;
        let sum = self.node(
            Operator::new("ReduceSum").int("keepdims", 1),
            &[Some(&squares), Some(&channels)],
            x.element(),
            shape,
        );
        let sum = self.cast(&sum, ElementType::F32);
        let norm = self.square_root(&sum);
        let floor = self.constant("1e-12", &[], &[1e-12])?;
        let norm = self.maximum(&norm, &floor)?;
        let norm = self.cast(&norm, x.element());
        let unit = self.divide(x, &norm)?;
        self.multiply(&unit, gain)
    }
}

/// ONNX stores floating-point attributes as f32.
fn narrow(value: f64) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "the format of the attribute")]
    let value = value as f32;
    value
}
