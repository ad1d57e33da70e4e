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
    /// Pictures to the latent that a clip is conditioned on. Optional.
    ImageEncoder,
    /// Latent to frames.
    Decoder,
    /// Latent to frames, small: for previews.
    Preview,
}

impl Component {
    /// Returns true if a quantised variant has graphs for it. The others run in their exported precision in every
    /// variant.
    pub fn is_quantizable(&self) -> bool {
        match self {
            Self::TextEncoder | Self::Expert(_) | Self::Decoder => true,
            Self::ImageEncoder | Self::Preview => false,
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TextEncoder => f.write_str("the text encoder"),
            Self::Expert(name) => write!(f, "the {name} expert"),
            Self::ImageEncoder => f.write_str("the image encoder"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_have_these_names_in_bundle_json() {
        let named = |component: &Component| serde_json::to_string(component).unwrap();
        let expert = Component::Expert(ExpertName("only".into()));
        for (component, name) in [
            (Component::TextEncoder, r#""text_encoder""#),
            (expert, r#"{"expert":"only"}"#),
            (Component::ImageEncoder, r#""image_encoder""#),
            (Component::Decoder, r#""decoder""#),
            (Component::Preview, r#""preview""#),
        ] {
            assert_eq!(named(&component), name);
            assert_eq!(serde_json::from_str::<Component>(name).unwrap(), component);
        }
    }
}
