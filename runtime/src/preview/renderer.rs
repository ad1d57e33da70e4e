//! From a clean latent to colours: by the linear map, the tiny decoder or the real one.

use super::budget::PreviewLength;
use super::latent_to_rgb::colours;
use crate::Error;
use crate::decode::VideoDecoder;
use crate::model::Model;
use bundle::geometry::LatentShape;
use bundle::manifest::Component;
use bundle::preview::{LatentToRgb, PreviewKind};
use engines::Cancel;
use ndarray::{Array4, ArrayView4, Axis, Slice, concatenate};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

/// Longest side of the part of a latent that a decoder is timed on.
const PROBE: usize = 8;

/// Paints latents.
#[derive(Debug)]
pub struct PreviewRenderer {
    kind: PreviewKind,
    method: Method,
}

#[derive(Debug)]
enum Method {
    Map(LatentToRgb),
    Decoder(Box<VideoDecoder>),
}

impl Method {
    fn decoder(model: &Model, component: Component) -> Self {
        Self::Decoder(Box::new(VideoDecoder::of(&model.with_threads(NonZeroUsize::MIN), component)))
    }
}

impl PreviewRenderer {
    /// The renderer of a kind for a model; none for [`PreviewKind::Off`]. Opens nothing yet.
    ///
    /// Decoders run on one core: denoising needs the others.
    ///
    /// # Errors
    /// A bundle that lacks what this kind needs.
    pub fn new(model: &Model, kind: PreviewKind) -> Result<Option<Self>, Error> {
        let method = match kind {
            PreviewKind::Off => return Ok(None),
            PreviewKind::Rgb => Method::Map(model.bundle().preview_map()?.ok_or(Error::NoPreviewMap)?),
            PreviewKind::Tiny => {
                model.manifest().component(&Component::Preview).or(Err(Error::NoTinyDecoder))?;
                Method::decoder(model, Component::Preview)
            }
            PreviewKind::Full => Method::decoder(model, Component::Decoder),
        };
        Ok(Some(Self { kind, method }))
    }

    /// Which kind it is.
    pub fn kind(&self) -> PreviewKind {
        self.kind
    }

    /// Whether it can show more than the first latent frame in useful time.
    pub fn can_move(&self) -> bool {
        self.kind != PreviewKind::Full
    }

    /// Opens what pictures of an length need, runs it so that the first need not wait for it, and says how long a still
    /// one of a latent of `shape` will take: no time worth counting where it is the linear map.
    ///
    /// The decoders are timed on a part of the picture: their work is in proportion to its positions.
    ///
    /// # Errors
    /// A graph that cannot be opened or fails, or a cancelled run.
    pub fn open(
        &mut self,
        shape: LatentShape,
        length: PreviewLength,
        cancel: &Cancel,
    ) -> Result<Duration, Error> {
        let Method::Decoder(decoder) = &mut self.method else { return Ok(Duration::ZERO) };
        decoder.open_first()?;
        if length == PreviewLength::AllFrames {
            decoder.open_next()?;
        }
        let (height, width) = (shape.height.min(PROBE), shape.width.min(PROBE));
        let part = Array4::zeros((shape.channels, 1, height, width));
        let mut run = || {
            let began = Instant::now();
            decoder.decode(part.view(), cancel, &mut |_| Ok(()))?;
            Ok::<_, Error>(began.elapsed())
        };
        run()?;
        let positions = |height: usize, width: usize| u32::try_from(height * width).unwrap_or(u32::MAX);
        Ok(run()?.saturating_mul(positions(shape.height, shape.width)) / positions(height, width).max(1))
    }

    /// Paints a clean latent `[C,T,h,w]`: `[N,3,H,W]` in -1..1 or a little beyond. The linear map gives one pixel for
    /// each latent position and one frame for each latent frame, the decoders what the clip will have.
    ///
    /// # Errors
    /// A graph that fails, or a cancelled run.
    pub fn paint(
        &mut self,
        latent: ArrayView4<'_, f32>,
        length: PreviewLength,
        cancel: &Cancel,
    ) -> Result<Array4<f32>, Error> {
        let shown = match length {
            PreviewLength::FirstFrame => latent.slice_axis(Axis(1), Slice::from(..1)),
            PreviewLength::AllFrames => latent.view(),
        };
        match &mut self.method {
            Method::Map(map) => Ok(colours(map, shown)),
            Method::Decoder(decoder) => {
                let mut chunks = Vec::new();
                decoder.decode(shown, cancel, &mut |frames| {
                    chunks.push(frames);
                    Ok(())
                })?;
                let views: Vec<_> = chunks.iter().map(|chunk| chunk.view()).collect();
                Ok(concatenate(Axis(0), &views)
                    .unwrap_or_else(|_| unreachable!("the chunks of a clip differ in frames alone")))
            }
        }
    }
}
