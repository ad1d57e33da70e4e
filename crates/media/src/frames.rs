//! Conversion of the decoder's f32 frames to RGB and I420.
//!
//! The decoder returns `[N,3,H,W]` with red, green and blue in -1..1, for an sRGB-like display. Values outside are
//! clamped, and NaN becomes black. Video is I420 (8 bits, 4:2:0) with the BT.709 matrix in limited range: luma
//! 16..=235, chroma 16..=240 around 128. Only the matrix is applied; the transfer curve is not changed.
//!
//! Each chroma sample is the mean of 2x2 pixels, sited in their centre (`chroma_sample_loc_type` 1). Every sample is
//! rounded once, from f32.

use crate::Error;
use ndarray::ArrayView3;
use rayon::prelude::*;

/// Luma weights of red, green and blue, ITU-R BT.709-6 §3.
const LUMA: [f32; 3] = [0.2126, 0.7152, 0.0722];
/// The range of luma from black to white, and of chroma from its lowest to its highest value.
const LUMA_STEPS: f32 = 219.0;
const CHROMA_STEPS: f32 = 224.0;
/// The luma of black and the neutral chroma.
const BLACK: f32 = 16.0;
const NEUTRAL: f32 = 128.0;

/// The memory layout of an I420 picture: rows padded to 4 bytes, the default of GStreamer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct I420Layout {
    width: usize,
    height: usize,
}

impl I420Layout {
    /// Returns `None` unless both sides are even and positive, and the picture fits in memory.
    pub fn new(width: usize, height: usize) -> Option<Self> {
        let even = |side: usize| side > 0 && side.is_multiple_of(2);
        // Luma takes no more, and chroma less.
        let fits = fits([width, height, 2]);
        (even(width) && even(height) && fits).then_some(Self { width, height })
    }

    /// The planes of luma, Cb and Cr: the first byte, the stride, the bytes of a row without padding, the number of
    /// rows.
    pub(super) fn planes(self) -> [(usize, usize, usize, usize); 3] {
        let luma = self.height * self.luma_stride();
        let chroma = |plane: usize| {
            let start = luma + plane * (self.height / 2) * self.chroma_stride();
            (start, self.chroma_stride(), self.width / 2, self.height / 2)
        };
        [(0, self.luma_stride(), self.width, self.height), chroma(0), chroma(1)]
    }

    fn luma_stride(self) -> usize {
        self.width.next_multiple_of(4)
    }

    fn chroma_stride(self) -> usize {
        (self.width / 2).next_multiple_of(4)
    }

    /// Bytes of one picture.
    pub fn bytes(self) -> usize {
        self.height * self.luma_stride() + self.height * self.chroma_stride()
    }

    /// Converts a frame `[3,H,W]` in -1..1 to I420.
    ///
    /// # Errors
    /// Returns an error if the frame has another shape than the layout.
    pub fn convert(self, frame: ArrayView3<'_, f32>) -> Result<Vec<u8>, Error> {
        check_shape(frame, [3, self.height, self.width])?;
        let frame = frame.as_standard_layout();
        // The standard layout is contiguous.
        let samples = frame.as_slice().unwrap_or_default();
        let plane = self.height * self.width;
        let colours: [&[f32]; 3] = std::array::from_fn(|c| &samples[c * plane..(c + 1) * plane]);

        let mut picture = vec![0; self.bytes()];
        let (luma, chroma) = picture.split_at_mut(self.height * self.luma_stride());
        let (cb, cr) = chroma.split_at_mut(chroma.len() / 2);
        luma.par_chunks_exact_mut(2 * self.luma_stride())
            .zip(cb.par_chunks_exact_mut(self.chroma_stride()))
            .zip(cr.par_chunks_exact_mut(self.chroma_stride()))
            .enumerate()
            .for_each(|(pair, ((luma, cb), cr))| {
                let row = |y: usize| colours.map(|plane| &plane[(2 * pair + y) * self.width..][..self.width]);
                let (upper, lower) = luma.split_at_mut(self.luma_stride());
                luma_row(row(0), upper);
                luma_row(row(1), lower);
                chroma_row(row(0), row(1), cb, cr);
            });
        Ok(picture)
    }
}

