//! Rotary position embedding tables for the tokens of a latent.

use bundle::geometry::LatentShape;
use bundle::spec::DenoiserSpec;
use ndarray::Array2;

/// Cosines and sines, each `[L,head/2]`, with tokens ordered by frame, row, column.
#[derive(Debug, Clone, PartialEq)]
pub struct RotaryTables {
    /// Cosines.
    pub cos: Array2<f32>,
    /// Sines.
    pub sin: Array2<f32>,
}

impl RotaryTables {
    /// Computes the tables of a latent.
    ///
    /// Source: Wan. The pairs of a head are split among time, height and width ([`DenoiserSpec::rotary_split`]); on an
    /// axis of width D, pair j is rotated by `position · 10000^(-2j/D)`. Angles are computed in f64 and stored as f32.
    pub fn new(spec: &DenoiserSpec, latent: LatentShape) -> Self {
        let grid = latent.token_grid(spec.patch);
        let axes = spec.rotary_split().map(|width| {
            #[expect(clippy::cast_precision_loss, reason = "widths of a head")]
            let frequency = move |pair: usize| 10_000_f64.powf(-2.0 * pair as f64 / width as f64);
            (0..width / 2).map(frequency).collect::<Vec<f64>>()
        });
        let tokens = latent.tokens(spec.patch);
        let mut cos = Vec::with_capacity(tokens * spec.head_width / 2);
        let mut sin = Vec::with_capacity(tokens * spec.head_width / 2);
        for frame in 0..grid[0] {
            for row in 0..grid[1] {
                for column in 0..grid[2] {
                    for (position, frequencies) in [frame, row, column].into_iter().zip(&axes) {
                        for frequency in frequencies {
                            #[expect(clippy::cast_precision_loss, reason = "positions on the token grid")]
                            let (s, c) = (position as f64 * frequency).sin_cos();
                            #[expect(clippy::cast_possible_truncation, reason = "the tables are f32")]
                            let (c, s) = (c as f32, s as f32);
                            cos.push(c);
                            sin.push(s);
                        }
                    }
                }
            }
        }
        let table = |values| {
            Array2::from_shape_vec((tokens, spec.head_width / 2), values)
                .unwrap_or_else(|_| unreachable!("one value for each token and pair"))
        };
        Self { cos: table(cos), sin: table(sin) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::catalog::wan_denoiser;

    #[test]
    fn angles_match_wan() {
        let spec = wan_denoiser(1, 1, 1);
        let latent = LatentShape { channels: 16, frames: 2, height: 4, width: 6 };
        let tables = RotaryTables::new(&spec, latent);
        assert_eq!(tables.cos.dim(), (12, 64));
        // The last token is at frame 1, row 1, column 2.
        let close = |found: f32, angle: f64| {
            #[expect(clippy::cast_possible_truncation, reason = "the tables are f32")]
            let expected = angle.cos() as f32;
            assert!((found - expected).abs() < 1e-7, "{found} {expected}");
        };
        let last = tables.cos.row(11);
        close(last[0], 1.0);
        close(last[1], 0.657_933_22);
        close(last[21], 1.519_911_1e-4);
        close(last[22], 1.0);
        close(last[23], 0.644_946_68);
        close(last[43], 2.0);
        close(last[63], 2.0 * 1.550_515_8e-4);
        assert!(tables.sin.row(0).iter().all(|sin| *sin == 0.0));
    }
}
