//! Streaming decode: the first latent frame, then each later one with the caches of the previous one.

use super::tiling::{TileSide, Tiling};
use crate::Error;
use crate::model::{Model, take_array};
use bundle::manifest::{Component, Part};
use bundle::signature::{CACHE_INPUT, CACHE_OUTPUT, Signature};
use engines::{Cancel, Engine, Outputs, Value};
use ndarray::{Array4, ArrayView4, Axis, Slice};

/// A decoder of a model. Graphs are opened when they are first needed.
///
/// # Examples
/// ```no_run
/// # fn decode(model: &runtime::model::Model, latent: ndarray::Array4<f32>) -> Result<(), runtime::Error> {
/// use engines::Cancel;
/// use runtime::decode::VideoDecoder;
///
/// VideoDecoder::new(model).decode(latent.view(), &Cancel::new(), &mut |frames| {
///     println!("decoded {:?}", frames.shape());
///     Ok(())
/// })?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct VideoDecoder {
    model: Model,
    component: Component,
    side: Option<TileSide>,
    keeps_first: bool,
    open: Vec<(Part, Engine)>,
}

/// A clip that is being decoded: the position, and the caches of the frames before it.
#[derive(Debug)]
pub struct DecodeRun {
    index: usize,
    tiling: Option<Tiling>,
    caches: Caches,
    tile_caches: Vec<Caches>,
}

impl DecodeRun {
    /// The number of latent frames that are decoded.
    pub fn frames_done(&self) -> usize {
        self.index
    }
}

/// The decoder's caches of previous frames, by input name. They stay in ONNX Runtime's memory.
type Caches = Vec<(String, Value)>;

impl VideoDecoder {
    /// Creates the decoder of clips. Opens no graph.
    pub fn new(model: &Model) -> Self {
        Self::for_component(model, Component::Decoder)
    }

    /// Creates a decoder from a component: the decoder itself or the tiny decoder of previews. Opens no graph.
    pub fn for_component(model: &Model, component: Component) -> Self {
        Self { model: model.clone(), component, side: None, keeps_first: false, open: Vec::new() }
    }

    /// Sets the largest tile that frames are decoded in; `None` decodes whole frames.
    ///
    /// Tiles need less memory and more time: overlaps are decoded more than once. The trunk, at the latent's
    /// resolution, always runs on the whole frame, because its attention spans the whole frame.
    pub fn tiled(self, side: Option<TileSide>) -> Self {
        Self { side, ..self }
    }

    /// Returns true if frames of `height x width` latent positions are decoded in more than one tile.
    pub(crate) fn is_tiled(&self, height: usize, width: usize) -> bool {
        self.side.is_some_and(|side| Tiling::new(height, width, side).count() > 1)
    }

    /// Opens the graph for first latent frames and keeps it open between calls of [`Self::decode`].
    ///
    /// # Errors
    /// The graph cannot be opened.
    pub fn open_first(&mut self) -> Result<(), Error> {
        self.keeps_first = true;
        self.engine(Part::First).map(|_| ())
    }

    /// Opens the graph for later latent frames.
    ///
    /// # Errors
    /// The graph cannot be opened.
    pub fn open_next(&mut self) -> Result<(), Error> {
        self.engine(Part::Next).map(|_| ())
    }

