//! What previews of a running denoising are made with: a linear map from latents to colours.
//!
//! It lies in the bundle as `preview/map.json`, and a checkpoint may ship it as `preview_map.json`.

use crate::digest::Digest;
use crate::{Error, atomic};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;

/// How the latent is shown while it is denoised: the value of `--preview`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PreviewKind {
    /// Not at all.
    Off,
    /// By the linear map, one pixel for each latent position.
    Rgb,
    /// By the tiny decoder.
    Tiny,
    /// By the real decoder, the first latent frame alone.
    Full,
}

impl fmt::Display for PreviewKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Rgb => "rgb",
            Self::Tiny => "tiny",
            Self::Full => "full",
        })
    }
}

impl std::str::FromStr for PreviewKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "off" => Ok(Self::Off),
            "rgb" => Ok(Self::Rgb),
            "tiny" => Ok(Self::Tiny),
            "full" => Ok(Self::Full),
            _ => Err(Error::value(
                "--preview",
                format!("`{text}`"),
                "there is none of that name",
                "use off, rgb, tiny or full",
            )),
        }
    }
}

/// Latent positions around one, itself included, that decide on its colour: 3x3.
pub const NEIGHBOURS: usize = 9;

/// The colour of a latent position: `offset + Σ_k value[k] · weights[k]`, in -1..1, over the values of its neighbours at
/// model scale, row by row, all channels of one neighbour after the other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinearColours {
    /// Red, green and blue that one unit of each value adds: [`NEIGHBOURS`] times the latent's channels.
    pub weights: Vec<[f32; 3]>,
    /// The colour of a latent of zeros.
    pub offset: [f32; 3],
}

impl LinearColours {
    fn numbers(&self) -> impl Iterator<Item = f32> {
        self.weights.iter().chain([&self.offset]).flatten().copied()
    }
}

/// How latents look, without a decoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LatentToRgb {
    /// For the first latent frame, which stands for one frame and has statistics of its own.
    pub first: LinearColours,
    /// For every later one.
    pub later: LinearColours,
    /// Root mean square of what the map misses of the decoder's colours, in -1..1, over what it was fitted on.
    pub error: f32,
    /// Latent positions that it was fitted on.
    pub positions: u64,
    /// Digest of the decoder that it imitates.
    pub decoder: Digest,
    /// Digest over all of the above.
    pub digest: Digest,
}

impl LatentToRgb {
    /// A map with its digest.
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

    /// Reads a map and checks that it is the one that was written.
    ///
    /// # Errors
    /// A file that cannot be read, holds something else, or was changed.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read(path).map_err(Error::file("read", path))?;
        let wrong = |why: String| Error::PreviewMap { path: path.to_owned(), why };
        let map: Self = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        if map.computed_digest() != map.digest {
            return Err(wrong("its numbers do not have the digest that it states".into()));
        }
        if map.first.numbers().chain(map.later.numbers()).all(f32::is_finite) {
            Ok(map)
        } else {
            Err(wrong("it holds numbers that are not finite".into()))
        }
    }

    /// Writes the map; its folder must be there.
    ///
    /// # Errors
    /// The path that could not be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let mut text = serde_json::to_vec(self)
            .map_err(|error| Error::PreviewMap { path: path.to_owned(), why: error.to_string() })?;
        text.push(b'\n');
        atomic::write_atomic(path, &text)
    }

    /// Whether this map shows latents of `channels` channels as `decoder` would.
    pub fn imitates(&self, decoder: &Digest, channels: usize) -> bool {
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
    fn a_map_comes_back_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map.json");
        map().write(&path).unwrap();
        assert_eq!(LatentToRgb::read(&path).unwrap(), map());
        assert!(map().imitates(&Digest::of_parts([]), 4));
        assert!(!map().imitates(&Digest::of_parts([]), 16));
        assert!(!map().imitates(&Digest::of_parts([b"another".as_slice()]), 4));
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
    fn kinds_have_names() {
        for kind in [PreviewKind::Off, PreviewKind::Rgb, PreviewKind::Tiny, PreviewKind::Full] {
            assert_eq!(kind.to_string().parse::<PreviewKind>().unwrap(), kind);
        }
        insta::assert_snapshot!("fast".parse::<PreviewKind>().unwrap_err(), @"--preview cannot be `fast`: there is none of that name (use off, rgb, tiny or full)");
    }
}
