//! Generates the clip of every prompt and reads it with the judge.

use super::prompts::ScoredPrompt;
use super::score::{ScoreCard, Tally};
use super::{ClipShape, Error, Judge, Reading};
use bundle::manifest::Manifest;
use bundle::settings::SolverKind;
use bundle::timesteps::{GuidanceUntil, Start, TimestepChoice};
use bundle::units::{GuidanceScale, Seed};
use engines::Cancel;
use ndarray::{Array4, Axis, concatenate};
use runtime::decode::pictures;
use runtime::denoise::StepPolicy;
use runtime::job::{self, JobEvent};
use runtime::model::Model;
use runtime::pipeline::Pipeline;
use runtime::plan::{GenerateRequest, GenerationPlan, Length};

/// Settings of the clips. `None` takes the bundle's default.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct QualityRequest {
    /// Denoising steps.
    pub steps: Option<usize>,
    /// Guidance scales of the experts, starting with the one for the highest noise, or one scale for all.
    pub guidance: Option<Vec<GuidanceScale>>,
    /// The end of guidance.
    pub guidance_until: Option<GuidanceUntil>,
    /// Solver.
    pub sampler: Option<SolverKind>,
    /// A list of timesteps, or the grid in place of the bundle's list.
    pub timesteps: Option<TimestepChoice>,
    /// The latent that sampling begins with.
    pub start: Option<Start>,
    /// What steps compute; `None` computes everything.
    pub step_cache: Option<StepPolicy>,
}

/// Returns the plan of every prompt's clip, in the judge's shape.
///
/// # Errors
/// A prompt is invalid, a value is out of range, or the model does not support the shape.
pub fn plans(
    manifest: &Manifest,
    prompts: &[ScoredPrompt],
    shape: ClipShape,
    request: &QualityRequest,
) -> Result<Vec<GenerationPlan>, crate::Error> {
    let plan = |prompt: &ScoredPrompt| {
        let request = GenerateRequest {
            size: Some(shape.size),
            length: Some(Length::Frames(shape.frames)),
            steps: request.steps,
            guidance: request.guidance.clone(),
            guidance_until: request.guidance_until,
            sampler: request.sampler,
            timesteps: request.timesteps.clone(),
            start: request.start,
            step_cache: request.step_cache,
            ..GenerateRequest::new(prompt.prompt.clone(), Seed(prompt.seed))
        };
        Ok(GenerationPlan::new(manifest, &request)?)
    };
    prompts.iter().map(plan).collect()
}

/// A generated clip and its reading.
#[derive(Debug)]
pub struct ClipRead<'a> {
    /// Its prompt.
    pub prompt: &'a ScoredPrompt,
    /// The judge's reading.
    pub reading: &'a Reading,
    /// The correct readings.
    pub right: Tally,
    /// The steps whose velocities were computed.
    pub computed_steps: usize,
}

/// Generates the clip of every plan, reads it and counts. Each plan belongs to the prompt at the same index.
///
/// # Errors
/// A part of the pipeline fails, the run is cancelled ([`Error::Stopped`]), or `on_clip` returns an error.
pub fn score(
    model: &Model,
    judge: &mut Judge,
    clips: (&[ScoredPrompt], &[GenerationPlan]),
    cancel: &Cancel,
    on_clip: &mut dyn FnMut(ClipRead<'_>) -> Result<(), crate::Error>,
) -> Result<ScoreCard, crate::Error> {
    let (prompts, plans) = clips;
    let mut card = ScoreCard::new(judge.attributes());
    let mut pipeline = Pipeline::new(model);
    for (done, (prompt, plan)) in prompts.iter().zip(plans).enumerate() {
        let (reading, computed_steps) = clip(&mut pipeline, plan, cancel)
            .and_then(|(clip, computed)| Ok((judge.read(clip.view(), cancel)?, computed)))
            .map_err(|error| {
                if error.is_cancelled() { Error::Stopped { done, total: plans.len() }.into() } else { error }
            })?;
        let right = card.count(prompt, &reading);
        on_clip(ClipRead { prompt, reading: &reading, right, computed_steps })?;
    }
    Ok(card)
}

/// Generates the clip of a plan as pictures `[F,H,W,3]` in 0..1. Returns also the number of steps that were computed.
fn clip(
    pipeline: &mut Pipeline,
    plan: &GenerationPlan,
    cancel: &Cancel,
) -> Result<(Array4<f32>, usize), crate::Error> {
    let (mut chunks, mut computed): (Vec<Array4<f32>>, _) = (Vec::new(), 0);
    job::generate(pipeline, plan, cancel, &mut |event| {
        match event {
            JobEvent::Step { done, .. } => computed += usize::from(!done.is_reused),
            JobEvent::Frames(frames) => chunks.push(pictures(frames.view())),
            _ => {}
        }
        Ok(())
    })?;
    let views: Vec<_> = chunks.iter().map(|chunk| chunk.view()).collect();
    let mut clip = concatenate(Axis(0), &views)
        .unwrap_or_else(|_| unreachable!("the chunks of a clip have one size, and there is at least one"));
    clip.slice_axis_inplace(Axis(0), (..plan.frames.get()).into());
    Ok((clip, computed))
}
