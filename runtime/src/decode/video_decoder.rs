//! Streaming decode: the first latent frame, then each later one with the caches of the previous one.

use crate::Error;
use crate::footprint::decoder_need;
use crate::model::{GraphUse, Model, check_shape, engine_shape, take_array};
use crate::tiling::{TileSide, Tiling};
use bundle::geometry::{LatentShape, VaeStride};
use bundle::manifest::{Component, Part};
use bundle::signature::{CACHE_INPUT, CACHE_OUTPUT, Signature};
use engines::sessions::Lease;
use engines::{Cancel, Outputs, Value};
use ndarray::{Array4, ArrayView4, Axis, Slice};

/// A decoder of a model. Every call borrows the session of a graph, which is opened when it is first needed.
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
        Self { model: model.clone(), component, side: None }
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

    /// Decodes `latent [C,T,h,w]` (model scale). `on_frames` receives each chunk when it is decoded: `[N,3,8h,8w]` in
    /// -1..1, with one frame for the first latent frame and the VAE's temporal stride for each later one.
    ///
    /// # Errors
    /// A graph cannot be opened or fails, frames are not finite, the run is cancelled, or `on_frames` returns an error.
    pub fn decode(
        &self,
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

    /// Opens the sessions for latents of a shape, unless they are open.
    ///
    /// # Errors
    /// A graph cannot be opened, or `cancel` is requested.
    pub fn prepare(&self, latent: LatentShape, cancel: &Cancel) -> Result<(), Error> {
        let (first, next): (&[Part], &[Part]) = if self.is_tiled(latent.height, latent.width) {
            (&[Part::TrunkFirst, Part::UpsamplerFirst], &[Part::TrunkNext, Part::UpsamplerNext])
        } else {
            (&[Part::First], &[Part::Next])
        };
        let next = if latent.frames > 1 { next } else { &[] };
        // Each session is returned before the next one is borrowed.
        first.iter().chain(next).try_for_each(|part| self.lend(*part, latent, cancel).map(drop))
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
    /// A graph cannot be opened or fails, the frames are not finite, or the run is cancelled.
    pub fn decode_next(
        &self,
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
        let (channels, frames, height, width) = latent.dim();
        let shape = LatentShape { channels, frames, height, width };
        let vae = &self.model.manifest().vae;
        let VaeStride { time, space } = vae.stride();
        let chunk = Chunk { frames: if index == 0 { 1 } else { time }, scale: space };
        let frames = match &run.tiling {
            None => {
                let mut session = self.lend(whole, shape, cancel)?;
                let expected = chunk.shape(height, width);
                step(&mut session, WHOLE, &frame, expected, &mut run.caches, cancel)?
            }
            Some(tiling) => {
                // Each session is returned before the next one is borrowed.
                let mut session = self.lend(trunk, shape, cancel)?;
                let expected = [1, vae.deepest_width(), height, width];
                let features = step(&mut session, TRUNK, &frame, expected, &mut run.caches, cancel)?;
                drop(session);
                let mut upsampler = self.lend(upsampler, shape, cancel)?;
                tiled(&mut upsampler, features.view(), tiling, chunk, &mut run.tile_caches, cancel)?
            }
        };
        if !is_finite(&frames) {
            return Err(Error::FramesNotFinite { chunk: index + 1, chunks: shape.frames });
        }
        run.index += 1;
        Ok(Some(frames))
    }

    /// Borrows the session of a part, for latents of `shape`.
    fn lend(&self, part: Part, shape: LatentShape, cancel: &Cancel) -> Result<Lease, Error> {
        let manifest = self.model.manifest();
        let vae = &manifest.vae;
        let contract = match part {
            Part::TrunkFirst | Part::TrunkNext => Signature::of_decoder_trunk(vae),
            Part::UpsamplerFirst | Part::UpsamplerNext => Signature::of_decoder_upsampler(vae),
            Part::Whole | Part::First | Part::Next => Signature::of_decoder(vae),
        };
        let settings = self.model.session_settings(&self.component)?;
        let need = decoder_need(manifest, &self.component, part, settings, shape, self.side);
        let (component, shape) = (&self.component, Some(engine_shape(shape, 1)));
        self.model.lend(&GraphUse { component, part, contract: &contract, need, shape }, cancel)
    }
}

/// The frames of one latent frame.
#[derive(Debug, Clone, Copy)]
struct Chunk {
    frames: usize,
    /// Pixels per latent position, in each direction.
    scale: usize,
}

impl Chunk {
    /// The shape of the frames of `height x width` latent positions.
    fn shape(self, height: usize, width: usize) -> [usize; 4] {
        [self.frames, 3, height * self.scale, width * self.scale]
    }
}

/// Returns true if all values are finite. The loop has no early return, so that it can be vectorised.
fn is_finite(frames: &Array4<f32>) -> bool {
    frames.fold(true, |all, value| all & value.is_finite())
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

/// Runs a graph on one latent frame and replaces the caches. Its output must have the shape `expected`.
fn step(
    session: &mut Lease,
    names: TensorNames,
    input: &Value,
    expected: [usize; 4],
    caches: &mut Caches,
    cancel: &Cancel,
) -> Result<Array4<f32>, Error> {
    let mut inputs = vec![(names.input, input)];
    inputs.extend(caches.iter().map(|(name, cache)| (name.as_str(), cache)));
    let mut outputs = session.run(&inputs, cancel)?;
    let made: Array4<f32> = take_array(&mut outputs, names.output)?;
    check_shape(names.output, made.shape(), &expected)?;
    *caches = caches_of(outputs);
    Ok(made)
}

/// Decodes `features [1,C,h,w]` to frames `[N,3,H,W]`, tile by tile. Each tile has its own caches.
fn tiled(
    session: &mut Lease,
    features: ArrayView4<'_, f32>,
    tiling: &Tiling,
    chunk: Chunk,
    caches: &mut [Caches],
    cancel: &Cancel,
) -> Result<Array4<f32>, Error> {
    let (_, _, height, width) = features.dim();
    let mut picture = Array4::zeros(chunk.shape(height, width));
    for (tile, caches) in tiling.tiles().zip(caches) {
        let part = tiling.cut(&features, tile);
        let expected = chunk.shape(part.len_of(Axis(2)), part.len_of(Axis(3)));
        let frames = step(session, UPSAMPLER, &Value::from_f32(part.to_owned()), expected, caches, cancel)?;
        tiling.add(&mut picture, &frames.view(), tile, chunk.scale);
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
