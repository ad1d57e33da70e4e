//! The open graphs of a model: text encoder, experts, decoder. Jobs run on them, one unit of work at a time.

use crate::Error;
use crate::decode::{DecodeRun, TileSide, VideoDecoder};
use crate::denoise::{Conditioning, Denoising, Generator, StepDone, StepInputs, TextConditioning};
use crate::model::Model;
use crate::plan::GenerationPlan;
use crate::sampler::torch_normal;
use crate::text_encoder::TextEncoder;
use bundle::geometry::LatentShape;
use engines::{Cancel, residency};
use ndarray::{Array4, ArrayView4};
use std::sync::Arc;

/// The open graphs of a model. Graphs are opened when they are first needed.
///
/// With [`residency::Mode::OneAtATime`] a part is closed before another one is opened.
///
/// # Examples
/// [`Job`](crate::job::Job) shows how a clip is generated.
#[derive(Debug)]
pub struct Pipeline {
    model: Model,
    mode: residency::Mode,
    encoder: Option<TextEncoder>,
    generator: Generator,
    decoder: VideoDecoder,
    side: Option<TileSide>,
}

impl Pipeline {
    /// Creates a pipeline. Opens no graph.
    pub fn new(model: &Model, mode: residency::Mode) -> Self {
        Self {
            model: model.clone(),
            mode,
            encoder: None,
            generator: Generator::new(model, mode),
            decoder: VideoDecoder::new(model),
            side: None,
        }
    }

    /// Sets the largest tile that frames are decoded in; `None` decodes whole frames.
    pub fn tiled(self, side: Option<TileSide>) -> Self {
        Self { decoder: self.decoder.tiled(side), side, ..self }
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The largest tile that frames are decoded in.
    pub fn tile(&self) -> Option<TileSide> {
        self.side
    }

    /// Checks that the bundle has every graph that a clip of this shape needs.
    ///
    /// # Errors
    /// The first part that is missing.
    pub fn check(&self, latent: LatentShape) -> Result<(), Error> {
        self.model.check_parts(self.decoder.is_tiled(latent.height, latent.width))
    }

    /// Encodes a prompt and, for guidance, a negative prompt.
    ///
    /// # Errors
    /// The text encoder cannot be opened or fails, or the run is cancelled.
    pub fn encode(
        &mut self,
        prompt: &str,
        negative: Option<&str>,
        cancel: &Cancel,
    ) -> Result<TextConditioning, Error> {
        if self.closes() {
            self.generator.close();
            self.close_decoder();
        }
        let mut encoder = match self.encoder.take() {
            Some(open) => open,
            None => TextEncoder::open(&self.model)?,
        };
        let prompt = Arc::new(encoder.encode(prompt, cancel)?);
        let negative = negative.map(|negative| encoder.encode(negative, cancel).map(Arc::new)).transpose()?;
        if self.closes() {
            drop(encoder);
            engines::memory::return_freed_memory();
        } else {
            self.encoder = Some(encoder);
        }
        Ok(TextConditioning { prompt, negative })
    }

    /// Prepares the inputs that all steps of a clip share.
    ///
    /// # Errors
    /// The conditioning does not fit the model.
    pub fn inputs(&self, denoising: &Denoising, conditioning: &Conditioning) -> Result<StepInputs, Error> {
        self.generator.inputs(denoising, conditioning)
    }

    /// Makes the next step of a clip; `None` if all are done.
    ///
    /// # Errors
    /// See [`Generator::step`].
    pub fn step(
        &mut self,
        denoising: &mut Denoising,
        inputs: &StepInputs,
        cancel: &Cancel,
    ) -> Result<Option<StepDone>, Error> {
        if self.closes() {
            self.close_decoder();
        }
        self.generator.step(denoising, inputs, cancel)
    }

    /// Begins to decode `latent [C,T,h,w]`.
    pub fn begin_decode(&self, latent: ArrayView4<'_, f32>) -> DecodeRun {
        self.decoder.begin(latent)
    }

    /// Decodes the next latent frame, see [`VideoDecoder::decode_next`].
    ///
    /// # Errors
    /// The decoder cannot be opened or fails, or the run is cancelled.
    pub fn decode_next(
        &mut self,
        latent: ArrayView4<'_, f32>,
        run: &mut DecodeRun,
        cancel: &Cancel,
    ) -> Result<Option<Array4<f32>>, Error> {
        if self.closes() {
            self.generator.close();
        }
        self.decoder.decode_next(latent, run, cancel)
    }

    /// Returns true if only one part may be open.
    fn closes(&self) -> bool {
        self.mode == residency::Mode::OneAtATime
    }

    fn close_decoder(&mut self) {
        if self.decoder.close() {
            engines::memory::return_freed_memory();
        }
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
