//! The components of a bundle and the graphs of a component.

use crate::routing::ExpertName;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A part of the model with its own weights.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Component {
    /// Prompt to text states.
    TextEncoder,
    /// A denoiser of the routing table.
    Expert(ExpertName),
    /// Latent to frames.
    Decoder,
    /// Latent to frames, small: for previews.
    Preview,
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TextEncoder => f.write_str("the text encoder"),
            Self::Expert(name) => write!(f, "the {name} expert"),
            Self::Decoder => f.write_str("the decoder"),
            Self::Preview => f.write_str("the tiny decoder"),
        }
    }
}

/// A graph of a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The only graph.
    Whole,
    /// The decoder's graph for the first latent frame.
    First,
    /// The decoder's graph for every later latent frame.
    Next,
    /// The trunk of [`Part::First`]: the layers at latent resolution. It needs the whole frame.
    #[serde(alias = "stem_first")]
    TrunkFirst,
    /// The upsampler of [`Part::First`]: the remaining layers. It can run tile by tile.
    #[serde(alias = "rise_first")]
    UpsamplerFirst,
    /// The trunk of [`Part::Next`].
    #[serde(alias = "stem_next")]
    TrunkNext,
    /// The upsampler of [`Part::Next`].
    #[serde(alias = "rise_next")]
    UpsamplerNext,
}
