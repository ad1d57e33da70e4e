//! A folder of numbered PNGs. The first contains the record of the clip.

use super::store::{FolderStore, Store};
use super::{Collector, bytes, rgb_rows};
use crate::frames::RgbLayout;
use crate::record_code::{EncodedRecord, KEY};
use gstreamer as gst;
use std::io;

/// Writes each frame to its own file, which is renamed when it is complete.
#[derive(Debug)]
pub(crate) struct PngFolder {
    folder: FolderStore,
    layout: RgbLayout,
    comment: Option<String>,
    /// Until the first picture is written.
    record: Option<EncodedRecord>,
    written: usize,
}

impl PngFolder {
    /// A writer into an existing folder.
    pub(crate) fn new(
        folder: FolderStore,
        layout: RgbLayout,
        comment: Option<String>,
        record: Option<EncodedRecord>,
    ) -> Self {
        Self { folder, layout, comment, record, written: 0 }
    }

    fn encode(&self, picture: &[u8]) -> Result<Vec<u8>, png::EncodingError> {
        let side = |pixels: usize| u32::try_from(pixels).unwrap_or(u32::MAX);
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, side(self.layout.width()), side(self.layout.height()));
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_compression(png::Compression::Fast);
        encoder.set_source_srgb(png::SrgbRenderingIntent::Perceptual);
        // `Comment` is a keyword of the PNG standard.
        if let Some(comment) = &self.comment {
            encoder.add_itxt_chunk("Comment".into(), comment.clone())?;
        }
        if let Some(record) = &self.record {
            encoder.add_itxt_chunk(KEY.into(), record.as_str().to_owned())?;
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&rgb_rows(picture, self.layout))?;
        writer.finish()?;
        Ok(file)
    }
}

impl Collector for PngFolder {
    fn take(&mut self, buffer: &gst::BufferRef) -> io::Result<()> {
        let file = self.encode(&bytes(buffer)?).map_err(io::Error::other)?;
        self.record = None;
        self.written += 1;
        self.folder.put(&format!("{:05}.png", self.written), &file)
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}
