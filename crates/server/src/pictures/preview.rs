//! Drawing the clean latent of a step with the preview map of the model.

use super::Clean;
use super::files::{pixels, side};
use crate::clips::index::Clip;
use crate::fault::Fault;
use axum::http::StatusCode;
use bundle::geometry::PixelSize;
use bundle::manifest::Bundle;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use media::preview_files::resized_colours;
use ndarray::{Array3, Axis, Slice};
use runtime::preview::latent_to_rgb::colours;
use std::path::Path;

/// The format of a preview.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PreviewFormat {
    Png,
    Jpeg,
}

/// Draws the first latent frame of a preview in the size of the clip, on a thread that may take its time.
///
/// # Errors
/// The model has no preview map, or the picture cannot be encoded.
pub(crate) async fn draw(clip: &Clip, clean: Clean, format: PreviewFormat) -> Result<Vec<u8>, Fault> {
    let (folder, size) = (clip.request.bundle.clone(), clip.request.clip.size);
    let drawn = tokio::task::spawn_blocking(move || encoded(&picture(&folder, size, &clean)?, format));
    drawn.await.map_err(Fault::internal)?
}

/// The first latent frame of a preview in the size of the clip, as `[3,H,W]` in -1..1. It takes its time.
///
/// # Errors
/// The model has no preview map.
pub(crate) fn picture(folder: &Path, size: Option<PixelSize>, clean: &Clean) -> Result<Array3<f32>, Fault> {
    let map = Bundle::read(folder).and_then(|bundle| bundle.preview_map()).map_err(Fault::internal)?;
    let map = map.ok_or_else(|| {
        let message = "the model has no preview map, so its clips have no previews";
        Fault::new(StatusCode::NOT_FOUND, "no_previews", message)
    })?;
    let first = clean.latent.slice_axis(Axis(1), Slice::from(..1));
    let picture = colours(&map, first);
    let picture = picture.index_axis(Axis(0), 0);
    let size = size.unwrap_or(PixelSize { width: picture.dim().2, height: picture.dim().1 });
    resized_colours(picture, size).map_err(Fault::internal)
}

fn encoded(picture: &Array3<f32>, format: PreviewFormat) -> Result<Vec<u8>, Fault> {
    let (pixels, size) = pixels(picture.view());
    let (width, height) = (side(size.width), side(size.height));
    let mut file = Vec::new();
    let written = match format {
        PreviewFormat::Png => {
            PngEncoder::new(&mut file).write_image(&pixels, width, height, ExtendedColorType::Rgb8)
        }
        PreviewFormat::Jpeg => {
            JpegEncoder::new(&mut file).write_image(&pixels, width, height, ExtendedColorType::Rgb8)
        }
    };
    written.map_err(Fault::internal).map(|()| file)
}
