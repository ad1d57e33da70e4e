//! Streams a latent through the decoder: the first latent frame, then each later one with the caches of the last.

use super::tiling::{TileSide, Tiling};
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
    side: Option<TileSide>,
    keeps_first: bool,
    open: Vec<(Part, Engine)>,
}

/// What a graph keeps of the frames before, under the names of its inputs. It stays in ONNX Runtime's memory.
type Caches = Vec<(String, Value)>;

impl VideoDecoder {
    /// The decoder of clips. Opens nothing yet.
    pub fn new(model: &Model) -> Self {
        Self::of(model, Component::Decoder)
    }

    /// The decoder that a component of the bundle is. Opens nothing yet.
    pub fn of(model: &Model, component: Component) -> Self {
        Self { model: model.clone(), component, side: None, keeps_first: false, open: Vec::new() }
    }

    /// The same decoder, which decodes each picture in tiles of at most `side`; none decodes it whole.
    ///
    /// Tiles need less memory at once, and more time: what overlaps is decoded twice or more. What looks at the whole
    /// picture, the decoder's attention, still does: all that happens at the latent's resolution is done at once.
    pub fn tiled(self, side: Option<TileSide>) -> Self {
        Self { side, ..self }
    }

    /// Whether pictures of `height x width` latent positions are decoded in several tiles.
    pub(crate) fn is_tiled(&self, height: usize, width: usize) -> bool {
        self.side.is_some_and(|side| Tiling::new(height, width, side).count() > 1)
    }

    /// Opens the graph for first latent frames and keeps it, for clips that begin again and again.
    ///
    /// # Errors
    /// A graph that cannot be opened.
    pub fn open_first(&mut self) -> Result<(), Error> {
        self.keeps_first = true;
        self.engine(Part::First).map(|_| ())
    }

    /// Opens the graph for later latent frames.
    ///
    /// # Errors
    /// A graph that cannot be opened.
    pub fn open_next(&mut self) -> Result<(), Error> {
        self.engine(Part::Next).map(|_| ())
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
        let (_, count, height, width) = latent.dim();
        let tiling = self.side.map(|side| Tiling::new(height, width, side));
        let tiling = tiling.filter(|tiling| tiling.count() > 1);
        let mut caches = Caches::new();
        let mut of_tiles = vec![Caches::new(); tiling.as_ref().map_or(0, Tiling::count)];
        for index in 0..count {
            let frame = latent.slice_axis(Axis(1), Slice::from(index..index + 1)).insert_axis(Axis(0));
            let frame = Value::from_f32(frame.to_owned());
            let (whole, trunk, upsampler) = if index == 0 {
                (Part::First, Part::TrunkFirst, Part::UpsamplerFirst)
            } else {
                (Part::Next, Part::TrunkNext, Part::UpsamplerNext)
            };
            let frames = match &tiling {
                None => step(self.engine(whole)?, WHOLE, &frame, &mut caches, cancel)?,
                Some(tiling) => {
                    let features = step(self.engine(trunk)?, TRUNK, &frame, &mut caches, cancel)?;
                    tiled(self.engine(upsampler)?, features.view(), tiling, &mut of_tiles, cancel)?
                }
            };
            if index == 0 && !self.keeps_first {
                // Used once for each clip, so it does not stay.
                self.open.retain(|(part, _)| {
                    !matches!(part, Part::First | Part::TrunkFirst | Part::UpsamplerFirst)
                });
            }
            on_frames(frames)?;
        }
        Ok(())
    }

    /// A graph of the component, opened if it is not.
    fn engine(&mut self, part: Part) -> Result<&mut Engine, Error> {
        let index = match self.open.iter().position(|(open, _)| *open == part) {
            Some(index) => index,
            None => {
                let vae = &self.model.manifest().vae;
                let contract = match part {
                    Part::TrunkFirst | Part::TrunkNext => Signature::of_decoder_trunk(vae),
                    Part::UpsamplerFirst | Part::UpsamplerNext => Signature::of_decoder_upsampler(vae),
                    Part::Whole | Part::First | Part::Next => Signature::of_decoder(vae),
                };
                self.open.push((part, self.model.engine(&self.component, part, &contract)?));
                self.open.len() - 1
            }
        };
        Ok(&mut self.open[index].1)
    }
}

/// What a graph is fed with and what it is run for.
#[derive(Debug, Clone, Copy)]
struct Ports {
    input: &'static str,
    output: &'static str,
}

const WHOLE: Ports = Ports { input: "latent", output: "frames" };
const TRUNK: Ports = Ports { input: "latent", output: "features" };
const RISE: Ports = Ports { input: "features", output: "frames" };

/// Runs a graph on one latent frame and replaces its caches.
fn step(
    engine: &mut Engine,
    ports: Ports,
    input: &Value,
    caches: &mut Caches,
    cancel: &Cancel,
) -> Result<Array4<f32>, Error> {
    let mut inputs = vec![(ports.input, input)];
    inputs.extend(caches.iter().map(|(name, cache)| (name.as_str(), cache)));
    let mut outputs = engine.run(&inputs, cancel)?;
    let made = take_array(&mut outputs, ports.output)?;
    *caches = caches_of(outputs);
    Ok(made)
}

/// The frames `[N,3,H,W]` of `features [1,C,h,w]`, tile by tile, each with caches of its own.
fn tiled(
    engine: &mut Engine,
    features: ArrayView4<'_, f32>,
    tiling: &Tiling,
    caches: &mut [Caches],
    cancel: &Cancel,
) -> Result<Array4<f32>, Error> {
    let mut picture = Array4::zeros((0, 0, 0, 0));
    for (tile, caches) in tiling.tiles().zip(caches) {
        let part = tiling.cut(&features, tile);
        let frames = step(engine, RISE, &Value::from_f32(part.to_owned()), caches, cancel)?;
        let (count, colours, tile_height, _) = frames.dim();
        let scale = tile_height / part.len_of(Axis(2));
        if picture.is_empty() {
            let (_, _, height, width) = features.dim();
            picture = Array4::zeros((count, colours, height * scale, width * scale));
        }
        tiling.add(&mut picture, &frames.view(), tile, scale);
    }
    Ok(picture)
}

/// Every cache that a run gave, under the name of the input that it feeds next.
pub fn caches_of(outputs: Outputs) -> Caches {
    outputs
        .into_iter()
        .filter_map(|(name, value)| {
            name.strip_prefix(CACHE_OUTPUT).map(|number| (format!("{CACHE_INPUT}{number}"), value))
        })
        .collect()
}
