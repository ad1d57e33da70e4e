//! The timesteps of a step and the tokens that each belongs to.

use crate::Error;
use bundle::geometry::{LatentShape, Patch};
use bundle::units::Timestep;

/// The inputs `timestep` and `rows` of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenRows {
    /// The distinct timesteps, `[R]`, in the order in which the latent frames use them.
    pub timesteps: Vec<Timestep>,
    /// The index in `timesteps` of each token, `[L]`, with tokens ordered by frame, row, column; `[0]` if there is one
    /// timestep.
    pub rows: Vec<i64>,
}

/// Returns the timesteps and the row of each token, from the timestep of each latent frame.
///
/// # Errors
/// The number of timesteps is not the number of latent frames, a timestep is not a number, or latent frames of one
/// token have different timesteps.
pub fn token_rows(of_frames: &[Timestep], latent: LatentShape, patch: Patch) -> Result<TokenRows, Error> {
    let wrong = |why: String| Error::FrameTimesteps { why };
    if of_frames.len() != latent.frames || of_frames.is_empty() {
        return Err(wrong(format!("{} timesteps for {} latent frames", of_frames.len(), latent.frames)));
    }
    if let Some(frame) = of_frames.iter().position(|timestep| !timestep.0.is_finite()) {
        return Err(wrong(format!("the timestep of latent frame {frame} is {}", of_frames[frame].0)));
    }
    let [frames, height, width] = latent.token_grid(patch);
    let mut timesteps: Vec<Timestep> = Vec::new();
    let mut of_token_frames: Vec<i64> = Vec::with_capacity(frames);
    for (index, same_token) in of_frames.chunks(patch.time.max(1)).enumerate() {
        let timestep = same_token[0];
        if same_token.iter().any(|other| *other != timestep) {
            let first = index * patch.time;
            return Err(wrong(format!(
                "latent frames {first} to {} are one token and have different timesteps",
                first + same_token.len() - 1
            )));
        }
        let row = timesteps.iter().position(|known| *known == timestep).unwrap_or_else(|| {
            timesteps.push(timestep);
            timesteps.len() - 1
        });
        // There are at most as many rows as latent frames.
        of_token_frames.push(i64::try_from(row).unwrap_or(i64::MAX));
    }
    if timesteps.len() == 1 {
        return Ok(TokenRows { timesteps, rows: vec![0] });
    }
    let of_frame = |row: i64| std::iter::repeat_n(row, height * width);
    let rows = of_token_frames.into_iter().take(frames).flat_map(of_frame).collect();
    Ok(TokenRows { timesteps, rows })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WAN: Patch = Patch { time: 1, height: 2, width: 2 };

    fn latent(frames: usize) -> LatentShape {
        LatentShape { channels: 16, frames, height: 4, width: 6 }
    }

    fn timesteps(values: &[f32]) -> Vec<Timestep> {
        values.iter().copied().map(Timestep).collect()
    }

    #[test]
    fn one_timestep_gives_one_row_and_a_map_of_one_entry() {
        for frames in [1, 5] {
            let found = token_rows(&vec![Timestep(999.0); frames], latent(frames), WAN).unwrap();
            assert_eq!(found, TokenRows { timesteps: timesteps(&[999.0]), rows: vec![0] });
        }
    }

    #[test]
    fn a_given_first_frame_has_a_row_of_its_own() {
        let found = token_rows(&timesteps(&[0.0, 700.0, 700.0]), latent(3), WAN).unwrap();
        assert_eq!(found.timesteps, timesteps(&[0.0, 700.0]));
        assert_eq!(found.rows, [[0; 6], [1; 6], [1; 6]].concat());
    }

    #[test]
    fn timesteps_that_do_not_fit_the_latent_are_refused() {
        let message = |values: &[f32], frames, patch| {
            token_rows(&timesteps(values), latent(frames), patch).unwrap_err().to_string()
        };
        insta::assert_snapshot!(message(&[1.0, 2.0], 3, WAN), @"the timesteps of the latent frames cannot be used: 2 timesteps for 3 latent frames (give one timestep from 0 to 1000 for each latent frame)");
        assert!(message(&[], 0, WAN).contains("0 timesteps"));
        assert!(message(&[1.0, f32::NAN], 2, WAN).contains("latent frame 1 is NaN"));
        let pairs = Patch { time: 2, ..WAN };
        assert!(message(&[1.0, 1.0, 2.0, 3.0], 4, pairs).contains("latent frames 2 to 3 are one token"));
        let found = token_rows(&timesteps(&[1.0, 1.0, 2.0, 2.0]), latent(4), pairs).unwrap();
        assert_eq!(found.rows, [[0; 6], [1; 6]].concat());
    }

    proptest! {
        #[test]
        fn every_token_gets_the_timestep_of_its_frame(
            values in proptest::collection::vec(0_u8..4, 1..9), height in 1_usize..4, width in 1_usize..4,
        ) {
            let shape = LatentShape { channels: 1, frames: values.len(), height: 2 * height, width: 2 * width };
            let of_frames: Vec<_> = values.iter().map(|value| Timestep(f32::from(*value) * 250.0)).collect();
            let TokenRows { timesteps, rows } = token_rows(&of_frames, shape, WAN).unwrap();
            for (index, timestep) in timesteps.iter().enumerate() {
                prop_assert!(!timesteps[..index].contains(timestep), "a row is repeated");
            }
            // In the order of first use: each row is at most one above all before it.
            let mut largest = -1;
            for row in &rows {
                prop_assert!(*row <= largest + 1);
                largest = largest.max(*row);
            }
            prop_assert_eq!(largest + 1, timesteps.len() as i64);
            if timesteps.len() == 1 {
                prop_assert_eq!(rows, [0]);
            } else {
                prop_assert_eq!(rows.len(), shape.tokens(WAN));
                for (token, row) in rows.iter().enumerate() {
                    let frame = token / (height * width);
                    prop_assert_eq!(timesteps[usize::try_from(*row).unwrap()], of_frames[frame]);
                }
            }
        }
    }
}