/// The memory layout of an RGB picture: rows padded to 4 bytes, the default of GStreamer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RgbLayout {
    width: usize,
    height: usize,
}

impl RgbLayout {
    /// Returns `None` unless both sides are positive and the picture fits in memory.
    pub fn new(width: usize, height: usize) -> Option<Self> {
        (width > 0 && height > 0 && fits([width, height, 6])).then_some(Self { width, height })
    }

    /// Columns.
    pub fn width(self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(self) -> usize {
        self.height
    }

    /// Bytes of one picture.
    pub fn bytes(self) -> usize {
        self.height * self.stride()
    }

    /// Bytes of a row with padding.
    pub fn stride(self) -> usize {
        (3 * self.width).next_multiple_of(4)
    }

    /// Converts a frame `[3,H,W]` in -1..1 to RGB bytes, each rounded once.
    ///
    /// # Errors
    /// Returns an error if the frame has another shape than the layout.
    pub fn convert(self, frame: ArrayView3<'_, f32>) -> Result<Vec<u8>, Error> {
        check_shape(frame, [3, self.height, self.width])?;
        let mut picture = vec![0; self.bytes()];
        picture.par_chunks_exact_mut(self.stride()).enumerate().for_each(|(y, row)| {
            for (x, pixel) in row.as_chunks_mut::<3>().0.iter_mut().take(self.width).enumerate() {
                *pixel = std::array::from_fn(|c| nearest((limit(frame[[c, y, x]]) * 0.5 + 0.5) * 255.0));
            }
        });
        Ok(picture)
    }
}

/// Returns true if a picture of these extents, with rows padded to 4 bytes, fits in the address space.
fn fits(extents: [usize; 3]) -> bool {
    // The padding adds at most 3 bytes to a row of at least one.
    let bytes = extents.iter().chain([&4]).try_fold(1_usize, |bytes, extent| bytes.checked_mul(*extent));
    bytes.is_some_and(|bytes| isize::try_from(bytes).is_ok())
}

/// Checks the shape of a frame.
pub(super) fn check_shape(frame: ArrayView3<'_, f32>, expected: [usize; 3]) -> Result<(), Error> {
    let found: [usize; 3] = frame.dim().into();
    if found == expected { Ok(()) } else { Err(Error::Shape { expected, found }) }
}

/// Clamps a sample to -1..1. NaN becomes -1.
fn limit(x: f32) -> f32 {
    // The order matters: `max` of NaN and -1 is -1.
    #[expect(clippy::manual_clamp, reason = "clamp would let NaN through")]
    x.max(-1.0).min(1.0)
}

/// Luma in -1..1 of colours in -1..1.
fn luma([r, g, b]: [f32; 3]) -> f32 {
    LUMA[0] * r + LUMA[1] * g + LUMA[2] * b
}

/// Rounds a non-negative value.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 255")]
fn nearest(value: f32) -> u8 {
    (value + 0.5) as u8
}

fn luma_row([r, g, b]: [&[f32]; 3], out: &mut [u8]) {
    for (((out, &r), &g), &b) in out.iter_mut().zip(r).zip(g).zip(b) {
        let y = luma([limit(r), limit(g), limit(b)]);
        *out = nearest(BLACK + LUMA_STEPS * (y * 0.5 + 0.5));
    }
}

/// Chroma of two rows of pixels: `Cb = (B-Y) / (2 - 2·Kb)` and `Cr = (R-Y) / (2 - 2·Kr)`, each in -0.5..=0.5.
fn chroma_row(upper: [&[f32]; 3], lower: [&[f32]; 3], cb: &mut [u8], cr: &mut [u8]) {
    let [red, green, blue] = std::array::from_fn(|c| squares(upper[c], lower[c]));
    // Differences in -1..1 are twice those in 0..1.
    let scale = |weight: f32| CHROMA_STEPS / (4.0 * (1.0 - weight));
    let (scale_cb, scale_cr) = (scale(LUMA[2]), scale(LUMA[0]));
    for ((((cb, cr), r), g), b) in cb.iter_mut().zip(cr).zip(red).zip(green).zip(blue) {
        let y = luma([r, g, b]);
        *cb = nearest(NEUTRAL + scale_cb * (b - y));
        *cr = nearest(NEUTRAL + scale_cr * (r - y));
    }
}

/// The means of the 2x2 squares of two rows.
fn squares(upper: &[f32], lower: &[f32]) -> impl Iterator<Item = f32> {
    let (upper, lower) = (upper.as_chunks::<2>().0, lower.as_chunks::<2>().0);
    upper.iter().zip(lower).map(|(&[a, b], &[c, d])| ((limit(a) + limit(b)) + (limit(c) + limit(d))) * 0.25)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array3, arr1};
    use proptest::prelude::*;