    /// Decodes `latent [C,T,h,w]` (model scale). `on_frames` receives each chunk when it is decoded: `[N,3,8h,8w]` in
    /// -1..1, with one frame for the first latent frame and the VAE's temporal stride for each later one.
    ///
    /// # Errors
    /// A graph cannot be opened or fails, the run is cancelled, or `on_frames` returns an error.
    pub fn decode(
        &mut self,
        latent: ArrayView4<'_, f32>,
        cancel: &Cancel,
        on_frames: &mut dyn FnMut(Array4<f32>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut run = self.begin(latent);
        while let Some(frames) = self.decode_next(latent, &mut run, cancel)? {
            on_frames(frames)?;
        }
        Ok(())
    }

    /// Begins to decode `latent [C,T,h,w]`. Opens and runs nothing.
    pub fn begin(&self, latent: ArrayView4<'_, f32>) -> DecodeRun {
        let (_, _, height, width) = latent.dim();
        let tiling = self.side.map(|side| Tiling::new(height, width, side));
        let tiling = tiling.filter(|tiling| tiling.count() > 1);
        let tile_caches = vec![Caches::new(); tiling.as_ref().map_or(0, Tiling::count)];
        DecodeRun { index: 0, tiling, caches: Caches::new(), tile_caches }
    }

    /// Decodes the next latent frame of `latent [C,T,h,w]`, which must be the one that `run` was begun with. Returns
    /// its frames as in [`Self::decode`], or `None` after the last one.
    ///
    /// # Errors
    /// A graph cannot be opened or fails, or the run is cancelled.
    pub fn decode_next(
        &mut self,
        latent: ArrayView4<'_, f32>,
        run: &mut DecodeRun,
        cancel: &Cancel,
    ) -> Result<Option<Array4<f32>>, Error> {
        let index = run.index;
        if index >= latent.len_of(Axis(1)) {
            return Ok(None);
        }
        let frame = latent.slice_axis(Axis(1), Slice::from(index..index + 1)).insert_axis(Axis(0));
        let frame = Value::from_f32(frame.to_owned());
        let (whole, trunk, upsampler) = if index == 0 {
            (Part::First, Part::TrunkFirst, Part::UpsamplerFirst)
        } else {
            (Part::Next, Part::TrunkNext, Part::UpsamplerNext)
        };
        let frames = match &run.tiling {
            None => step(self.engine(whole)?, WHOLE, &frame, &mut run.caches, cancel)?,
            Some(tiling) => {
                let features = step(self.engine(trunk)?, TRUNK, &frame, &mut run.caches, cancel)?;
                tiled(self.engine(upsampler)?, features.view(), tiling, &mut run.tile_caches, cancel)?
            }
        };
        if index == 0 && !self.keeps_first {
            // Used once per clip, so it is closed.
            self.open
                .retain(|(part, _)| !matches!(part, Part::First | Part::TrunkFirst | Part::UpsamplerFirst));
        }
        run.index += 1;
        Ok(Some(frames))
    }

    /// Closes all graphs. Returns true if one was open.
    pub fn close(&mut self) -> bool {
        let was_open = !self.open.is_empty();
        self.open.clear();
        was_open
    }

    /// Returns the engine of a part, opening it if necessary.
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

/// The names of a graph's main input and output.
#[derive(Debug, Clone, Copy)]
struct TensorNames {
    input: &'static str,
    output: &'static str,
}

const WHOLE: TensorNames = TensorNames { input: "latent", output: "frames" };
const TRUNK: TensorNames = TensorNames { input: "latent", output: "features" };
const UPSAMPLER: TensorNames = TensorNames { input: "features", output: "frames" };

/// Runs a graph on one latent frame and replaces the caches.
fn step(
    engine: &mut Engine,
    names: TensorNames,
    input: &Value,
    caches: &mut Caches,
    cancel: &Cancel,
) -> Result<Array4<f32>, Error> {
    let mut inputs = vec![(names.input, input)];
    inputs.extend(caches.iter().map(|(name, cache)| (name.as_str(), cache)));
    let mut outputs = engine.run(&inputs, cancel)?;
    let made = take_array(&mut outputs, names.output)?;
    *caches = caches_of(outputs);
    Ok(made)
}

/// Decodes `features [1,C,h,w]` to frames `[N,3,H,W]`, tile by tile. Each tile has its own caches.
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
        let frames = step(engine, UPSAMPLER, &Value::from_f32(part.to_owned()), caches, cancel)?;
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

/// Returns the caches among a run's outputs, each under the name of the input that takes it in the next run.
pub fn caches_of(outputs: Outputs) -> Caches {
    outputs
        .into_iter()
        .filter_map(|(name, value)| {
            name.strip_prefix(CACHE_OUTPUT).map(|number| (format!("{CACHE_INPUT}{number}"), value))
        })
        .collect()
}
