//! Decoding frames in tiles: the tile positions, and blending the overlaps. Pure.
//!
//! A tile has no information beyond its border, so its edges differ from a decode of the whole frame. In an overlap
//! each tile fades out towards its edge, and the outermost positions are discarded.

use bundle::geometry::VaeStride;
use bundle::{Error, Field};
use ndarray::{Array4, ArrayView4, Axis, Zip, s};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// Minimum overlap of neighbouring tiles, in latent positions.
const OVERLAP: usize = 8;
/// Latent positions along an inner edge that are discarded.
const HIDDEN: usize = 2;

/// The longest side of a tile in latent positions, at least [`TileSide::MIN`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TileSide(usize);

impl TileSide {
    /// The smallest side. Up to half of a tile may be overlap.
    pub const MIN: usize = 8;

    /// The sides that automatic tiling tries, in this order.
    pub const TRIED: [Self; 6] = [Self(64), Self(48), Self(40), Self(32), Self(24), Self(16)];

    /// The sides of 2, 3 and 4 tiles that cover one of two extents with the smallest overlap, in descending order. Their
    /// caches are the smallest.
    pub fn even(extents: [usize; 2]) -> Vec<Self> {
        let side = |extent: usize, count: usize| (extent + (count - 1) * OVERLAP).div_ceil(count);
        let sides = extents.into_iter().flat_map(|extent| (2..=4).map(move |count| side(extent, count)));
        let mut sides: Vec<Self> = sides.filter(|side| *side >= Self::TRIED[5].0).map(Self).collect();
        sides.sort_unstable_by(|one, other| other.cmp(one));
        sides.dedup();
        sides
    }

    /// Creates a side of `positions` latent positions.
    ///
    /// # Errors
    /// `positions` is below [`Self::MIN`].
    pub fn try_new(positions: usize, stride: VaeStride) -> Result<Self, Error> {
        if positions >= Self::MIN {
            return Ok(Self(positions));
        }
        Err(Error::value(
            Field::Tile,
            positions * stride.space,
            format!("a tile has at least {} pixels in each direction", Self::MIN * stride.space),
            "use 256, or leave it out",
        ))
    }

    /// The side in latent positions.
    pub fn get(self) -> usize {
        self.0
    }
}

/// The tiles of a decoder, as requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tiles {
    /// Tiles only if a whole frame does not fit into memory.
    Auto,
    /// No tiles.
    Off,
    /// Tiles with this number of pixels in each direction.
    Pixels(usize),
}

impl fmt::Display for Tiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => f.write_str("off"),
            Self::Pixels(pixels) => write!(f, "{pixels}"),
        }
    }
}

impl FromStr for Tiles {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            _ => text.parse().ok().map(Self::Pixels).ok_or_else(|| {
                Error::value(
                    Field::Tile,
                    format!("`{text}`"),
                    "expected auto, off or a number of pixels",
                    "use auto, off or something like 256",
                )
            }),
        }
    }
}

/// A grid of tiles over a latent of `h×w` positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiling {
    rows: Vec<Range<usize>>,
    columns: Vec<Range<usize>>,
}

/// One tile: its row and column in the grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    row: usize,
    column: usize,
}

impl Tiling {
    /// Covers the latent with the smallest number of tiles of at most `side`, evenly spaced.
    pub fn new(height: usize, width: usize, side: TileSide) -> Self {
        Self { rows: spans(height, side.0), columns: spans(width, side.0) }
    }

    /// Every tile, row by row.
    pub fn tiles(&self) -> impl Iterator<Item = Tile> + use<> {
        let columns = self.columns.len();
        (0..self.rows.len() * columns).map(move |i| Tile { row: i / columns, column: i % columns })
    }

    /// Number of tiles.
    pub fn count(&self) -> usize {
        self.rows.len() * self.columns.len()
    }

    /// Height and width of a tile in latent positions. All tiles have the same size.
    pub fn tile_size(&self) -> [usize; 2] {
        let first = |spans: &[Range<usize>]| spans.first().map_or(0, Range::len);
        [first(&self.rows), first(&self.columns)]
    }

    /// The part of a latent `[C,T,h,w]` that a tile decodes.
    pub fn cut<'a>(&self, latent: &'a ArrayView4<'_, f32>, tile: Tile) -> ArrayView4<'a, f32> {
        latent.slice(s![.., .., self.rows[tile.row].clone(), self.columns[tile.column].clone()])
    }

    /// Adds a tile's weighted `frames [N,3,th,tw]` to `picture [N,3,H,W]`, initially zeros; `scale` is pixels per
    /// position.
    pub fn add(&self, picture: &mut Array4<f32>, frames: &ArrayView4<'_, f32>, tile: Tile, scale: usize) {
        let vertical = shares(&self.rows, tile.row, scale);
        let horizontal = shares(&self.columns, tile.column, scale);
        let pixels = |span: &Range<usize>| span.start * scale..span.end * scale;
        let (rows, columns) = (pixels(&self.rows[tile.row]), pixels(&self.columns[tile.column]));
        let mut part = picture.slice_mut(s![.., .., rows, columns]);
        for ((mut into, from), vertical) in
            part.axis_iter_mut(Axis(2)).zip(frames.axis_iter(Axis(2))).zip(vertical)
        {
            for ((into, from), horizontal) in
                into.axis_iter_mut(Axis(2)).zip(from.axis_iter(Axis(2))).zip(&horizontal)
            {
                let share = vertical * horizontal;
                Zip::from(into).and(from).for_each(|into, from| *into += share * from);
            }
        }
    }
}

