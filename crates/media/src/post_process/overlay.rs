//! Blending of f32 pictures: overlays on a frame, and a frame over a background. Pure.

use bundle::Field;
use bundle::geometry::PixelSize;
use ndarray::{Array2, Array3, ArrayView3, Axis, s};

/// A picture with transparency at a position in the frame.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Overlay {
    /// Premultiplied colours `[3,h,w]` in 0..1.
    colours: Array3<f32>,
    /// Alpha `[h,w]` in 0..1.
    alpha: Array2<f32>,
    /// Column and row of the upper left corner in the frame.
    at: (usize, usize),
}

impl Overlay {
    /// A picture of `RGBA` bytes in a corner, `margin` pixels from the edges. Returns `None` if it is larger than the
    /// frame.
    pub(super) fn in_corner(
        rgba: &[u8],
        picture: PixelSize,
        frame: PixelSize,
        corner: Corner,
        margin: usize,
    ) -> Option<Self> {
        let left = frame.width.checked_sub(picture.width)?;
        let top = frame.height.checked_sub(picture.height)?;
        let (near, far) = (|free: usize| margin.min(free), |free: usize| free - margin.min(free));
        let at = match corner {
            Corner::TopLeft => (near(left), near(top)),
            Corner::TopRight => (far(left), near(top)),
            Corner::BottomLeft => (near(left), far(top)),
            Corner::BottomRight => (far(left), far(top)),
        };
        let sample = |y: usize, x: usize, c: usize| f32::from(rgba[(y * picture.width + x) * 4 + c]) / 255.0;
        let alpha = Array2::from_shape_fn((picture.height, picture.width), |(y, x)| sample(y, x, 3));
        let colours = Array3::from_shape_fn((3, picture.height, picture.width), |(c, y, x)| {
            sample(y, x, c) * sample(y, x, 3)
        });
        Some(Self { colours, alpha, at })
    }

    /// Computes the alpha from the same drawing over black and over white, both `[3,H,W]` in 0..1. The overlay is
    /// cropped to the drawing. Returns `None` if nothing was drawn.
    pub(super) fn from_black_and_white(
        black: ArrayView3<'_, f32>,
        white: ArrayView3<'_, f32>,
    ) -> Option<Self> {
        let alpha = 1.0 - (&white - &black).mean_axis(Axis(0))?;
        let drawn = |axis: usize| {
            let lines = alpha.axis_iter(Axis(axis));
            let is_drawn = lines.map(|line| line.iter().any(|alpha| *alpha > 1.0 / 255.0));
            let found: Vec<usize> =
                is_drawn.enumerate().filter_map(|(index, drawn)| drawn.then_some(index)).collect();
            Some((*found.first()?, *found.last()? + 1))
        };
        let ((top, bottom), (left, right)) = (drawn(0)?, drawn(1)?);
        Some(Self {
            colours: black.slice(s![.., top..bottom, left..right]).to_owned(),
            alpha: alpha.slice(s![top..bottom, left..right]).mapv(|alpha| alpha.clamp(0.0, 1.0)),
            at: (left, top),
        })
    }

    /// The upper row in the frame.
    pub(super) fn top(&self) -> usize {
        self.at.1
    }

    /// The number of rows.
    pub(crate) fn height(&self) -> usize {
        self.alpha.nrows()
    }

    /// Moves the upper edge to another row.
    pub(crate) fn moved_to(mut self, top: usize) -> Self {
        self.at.1 = top;
        self
    }

    /// Blends the overlay over a frame `[3,H,W]` in -1..1.
    pub(crate) fn draw(&self, frame: &mut Array3<f32>) {
        let ((left, top), (height, width)) = (self.at, self.alpha.dim());
        let mut under = frame.slice_mut(s![.., top..top + height, left..left + width]);
        for (mut under, over) in under.outer_iter_mut().zip(self.colours.outer_iter()) {
            ndarray::Zip::from(&mut under).and(&over).and(&self.alpha).for_each(|under, over, alpha| {
                // `over` is premultiplied and in 0..1; in -1..1 it is 2·over - alpha.
                *under = under.clamp(-1.0, 1.0) * (1.0 - alpha) + 2.0 * over - alpha;
            });
        }
    }
}

