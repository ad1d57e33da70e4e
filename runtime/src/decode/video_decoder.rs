//! Streams a latent through the decoder: the first latent frame, then each later one with the caches of the last.

use crate::Error;
use crate::model::{Model, take_array};
use bundle::manifest::{Component, Part};
use bundle::signature::{CACHE_INPUT, CACHE_OUTPUT, Signature};
use engines::{Cancel, Engine, Outputs, Value};
use ndarray::{Array4, ArrayView4, Axis, Slice};

/// A decoder of a model. Its graphs are opened when they are first needed.
#[derive(Debug)]
pub struct VideoDecoder {
    model: Model,
    component: Component,
    /// Stays open only where first latent frames come again and again.
    first: Option<Engine>,
    next: Option<Engine>,
}

impl VideoDecoder {
    /// The decoder of clips. Opens nothing yet.
    pub fn new(model: &Model) -> Self {
        Self::of(model, Component::Decoder)
    }

    /// The decoder that a component of the bundle is. Opens nothing yet.
    pub fn of(model: &Model, component: Component) -> Self {
        Self { model: model.clone(), component, first: None, next: None }
    }

    /// Opens the graph for first latent frames and keeps it, for clips that begin again and again.
    ///
    /// # Errors
    /// A graph that cannot be opened.
    pub fn open_first(&mut self) -> Result<(), Error> {
        self.first = Some(self.open(Part::First)?);
        Ok(())
    }

    /// Decodes `latent [C,T,h,w]` (model scale). `on_frames` gets each chunk as it is made: `[N,3,8h,8w]` in -1..1,
    /// one frame first, then as many as the VAE's stride in time for each later latent frame.
    ///
    /// # Errors
    /// A graph that cannot be opened or fails, a cancelled run, or an error of `on_frames`.
    pub fn decode(
        &mut self,
        latent: ArrayView4<'_, f32>,
        cancel: &Cancel,
        on_frames: &mut dyn FnMut(Array4<f32>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut caches: Vec<(String, Value)> = Vec::new();
        for index in 0..latent.len_of(Axis(1)) {
            let frame = latent.slice_axis(Axis(1), Slice::from(index..index + 1)).insert_axis(Axis(0));
            let frame = Value::from_f32(frame.to_owned());
            let mut inputs = vec![("latent", &frame)];
            let mut outputs = if index == 0 {
                match &mut self.first {
                    Some(open) => open.run(&inputs, cancel)?,
                    // Used once for each clip, so it does not stay.
                    None => self.open(Part::First)?.run(&inputs, cancel)?,
                }
            } else {
                inputs.extend(caches.iter().map(|(name, cache)| (name.as_str(), cache)));
                self.next()?.run(&inputs, cancel)?
            };
            let frames = take_array(&mut outputs, "frames")?;
            caches = caches_of(outputs);
            on_frames(frames)?;
        }
        Ok(())
    }

    fn open(&self, part: Part) -> Result<Engine, Error> {
        let contract = Signature::of_decoder(&self.model.manifest().vae);
        self.model.engine(&self.component, part, &contract)
    }

    fn next(&mut self) -> Result<&mut Engine, Error> {
        let opened = match self.next.take() {
            Some(open) => open,
            None => self.open(Part::Next)?,
        };
        Ok(self.next.insert(opened))
    }
}

/// Every cache that a run gave, under the name of the input that it feeds next. They stay in ONNX Runtime's memory.
pub(crate) fn caches_of(outputs: Outputs) -> Vec<(String, Value)> {
    outputs
        .into_iter()
        .filter_map(|(name, value)| {
            name.strip_prefix(CACHE_OUTPUT).map(|number| (format!("{CACHE_INPUT}{number}"), value))
        })
        .collect()
}