fn spans(length: usize, side: usize) -> Vec<Range<usize>> {
    if length <= side {
        return std::iter::once(0..length).collect();
    }
    let overlap = OVERLAP.min(side / 2);
    let count = (length - overlap).div_ceil(side - overlap);
    let room = length - side;
    (0..count).map(|i| i * room / (count - 1)).map(|start| start..start + side).collect()
}

/// The weight of each pixel of a span in the blended frame. The weights of all spans add up to 1.
fn shares(spans: &[Range<usize>], index: usize, scale: usize) -> Vec<f32> {
    let span = &spans[index];
    (span.start * scale..span.end * scale)
        .map(|pixel| {
            let total: f32 = (0..spans.len()).map(|other| weight(spans, other, pixel, scale)).sum();
            weight(spans, index, pixel, scale) / total
        })
        .collect()
}

/// The unnormalised weight of a span at a pixel: 0 outside it and close to an inner edge, then a linear ramp.
fn weight(spans: &[Range<usize>], index: usize, pixel: usize, scale: usize) -> f32 {
    let span = &spans[index];
    let (start, end) = (span.start * scale, span.end * scale);
    if !(start..end).contains(&pixel) {
        return 0.0;
    }
    let ramp = |distance: usize, shared: usize| {
        // A small overlap keeps a ramp too.
        let hidden = HIDDEN.min(shared / 4) * scale;
        let length = (shared * scale).saturating_sub(2 * hidden).max(1);
        #[expect(clippy::cast_precision_loss, reason = "pixels of one picture")]
        let share = (distance as f32 + 0.5 - hidden as f32) / length as f32;
        share.clamp(0.0, 1.0)
    };
    let from_left = match index.checked_sub(1) {
        Some(before) => ramp(pixel - start, spans[before].end.saturating_sub(span.start)),
        None => 1.0,
    };
    let from_right = match spans.get(index + 1) {
        Some(after) => ramp(end - 1 - pixel, span.end.saturating_sub(after.start)),
        None => 1.0,
    };
    from_left.min(from_right)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tiles_cover_the_latent_and_their_weights_add_up_to_one(
            length in 1_usize..200, side in TileSide::MIN..70, scale in 1_usize..9,
        ) {
            let spans = spans(length, side);
            prop_assert_eq!(spans[0].start, 0);
            prop_assert_eq!(spans.last().unwrap().end, length);
            prop_assert!(spans.iter().all(|span| span.len() == length.min(side)));
            for pair in spans.windows(2) {
                let shared = pair[0].end.checked_sub(pair[1].start);
                prop_assert!(shared.is_some_and(|shared| shared >= OVERLAP.min(side / 2)), "{spans:?}");
            }
            let mut total = vec![0.0; length * scale];
            for (index, span) in spans.iter().enumerate() {
                for (share, pixel) in shares(&spans, index, scale).into_iter().zip(span.start * scale..) {
                    prop_assert!((0.0..=1.0).contains(&share));
                    total[pixel] += share;
                }
            }
            prop_assert!(total.iter().all(|total| (total - 1.0).abs() < 1e-5), "{spans:?}: {total:?}");
        }
    }

    #[test]
    fn even_sides_need_the_fewest_positions() {
        let sides: Vec<usize> = TileSide::even([90, 160]).into_iter().map(TileSide::get).collect();
        assert_eq!(sides, [84, 59, 49, 46, 36, 29]);
        let positions = |side| {
            let tiling = Tiling::new(90, 160, TileSide(side));
            tiling.count() * tiling.tile_size().iter().product::<usize>()
        };
        assert!(TileSide::TRIED.into_iter().all(|side| positions(49) < positions(side.get())));
        assert!(TileSide::even([16, 8]).is_empty());
    }

    #[test]
    fn a_pointwise_decode_is_the_same_with_and_without_tiles() {
        let latent = Array4::from_shape_fn((3, 1, 20, 30), |(c, _, y, x)| (c * 600 + y * 30 + x) as f32);
        let double = |part: ArrayView4<'_, f32>| {
            let (_, _, height, width) = part.dim();
            Array4::from_shape_fn((1, 3, 2 * height, 2 * width), |(_, c, y, x)| part[[c, 0, y / 2, x / 2]])
        };
        let tiling = Tiling::new(20, 30, TileSide(12));
        assert!(tiling.count() > 4);
        let mut picture = Array4::zeros((1, 3, 40, 60));
        for tile in tiling.tiles() {
            let frames = double(tiling.cut(&latent.view(), tile));
            tiling.add(&mut picture, &frames.view(), tile, 2);
        }
        let whole = double(latent.view());
        assert!(picture.iter().zip(&whole).all(|(tiled, whole)| (tiled - whole).abs() < 1e-2));
    }

    #[test]
    fn an_inner_edge_of_a_tile_is_discarded() {
        let spans = spans(60, 32);
        let shares = shares(&spans, 0, 8);
        assert!(shares[8 * 32 - 8 * HIDDEN..].iter().all(|share| *share == 0.0));
        assert_eq!(shares[0], 1.0);
    }

    #[test]
    fn tile_values_are_parsed_and_invalid_ones_are_refused() {
        assert_eq!("auto".parse::<Tiles>().unwrap(), Tiles::Auto);
        assert_eq!("256".parse::<Tiles>().unwrap(), Tiles::Pixels(256));
        assert_eq!(Tiles::Off.to_string().parse::<Tiles>().unwrap(), Tiles::Off);
        insta::assert_snapshot!("small".parse::<Tiles>().unwrap_err(), @"tile cannot be `small`: expected auto, off or a number of pixels (use auto, off or something like 256)");
        let stride = VaeStride { time: 4, space: 8 };
        insta::assert_snapshot!(TileSide::try_new(4, stride).unwrap_err(), @"tile cannot be 32: a tile has at least 64 pixels in each direction (use 256, or leave it out)");
    }
}