    /// Luma, Cb and Cr of a 2x2 picture of one colour in -1..1.
    fn samples_of(colour: [f32; 3]) -> [u8; 3] {
        let frame = Array3::from_shape_fn((3, 2, 2), |(c, _, _)| colour[c]);
        let picture = I420Layout::new(2, 2).unwrap().convert(frame.view()).unwrap();
        assert_eq!(picture[0], picture[5]);
        [picture[0], picture[8], picture[12]]
    }

    /// The colour in -1..1 of luma, Cb and Cr, as a player computes it.
    fn decode([y, cb, cr]: [u8; 3]) -> [f32; 3] {
        let y = (f32::from(y) - 16.0) / 219.0;
        let (cb, cr) = ((f32::from(cb) - 128.0) / 224.0, (f32::from(cr) - 128.0) / 224.0);
        let (r, b) = (y + 1.5748 * cr, y + 1.8556 * cb);
        [r, (y - 0.2126 * r - 0.0722 * b) / 0.7152, b].map(|x| x * 2.0 - 1.0)
    }

    #[test]
    fn primary_colours_have_the_values_of_the_standard() {
        assert_eq!(samples_of([-1.0, -1.0, -1.0]), [16, 128, 128]);
        assert_eq!(samples_of([1.0, 1.0, 1.0]), [235, 128, 128]);
        assert_eq!(samples_of([1.0, -1.0, -1.0]), [63, 102, 240]);
        assert_eq!(samples_of([-1.0, 1.0, -1.0]), [173, 42, 26]);
        assert_eq!(samples_of([-1.0, -1.0, 1.0]), [32, 240, 118]);
    }

    #[test]
    fn nan_is_black_and_values_above_one_are_white() {
        assert_eq!(samples_of([f32::NAN; 3]), [16, 128, 128]);
        assert_eq!(samples_of([f32::INFINITY; 3]), [235, 128, 128]);
    }

    #[test]
    fn chroma_is_the_mean_of_the_four_pixels_it_covers() {
        let mut frame = Array3::from_elem((3, 2, 4), -1.0);
        frame.slice_mut(ndarray::s![.., 1, 0]).assign(&arr1(&[1.0, -1.0, -1.0]));
        let picture = I420Layout::new(4, 2).unwrap().convert(frame.view()).unwrap();
        assert_eq!(picture[..8], [16, 16, 16, 16, 63, 16, 16, 16]);
        // A quarter of red's chroma on the left, none on the right; the padding stays 0.
        assert_eq!(picture[8..], [122, 128, 0, 0, 156, 128, 0, 0]);
    }

    #[test]
    fn rgb_is_rounded_and_its_rows_are_padded() {
        let frame = Array3::from_shape_fn((3, 2, 2), |(c, y, x)| match c {
            0 => -1.0,
            1 => f32::NAN,
            _ => (2 * y + x) as f32 / 127.5 - 1.0,
        });
        let picture = RgbLayout::new(2, 2).unwrap().convert(frame.view()).unwrap();
        assert_eq!(picture, [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 2, 0, 0, 3, 0, 0]);
    }

