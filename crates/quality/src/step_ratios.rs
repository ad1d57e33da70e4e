//! Measures how much velocities change from one step to the next: what decides whether a step can be reused.

use crate::Error;
use bundle::routing::ExpertName;
use bundle::units::Sigma;
use engines::Cancel;
use ndarray::{Array4, Axis, Zip};
use runtime::denoise::{Conditioning, Generator};
use runtime::model::Model;
use runtime::pipeline::seeded_noise;
use runtime::plan::GenerationPlan;
use runtime::text_encoder::TextEncoder;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The file of the bundle that the measurement is written to.
pub const FILE: &str = "step-cache.json";

/// The version of [`StepRatios`] that is written.
pub const VERSION: u32 = 1;

/// How velocities change from step to step, for each expert and guidance pass. Means over clips.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRatios {
    /// [`VERSION`].
    pub version: u32,
    /// Version of Rushes.
    pub rushes: String,
    /// Name of the model.
    pub model: String,
    /// Clips that were made.
    pub clips: usize,
    /// The settings of the clips, as `rushes generate` prints them.
    pub settings: String,
    /// The experts, from the noisiest down.
    pub experts: Vec<ExpertRatios>,
}

/// The changes within the steps of an expert.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExpertRatios {
    /// The expert.
    pub expert: ExpertName,
    /// With the prompt.
    pub conditional: Vec<StepRatio>,
    /// With the negative prompt; empty without guidance.
    pub unconditional: Vec<StepRatio>,
}

/// The change of a velocity `v` from a step to the next one of the same expert.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepRatio {
    /// The noise level of the later step.
    pub sigma: Sigma,
    /// The ratio of their lengths `‖v‖ / ‖v_before‖` over the channels, a mean over positions: the ratio of MagCache, of
    /// velocities instead of residuals.
    pub ratio: f64,
    /// The standard deviation of the ratio over positions.
    pub deviation: f64,
    /// One minus the cosine between them over the channels, a mean over positions.
    pub cosine_distance: f64,
    /// The relative change, mean of `|v - v_before|` over mean of `|v_before|`: what EasyCache predicts.
    pub change: f64,
    /// The change of the velocity for a change of the latent, mean of `|v - v_before|` over mean of `|x - x_before|`.
    pub rate: f64,
}

/// Makes the clips of `plans`, which differ in prompt and seed only, and measures their velocities. `on_step` is called
/// after every step with the numbers of the clip and of the step.
///
/// # Errors
/// The pipeline fails, the run is cancelled, or `on_step` returns an error.
pub fn measure(
    model: &Model,
    plans: &[GenerationPlan],
    cancel: &Cancel,
    on_step: &mut dyn FnMut(usize, usize) -> Result<(), Error>,
) -> Result<StepRatios, Error> {
    let routes = model.manifest().routing.routes();
    let empty = |expert: &ExpertName| Sums { expert: expert.clone(), passes: Default::default() };
    let mut sums: Vec<Sums> = routes.iter().map(|route| empty(&route.expert)).collect();
    let (generator, encoder) = (Generator::new(model), TextEncoder::open(model)?);
    for (clip, plan) in plans.iter().enumerate() {
        let prompt = Arc::new(encoder.encode(&plan.prompt, cancel)?);
        let negative = plan.is_guided().then(|| encoder.encode(&plan.negative, cancel)).transpose()?;
        let conditioning = Conditioning::text(prompt, negative.map(Arc::new));
        let mut denoising = plan.denoising(model.manifest(), seeded_noise(plan))?;
        let inputs = generator.inputs(&denoising, &conditioning)?;
        let mut before: Option<Step> = None;
        while let (Some(request), Some(outputs)) =
            (denoising.next(), generator.velocities(&denoising, &inputs, cancel)?)
        {
            let step = Step {
                expert: request.expert.0,
                input: Arc::clone(denoising.latent()),
                velocities: [Some(outputs.conditional.clone()), outputs.unconditional.clone()],
            };
            if let Some(before) = before.filter(|before| before.expert == step.expert) {
                let moved = mean_distance(&step.input, &before.input);
                let passes = step.velocities.iter().zip(&before.velocities);
                for (pass, velocities) in passes.enumerate() {
                    if let (Some(velocity), Some(last)) = velocities {
                        sums[step.expert].add(
                            pass,
                            request.step,
                            ratio(request.sigma, velocity, last, moved),
                        );
                    }
                }
            }
            before = Some(step);
            denoising.advance(outputs).map_err(runtime::Error::from)?;
            on_step(clip, request.step + 1)?;
        }
    }
    Ok(StepRatios {
        version: VERSION,
        rushes: env!("CARGO_PKG_VERSION").into(),
        model: model.manifest().model.clone(),
        clips: plans.len(),
        settings: plans.first().map_or_else(String::new, settings),
        experts: sums.into_iter().map(Sums::means).collect(),
    })
}

