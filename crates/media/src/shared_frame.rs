//! A frame whose converted samples are shared by all outputs.

use super::frames::{I420Layout, RgbLayout};
use bundle::geometry::PixelSize;
use gstreamer as gst;
use ndarray::Array3;
use std::sync::{Arc, OnceLock};

/// The pixel layout of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PixelLayout {
    /// 8 bits, 4:2:0, BT.709 in limited range, for video.
    I420,
    /// 8 bits each of red, green and blue, for PNG, GIF and WebP.
    Rgb,
}

/// One frame of a clip. Clones share the samples; each layout is converted once, on first use.
#[derive(Debug, Clone)]
pub struct SharedFrame(Arc<Samples>);

#[derive(Debug)]
struct Samples {
    size: PixelSize,
    video: I420Layout,
    /// `[3,H,W]` in -1..1. `None` in a frame for video only.
    colours: Option<Array3<f32>>,
    i420: OnceLock<gst::Buffer>,
    rgb: OnceLock<gst::Buffer>,
}

impl SharedFrame {
    /// A frame `[3,H,W]` in -1..1. Returns `None` if a side is odd or zero, or if there are not three channels.
    pub fn new(colours: Array3<f32>) -> Option<Self> {
        let (channels, height, width) = colours.dim();
        let video = I420Layout::new(width, height).filter(|_| channels == 3)?;
        let (size, colours) = (PixelSize { width, height }, Some(colours));
        Some(Self(Arc::new(Samples { size, video, colours, i420: OnceLock::new(), rgb: OnceLock::new() })))
    }

    /// Like [`Self::new`], but only for I420 outputs. Needs an eighth of the memory.
    pub fn for_video(colours: Array3<f32>) -> Option<Self> {
        let frame = Self::new(colours)?;
        let i420 = OnceLock::from(frame.buffer(PixelLayout::I420)?);
        let Samples { size, video, .. } = *frame.0;
        Some(Self(Arc::new(Samples { size, video, colours: None, i420, rgb: OnceLock::new() })))
    }

    /// The size in pixels.
    pub fn size(&self) -> PixelSize {
        self.0.size
    }

    /// The samples, rows padded to 4 bytes. All returned buffers share their memory. Returns `None` for RGB of a frame
    /// for video only.
    pub(super) fn buffer(&self, layout: PixelLayout) -> Option<gst::Buffer> {
        let Samples { size: PixelSize { width, height }, video, colours, i420, rgb } = &*self.0;
        let converted = match layout {
            PixelLayout::I420 => i420,
            PixelLayout::Rgb => rgb,
        };
        if let Some(buffer) = converted.get() {
            return Some(buffer.copy());
        }
        let colours = colours.as_ref()?.view();
        // The size was taken from the colours.
        let samples = match layout {
            PixelLayout::I420 => video.convert(colours),
            PixelLayout::Rgb => RgbLayout::new(*width, *height)?.convert(colours),
        };
        let samples = samples.ok()?;
        Some(converted.get_or_init(|| gst::Buffer::from_slice(samples)).copy())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_share_the_memory_of_a_frame() {
        gst::init().unwrap();
        let frame = SharedFrame::new(Array3::zeros((3, 4, 6))).unwrap();
        let video = SharedFrame::for_video(Array3::zeros((3, 4, 6))).unwrap();
        assert_eq!(video.size(), frame.size());
        let bytes =
            |frame: &SharedFrame| frame.buffer(PixelLayout::I420).unwrap().map_readable().unwrap().to_vec();
        assert_eq!(bytes(&video), bytes(&frame));
        assert!(video.buffer(PixelLayout::Rgb).is_none());
        for layout in [PixelLayout::I420, PixelLayout::Rgb] {
            let address = |buffer: &gst::Buffer| buffer.map_readable().unwrap().as_ptr();
            let (first, second) = (frame.buffer(layout).unwrap(), frame.clone().buffer(layout).unwrap());
            assert_eq!(address(&first), address(&second));
        }
        assert!(SharedFrame::new(Array3::zeros((3, 3, 6))).is_none());
        assert!(SharedFrame::new(Array3::zeros((4, 4, 6))).is_none());
    }
}
