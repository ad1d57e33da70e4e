//! Renders a clean latent with the linear map, the tiny decoder or the full decoder.

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
use std::time::{Duration, Instant};

/// Longest side, in latent positions, of the crop that a decoder is timed on.
const PROBE: usize = 8;

/// Renders latents as frames.
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
        Self::Decoder(Box::new(VideoDecoder::for_component(&model.for_previews(), component)))
    }
}

impl PreviewRenderer {
    /// Creates a renderer, or `None` for [`PreviewKind::Off`]. Opens no graph.
    ///
    /// Decoders run on one core because denoising needs the others.
    ///
    /// # Errors
    /// The bundle has no preview map or no tiny decoder.
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

    /// The kind of preview.
    pub fn kind(&self) -> PreviewKind {
        self.kind
    }

    /// Returns true if it is fast enough to show more than the first latent frame.
    pub fn can_show_all_frames(&self) -> bool {
        self.kind != PreviewKind::Full
    }

    /// Opens and warms up the graphs for previews of `length`, and returns the expected time for the first latent frame
    /// of a latent of `shape`. For the linear map it is 0.
    ///
    /// A decoder is timed on a crop: its work is proportional to the number of positions.
    ///
    /// # Errors
    /// A graph cannot be opened or fails, or the run is cancelled.
    pub fn open(
        &self,
        shape: LatentShape,
        length: PreviewLength,
        cancel: &Cancel,
    ) -> Result<Duration, Error> {
        let Method::Decoder(decoder) = &self.method else { return Ok(Duration::ZERO) };
        let (height, width) = (shape.height.min(PROBE), shape.width.min(PROBE));
        let run = |frames: usize| {
            let part = Array4::zeros((shape.channels, frames, height, width));
            let began = Instant::now();
            decoder.decode(part.view(), cancel, &mut |_| Ok(()))?;
            Ok::<_, Error>(began.elapsed())
        };
        run(match length {
            PreviewLength::FirstFrame => 1,
            PreviewLength::AllFrames => shape.frames.min(2),
        })?;
        let positions = |height: usize, width: usize| u32::try_from(height * width).unwrap_or(u32::MAX);
        Ok(run(1)?.saturating_mul(positions(shape.height, shape.width)) / positions(height, width).max(1))
    }

    /// Renders a clean latent `[C,T,h,w]` to frames `[N,3,H,W]` in -1..1 or slightly beyond. The linear map renders one
    /// pixel per latent position and one frame per latent frame; the decoders render the clip's own size and frames.
    ///
    /// # Errors
    /// A graph fails, or the run is cancelled.
    pub fn render(
        &self,
        latent: ArrayView4<'_, f32>,
        length: PreviewLength,
        cancel: &Cancel,
    ) -> Result<Array4<f32>, Error> {
        let shown = match length {
            PreviewLength::FirstFrame => latent.slice_axis(Axis(1), Slice::from(..1)),
            PreviewLength::AllFrames => latent.view(),
        };
        match &self.method {
            Method::Map(map) => Ok(colours(map, shown)),
            Method::Decoder(decoder) => {
                let mut chunks = Vec::new();
                decoder.decode(shown, cancel, &mut |frames| {
                    chunks.push(frames);
                    Ok(())
                })?;
                let views: Vec<_> = chunks.iter().map(|chunk| chunk.view()).collect();
                Ok(concatenate(Axis(0), &views).unwrap_or_else(|_| {
                    unreachable!("the chunks of a clip differ only in their number of frames")
                }))
            }
        }
    }
}
