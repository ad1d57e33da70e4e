//! The same clips with two variants of a model, from the same noise.

use super::metrics::{cosine, psnr, relative_error, ssim};
use crate::Error;
use engines::{Cancel, residency};
use ndarray::{Array4, Axis, concatenate};
use runtime::decode::VideoDecoder;
use runtime::decode::pictures;
use runtime::denoise::{Conditioning, Generator};
use runtime::model::Model;
use runtime::pipeline::seeded_noise;
use runtime::plan::GenerationPlan;
use runtime::sampler::Sampler;
use runtime::text_encoder::{TextEncoder, TextStates};
use serde::{Deserialize, Serialize};

/// All that a clip was on its way.
#[derive(Debug, Clone, PartialEq)]
pub struct Clip {
    /// States of the prompt and, with guidance, of the negative prompt.
    pub text: Vec<TextStates>,
    /// The expert and timestep of each step, and the latent after it.
    pub steps: Vec<(String, f32, Array4<f32>)>,
    /// Pictures `[F,H,W,3]` in 0..1.
    pub frames: Array4<f32>,
}

/// Makes the clip of a plan.
///
/// # Errors
/// What the pipeline meets.
pub fn make(model: &Model, plan: &GenerationPlan, cancel: &Cancel) -> Result<Clip, Error> {
    model.check_parts(false)?;
    let mut encoder = TextEncoder::open(model)?;
    let prompt = encoder.encode(&plan.prompt, cancel)?;
    let negative = plan.is_guided().then(|| encoder.encode(&plan.negative, cancel)).transpose()?;
    drop(encoder);
    let mut steps = Vec::new();
    let text = Conditioning { prompt: &prompt, negative: negative.as_ref(), scales: &plan.guidance };
    let sampler = Sampler::new(plan.schedule.clone(), plan.solver);
    let mut generator = Generator::new(model, residency::Mode::OneAtATime);
    let latent = generator.denoise(seeded_noise(plan), text, sampler, cancel, &mut |step| {
        steps.push((step.expert.0.clone(), step.timestep.0, step.latent.clone()));
        Ok(())
    })?;
    generator.close();
    let frames = decode(model, &latent, cancel)?;
    let text = [Some(prompt), negative].into_iter().flatten().collect();
    Ok(Clip { text, steps, frames })
}

/// Pictures `[F,H,W,3]` in 0..1 of a latent.
///
/// # Errors
/// What the decoder meets.
pub fn decode(model: &Model, latent: &Array4<f32>, cancel: &Cancel) -> Result<Array4<f32>, Error> {
    let mut chunks = Vec::new();
    VideoDecoder::new(model).decode(latent.view(), cancel, &mut |frames| {
        chunks.push(pictures(frames.view()));
        Ok(())
    })?;
    let views: Vec<_> = chunks.iter().map(|chunk| chunk.view()).collect();
    Ok(concatenate(Axis(0), &views).unwrap_or_else(|_| unreachable!("chunks of one clip have one size")))
}

/// The relative error of a variant's decoder on the first latent frames of a clip, of the frames it gives, as mean
/// squares: `|found - expected|² / |expected|²`.
///
/// # Errors
/// What the decoder meets.
pub fn frames_error(
    model: &Model,
    latent: &Array4<f32>,
    expected: &Array4<f32>,
    cancel: &Cancel,
) -> Result<f64, Error> {
    let found = decode(model, latent, cancel)?;
    Ok(relative_error(found.view(), expected.view()).powi(2))
}

/// A step of two clips beside each other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepDistance {
    /// From 1.
    pub step: usize,
    /// The expert that ran.
    pub expert: String,
    /// Its noise level, 0..=1000.
    pub timestep: f32,
    /// Cosine between the latents after it.
    pub cosine: f64,
    /// Relative error of the latent after it.
    pub relative_error: f64,
}

/// A clip beside that of the reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClipDistance {
    /// The prompt.
    pub prompt: String,
    /// The seed.
    pub seed: u64,
    /// Of all pictures, in decibels.
    pub psnr: f64,
    /// Of all pictures.
    pub ssim: f64,
    /// Of the pictures that the variant's decoder makes of the reference's latent, in decibels.
    pub decoder_psnr: f64,
    /// Smallest cosine of a text state to that of the reference.
    pub text_cosine: f64,
    /// Every step.
    pub steps: Vec<StepDistance>,
}

/// Compares a clip with the reference's; `decoded` is what the variant's decoder makes of the reference's latent.
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

/// The smallest cosine between the states of a token.
pub fn token_cosine(a: &TextStates, b: &TextStates) -> f64 {
    let rows = a.rows.outer_iter().zip(b.rows.outer_iter()).take(b.tokens);
    rows.map(|(a, b)| cosine(a, b)).fold(1.0, f64::min)
}
