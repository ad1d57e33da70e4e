//! The whole pipeline: text encoder, denoising, decoding.

use crate::Error;
use crate::decode::{TileSide, VideoDecoder};
use crate::denoise::{Conditioning, Generator, StepDone};
use crate::model::Model;
use crate::plan::GenerationPlan;
use crate::sampler::{Sampler, torch_normal};
use crate::text_encoder::{TextEncoder, TextStates};
use engines::{Cancel, residency};
use ndarray::Array4;

/// An event of a run.
#[derive(Debug)]
pub enum Event<'a> {
    /// The text encoder is about to be opened and run.
    Encoding,
    /// The prompt and, with guidance, the negative prompt are encoded.
    Encoded {
        /// The prompt's states.
        prompt: &'a TextStates,
        /// The negative prompt's states.
        negative: Option<&'a TextStates>,
    },
    /// The first step is about to start.
    Denoising,
    /// A step is done.
    Step(StepDone<'a>),
    /// The decoder is about to start.
    Decoding,
    /// A chunk of frames is decoded: `[N,3,H,W]` in -1..1.
    Frames(&'a Array4<f32>),
}

/// Generates clips with one model.
///
/// # Examples
/// ```no_run
/// use bundle::units::Seed;
/// use engines::{Cancel, residency::Mode};
/// use runtime::model::{Model, ModelOptions};
/// use runtime::pipeline::{Event, Pipeline, seeded_noise};
/// use runtime::plan::{GenerateRequest, GenerationPlan};
/// use std::path::Path;
///
/// # fn main() -> Result<(), runtime::Error> {
/// let model = Model::open(Path::new("bundle"), ModelOptions::default())?;
/// let request = GenerateRequest::new("a red ball bounces on the beach", Seed(42));
/// let plan = GenerationPlan::new(model.manifest(), &request)?;
/// let mut pipeline = Pipeline::new(&model, Mode::OneAtATime);
/// pipeline.run(&plan, seeded_noise(&plan), &Cancel::new(), &mut |event| {
///     if let Event::Frames(frames) = event {
///         println!("{} more frames", frames.shape()[0]);
///     }
///     Ok(())
/// })?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Pipeline {
    model: Model,
    mode: residency::Mode,
    encoder: Option<TextEncoder>,
    generator: Generator,
    decoder: VideoDecoder,
}

impl Pipeline {
    /// Creates a pipeline. Graphs are opened when they are first needed.
    pub fn new(model: &Model, mode: residency::Mode) -> Self {
        Self {
            model: model.clone(),
            mode,
            encoder: None,
            generator: Generator::new(model, mode),
            decoder: VideoDecoder::new(model),
        }
    }

    /// Sets the largest tile that frames are decoded in; `None` decodes whole frames.
    pub fn tiled(self, side: Option<TileSide>) -> Self {
        Self { decoder: self.decoder.tiled(side), ..self }
    }

    /// Generates the clip of a plan from `noise [C,T,h,w]`. `on_event` receives the frames and all other events.
    ///
    /// With [`residency::Mode::OneAtATime`] each part is closed after its phase.
    ///
    /// # Errors
    /// The bundle lacks a graph (found before anything runs), a part fails, the run is cancelled, or `on_event` returns
    /// an error.
    pub fn run(
        &mut self,
        plan: &GenerationPlan,
        noise: Array4<f32>,
        cancel: &Cancel,
        on_event: &mut dyn FnMut(Event<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.model.check_parts(self.decoder.is_tiled(plan.latent.height, plan.latent.width))?;
        on_event(Event::Encoding)?;
        let (prompt, negative) = self.encode(plan, cancel)?;
        on_event(Event::Encoded { prompt: &prompt, negative: negative.as_ref() })?;

        on_event(Event::Denoising)?;
        let text = Conditioning { prompt: &prompt, negative: negative.as_ref(), scales: &plan.guidance };
        let sampler = Sampler::new(plan.schedule.clone(), plan.solver);
        let latent =
            self.generator.denoise(noise, text, sampler, cancel, &mut |step| on_event(Event::Step(step)))?;

        if self.mode == residency::Mode::OneAtATime {
            self.generator.close();
        }
        on_event(Event::Decoding)?;
        self.decoder.decode(latent.view(), cancel, &mut |frames| on_event(Event::Frames(&frames)))
    }

    fn encode(
        &mut self,
        plan: &GenerationPlan,
        cancel: &Cancel,
    ) -> Result<(TextStates, Option<TextStates>), Error> {
        let mut encoder = match self.encoder.take() {
            Some(open) => open,
            None => TextEncoder::open(&self.model)?,
        };
        let prompt = encoder.encode(&plan.prompt, cancel)?;
        let negative = plan.is_guided().then(|| encoder.encode(&plan.negative, cancel)).transpose()?;
        match self.mode {
            residency::Mode::AllResident => self.encoder = Some(encoder),
            residency::Mode::OneAtATime => {
                drop(encoder);
                engines::memory::return_freed_memory();
            }
        }
        Ok((prompt, negative))
    }
}

/// Returns the initial noise of a plan, `[C,T,h,w]`: the values of PyTorch's CPU generator for its seed, times the
/// plan's noise scale.
pub fn seeded_noise(plan: &GenerationPlan) -> Array4<f32> {
    let (channels, frames, height, width) = plan.latent.dims();
    let values = torch_normal(plan.seed, channels * frames * height * width);
    let noise = Array4::from_shape_vec(plan.latent.dims(), values)
        .unwrap_or_else(|_| unreachable!("as many values as the latent has"));
    scaled_noise(noise, plan)
}

/// Returns the noise times the plan's noise scale.
pub fn scaled_noise(mut noise: Array4<f32>, plan: &GenerationPlan) -> Array4<f32> {
    if plan.noise_scale != 1.0 {
        noise *= plan.noise_scale;
    }
    noise
}
