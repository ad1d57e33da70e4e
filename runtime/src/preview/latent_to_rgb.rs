//! The linear map of previews: applying it, and fitting it to decoded frames by least squares. Pure.
//!
//! The fit solves the normal equations `(XᵀX + λI) W = XᵀY` in f64. A row of `X` is the neighbourhood of a latent
//! position and a 1; a row of `Y` is the mean colour of the pixels and frames that the position is decoded to.

use crate::Error;
use bundle::digest::Digest;
use bundle::preview::{LatentToRgb, LinearColours, NEIGHBOURS};
use ndarray::{Array4, ArrayView3, ArrayView4, Axis, Slice, s};

/// The ridge term λ, as a share of the diagonal's mean. Chosen by leave-one-clip-out validation: the first latent
/// frames have only a few hundred positions, not many more than there are unknowns.
const RIDGE: f64 = 3e-3;

/// Writes the values of a position of `latent [C,h,w]` and its neighbours; edges are replicated.
fn neighbourhood(latent: ArrayView3<'_, f32>, y: usize, x: usize, values: &mut [f64]) {
    let (channels, height, width) = latent.dim();
    let mut values = values.iter_mut();
    for row in [y.saturating_sub(1), y, (y + 1).min(height - 1)] {
        for column in [x.saturating_sub(1), x, (x + 1).min(width - 1)] {
            for (channel, value) in (0..channels).zip(&mut values) {
                *value = f64::from(latent[[channel, row, column]]);
            }
        }
    }
}

/// Applies a map for `C` channels to a latent `[C,T,h,w]` at model scale: `[T,3,h,w]` in -1..1 or slightly beyond.
pub fn colours(map: &LatentToRgb, latent: ArrayView4<'_, f32>) -> Array4<f32> {
    let (channels, count, height, width) = latent.dim();
    let mut values = vec![0.0; channels * NEIGHBOURS];
    let mut shown = Array4::zeros((count, 3, height, width));
    for (index, frame) in latent.axis_iter(Axis(1)).enumerate() {
        let linear = if index == 0 { &map.first } else { &map.later };
        for y in 0..height {
            for x in 0..width {
                neighbourhood(frame, y, x, &mut values);
                let mut colour = linear.offset.map(f64::from);
                for (value, weights) in values.iter().zip(&linear.weights) {
                    for (sum, weight) in colour.iter_mut().zip(weights) {
                        *sum += value * f64::from(*weight);
                    }
                }
                for (c, value) in colour.into_iter().enumerate() {
                    #[expect(clippy::cast_possible_truncation, reason = "colours are f32")]
                    let value = value as f32;
                    shown[[index, c, y, x]] = value;
                }
            }
        }
    }
    shown
}

/// Accumulates latents and their frames, and solves for the map.
#[derive(Debug, Clone)]
pub struct ColourFit {
    first: Sums,
    later: Sums,
}

impl ColourFit {
    /// Creates an empty fit for latents of `channels` channels.
    pub fn new(channels: usize) -> Self {
        let sums = Sums::new(channels * NEIGHBOURS + 1);
        Self { first: sums.clone(), later: sums }
    }

    /// Adds a clip: `latent [C,T,h,w]` at model scale and its `frames [N,3,H,W]` in -1..1. The first latent frame has
    /// one frame and each later one has the same number.
    ///
    /// # Errors
    /// The frames are not a whole number of pixels and frames per latent position.
    pub fn add(&mut self, latent: ArrayView4<'_, f32>, frames: ArrayView4<'_, f32>) -> Result<(), Error> {
        let (channels, count, height, width) = latent.dim();
        let (made, colours, pixel_height, pixel_width) = frames.dim();
        let fits = channels * NEIGHBOURS + 1 == self.first.terms
            && colours == 3
            && count > 0
            && made > 0
            && [height, width].iter().all(|side| *side > 0)
            && pixel_height.is_multiple_of(height)
            && pixel_width.is_multiple_of(width)
            && (count == 1) == (made == 1)
            && (count == 1 || (made - 1).is_multiple_of(count - 1));
        if !fits {
            return Err(Error::FramesOfLatent {
                latent: latent.shape().to_vec(),
                frames: frames.shape().to_vec(),
            });
        }
        let stride = if count > 1 { (made - 1) / (count - 1) } else { 1 };
        let (block_height, block_width) = (pixel_height / height, pixel_width / width);
        let mut row = vec![1.0; self.first.terms];
        for index in 0..count {
            let span = if index == 0 { 0..1 } else { 1 + (index - 1) * stride..1 + index * stride };
            let shown = frames.slice_axis(Axis(0), Slice::from(span));
            let sums = if index == 0 { &mut self.first } else { &mut self.later };
            for y in 0..height {
                for x in 0..width {
                    neighbourhood(latent.index_axis(Axis(1), index), y, x, &mut row[..channels * NEIGHBOURS]);
                    let (rows, columns) = (y * block_height, x * block_width);
                    let block =
                        shown.slice(s![.., .., rows..rows + block_height, columns..columns + block_width]);
                    sums.add(&row, [0, 1, 2].map(|c| mean(block.index_axis(Axis(1), c).iter())));
                }
            }
        }
        Ok(())
    }