/// A corner of the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Corner {
    /// Upper left.
    TopLeft,
    /// Upper right.
    TopRight,
    /// Lower left.
    BottomLeft,
    /// Lower right.
    BottomRight,
}

bundle::named!(
    Corner,
    "top-left" => TopLeft, "top-right" => TopRight, "bottom-left" => BottomLeft, "bottom-right" => BottomRight,
);

/// The key colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyColour {
    /// Green.
    Green,
    /// Blue.
    Blue,
}

bundle::named!(KeyColour, Field::KeyColour, "key colour", "green" => Green, "blue" => Blue);

/// Replaces the key colour with a background.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ChromaKey {
    colour: KeyColour,
    /// Cb and Cr of the key colour.
    chroma: [f32; 2],
}

/// The side of the square in the upper left corner in which the key colour is measured.
const CORNER: usize = 8;
/// Distances from the chroma of the key, relative to its distance from grey. Below the first only the background is
/// visible, above the second only the frame.
const SOFT: (f32, f32) = (0.3, 0.65);

impl ChromaKey {
    /// Measures the exact colour in the upper left corner of a frame `[3,H,W]` in -1..1. If that corner has another
    /// colour, the typical colour of a screen is used.
    pub(super) fn measure(colour: KeyColour, frame: ArrayView3<'_, f32>) -> Self {
        let corner =
            frame.slice(s![.., ..CORNER.min(frame.len_of(Axis(1))), ..CORNER.min(frame.len_of(Axis(2)))]);
        let mean: Vec<f32> =
            corner.outer_iter().map(|plane| plane.mean().unwrap_or(0.0).clamp(-1.0, 1.0)).collect();
        let [r, g, b] = [mean[0], mean[1], mean[2]];
        let (strong, weak, typical) = match colour {
            KeyColour::Green => (g, r.max(b), [-0.7, 0.4, -0.65]),
            KeyColour::Blue => (b, r.max(g), [-0.8, -0.5, 0.5]),
        };
        let rgb = if strong > weak + 0.3 { [r, g, b] } else { typical };
        Self { colour, chroma: chroma(rgb) }
    }

    /// Blends the frame over a background, both `[3,H,W]` in -1..1.
    pub(super) fn apply(&self, frame: &mut Array3<f32>, background: ArrayView3<'_, f32>) {
        let (_, height, width) = frame.dim();
        let from_grey = self.chroma[0].hypot(self.chroma[1]).max(1e-3);
        let (strong, others) = match self.colour {
            KeyColour::Green => (1, [0, 2]),
            KeyColour::Blue => (2, [0, 1]),
        };
        for y in 0..height {
            for x in 0..width {
                let mut rgb = [0, 1, 2].map(|c| frame[[c, y, x]].clamp(-1.0, 1.0));
                let [cb, cr] = chroma(rgb);
                let distance = (cb - self.chroma[0]).hypot(cr - self.chroma[1]) / from_grey;
                let alpha = ((distance - SOFT.0) / (SOFT.1 - SOFT.0)).clamp(0.0, 1.0);
                if alpha < 1.0 {
                    // Spill suppression at edges: the key channel is limited to the larger of the others.
                    rgb[strong] = rgb[strong].min(rgb[others[0]].max(rgb[others[1]]));
                }
                for c in 0..3 {
                    frame[[c, y, x]] = rgb[c] * alpha + background[[c, y, x]] * (1.0 - alpha);
                }
            }
        }
    }
}

