//! The parts of a model at work: text encoder, experts, decoder. Jobs run on them, one unit of work at a time.

use crate::Error;
use crate::decode::{DecodeRun, TileSide, VideoDecoder};
use crate::denoise::{Conditioning, Denoising, Generator, StepDone, StepInputs, TextConditioning};
use crate::model::Model;
use crate::plan::GenerationPlan;
use crate::sampler::torch_normal;
use crate::text_cache::TextCache;
use crate::text_encoder::{self, TextEncoder, TextStates};
use bundle::geometry::LatentShape;
use engines::Cancel;
use ndarray::{Array3, Array4, ArrayView4, Axis};
use std::sync::Arc;

/// The parts of a model. Every unit of work borrows a session of the model's [`Sessions`](engines::sessions::Sessions);
/// text states of recent prompts are kept. The next clip of the process opens and encodes only what is not there.
///
/// # Examples
/// [`Job`](crate::job::Job) shows how a clip is generated.
#[derive(Debug)]
pub struct Pipeline {
    model: Model,
    encoder: Option<TextEncoder>,
    texts: TextCache,
    generator: Generator,
    decoder: VideoDecoder,
    side: Option<TileSide>,
}

impl Pipeline {
    /// Creates a pipeline. Opens no graph.
    pub fn new(model: &Model) -> Self {
        Self {
            model: model.clone(),
            encoder: None,
            texts: TextCache::default(),
            generator: Generator::new(model),
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
        let prompt = self.text_states(prompt, cancel)?;
        let negative = negative.map(|negative| self.text_states(negative, cancel)).transpose()?;
        Ok(TextConditioning { prompt, negative })
    }

    fn text_states(&mut self, text: &str, cancel: &Cancel) -> Result<Arc<TextStates>, Error> {
        if let Some(states) = self.texts.get(text) {
            return Ok(states);
        }
        let states = match text_encoder::stored(&self.model, text)? {
            Some(stored) => Arc::new(stored),
            None => {
                let encoder = match &self.encoder {
                    Some(open) => open,
                    None => self.encoder.insert(TextEncoder::open(&self.model)?),
                };
                let states = encoder.encode(text, cancel)?;
                text_encoder::store(&self.model, text, &states)?;
                Arc::new(states)
            }
        };
        self.texts.insert(text, &states);
        Ok(states)
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
        &self,
        denoising: &mut Denoising,
        inputs: &StepInputs,
        cancel: &Cancel,
    ) -> Result<Option<StepDone>, Error> {
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
        &self,
        latent: ArrayView4<'_, f32>,
        run: &mut DecodeRun,
        cancel: &Cancel,
    ) -> Result<Option<Array4<f32>>, Error> {
        self.decoder.decode_next(latent, run, cancel)
    }

    /// Decodes the first frame `[3,H,W]` of `latent [C,T,h,w]`: the picture of a take is that of its clean estimate.
    ///
    /// # Errors
    /// The decoder cannot be opened or fails, or the run is cancelled.
    pub fn first_frame(&self, latent: ArrayView4<'_, f32>, cancel: &Cancel) -> Result<Array3<f32>, Error> {
        let mut run = self.begin_decode(latent);
        let frames = self.decode_next(latent, &mut run, cancel)?;
        let frames = frames.unwrap_or_else(|| unreachable!("a latent has at least one frame"));
        Ok(frames.index_axis_move(Axis(0), 0))
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
