//! The quantisation of a component: its layers and their scales, ranges and smoothing.
//!
//! Calibration computes these numbers from observed activations. Export lowers them into graphs and weights. They are
//! independent of operators: graphs for ONNX Runtime kernels and for Rushes kernels are made from the same numbers.

pub mod e4m3;
pub mod layers;

use crate::Field;
use crate::component::Component;
use crate::digest::Digest;
use crate::variant::{Precision, Target};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A quantisation scheme.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scheme {
    /// 8-bit activations times signed 8-bit weights, in integers. Activations are unsigned with a zero point on the CPU,
    /// and signed around 0 in plain graphs.
    Int8,
    /// E4M3 activations and weights, for accelerators.
    Fp8,
    /// 8-bit weights, float arithmetic; saves memory.
    Int8Weights,
    /// bf16 weights and activations in the matrix products of a step, on Rushes kernels; not calibrated.
    Bf16,
}

crate::named!(
    Scheme, Field::Scheme, "scheme", "int8" => Int8, "fp8" => Fp8, "int8-weights" => Int8Weights, "bf16" => Bf16,
);

impl Scheme {
    /// Returns the targets that its graphs can be written for.
    pub fn targets(self) -> &'static [Target] {
        match self {
            Self::Int8 | Self::Fp8 => &[Target::Cpu, Target::Plain],
            Self::Int8Weights | Self::Bf16 => &[Target::Cpu],
        }
    }

    /// Returns the components that it quantises if nothing else is asked for: E4M3 is for experts.
    pub fn components(self) -> &'static [ComponentKind] {
        match self {
            Self::Fp8 => &[ComponentKind::Experts],
            Self::Int8 | Self::Int8Weights | Self::Bf16 => &ComponentKind::ALL,
        }
    }

    /// Returns the name of a quantisation for these targets in files and reports: that of the scheme, with `-plain` if
    /// it is for plain graphs alone.
    pub fn name_for(self, targets: &[Target]) -> String {
        match targets {
            [Target::Plain] => format!("{self}-{}", Target::Plain),
            _ => self.to_string(),
        }
    }

    /// Returns the precision of its graphs.
    pub fn precision(self) -> Precision {
        match self {
            Self::Int8 => Precision::Int8,
            Self::Fp8 => Precision::Fp8,
            Self::Int8Weights => Precision::Int8Weights,
            Self::Bf16 => Precision::Bf16,
        }
    }
}

/// The number format of the products of attention in a quantisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionFormat {
    /// E4M3, with [`Scheme::Fp8`].
    Fp8,
}

crate::named!(AttentionFormat, Field::Attention, "format of attention", "fp8" => Fp8);

/// Components that a quantisation covers or leaves out together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComponentKind {
    /// The linear layers of the text encoder.
    TextEncoder,
    /// The linear layers of the experts.
    Experts,
    /// The convolutions of the decoder.
    Decoder,
}

crate::named!(
    ComponentKind, Field::Components, "component",
    "text_encoder" => TextEncoder, "experts" => Experts, "decoder" => Decoder,
);

impl ComponentKind {
    /// Returns the kind of a component; none if it is never quantised.
    pub fn of(component: &Component) -> Option<Self> {
        match component {
            Component::TextEncoder => Some(Self::TextEncoder),
            Component::Expert(_) => Some(Self::Experts),
            Component::Decoder => Some(Self::Decoder),
            Component::ImageEncoder | Component::Preview => None,
        }
    }
}

/// The affine map of quantised values to reals: `(value − zero_point) · scale`. For E4M3 the zero point is 0 and the
/// quantised value is a float.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Affine {
    /// The real difference of two adjacent quantised values: above 0, normal and finite.
    pub scale: f32,
    /// The quantised value of 0.
    pub zero_point: u8,
}

impl Affine {
    /// The zero point of unsigned values that are signed values around 0 plus 128.
    pub const SIGNED: u8 = 128;

    /// Returns the scale of signed values with the zero point 0 that are the same reals; none if there are none.
    pub fn signed_scale(self) -> Option<f32> {
        (self.zero_point == Self::SIGNED).then_some(self.scale)
    }
}

/// The place where a layer's input is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fold {
    /// In the producer of the input: the scale and shift of a norm, or the rows of the previous linear layer. Free.
    Upstream,
    /// In a separate multiplication.
    Product,
}

/// Division of each input channel of a layer, compensated by its weights: `W·x = (W·d)·(x/d)`.
///
/// Source: `SmoothQuant` (arXiv 2211.10438).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Smoothing {
    /// The divisor of each input channel: above 0 and finite.
    pub divisors: Vec<f32>,
    /// The place of the division.
    pub fold: Fold,
    /// The chosen exponent, for information.
    pub alpha: f32,
}

