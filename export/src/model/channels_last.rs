//! Operators shared by the decoders with channels-last frames, `[t,h,w,C]`.

use crate::Error;
use bundle::dtype::ElementType;
use bundle::spec::VaeSpec;
use graph::{Attention, Dim, GraphBuilder, Tensor};

/// Added under the root of the norm, only as a guard against 0.
pub(super) const EPSILON: f64 = 1e-24;

/// Declares the input of a decoder, one latent frame at model scale, and returns it at VAE scale: `[1,h,w,z]`.
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

/// Separates two frames as halves of the channels, `[t,h,w,2C]`, to `[2t,h,w,C]`.
pub(super) fn split_frames(g: &mut GraphBuilder, both: &Tensor, channels: usize) -> Result<Tensor, Error> {
    let [t, h, w, _] = both.shape() else { return Ok(both.clone()) };
    let (t, h, w) = (t.clone(), h.clone(), w.clone());
    let split = g.reshape(both, &[t.clone(), h.clone(), w.clone(), 2.into(), channels.into()])?;
    let split = g.transpose(&split, &[0, 3, 1, 2, 4])?;
    Ok(g.reshape(&split, &[t.times(2), h, w, channels.into()])?)
}

/// Repeats each pixel to 2×2: `[t,h,w,C]` to `[t,2h,2w,C]`.
pub(super) fn double_pixels(g: &mut GraphBuilder, x: &Tensor) -> Result<Tensor, Error> {
    let [t, h, w, c] = x.shape() else { return Ok(x.clone()) };
    let (t, h, w, c) = (t.clone(), h.clone(), w.clone(), c.clone());
    let separated = g.reshape(x, &[t.clone(), h.clone(), 1.into(), w.clone(), 1.into(), c.clone()])?;
    let wide = g.concat(&[&separated, &separated], 4)?;
    let high = g.concat(&[&wide, &wide], 2)?;
    Ok(g.reshape(&high, &[t, h.times(2), w.times(2), c])?)
}

pub(super) fn incomplete(name: &str) -> Error {
    Error::Numerics { layer: name.to_owned() }
}

/// Returns the shape of a cache of two frames of `x [t,h,w,C]`.
pub(super) fn history_shape(x: &Tensor) -> Vec<Dim> {
    let mut shape = x.shape().to_vec();
    shape[0] = 2.into();
    shape
}