/// The settings of a plan without its seed.
fn settings(plan: &GenerationPlan) -> String {
    let text = plan.to_string();
    text.rsplit_once("; seed").map_or(text.clone(), |(settings, _)| settings.to_owned())
}

/// A step that was made.
struct Step {
    expert: usize,
    input: Arc<Array4<f32>>,
    /// With the prompt, and with the negative prompt.
    velocities: [Option<Array4<f32>>; 2],
}

/// The sums of an expert: for each pass, the step, the number of clips, and the sum of their ratios.
struct Sums {
    expert: ExpertName,
    passes: [Vec<(usize, f64, StepRatio)>; 2],
}

impl Sums {
    fn add(&mut self, pass: usize, step: usize, ratio: StepRatio) {
        let known = &mut self.passes[pass];
        match known.iter_mut().find(|(other, ..)| *other == step) {
            None => known.push((step, 1.0, ratio)),
            Some((_, clips, sum)) => {
                *clips += 1.0;
                *sum = StepRatio {
                    sigma: sum.sigma,
                    ratio: sum.ratio + ratio.ratio,
                    deviation: sum.deviation + ratio.deviation,
                    cosine_distance: sum.cosine_distance + ratio.cosine_distance,
                    change: sum.change + ratio.change,
                    rate: sum.rate + ratio.rate,
                };
            }
        }
    }

    fn means(self) -> ExpertRatios {
        let mean = |(_, clips, sum): (usize, f64, StepRatio)| StepRatio {
            sigma: sum.sigma,
            ratio: sum.ratio / clips,
            deviation: sum.deviation / clips,
            cosine_distance: sum.cosine_distance / clips,
            change: sum.change / clips,
            rate: sum.rate / clips,
        };
        let [conditional, unconditional] = self.passes.map(|sums| sums.into_iter().map(mean).collect());
        ExpertRatios { expert: self.expert, conditional, unconditional }
    }
}

/// The change from the velocity `last` to `velocity`, both `[C,T,h,w]`. The latent has moved by `moved` in between.
fn ratio(sigma: Sigma, velocity: &Array4<f32>, last: &Array4<f32>, moved: f64) -> StepRatio {
    let dot = |a: &Array4<f32>, b: &Array4<f32>| {
        let product = Zip::from(a).and(b).map_collect(|a, b| f64::from(*a) * f64::from(*b));
        product.sum_axis(Axis(0))
    };
    let (own, before, both) = (dot(velocity, velocity), dot(last, last), dot(velocity, last));
    let ratios = Zip::from(&own).and(&before).map_collect(|own, before| (own / before).sqrt());
    let cosines =
        Zip::from(&own).and(&before).and(&both).map_collect(|own, before, both| both / (own * before).sqrt());
    let changed = mean_distance(velocity, last);
    StepRatio {
        sigma,
        ratio: ratios.mean().unwrap_or_default(),
        deviation: ratios.std(0.0),
        cosine_distance: 1.0 - cosines.mean().unwrap_or_default(),
        change: changed / mean_distance(last, &Array4::zeros(last.dim())),
        rate: changed / moved,
    }
}

/// The mean of `|a - b|`.
fn mean_distance(a: &Array4<f32>, b: &Array4<f32>) -> f64 {
    Zip::from(a).and(b).map_collect(|a, b| f64::from((a - b).abs())).mean().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_has_a_length_and_a_direction() {
        let latent = |values: [f32; 4]| Array4::from_shape_vec((2, 1, 1, 2), values.to_vec()).unwrap();
        // Of the two positions one becomes twice as long, and one turns by a right angle.
        let last = latent([3.0, 1.0, 4.0, 0.0]);
        let next = latent([6.0, 0.0, 8.0, 1.0]);
        let found = ratio(Sigma(0.5), &next, &last, 0.5);
        assert_eq!((found.ratio, found.deviation), (1.5, 0.5));
        assert!((found.cosine_distance - 0.5).abs() < 1e-12);
        assert_eq!((found.change, found.rate), (9.0 / 8.0, 4.5));
    }

    #[test]
    fn clips_are_averaged_step_by_step() {
        let mut sums = Sums { expert: ExpertName("only".into()), passes: Default::default() };
        let of = |value: f64| StepRatio {
            sigma: Sigma(0.5),
            ratio: value,
            deviation: value,
            cosine_distance: value,
            change: value,
            rate: value,
        };
        for (step, value) in [(1, 1.0), (2, 5.0), (1, 3.0)] {
            sums.add(0, step, of(value));
        }
        let means = sums.means();
        assert_eq!(means.conditional, [of(2.0), of(5.0)]);
        assert_eq!(means.unconditional, []);
    }
}
