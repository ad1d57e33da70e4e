//! Decoders whose frames have their channels last, `[t,h,w,C]`: what is the same in every kind of kernels.

use crate::Error;
use bundle::dtype::ElementType;
use bundle::spec::VaeSpec;
use graph::{Attention, Dim, GraphBuilder, Tensor};

/// Under the root of the norm: nothing but a guard against 0.
pub(super) const EPSILON: f64 = 1e-24;

/// What a convolution is: channels out and in, taps of time (1 or 3), side in space.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel {
    pub(super) out: usize,
    pub(super) channels: usize,
    pub(super) taps: usize,
    pub(super) side: usize,
}

/// The input of a decoder, one latent frame at model scale, with its normalisation undone: `[1,h,w,z]`.
pub(super) fn latent_frame(g: &mut GraphBuilder, spec: &VaeSpec) -> Result<Tensor, Error> {
    let (height, width) = (Dim::symbol("h"), Dim::symbol("w"));
    let z = spec.latent_channels;
    let shape = [1.into(), z.into(), 1.into(), height.clone(), width.clone()];
    let latent = g.input("latent", ElementType::F32, &shape);
    let x = g.reshape(&latent, &[1.into(), z.into(), height, width])?;
    let x = g.transpose(&x, &[0, 2, 3, 1])?;
    let std = g.constant("latents_std", &[z], &spec.latents_std)?;
    let mean = g.constant("latents_mean", &[z], &spec.latents_mean)?;
    let x = g.multiply(&x, &std)?;
    Ok(g.add(&x, &mean)?)
}

/// Attention with one head among the positions of each frame: `qkv [t,h,w,3C]` to `[t,h,w,C]`.
pub(super) fn attend(g: &mut GraphBuilder, qkv: &Tensor, channels: usize) -> Result<Tensor, Error> {
    let mut shape = qkv.shape().to_vec();
    let positions = shape[1].times(shape[2].clone());
    let rows = g.reshape(qkv, &[shape[0].clone(), positions, (3 * channels).into()])?;
    let q = g.slice(&rows, 2, 0, channels)?;
    let k = g.slice(&rows, 2, channels, 2 * channels)?;
    let v = g.slice(&rows, 2, 2 * channels, 3 * channels)?;
    #[expect(clippy::cast_precision_loss, reason = "a few thousand channels")]
    let scale = 1.0 / (channels as f32).sqrt();
    let mixed = g.attention(Attention { heads: 1, scale }, &q, &k, &v, None)?;
    shape[3] = channels.into();
    Ok(g.reshape(&mixed, &shape)?)
}

/// `[t,h,w,2C]`, two frames side by side, to `[2t,h,w,C]`, one after the other.
pub(super) fn split_frames(g: &mut GraphBuilder, both: &Tensor, channels: usize) -> Result<Tensor, Error> {
    let [t, h, w, _] = both.shape() else { return Ok(both.clone()) };
    let (t, h, w) = (t.clone(), h.clone(), w.clone());
    let apart = g.reshape(both, &[t.clone(), h.clone(), w.clone(), 2.into(), channels.into()])?;
    let apart = g.transpose(&apart, &[0, 3, 1, 2, 4])?;
    Ok(g.reshape(&apart, &[t.times(2), h, w, channels.into()])?)
}

/// `[t,h,w,C]` to `[t,2h,2w,C]`.
pub(super) fn double_pixels(g: &mut GraphBuilder, x: &Tensor) -> Result<Tensor, Error> {
    let [t, h, w, c] = x.shape() else { return Ok(x.clone()) };
    let (t, h, w, c) = (t.clone(), h.clone(), w.clone(), c.clone());
    let apart = g.reshape(x, &[t.clone(), h.clone(), 1.into(), w.clone(), 1.into(), c.clone()])?;
    let wide = g.concat(&[&apart, &apart], 4)?;
    let high = g.concat(&[&wide, &wide], 2)?;
    Ok(g.reshape(&high, &[t, h.times(2), w.times(2), c])?)
}

pub(super) fn incomplete(name: &str) -> Error {
    Error::Numerics { layer: name.to_owned() }
}

/// Two frames like those of `x [t,h,w,C]`.
pub(super) fn history_shape(x: &Tensor) -> Vec<Dim> {
    let mut shape = x.shape().to_vec();
    shape[0] = 2.into();
    shape
}
