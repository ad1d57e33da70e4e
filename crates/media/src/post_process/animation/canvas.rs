//! Composition of animations in which each picture changes only an area.

use bundle::geometry::PixelSize;

/// The most pixels of an animation: the limit of WebP.
const MAX_PIXELS: usize = 1 << 28;

/// An area of a canvas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Area {
    pub(super) left: usize,
    pub(super) top: usize,
    pub(super) size: PixelSize,
}

/// The disposal of a picture before the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disposal {
    /// The picture is kept.
    Keep,
    /// Its area is cleared.
    Clear,
    /// The canvas before the picture is restored.
    Restore,
}

/// The current pixels, as `RGBA`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Canvas {
    size: PixelSize,
    shown: Vec<u8>,
    next: Option<(Disposal, Area, Vec<u8>)>,
}

impl Canvas {
    /// A transparent canvas. Returns `None` if it is larger than the limit.
    pub(super) fn new(size: PixelSize) -> Option<Self> {
        let pixels =
            size.width.checked_mul(size.height).filter(|pixels| (1..=MAX_PIXELS).contains(pixels))?;
        Some(Self { size, shown: vec![0; 4 * pixels], next: None })
    }

    /// Disposes of the previous picture, draws the `RGBA` bytes of the next one and returns the canvas. With `blend`
    /// the picture is alpha-blended. Returns `None` if the picture is not within the canvas.
    pub(super) fn compose(
        &mut self,
        picture: &[u8],
        area: Area,
        blend: bool,
        after: Disposal,
    ) -> Option<Vec<u8>> {
        match self.next.take() {
            Some((Disposal::Clear, old, _)) => self.rows(old)?.for_each(|row| row.fill(0)),
            Some((Disposal::Restore, _, before)) => self.shown = before,
            _ => {}
        }
        let before = if after == Disposal::Restore { self.shown.clone() } else { vec![] };
        if picture.len() != 4 * area.size.width * area.size.height {
            return None;
        }
        let rows = picture.chunks_exact(4 * area.size.width.max(1));
        for (under, over) in self.rows(area)?.zip(rows) {
            for (under, over) in under.as_chunks_mut::<4>().0.iter_mut().zip(over.as_chunks::<4>().0) {
                *under = if blend { blended(*under, *over) } else { *over };
            }
        }
        self.next = Some((after, area, before));
        Some(self.shown.clone())
    }

    fn rows(&mut self, area: Area) -> Option<impl Iterator<Item = &mut [u8]>> {
        let Area { left, top, size } = area;
        let right = left.checked_add(size.width).filter(|right| *right <= self.size.width)?;
        top.checked_add(size.height).filter(|bottom| *bottom <= self.size.height)?;
        let rows = self.shown.chunks_exact_mut(4 * self.size.width).skip(top).take(size.height);
        Some(rows.map(move |row| &mut row[4 * left..4 * right]))
    }
}

/// Blends one colour over another, both with alpha.
fn blended(under: [u8; 4], over: [u8; 4]) -> [u8; 4] {
    let [front, back] = [over, under].map(|colour| u32::from(colour[3]));
    if front == 255 || back == 0 {
        return over;
    }
    let through = back * (255 - front) / 255;
    let alpha = front + through;
    if alpha == 0 {
        return under;
    }
    let channel = |c: usize| {
        let mixed = (u32::from(over[c]) * front + u32::from(under[c]) * through) / alpha;
        u8::try_from(mixed).unwrap_or(u8::MAX)
    };
    [channel(0), channel(1), channel(2), u8::try_from(alpha).unwrap_or(u8::MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const RED: [u8; 4] = [255, 0, 0, 255];
    const BLUE: [u8; 4] = [0, 0, 255, 255];
    const NONE: [u8; 4] = [0; 4];

    fn area(left: usize, width: usize) -> Area {
        Area { left, top: 0, size: PixelSize { width, height: 1 } }
    }

    #[test]
    fn pictures_change_their_area_and_are_disposed() {
        let mut canvas = Canvas::new(PixelSize { width: 3, height: 1 }).unwrap();
        let mut compose = |pixels: &[[u8; 4]], left, after| {
            canvas.compose(pixels.as_flattened(), area(left, pixels.len()), true, after).unwrap()
        };
        assert_eq!(compose(&[RED, RED, RED], 0, Disposal::Keep), [RED, RED, RED].as_flattened());
        assert_eq!(compose(&[BLUE, NONE], 1, Disposal::Restore), [RED, BLUE, RED].as_flattened());
        assert_eq!(compose(&[BLUE], 2, Disposal::Clear), [RED, RED, BLUE].as_flattened());
        assert_eq!(compose(&[BLUE], 0, Disposal::Keep), [BLUE, RED, NONE].as_flattened());
    }

    #[test]
    fn without_blending_a_picture_replaces_its_area() {
        let mut canvas = Canvas::new(PixelSize { width: 1, height: 1 }).unwrap();
        canvas.compose(&RED, area(0, 1), true, Disposal::Keep).unwrap();
        assert_eq!(canvas.compose(&NONE, area(0, 1), false, Disposal::Keep).unwrap(), NONE);
        assert_eq!(blended(RED, [0, 0, 255, 51]), [204, 0, 51, 255]);
    }

    #[test]
    fn areas_outside_the_canvas_are_refused() {
        let size = PixelSize { width: 2, height: 1 };
        for (at, bytes) in [(area(1, 2), 8), (area(usize::MAX, 1), 4), (area(0, 2), 4)] {
            assert_eq!(Canvas::new(size).unwrap().compose(&vec![0; bytes], at, true, Disposal::Keep), None);
        }
        assert_eq!(Canvas::new(PixelSize { width: usize::MAX, height: 2 }), None);
        assert_eq!(Canvas::new(PixelSize { width: 0, height: 2 }), None);
    }
}
