//! Generates the same clips with two variants of a model, from the same noise, and compares them.

use super::metrics::{cosine, psnr, relative_error, ssim};
use crate::Error;
use engines::Cancel;
use ndarray::{Array4, Axis, concatenate};
use runtime::decode::VideoDecoder;
use runtime::decode::pictures;
use runtime::denoise::{Conditioning, Generator};
use runtime::model::Model;
use runtime::pipeline::seeded_noise;
use runtime::plan::GenerationPlan;
use runtime::text_encoder::{TextEncoder, TextStates};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A clip with its intermediate results.
#[derive(Debug, Clone, PartialEq)]
pub struct Clip {
    /// Text states of the prompt and, with guidance, of the negative prompt.
    pub text: Vec<TextStates>,
    /// The expert and timestep of each step, and the latent after it.
    pub steps: Vec<(String, f32, Array4<f32>)>,
    /// Pictures `[F,H,W,3]` in 0..1.
    pub frames: Array4<f32>,
}

/// Generates the clip of a plan.
///
/// # Errors
/// The pipeline fails.
pub fn make(model: &Model, plan: &GenerationPlan, cancel: &Cancel) -> Result<Clip, Error> {
    model.check_parts(false)?;
    let encoder = TextEncoder::open(model)?;
    let prompt = encoder.encode(&plan.prompt, cancel)?;
    let negative = plan.is_guided().then(|| encoder.encode(&plan.negative, cancel)).transpose()?;
    let mut steps = Vec::new();
    let text = std::iter::once(prompt.clone()).chain(negative.clone()).collect();
    let denoising = plan.denoising(model.manifest(), seeded_noise(plan))?;
    let conditioning = Conditioning::text(prompt.into(), negative.map(Arc::new));
    let latent = Generator::new(model).denoise(denoising, &conditioning, cancel, &mut |step| {
        steps.push((step.expert.0.clone(), step.timestep.0, (*step.latent).clone()));
        Ok(())
    })?;
    let frames = decode(model, &latent, cancel)?;
    model.sessions().close_idle();
    Ok(Clip { text, steps, frames })
}

/// Decodes a latent to pictures `[F,H,W,3]` in 0..1.
///
/// # Errors
/// The decoder fails.
pub fn decode(model: &Model, latent: &Array4<f32>, cancel: &Cancel) -> Result<Array4<f32>, Error> {
    let mut chunks = Vec::new();
    VideoDecoder::new(model).decode(latent.view(), cancel, &mut |frames| {
        chunks.push(pictures(frames.view()));
        Ok(())
    })?;
    let views: Vec<_> = chunks.iter().map(|chunk| chunk.view()).collect();
    Ok(concatenate(Axis(0), &views).unwrap_or_else(|_| unreachable!("chunks of one clip have one size")))
}

/// Returns the relative error of a variant's decoded frames: `|found - expected|² / |expected|²`.
///
/// # Errors
/// The decoder fails.
pub fn frames_error(
    model: &Model,
    latent: &Array4<f32>,
    expected: &Array4<f32>,
    cancel: &Cancel,
) -> Result<f64, Error> {
    let found = decode(model, latent, cancel)?;
    Ok(relative_error(found.view(), expected.view()).powi(2))
}

/// Differences between two clips after a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepDistance {
    /// Number of the step, from 1.
    pub step: usize,
    /// The expert that ran.
    pub expert: String,
    /// Its timestep, 0..=1000.
    pub timestep: f32,
    /// Cosine between the latents after the step.
    pub cosine: f64,
    /// Relative error of the latent after the step.
    pub relative_error: f64,
}

/// Differences between a clip and the reference clip.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClipDistance {
    /// The prompt.
    pub prompt: String,
    /// The seed.
    pub seed: u64,
    /// PSNR over all pictures, in decibels.
    pub psnr: f64,
    /// SSIM over all pictures.
    pub ssim: f64,
    /// PSNR of the pictures that the variant's decoder makes from the reference latent, in decibels.
    pub decoder_psnr: f64,
    /// Smallest cosine between a text state and that of the reference.
    pub text_cosine: f64,
    /// The steps.
    pub steps: Vec<StepDistance>,
}

/// Compares a clip with the reference. `decoded` is the reference latent decoded by the variant's decoder.
pub fn compare(plan: &GenerationPlan, reference: &Clip, clip: &Clip, decoded: &Array4<f32>) -> ClipDistance {
    let steps = reference.steps.iter().zip(&clip.steps).enumerate();
    let steps = steps.map(|(index, ((expert, timestep, before), (_, _, after)))| StepDistance {
        step: index + 1,
        expert: expert.clone(),
        timestep: *timestep,
        cosine: cosine(after.view(), before.view()),
        relative_error: relative_error(after.view(), before.view()),
    });
    let texts = reference.text.iter().zip(&clip.text);
    ClipDistance {
        prompt: plan.prompt.clone(),
        seed: plan.seed.0,
        psnr: psnr(clip.frames.view(), reference.frames.view()),
        ssim: ssim(&clip.frames, &reference.frames),
        decoder_psnr: psnr(decoded.view(), reference.frames.view()),
        text_cosine: texts.map(|(a, b)| token_cosine(a, b)).fold(1.0, f64::min),
        steps: steps.collect(),
    }
}

/// Returns the smallest cosine between the states of a token.
pub fn token_cosine(a: &TextStates, b: &TextStates) -> f64 {
    let rows = a.rows().outer_iter().zip(b.rows().outer_iter()).take(b.tokens());
    rows.map(|(a, b)| cosine(a, b)).fold(1.0, f64::min)
}