/// The scales of a layer's weights. Quantised values are integers from -127 to 127, or E4M3.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightScales {
    /// One for each output row.
    Rows(Vec<f32>),
    /// One for all.
    Tensor(f32),
    /// One for each block of `size` inputs of a row, row by row.
    Blocks {
        /// Inputs that share a scale; the last block of a row may be shorter.
        size: usize,
        /// The scales, `[out, ⌈in/size⌉]`.
        scales: Vec<f32>,
    },
}

/// The quantisation of one linear layer or convolution `y = W·x + b`.
///
/// Its stored weight is `W[n,k] · row_factors[n] · divisors[k] / scale`, rounded. Its stored bias is
/// `b[n] · row_factors[n] + bias_shift[n]`, plus `range_shift[n]` if the input is quantised with its static range.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerNumerics {
    /// Scales of the weights.
    pub weights: WeightScales,
    /// The static range of the input; none if only weights are quantised.
    pub input: Option<Affine>,
    /// The static range of the output; only convolutions have one.
    pub output: Option<Affine>,
    /// Division of the input's channels.
    pub smoothing: Option<Smoothing>,
    /// Factors of the output rows: the smoothing of the next layer, folded into this one.
    pub row_factors: Option<Vec<f32>>,
    /// Correction for the mean change of each output due to rounding the weights.
    pub bias_shift: Option<Vec<f32>>,
    /// Correction for rounding the input to its static range; not used with dynamic scales.
    pub range_shift: Option<Vec<f32>>,
}

impl LayerNumerics {
    /// Creates a layer with scales only: no smoothing, no corrections.
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

/// The quantisation of the matrix products of an attention: E4M3 scales of their operands.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AttentionNumerics {
    /// Of the queries, after multiplication with the attention's scale.
    pub queries: f32,
    /// Of the keys.
    pub keys: f32,
    /// Of the values.
    pub values: f32,
}

impl AttentionNumerics {
    /// The scale of softmax outputs, 0 to 1.
    pub const WEIGHTS: f32 = 1.0 / 448.0;
}

/// The quantisation of one component.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComponentNumerics {
    /// The component.
    pub component: Component,
    /// Digest of the weights that the numbers belong to.
    pub digest: Digest,
    /// Quantised layers by canonical name, without `.weight`.
    pub layers: BTreeMap<String, LayerNumerics>,
    /// Layers that could be quantised but are not, each with the reason.
    pub kept: BTreeMap<String, String>,
    /// Attentions whose products are quantised, by name, such as `blocks.0.attn1`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attention: BTreeMap<String, AttentionNumerics>,
}

impl ComponentNumerics {
    /// Creates the quantisation of a component in which nothing is quantised.
    pub fn empty(component: Component, digest: Digest) -> Self {
        Self { component, digest, layers: BTreeMap::new(), kept: BTreeMap::new(), attention: BTreeMap::new() }
    }

    /// Returns a digest over every number, for file names.
    pub fn fingerprint(&self) -> Digest {
        let text = serde_json::to_vec(self).unwrap_or_default();
        Digest::of_parts([text.as_slice()])
    }
}

/// The quantisation of all components: one file in the bundle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Numerics {
    /// The scheme.
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
        let numerics = Numerics { scheme: Scheme::Int8Weights, components: vec![numerics] };
        let text = serde_json::to_string(&numerics).unwrap();
        let read: Numerics = serde_json::from_str(&text).unwrap();
        assert_eq!(read, numerics);
        assert_eq!(read.components[0].fingerprint(), numerics.components[0].fingerprint());
        assert!(text.contains("int8-weights"));
    }

    #[test]
    fn a_quantisation_for_plain_graphs_alone_has_a_name_of_its_own() {
        let (cpu, plain) = (Target::Cpu, Target::Plain);
        assert_eq!(Scheme::Int8.name_for(&[cpu]), "int8");
        assert_eq!(Scheme::Int8.name_for(&[plain]), "int8-plain");
        assert_eq!(Scheme::Fp8.name_for(&[cpu, plain]), "fp8");
    }

    #[test]
    fn schemes_are_named_after_their_precisions() {
        for scheme in Scheme::ALL {
            assert_eq!(scheme.to_string().parse::<Scheme>().unwrap(), scheme);
            assert_eq!(scheme.name(), scheme.precision().name());
        }
        assert!("int4".parse::<Scheme>().is_err());
    }
}
