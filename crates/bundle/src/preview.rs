//! The linear map from latents to colours, for previews while a clip is denoised.
//!
//! A bundle stores it as `preview/map.json`; a checkpoint may contain it as `preview_map.json`.

use crate::digest::Digest;
use crate::{Error, Field, atomic};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The kind of preview while a clip is denoised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PreviewKind {
    /// No preview.
    Off,
    /// The linear map, one pixel for each latent position.
    Rgb,
    /// The tiny decoder.
    Tiny,
    /// The VAE decoder, on the first latent frame only.
    Full,
}

crate::named!(PreviewKind, Field::Preview, "preview", "off" => Off, "rgb" => Rgb, "tiny" => Tiny, "full" => Full);

/// Latent positions that determine one colour: the position and its neighbours, 3x3.
pub const NEIGHBOURS: usize = 9;

/// The colour of a latent position: `offset + Σ_k value[k] · weights[k]`, in -1..1. `value` holds the 3x3 neighbourhood
/// at model scale, row by row, with the channels of one position adjacent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinearColours {
    /// Red, green and blue per unit of each value; [`NEIGHBOURS`] times the latent's channels of them.
    pub weights: Vec<[f32; 3]>,
    /// The colour of a latent of zeros.
    pub offset: [f32; 3],
}

impl LinearColours {
    fn numbers(&self) -> impl Iterator<Item = f32> {
        self.weights.iter().chain([&self.offset]).flatten().copied()
    }
}

/// An approximation of the decoder by a linear map.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LatentToRgb {
    /// For the first latent frame, which encodes one frame and has different statistics.
    pub first: LinearColours,
    /// For every later latent frame.
    pub later: LinearColours,
    /// Root mean square error compared with the decoder's colours, in -1..1, over the fitted positions.
    pub error: f32,
    /// Number of latent positions that it was fitted on.
    pub positions: u64,
    /// Digest of the decoder that it approximates.
    pub decoder: Digest,
    /// Digest over all fields above.
    pub digest: Digest,
}

impl LatentToRgb {
    /// Creates a map and computes its digest.
    pub fn new(
        first: LinearColours,
        later: LinearColours,
        error: f32,
        positions: u64,
        decoder: Digest,
    ) -> Self {
        let mut map = Self { first, later, error, positions, digest: decoder.clone(), decoder };
        map.digest = map.computed_digest();
        map
    }

    fn computed_digest(&self) -> Digest {
        let numbers = self.first.numbers().chain(self.later.numbers()).chain([self.error]);
        let numbers: Vec<u8> = numbers.flat_map(f32::to_le_bytes).collect();
        let positions = self.positions.to_le_bytes();
        Digest::of_parts([numbers.as_slice(), &positions, self.decoder.blake3.as_bytes()])
    }

    /// Reads a map and checks its digest.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, is not a map, or was changed.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read(path).map_err(Error::file("read", path))?;
        let wrong = |why: String| Error::PreviewMap { path: path.to_owned(), why };
        let map: Self = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        if map.computed_digest() != map.digest {
            return Err(wrong("its digest does not match its numbers".into()));
        }
        if map.first.numbers().chain(map.later.numbers()).all(f32::is_finite) {
            Ok(map)
        } else {
            Err(wrong("it contains numbers that are not finite".into()))
        }
    }

    /// Writes the map. Its folder must exist.
    ///
    /// # Errors
    /// I/O errors, with the path.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let mut text = serde_json::to_vec(self)
            .map_err(|error| Error::PreviewMap { path: path.to_owned(), why: error.to_string() })?;
        text.push(b'\n');
        atomic::write_atomic(path, &text)
    }

    /// Returns true if this map approximates `decoder` for latents of `channels` channels.
    pub fn approximates(&self, decoder: &Digest, channels: usize) -> bool {
        let terms = channels * NEIGHBOURS;
        let fits = |colours: &LinearColours| colours.weights.len() == terms;
        self.decoder == *decoder && fits(&self.first) && fits(&self.later)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> LatentToRgb {
        let first = LinearColours { weights: vec![[0.5, 0.25, -0.125]; 36], offset: [0.1, 0.2, 0.3] };
        let later = LinearColours { weights: vec![[0.75, 0.25, -0.125]; 36], offset: [0.1, 0.2, 0.4] };
        LatentToRgb::new(first, later, 0.07, 9, Digest::of_parts([]))
    }

    #[test]
    fn a_map_survives_writing_and_reading() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map.json");
        map().write(&path).unwrap();
        assert_eq!(LatentToRgb::read(&path).unwrap(), map());
        assert!(map().approximates(&Digest::of_parts([]), 4));
        assert!(!map().approximates(&Digest::of_parts([]), 16));
        assert!(!map().approximates(&Digest::of_parts([b"another".as_slice()]), 4));
    }

    #[test]
    fn a_changed_map_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map.json");
        map().write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replacen("0.5", "0.625", 1)).unwrap();
        assert!(matches!(LatentToRgb::read(&path), Err(Error::PreviewMap { .. })));
        std::fs::write(&path, "{}").unwrap();
        assert!(LatentToRgb::read(&path).is_err());
    }

    #[test]
    fn kinds_survive_printing_and_parsing() {
        for kind in [PreviewKind::Off, PreviewKind::Rgb, PreviewKind::Tiny, PreviewKind::Full] {
            assert_eq!(kind.to_string().parse::<PreviewKind>().unwrap(), kind);
        }
        insta::assert_snapshot!("fast".parse::<PreviewKind>().unwrap_err(), @"preview cannot be `fast`: unknown preview; expected one of off, rgb, tiny, full (use one of these)");
    }
}