    /// Solves for the map with the least squared error against the frames of `decoder`.
    ///
    /// If every clip had one latent frame, its map is used for later frames too.
    ///
    /// # Errors
    /// There are fewer positions than unknowns, or values that are not finite.
    pub fn solve(&self, decoder: Digest) -> Result<LatentToRgb, Error> {
        let (first, residual) = self.first.solve()?;
        let (later, residual_later) = match self.later.positions {
            0 => (first.clone(), 0.0),
            _ => self.later.solve()?,
        };
        let positions = self.first.positions + self.later.positions;
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            reason = "a root mean square"
        )]
        let error = ((residual + residual_later) / (3.0 * positions as f64)).sqrt() as f32;
        Ok(LatentToRgb::new(first, later, error, positions, decoder))
    }
}

/// The sums of a least-squares fit.
#[derive(Debug, Clone)]
struct Sums {
    /// Number of values in a neighbourhood, plus 1 for the constant.
    terms: usize,
    /// `XᵀX`, row-major.
    gram: Vec<f64>,
    /// `XᵀY`, a row per term.
    moments: Vec<[f64; 3]>,
    /// `Σ y²`.
    energy: f64,
    positions: u64,
}

impl Sums {
    fn new(terms: usize) -> Self {
        Self {
            terms,
            gram: vec![0.0; terms * terms],
            moments: vec![[0.0; 3]; terms],
            energy: 0.0,
            positions: 0,
        }
    }

    fn add(&mut self, row: &[f64], colour: [f64; 3]) {
        for (i, &a) in row.iter().enumerate() {
            for (sum, &b) in self.gram[i * self.terms..].iter_mut().zip(row) {
                *sum += a * b;
            }
            for (sum, y) in self.moments[i].iter_mut().zip(colour) {
                *sum += a * y;
            }
        }
        self.energy += colour.iter().map(|y| y * y).sum::<f64>();
        self.positions += 1;
    }

    /// Returns the solution and its sum of squared residuals.
    fn solve(&self) -> Result<(LinearColours, f64), Error> {
        let terms = self.terms;
        let too_few = Error::TooFewPositions { positions: self.positions, unknowns: terms };
        if self.positions < terms as u64 {
            return Err(too_few);
        }
        let diagonal: f64 = (0..terms).map(|i| self.gram[i * terms + i]).sum();
        #[expect(clippy::cast_precision_loss, reason = "a few hundred terms")]
        let ridge = RIDGE * diagonal / terms as f64;
        let mut factor = self.gram.clone();
        // The constant term is not regularised.
        for i in 0..terms - 1 {
            factor[i * terms + i] += ridge;
        }
        cholesky(&mut factor, terms).ok_or(too_few)?;
        let columns = [0, 1, 2].map(|c| {
            let right: Vec<f64> = self.moments.iter().map(|row| row[c]).collect();
            substitute(&factor, terms, right)
        });
        #[expect(clippy::cast_possible_truncation, reason = "maps are stored in f32")]
        let colour = |term: usize| columns.each_ref().map(|column| column[term] as f32);
        let colours =
            LinearColours { weights: (0..terms - 1).map(colour).collect(), offset: colour(terms - 1) };
        Ok((colours, self.residual(&columns)))
    }

    /// `Σ(y - xW)²`, computed from the sums.
    fn residual(&self, columns: &[Vec<f64>; 3]) -> f64 {
        let mut squares = self.energy;
        for (c, column) in columns.iter().enumerate() {
            for (i, &a) in column.iter().enumerate() {
                let row = &self.gram[i * self.terms..(i + 1) * self.terms];
                let product: f64 = row.iter().zip(column).map(|(g, b)| g * b).sum();
                squares += a * (product - 2.0 * self.moments[i][c]);
            }
        }
        squares.max(0.0)
    }
}

fn mean<'a>(values: impl Iterator<Item = &'a f32>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + f64::from(*value), count + 1.0));
    sum / count
}

/// Replaces a symmetric positive definite matrix `[n,n]` by its lower Cholesky factor. Returns `None` if it is not
/// positive definite.
fn cholesky(matrix: &mut [f64], n: usize) -> Option<()> {
    for i in 0..n {
        for j in 0..=i {
            let dot: f64 = (0..j).map(|k| matrix[i * n + k] * matrix[j * n + k]).sum();
            let value = matrix[i * n + j] - dot;
            if i == j {
                // Written so that NaN fails too.
                if !(value > 0.0 && value.is_finite()) {
                    return None;
                }
                matrix[i * n + i] = value.sqrt();
            } else {
                matrix[i * n + j] = value / matrix[j * n + j];
            }
        }
    }
    Some(())
}

