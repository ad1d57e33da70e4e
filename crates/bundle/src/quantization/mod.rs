//! How a component is quantised: which layers, and every number that goes with them.
//!
//! This is the one description of the numerics. Calibration computes it from what it observed, export lowers it into
//! graphs and weights. It knows no operator: a lowering with ONNX Runtime kernels and one with Rushes kernels read the
//! same smoothing, row scales and ranges.

pub mod e4m3;
pub mod layers;

use crate::Error;
use crate::digest::Digest;
use crate::manifest::Component;
use crate::variant::Precision;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// The kind of quantisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scheme {
    /// Unsigned 8-bit activations times signed 8-bit weights, in integers.
    Int8,
    /// E4M3 activations and weights, for accelerators.
    Fp8,
    /// 8-bit weights alone, for when memory is the limit.
    Int8Weights,
    /// bf16 weights and activations in the products of a step, on Rushes kernels; nothing is calibrated.
    Bf16,
}

impl Scheme {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Int8, Self::Fp8, Self::Int8Weights, Self::Bf16];

    /// The precision of the graphs that it makes.
    pub fn precision(self) -> Precision {
        match self {
            Self::Int8 => Precision::Int8,
            Self::Fp8 => Precision::Fp8,
            Self::Int8Weights => Precision::Int8Weights,
            Self::Bf16 => Precision::Bf16,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.precision().name())
    }
}

impl std::str::FromStr for Scheme {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|scheme| scheme.precision().name() == text).ok_or_else(|| {
            Error::value(
                "--scheme",
                text,
                "it is no kind of quantisation",
                "use int8, fp8, int8-weights or bf16",
            )
        })
    }
}

/// A whole number as a value: `(code − zero_point) · scale`. For E4M3 the zero point is 0 and the code a float.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Affine {
    /// What one step is worth: above 0, normal and finite.
    pub scale: f32,
    /// The code of 0.
    pub zero_point: u8,
}

/// Where the division of a layer's input happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fold {
    /// In what the input is made with: the scale and shift of a norm, or the rows of the linear layer before. Free.
    Upstream,
    /// In a product of its own.
    Product,
}

/// Division of each channel of a layer's input, which its weights undo: `W·x = (W·d)·(x/d)`.
///
/// Source: `SmoothQuant` (arXiv 2211.10438).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Smoothing {
    /// What each input channel is divided by: above 0 and finite.
    pub divisors: Vec<f32>,
    /// Where.
    pub fold: Fold,
    /// The exponent that was chosen, for people.
    pub alpha: f32,
}

/// The scales of a layer's weights. A code is a whole number from -127 to 127, or E4M3.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightScales {
    /// One for each output row.
    Rows(Vec<f32>),
    /// One for all.
    Tensor(f32),
    /// One for each run of `size` inputs of a row, rows one after the other.
    Blocks {
        /// Inputs that share a scale; the last run of a row may be shorter.
        size: usize,
        /// The scales, `[out, ⌈in/size⌉]`.
        scales: Vec<f32>,
    },
}

/// How one linear layer or convolution `y = W·x + b` is quantised.
///
/// Its stored weight is `W[n,k] · row_factors[n] · divisors[k]` over the scale, rounded; its stored bias is
/// `b[n] · row_factors[n] + bias_shift[n]`, and `+ range_shift[n]` where the input has its static range.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerNumerics {
    /// Scales of the weights.
    pub weights: WeightScales,
    /// The static range of the input; none where only weights are quantised.
    pub input: Option<Affine>,
    /// The static range of the output; convolutions have one.
    pub output: Option<Affine>,
    /// Division of the input's channels.
    pub smoothing: Option<Smoothing>,
    /// Factors on the output rows: the divisors that the next layer's smoothing folds into this one.
    pub row_factors: Option<Vec<f32>>,
    /// What rounding the weights changes in the mean of each output, taken back.
    pub bias_shift: Option<Vec<f32>>,
    /// What rounding the input to its static range changes in it, taken back; not with scales found at run time.
    pub range_shift: Option<Vec<f32>>,
}

impl LayerNumerics {
    /// A layer with nothing but scales: no smoothing, no shifts.
    pub fn plain(weights: WeightScales, input: Option<Affine>) -> Self {
        Self {
            weights,
            input,
            output: None,
            smoothing: None,
            row_factors: None,
            bias_shift: None,
            range_shift: None,
        }
    }
}

/// How the products inside an attention are quantised: E4M3 scales of what they multiply.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AttentionNumerics {
    /// Of the queries, multiplied with the attention's scale.
    pub queries: f32,
    /// Of the keys.
    pub keys: f32,
    /// Of the values.
    pub values: f32,
}

impl AttentionNumerics {
    /// The scale of what a softmax gives, 0 to 1.
    pub const WEIGHTS: f32 = 1.0 / 448.0;
}

/// How one component is quantised.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComponentNumerics {
    /// The component.
    pub component: Component,
    /// The weights that the numbers belong to.
    pub digest: Digest,
    /// Quantised layers by canonical name, without `.weight`.
    pub layers: BTreeMap<String, LayerNumerics>,
    /// Layers that could be quantised and are not, each with the reason.
    pub kept: BTreeMap<String, String>,
    /// Attentions whose products are quantised, by name, like `blocks.0.attn1`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attention: BTreeMap<String, AttentionNumerics>,
}

impl ComponentNumerics {
    /// Nothing is quantised.
    pub fn empty(component: Component, digest: Digest) -> Self {
        Self { component, digest, layers: BTreeMap::new(), kept: BTreeMap::new(), attention: BTreeMap::new() }
    }

    /// A digest over every number, for file names.
    pub fn fingerprint(&self) -> Digest {
        let text = serde_json::to_vec(self).unwrap_or_default();
        Digest::of_parts([text.as_slice()])
    }
}

/// A quantisation as a whole: one file in the bundle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Numerics {
    /// The kind.
    pub scheme: Scheme,
    /// One entry for each component.
    pub components: Vec<ComponentNumerics>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_survives_the_file() {
        let layer = LayerNumerics {
            weights: WeightScales::Rows(vec![0.1, f32::MIN_POSITIVE, 3.3e38]),
            input: Some(Affine { scale: 1.0 / 3.0, zero_point: 17 }),
            output: None,
            smoothing: Some(Smoothing { divisors: vec![0.7, 1.0e-3], fold: Fold::Upstream, alpha: 0.55 }),
            row_factors: None,
            bias_shift: Some(vec![-1.0e-9]),
            range_shift: None,
        };
        let mut numerics = ComponentNumerics::empty(Component::Decoder, Digest::of_parts([]));
        numerics.layers.insert("a".into(), layer);
        let whole = Numerics { scheme: Scheme::Int8Weights, components: vec![numerics] };
        let text = serde_json::to_string(&whole).unwrap();
        let read: Numerics = serde_json::from_str(&text).unwrap();
        assert_eq!(read, whole);
        assert_eq!(read.components[0].fingerprint(), whole.components[0].fingerprint());
        assert!(text.contains("int8-weights"));
    }

    #[test]
    fn schemes_are_known_by_the_names_of_their_precisions() {
        for scheme in Scheme::ALL {
            assert_eq!(scheme.to_string().parse::<Scheme>().unwrap(), scheme);
        }
        assert!("int4".parse::<Scheme>().is_err());
    }
}
