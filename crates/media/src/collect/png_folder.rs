//! A folder of numbered PNGs.

use super::store::{FolderStore, Store};
use super::{Collector, bytes, rgb_rows};
use crate::frames::RgbLayout;
use gstreamer as gst;
use std::io;

/// Writes each frame to its own file, which is renamed when it is complete.
#[derive(Debug)]
pub(crate) struct PngFolder {
    folder: FolderStore,
    layout: RgbLayout,
    comment: String,
    written: usize,
}

impl PngFolder {
    /// A writer into an existing folder.
    pub(crate) fn new(folder: FolderStore, layout: RgbLayout, comment: String) -> Self {
        Self { folder, layout, comment, written: 0 }
    }

    fn encode(&self, picture: &[u8]) -> Result<Vec<u8>, png::EncodingError> {
        let side = |pixels: usize| u32::try_from(pixels).unwrap_or(u32::MAX);
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, side(self.layout.width), side(self.layout.height));
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_compression(png::Compression::Fast);
        encoder.set_source_srgb(png::SrgbRenderingIntent::Perceptual);
        // `Comment` is a keyword of the PNG standard.
        encoder.add_itxt_chunk("Comment".into(), self.comment.clone())?;
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&rgb_rows(picture, self.layout))?;
        writer.finish()?;
        Ok(file)
    }
}

impl Collector for PngFolder {
    fn take(&mut self, buffer: &gst::BufferRef) -> io::Result<()> {
        let file = self.encode(&bytes(buffer)?).map_err(io::Error::other)?;
        self.written += 1;
        self.folder.put(&format!("{:05}.png", self.written), &file)
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}
