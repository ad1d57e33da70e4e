//! A frame that many outputs read at once, without a copy for each.

use super::frames::{I420Layout, RgbLayout};
use bundle::geometry::PixelSize;
use gstreamer as gst;
use ndarray::Array3;
use std::sync::{Arc, OnceLock};

/// How a frame's samples lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PixelLayout {
    /// 8 bits, 4:2:0, BT.709 in limited range: what video is made of.
    I420,
    /// 8 bits each of red, green and blue: what pictures are made of.
    Rgb,
}

/// One frame of a clip. A clone is the same frame; each layout is computed once, when it is first asked for.
#[derive(Debug, Clone)]
pub struct SharedFrame(Arc<Samples>);

#[derive(Debug)]
struct Samples {
    size: PixelSize,
    /// `[3,H,W]` in -1..1; none in a frame that is for video alone.
    colours: Option<Array3<f32>>,
    i420: OnceLock<gst::Buffer>,
    rgb: OnceLock<gst::Buffer>,
}

impl SharedFrame {
    /// The frame `[3,H,W]` in -1..1; none if its sides are not even.
    pub fn new(colours: Array3<f32>) -> Option<Self> {
        let (channels, height, width) = colours.dim();
        let fits = channels == 3 && I420Layout::new(width, height).is_some();
        let (size, colours) = (PixelSize { width, height }, Some(colours));
        fits.then(|| Self(Arc::new(Samples { size, colours, i420: OnceLock::new(), rgb: OnceLock::new() })))
    }

    /// The same for outputs of video alone: it keeps an eighth of the memory, which counts where a clip is kept whole.
    pub fn for_video(colours: Array3<f32>) -> Option<Self> {
        let frame = Self::new(colours)?;
        let i420 = OnceLock::from(frame.buffer(PixelLayout::I420));
        let size = frame.size();
        Some(Self(Arc::new(Samples { size, colours: None, i420, rgb: OnceLock::new() })))
    }

    /// Its size in pixels.
    pub fn size(&self) -> PixelSize {
        self.0.size
    }

    /// Its samples, rows padded to 4 bytes. What is returned shares its memory with every other call's.
    pub(super) fn buffer(&self, layout: PixelLayout) -> gst::Buffer {
        let colours = || self.0.colours.as_ref().expect("outputs of pictures get frames of pictures").view();
        let PixelSize { width, height } = self.size();
        let made = match layout {
            PixelLayout::I420 => self.0.i420.get_or_init(|| {
                let layout = I420Layout::new(width, height).expect("`new` looked at the size");
                gst::Buffer::from_slice(layout.convert(colours()))
            }),
            PixelLayout::Rgb => self
                .0
                .rgb
                .get_or_init(|| gst::Buffer::from_slice(RgbLayout { width, height }.convert(colours()))),
        };
        made.copy()
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
        let bytes = |frame: &SharedFrame| frame.buffer(PixelLayout::I420).map_readable().unwrap().to_vec();
        assert_eq!(bytes(&video), bytes(&frame));
        for layout in [PixelLayout::I420, PixelLayout::Rgb] {
            let address = |buffer: &gst::Buffer| buffer.map_readable().unwrap().as_ptr();
            let (first, second) = (frame.buffer(layout), frame.clone().buffer(layout));
            assert_eq!(address(&first), address(&second));
        }
        assert!(SharedFrame::new(Array3::zeros((3, 3, 6))).is_none());
        assert!(SharedFrame::new(Array3::zeros((4, 4, 6))).is_none());
    }
}
