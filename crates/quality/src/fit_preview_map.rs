//! Fits the linear map of previews to a bundle's decoder, from the latents and frames of generated clips.

use crate::Error;
use bundle::geometry::PixelSize;
use bundle::manifest::Component;
use bundle::preview::LatentToRgb;
use bundle::units::Seed;
use engines::{Cancel, MemoryBudgets};
use ndarray::{Array4, Axis, concatenate};
use runtime::job::{self, JobEvent};
use runtime::memory_plan::{MemoryPlan, MemoryRequest};
use runtime::model::Model;
use runtime::pipeline::Pipeline;
use runtime::plan::{GenerateRequest, GenerationPlan, Length};
use runtime::preview::latent_to_rgb::ColourFit;
use std::sync::Arc;

/// The prompts of the clips: many colours, bright and dark.
pub const PROMPTS: [&str; 8] = [
    "a red car moves from left to right on a city street, at dusk",
    "a white bird rises over a forest, in the snow, by day",
    "a green boat on the sea at a beach, by day, in clear weather",
    "a blue balloon descends over mountains, at night",
    "an orange cat spins in a city, at night, in the rain",
    "a purple robot stays still in a forest, at dusk",
    "a yellow ball bounces on a beach, at dusk",
    "a pink dancer moves left in front of mountains, by day",
];

/// Maximum steps of each clip. Few steps are enough for the model's colours.
const STEPS: usize = 10;

/// Maximum frames of each clip. More latent frames add little information for the map.
const FRAMES: usize = 17;

/// Generates `clips` clips of `size`, by default the bundle's, and fits the map to them. `on_clip` is called before
/// each clip. `budgets` limits the memory.
///
/// # Errors
/// A clip does not fit into memory, the pipeline fails, or the run is cancelled.
pub fn fit_preview_map(
    model: &Model,
    budgets: &MemoryBudgets,
    clips: usize,
    size: Option<PixelSize>,
    cancel: &Cancel,
    on_clip: &mut dyn FnMut(usize, &str),
) -> Result<LatentToRgb, Error> {
    let manifest = model.manifest();
    let mut fit = ColourFit::new(manifest.vae.latent_channels);
    let mut pipeline = Pipeline::new(model);
    for (clip, prompt) in PROMPTS.iter().cycle().take(clips).enumerate() {
        on_clip(clip + 1, prompt);
        let steps = manifest.defaults.steps.value.min(STEPS);
        let request = GenerateRequest {
            // A list of timesteps has its own number.
            steps: manifest.defaults.timesteps.is_none().then_some(steps),
            length: Some(Length::Frames(manifest.defaults.frames.value.min(FRAMES))),
            size,
            ..GenerateRequest::new(*prompt, Seed(clip as u64))
        };
        let plan = GenerationPlan::new(manifest, &request)?;
        let memory = MemoryRequest { budgets: budgets.clone(), ..MemoryRequest::new(model.variant()) };
        MemoryPlan::new(manifest, &plan, &memory.measured())?;
        let (mut latent, mut chunks) = (Arc::new(Array4::zeros((0, 0, 0, 0))), Vec::new());
        job::generate(&mut pipeline, &plan, cancel, &mut |event| {
            match event {
                JobEvent::Step { done, .. } => latent = done.latent,
                JobEvent::Frames(frames) => chunks.push(frames),
                _ => {}
            }
            Ok(())
        })?;
        let views: Vec<_> = chunks.iter().map(|chunk| chunk.view()).collect();
        let frames = concatenate(Axis(0), &views)
            .unwrap_or_else(|_| unreachable!("the chunks of a clip differ only in their number of frames"));
        fit.add(latent.view(), frames.view())?;
    }
    let decoder = manifest.component(&Component::Decoder)?.digest.clone();
    Ok(fit.solve(decoder)?)
}
