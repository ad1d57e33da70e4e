//! Records a calibration set from generated clips.

use crate::Error;
use calibration::observe::set::{CalibrationSet, Sample};
use engines::Cancel;
use ndarray::{Array1, Axis, stack};
use prompt::PromptTokenizer;
use runtime::denoise::{Conditioning, Generator, RotaryTables};
use runtime::model::Model;
use runtime::pipeline::seeded_noise;
use runtime::plan::GenerationPlan;
use runtime::text_encoder::TextEncoder;
use std::sync::Arc;

/// Records the clips of `plans` that the set does not have yet. `on_step` is called after every step and may stop the
/// run.
///
/// # Errors
/// The pipeline fails, the run is cancelled, the set cannot be written, or `on_step` returns an error.
pub fn record(
    model: &Model,
    plans: &[GenerationPlan],
    set: &CalibrationSet,
    cancel: &Cancel,
    on_step: &mut dyn FnMut(usize, usize) -> Result<(), Error>,
) -> Result<(), Error> {
    model.check_parts(false)?;
    let tokenizer = PromptTokenizer::open(&model.bundle().tokenizer())?;
    let generator = Generator::new(model);
    let encoder = TextEncoder::open(model)?;
    for (index, plan) in plans.iter().enumerate().filter(|(index, _)| !set.has(*index)) {
        let mut ids = Vec::new();
        let texts = [Some(&plan.prompt), plan.is_guided().then_some(&plan.negative)];
        for text in texts.into_iter().flatten() {
            ids.push(Array1::from(tokenizer.encode(&prompt::clean(text))?.ids));
        }
        let prompt = encoder.encode(&plan.prompt, cancel)?;
        let negative = plan.is_guided().then(|| encoder.encode(&plan.negative, cancel)).transpose()?;

        let mut latents = vec![seeded_noise(plan)];
        let mut timesteps = Vec::new();
        let (prompt, negative) = (Arc::new(prompt), negative.map(Arc::new));
        let conditioning = Conditioning::text(Arc::clone(&prompt), negative.clone());
        let denoising = plan.denoising(model.manifest(), latents[0].clone())?;
        let latent = generator.denoise(denoising, &conditioning, cancel, &mut |step| {
            timesteps.push(step.timestep.0);
            latents.push((*step.latent).clone());
            on_step(index, step.step + 1).map_err(runtime::Error::callback)
        })?;
        latents.pop();
        let views: Vec<_> = latents.iter().map(|latent| latent.view()).collect();
        let latents =
            stack(Axis(0), &views).unwrap_or_else(|_| unreachable!("latents of one clip have one shape"));
        let tables = RotaryTables::new(&model.manifest().denoiser, plan.latent);
        let sample = Sample {
            ids,
            text: std::iter::once(&prompt).chain(&negative).map(|states| states.rows().clone()).collect(),
            latents,
            timesteps: Array1::from(timesteps),
            latent: Arc::unwrap_or_clone(latent),
            cos: tables.cos,
            sin: tables.sin,
        };
        set.write(index, &sample)?;
    }
    Ok(())
}
