//! What a clip is conditioned on: text, optionally image latents, and the noise level of each latent frame.

use crate::text_encoder::TextStates;
use bundle::units::Timestep;
use ndarray::{Array4, ArrayView4, Axis, concatenate};
use std::sync::Arc;

/// The conditioning of a clip.
#[derive(Debug, Clone, PartialEq)]
pub struct Conditioning {
    /// Text states of the prompts.
    pub text: TextConditioning,
    /// Image latents, for models whose denoiser has input channels for them.
    pub image: Option<ImageConditioning>,
    /// The noise level of each latent frame.
    pub levels: FrameLevels,
}

impl Conditioning {
    /// Conditions on text alone.
    pub fn text(prompt: Arc<TextStates>, negative: Option<Arc<TextStates>>) -> Self {
        Self { text: TextConditioning { prompt, negative }, image: None, levels: FrameLevels::Equal }
    }
}

/// Text states of the prompts.
#[derive(Debug, Clone, PartialEq)]
pub struct TextConditioning {
    /// Of the prompt.
    pub prompt: Arc<TextStates>,
    /// Of the negative prompt. Required if a step has an unconditional pass.
    pub negative: Option<Arc<TextStates>>,
}

/// Image latents that are channels of every step's input, after those of the noisy latent.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageConditioning {
    /// `[M,T,h,w]`: 1 where a frame is given, 0 elsewhere.
    pub mask: Array4<f32>,
    /// `[C,T,h,w]`: the encoded frames, model scale.
    pub latents: Array4<f32>,
}

/// The noise level of each latent frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FrameLevels {
    /// All frames have the level of the step.
    #[default]
    Equal,
    /// This many frames at the start are clean: they have timestep 0.
    CleanStart(usize),
}

impl FrameLevels {
    /// The timestep of each of `frames` latent frames in a step.
    pub fn timesteps(self, step: Timestep, frames: usize) -> Vec<Timestep> {
        let clean = match self {
            Self::Equal => 0,
            Self::CleanStart(clean) => clean,
        };
        (0..frames).map(|frame| if frame < clean { Timestep(0.0) } else { step }).collect()
    }
}

/// The shapes of latent, mask and image latents do not belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelMismatch {
    /// Input channels of the denoiser.
    pub expected: usize,
    /// Shapes that were given.
    pub given: Vec<Vec<usize>>,
}

/// Returns the input of an expert, `[channels,T,h,w]`: the latent `[C,T,h,w]`, then mask and image latents if there are
/// any.
///
/// # Errors
/// They have not `channels` channels together, or differ in the other axes.
pub(super) fn model_input(
    latent: ArrayView4<'_, f32>,
    image: Option<&ImageConditioning>,
    channels: usize,
) -> Result<Array4<f32>, ChannelMismatch> {
    let mut parts = vec![latent];
    if let Some(ImageConditioning { mask, latents }) = image {
        parts.extend([mask.view(), latents.view()]);
    }
    let mismatch = || ChannelMismatch {
        expected: channels,
        given: parts.iter().map(|part| part.shape().to_vec()).collect(),
    };
    if parts.iter().map(|part| part.len_of(Axis(0))).sum::<usize>() != channels {
        return Err(mismatch());
    }
    concatenate(Axis(0), &parts).map_err(|_shape| mismatch())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_frames_can_be_clean() {
        let step = Timestep(750.0);
        assert_eq!(FrameLevels::Equal.timesteps(step, 2), [step, step]);
        assert_eq!(FrameLevels::CleanStart(1).timesteps(step, 3), [Timestep(0.0), step, step]);
    }

    #[test]
    fn image_latents_follow_the_latent() {
        let latent = Array4::from_elem((2, 3, 1, 1), 1.0);
        let image = ImageConditioning {
            mask: Array4::from_elem((1, 3, 1, 1), 2.0),
            latents: Array4::from_elem((2, 3, 1, 1), 3.0),
        };
        let input = model_input(latent.view(), Some(&image), 5).unwrap();
        assert_eq!(
            input.index_axis(Axis(1), 0).iter().copied().collect::<Vec<_>>(),
            [1.0, 1.0, 2.0, 3.0, 3.0]
        );
        assert_eq!(model_input(latent.view(), None, 2).unwrap(), latent);
        assert!(model_input(latent.view(), None, 5).is_err());
        let other = ImageConditioning { mask: Array4::zeros((1, 2, 1, 1)), ..image };
        assert!(model_input(latent.view(), Some(&other), 5).is_err());
    }
}