/// Solves `L Lᵀ x = right`.
fn substitute(lower: &[f64], n: usize, mut right: Vec<f64>) -> Vec<f64> {
    for i in 0..n {
        let dot: f64 = (0..i).map(|k| lower[i * n + k] * right[k]).sum();
        right[i] = (right[i] - dot) / lower[i * n + i];
    }
    for i in (0..n).rev() {
        let dot: f64 = (i + 1..n).map(|k| lower[k * n + i] * right[k]).sum();
        right[i] = (right[i] - dot) / lower[i * n + i];
    }
    right
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn random(seed: u64, shape: (usize, usize, usize, usize)) -> Array4<f32> {
        let mut state = seed;
        Array4::from_shape_simple_fn(shape, || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / 8_388_608.0 - 1.0
        })
    }

    /// Frames with 2 frames and 2x2 pixels per position: the colours of a map plus zero-mean detail.
    fn decoded(map: &LatentToRgb, latent: &Array4<f32>) -> Array4<f32> {
        let colours = colours(map, latent.view());
        let (count, _, height, width) = colours.dim();
        Array4::from_shape_fn((1 + (count - 1) * 2, 3, 2 * height, 2 * width), |(n, c, y, x)| {
            let detail = if x % 2 == 0 { 0.25 } else { -0.25 };
            colours[[n.div_ceil(2), c, y / 2, x / 2]] + detail
        })
    }

    fn linear(seed: u64, channels: usize) -> LinearColours {
        let values = random(seed, (channels * NEIGHBOURS + 1, 3, 1, 1));
        let at = |term: usize| [0, 1, 2].map(|c| 0.1 * values[[term, c, 0, 0]]);
        let terms = channels * NEIGHBOURS;
        LinearColours { weights: (0..terms).map(at).collect(), offset: at(terms) }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn a_linear_decoder_is_recovered(seed in 1_u64..1000) {
            let digest = Digest::of_parts([]);
            let map = LatentToRgb::new(linear(seed, 2), linear(seed + 7, 2), 0.0, 1, digest.clone());
            let latent = random(seed + 1, (2, 3, 8, 9));
            let mut fit = ColourFit::new(2);
            fit.add(latent.view(), decoded(&map, &latent).view()).unwrap();
            let found = fit.solve(digest).unwrap();
            prop_assert_eq!(found.positions, 216);
            prop_assert!(found.error < 0.01, "{}", found.error);
            // Both maps give another latent the same colours, except for the effect of the ridge.
            let other = random(seed + 2, (2, 2, 5, 5));
            let (fitted, expected) = (colours(&found, other.view()), colours(&map, other.view()));
            let worst = (fitted - expected).iter().fold(0.0_f32, |worst, difference| worst.max(difference.abs()));
            prop_assert!(worst < 0.05, "{worst}");
        }
    }

    #[test]
    fn detail_below_a_latent_position_is_reported_as_error() {
        let frames = Array4::from_shape_fn((1, 3, 8, 8), |(_, _, y, _)| if y % 2 == 0 { 0.5 } else { -0.5 });
        let mut fit = ColourFit::new(1);
        let latent = random(5, (1, 1, 8, 8));
        fit.add(latent.view(), frames.view()).unwrap();
        let map = fit.solve(Digest::of_parts([])).unwrap();
        assert!(map.error > 0.4 && map.error <= 0.5, "{}", map.error);
        assert_eq!(map.first, map.later);
    }

    #[test]
    fn too_few_positions_and_mismatched_shapes_are_refused() {
        let mut fit = ColourFit::new(4);
        let digest = Digest::of_parts([]);
        assert!(matches!(
            fit.solve(digest.clone()),
            Err(Error::TooFewPositions { positions: 0, unknowns: 37 })
        ));
        for frames in [(1, 3, 4, 4), (6, 3, 4, 4), (3, 4, 4, 4), (3, 3, 5, 4), (0, 3, 4, 4)] {
            let latent = Array4::zeros((4, 2, 2, 2));
            let fits = fit.add(latent.view(), Array4::zeros(frames).view()).is_ok();
            assert_eq!(fits, frames.0 == 6, "{frames:?}");
        }
        let mut broken = ColourFit::new(1);
        let latent = Array4::from_elem((1, 1, 4, 4), f32::NAN);
        broken.add(latent.view(), Array4::zeros((1, 3, 4, 4)).view()).unwrap();
        assert!(broken.solve(digest).is_err());
    }
}