/// Cb and Cr (BT.709) of a colour in -1..1.
fn chroma([r, g, b]: [f32; 3]) -> [f32; 2] {
    let y = 0.2126 * r + 0.7152 * g + 0.0722 * b;
    [(b - y) / 1.8556, (r - y) / 1.5748]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(text: &str) -> PixelSize {
        text.parse().unwrap()
    }

    #[test]
    fn a_logo_is_blended_in_its_corner() {
        let rgba = [255, 0, 0, 255, 0, 255, 0, 0, 0, 0, 255, 128, 9, 9, 9, 0];
        let (picture, frame) = (size("2x2"), size("8x6"));
        let at = |corner| Overlay::in_corner(&rgba, picture, frame, corner, 1).unwrap().at;
        assert_eq!(at(Corner::TopLeft), (1, 1));
        assert_eq!(at(Corner::TopRight), (5, 1));
        assert_eq!(at(Corner::BottomLeft), (1, 3));
        assert_eq!(at(Corner::BottomRight), (5, 3));
        assert_eq!(Overlay::in_corner(&rgba, size("10x2"), frame, Corner::TopLeft, 1), None);

        let mut shown = Array3::from_elem((3, 6, 8), 0.5);
        Overlay::in_corner(&rgba, picture, frame, Corner::TopLeft, 0).unwrap().draw(&mut shown);
        let colour = |y: usize, x: usize| [0, 1, 2].map(|c| (shown[[c, y, x]] * 100.0).round() / 100.0);
        assert_eq!(colour(0, 0), [1.0, -1.0, -1.0]);
        assert_eq!(colour(0, 1), [0.5, 0.5, 0.5]);
        assert_eq!(colour(1, 0), [-0.25, -0.25, 0.75]);
        assert_eq!(colour(5, 7), [0.5, 0.5, 0.5]);
    }

    #[test]
    fn alpha_is_computed_from_black_and_white() {
        let mut black = Array3::zeros((3, 4, 4));
        let mut white = Array3::ones((3, 4, 4));
        black.slice_mut(s![.., 1, 2]).fill(0.25);
        white.slice_mut(s![.., 1, 2]).fill(0.75);
        let overlay = Overlay::from_black_and_white(black.view(), white.view()).unwrap();
        assert_eq!((overlay.at, overlay.alpha.dim()), ((2, 1), (1, 1)));
        let mut frame = Array3::from_elem((3, 4, 4), -1.0);
        overlay.draw(&mut frame);
        assert_eq!(frame[[0, 1, 2]], -0.5, "half of a grey of 0.5 over black");
        assert_eq!(frame[[0, 0, 0]], -1.0);
        assert_eq!(
            Overlay::from_black_and_white(Array3::zeros((3, 2, 2)).view(), Array3::ones((3, 2, 2)).view()),
            None
        );
    }

    #[test]
    fn the_key_colour_is_replaced_and_other_colours_are_kept() {
        // The green of a real screen.
        let green = [30, 190, 40].map(|value| value as f32 / 127.5 - 1.0);
        let mut frame = Array3::from_shape_fn((3, 16, 16), |(c, _, _)| green[c]);
        frame.slice_mut(s![.., 10, 10]).assign(&ndarray::arr1(&[0.8, 0.2, -0.1]));
        frame.slice_mut(s![.., 12, 12]).fill(-0.2);
        let key = ChromaKey::measure(KeyColour::Green, frame.view());
        let background = Array3::from_elem((3, 16, 16), 1.0);
        key.apply(&mut frame, background.view());
        let colour = |y: usize, x: usize| [0, 1, 2].map(|c| frame[[c, y, x]]);
        assert_eq!(colour(3, 3), [1.0; 3]);
        assert_eq!(colour(10, 10), [0.8, 0.2, -0.1]);
        assert_eq!(colour(12, 12), [-0.2; 3]);
    }

    #[test]
    fn a_corner_of_another_colour_is_not_the_key() {
        let grey = Array3::from_elem((3, 16, 16), 0.1);
        let mut frame = grey.clone();
        ChromaKey::measure(KeyColour::Blue, grey.view()).apply(&mut frame, Array3::zeros((3, 16, 16)).view());
        assert_eq!(frame, grey);
    }
}
