//! Sizes of timed graphs.

use bundle::catalog::{umt5_xxl, wan_denoiser, wan21_vae};
use bundle::manifest::{Bundle, Component};
use bundle::routing::ExpertName;
use bundle::spec::{DenoiserSpec, TextEncoderSpec};
use bundle::stop::Stop;
use bundle::{Error, Field};
use export::synthetic::{self, Form, Sizes};
use std::path::Path;
use std::str::FromStr;

/// The size of a published denoiser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Wan2.1-T2V-1.3B: 12 heads, 30 layers.
    Small,
    /// Wan2.2-TI2V-5B: 24 heads, 30 layers, latents of 48 channels and 16x16 pixels.
    Medium,
    /// One expert of Wan2.2-T2V-A14B: 40 heads, 40 layers.
    Large,
}

bundle::named!(Shape, Field::Shape, "shape", "1.3b" => Small, "5b" => Medium, "a14b" => Large);

impl Shape {
    /// Returns the denoiser, optionally with fewer layers. Every layer costs the same.
    pub fn denoiser(self, layers: Option<usize>) -> DenoiserSpec {
        match self {
            Self::Small => wan_denoiser(12, layers.unwrap_or(30), 8960),
            Self::Medium => DenoiserSpec {
                in_channels: 48,
                out_channels: 48,
                ..wan_denoiser(24, layers.unwrap_or(30), 14_336)
            },
            Self::Large => wan_denoiser(40, layers.unwrap_or(40), 13_824),
        }
    }

    /// Returns true if a latent position stands for 16x16 pixels instead of 8x8.
    pub fn has_wide_pixels(self) -> bool {
        self == Self::Medium
    }
}

/// Returns the encoder of umT5-XXL with fewer layers and a small vocabulary. Neither changes the cost of a layer.
pub fn text_encoder(layers: usize) -> TextEncoderSpec {
    TextEncoderSpec { vocabulary: 1024, layers, ..umt5_xxl() }
}

/// The part of a model with random weights that is timed.
#[derive(Debug, Clone, PartialEq)]
pub enum Subject {
    /// A step of a denoiser.
    Step(DenoiserSpec),
    /// The decoder of the Wan2.1 VAE.
    Decode,
    /// A text encoder.
    Text(TextEncoderSpec),
}

/// Writes a bundle with random f32 weights for the CPU into `folder`, with only the part that is timed.
///
/// # Errors
/// A file cannot be written, or the run is stopped.
pub fn random_bundle(folder: &Path, subject: &Subject, stop: &Stop) -> Result<Bundle, export::Error> {
    random_bundle_in(folder, subject, Form::CPU, stop)
}

/// As [`random_bundle`], for a target and in a number format.
///
/// # Errors
/// A file cannot be written, or the run is stopped.
pub fn random_bundle_in(
    folder: &Path,
    subject: &Subject,
    form: Form,
    stop: &Stop,
) -> Result<Bundle, export::Error> {
    let mut sizes =
        Sizes { text_encoder: text_encoder(1), denoiser: Shape::Small.denoiser(Some(1)), vae: wan21_vae() };
    let component = match subject {
        Subject::Step(denoiser) => {
            sizes.denoiser = denoiser.clone();
            Component::Expert(ExpertName("only".into()))
        }
        Subject::Decode => Component::Decoder,
        Subject::Text(text_encoder) => {
            sizes.text_encoder = text_encoder.clone();
            Component::TextEncoder
        }
    };
    synthetic::write(folder, &sizes, &[component], form, stop)
}

/// The token grid of a step: frames, rows and columns of patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenGrid(pub [usize; 3]);

impl TokenGrid {
    /// Number of tokens.
    pub fn tokens(self) -> usize {
        self.0.iter().product()
    }
}

impl FromStr for TokenGrid {
    type Err = Error;

    /// Parses `F,ROWS,COLUMNS`, or a single number for one frame that is as square as possible: the cost of a step
    /// depends only on the number of tokens.
    fn from_str(text: &str) -> Result<Self, Error> {
        let refused = || {
            let fix = "give a number like 1950, or frames, rows and columns like 5,15,26";
            Error::value(Field::Tokens, text, "a step has at least one token", fix)
        };
        match numbers(text).ok_or_else(refused)?[..] {
            [tokens] => {
                let rows = (1..=tokens.isqrt()).rev().find(|rows| tokens.is_multiple_of(*rows)).unwrap_or(1);
                Ok(Self([1, rows, tokens / rows]))
            }
            [frames, rows, columns] => Ok(Self([frames, rows, columns])),
            _ => Err(refused()),
        }
    }
}

/// Size of a latent: frames, height and width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatentSize(pub [usize; 3]);

impl FromStr for LatentSize {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match numbers(text).as_deref() {
            Some(&[frames, height, width]) => Ok(Self([frames, height, width])),
            _ => {
                let rule = "a latent has frames, a height and a width";
                Err(Error::value(Field::Latent, text, rule, "give three numbers like 3,30,52"))
            }
        }
    }
}

/// Parses comma-separated integers above 0.
fn numbers(text: &str) -> Option<Vec<usize>> {
    text.split(',').map(|word| word.parse().ok().filter(|number| *number > 0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_a_number_or_a_grid() {
        let grid =
            |text: &str| text.parse::<TokenGrid>().map(|grid| grid.0).map_err(|error| error.to_string());
        assert_eq!(grid("5,15,26"), Ok([5, 15, 26]));
        assert_eq!(grid("1950"), Ok([1, 39, 50]));
        assert_eq!(grid("7"), Ok([1, 1, 7]));
        insta::assert_snapshot!(grid("0").unwrap_err(), @"tokens cannot be 0: a step has at least one token (give a number like 1950, or frames, rows and columns like 5,15,26)");
        assert!(grid("3,4").is_err() && grid("").is_err() && grid("1,2,3,4").is_err());
    }

    #[test]
    fn shapes_match_the_published_models() {
        let layers = |name: &str| name.parse::<Shape>().map(|shape| shape.denoiser(None).layers).ok();
        assert_eq!((layers("1.3b"), layers("5b"), layers("a14b")), (Some(30), Some(30), Some(40)));
        assert_eq!(layers("7b"), None);
        assert_eq!(Shape::Medium.denoiser(Some(2)).width(), 3072);
        assert_eq!(Shape::Large.denoiser(Some(2)).width(), 5120);
    }
}