    #[test]
    fn planes_match_the_default_layout_of_gstreamer() {
        gstreamer::init().unwrap();
        for (width, height) in [(16, 16), (18, 2), (22, 6), (832, 480), (480, 832), (2, 2)] {
            let info = gstreamer_video::VideoInfo::builder(
                gstreamer_video::VideoFormat::I420,
                width as u32,
                height as u32,
            )
            .build()
            .unwrap();
            let layout = I420Layout::new(width, height).unwrap();
            let strides = [layout.luma_stride() as i32, layout.chroma_stride() as i32];
            assert_eq!(info.size(), layout.bytes(), "{width}x{height}");
            assert_eq!(info.stride()[..2], strides, "{width}x{height}");
            assert_eq!(info.offset()[1], height * layout.luma_stride(), "{width}x{height}");
            assert_eq!(info.offset()[2], (layout.bytes() + info.offset()[1]) / 2, "{width}x{height}");
            let planes = layout.planes().map(|(start, stride, _, _)| (start, stride as i32));
            let found: Vec<_> = info.offset().iter().copied().zip(info.stride().iter().copied()).collect();
            assert_eq!(planes.to_vec(), found, "{width}x{height}");
        }
        assert_eq!(I420Layout::new(15, 16), None);
        assert_eq!(I420Layout::new(16, 0), None);
    }

    #[test]
    fn frames_of_another_shape_are_errors() {
        let (i420, rgb) = (I420Layout::new(4, 2).unwrap(), RgbLayout::new(4, 2).unwrap());
        for shape in [(3, 2, 2), (3, 4, 4), (1, 2, 4), (4, 2, 4), (3, 0, 0), (0, 2, 4)] {
            let frame = Array3::zeros(shape);
            for error in [i420.convert(frame.view()).unwrap_err(), rgb.convert(frame.view()).unwrap_err()] {
                let Error::Shape { expected: [3, 2, 4], found } = error else { panic!("{error}") };
                assert_eq!(found, <[usize; 3]>::from(shape));
            }
        }
    }

    #[test]
    fn pictures_that_no_memory_could_hold_have_no_layout() {
        let huge = usize::MAX - 1;
        for (width, height) in [(huge, 2), (2, huge), (huge, huge), (1 << 32, 1 << 32), (1 << 62, 4), (0, 0)]
        {
            assert_eq!(I420Layout::new(width, height), None, "{width}x{height}");
            assert_eq!(RgbLayout::new(width, height), None, "{width}x{height}");
        }
        assert_eq!((RgbLayout::new(0, 2), RgbLayout::new(2, 0)), (None, None));
    }

    #[test]
    fn rounding_has_no_bias() {
        let steps = 10_000;
        let error: f32 = (0..=steps)
            .map(|i| {
                let grey = i as f32 / steps as f32 * 2.0 - 1.0;
                (decode(samples_of([grey; 3]))[1] - grey) * 127.5
            })
            .sum();
        assert!((error / steps as f32).abs() < 0.01, "mean error {} of 255", error / steps as f32);
    }

    proptest! {
        #[test]
        fn greys_have_neutral_chroma(grey in -1.5_f32..1.5) {
            prop_assert_eq!(samples_of([grey; 3])[1..].to_vec(), [128, 128]);
        }

        #[test]
        fn colours_round_trip_within_rounding(colour in prop::array::uniform3(-1.0_f32..=1.0)) {
            // Half a step of luma, and half a step of chroma times the largest factor (blue): 1.64 of 255.
            for (found, expected) in decode(samples_of(colour)).into_iter().zip(colour) {
                prop_assert!((found - expected).abs() * 127.5 < 1.65, "{colour:?}: {found} for {expected}");
            }
        }

        #[test]
        fn any_f32_converts_to_limited_range(bits in prop::array::uniform3(any::<u32>())) {
            let [y, cb, cr] = samples_of(bits.map(f32::from_bits));
            prop_assert!((16..=235).contains(&y), "luma {y}");
            prop_assert!((16..=240).contains(&cb) && (16..=240).contains(&cr), "chroma {cb} {cr}");
        }

        #[test]
        fn strided_frames_convert_like_contiguous_ones(samples in prop::collection::vec(-1.0_f32..1.0, 3 * 4 * 6)) {
            let frame = Array3::from_shape_vec((3, 4, 6), samples).unwrap();
            let strided = frame.view().permuted_axes([2, 1, 0]).as_standard_layout().into_owned();
            let layout = I420Layout::new(6, 4).unwrap();
            let strided = layout.convert(strided.view().permuted_axes([2, 1, 0])).unwrap();
            prop_assert_eq!(strided, layout.convert(frame.view()).unwrap());
        }
    }
}
