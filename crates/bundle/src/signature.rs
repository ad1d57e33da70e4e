//! The signature of each graph. It is checked when a graph is opened.
//!
//! | graph | inputs | outputs |
//! |---|---|---|
//! | text encoder | `ids [1,S]` i64 | `states [1,S,D]` |
//! | denoising step | `latent [B,Cin,F,H,W]`, `timestep [R]`, `rows [M]` i64, `text [B,512,D]`, `cos` and `sin [L,head/2]` | `velocity [B,C,F,H,W]` |
//! | denoising step on Rushes kernels | the same with `text [B,T,D]` and `key_bias [B,T]` | `velocity [B,C,F,H,W]` |
//! | decoder, first | `latent [1,C,1,h,w]` | `frames [1,3,8h,8w]` in -1..1, `next_cache.NN` |
//! | decoder, next | `latent [1,C,1,h,w]`, `cache.NN` | `frames [4,3,8h,8w]`, `next_cache.NN` |
//!
//! For tiled decoding the decoder is also exported in two parts: the *trunk* outputs `features [1,D,h,w]`, the
//! *upsampler* turns them into frames. The tiny decoder of previews has the signature of the decoder. `R` is 1, or the
//! number of distinct timesteps if conditioning needs several. The decoder's latent is at model scale: the graph undoes
//! the normalisation. Its caches are those that the graph lists, ordered by number.

use crate::Error;
use crate::dtype::ElementType;
use crate::spec::{DenoiserSpec, TEXT_ROWS, TextEncoderSpec, VaeSpec};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The input of a step that maps tokens to timesteps. It is optional in graphs that take one timestep.
pub const ROWS_INPUT: &str = "rows";
const TIMESTEP_INPUT: &str = "timestep";
/// Prefix of the decoder's cache inputs.
pub const CACHE_INPUT: &str = "cache.";
/// Prefix of the decoder's cache outputs. The rest of the name is that of the input that takes it in the next call.
pub const CACHE_OUTPUT: &str = "next_cache.";

/// One extent of a tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Extent {
    /// Fixed at export.
    Fixed(usize),
    /// Known at run time.
    Dynamic(String),
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(size) => write!(f, "{size}"),
            Self::Dynamic(name) => f.write_str(name),
        }
    }
}

/// Name, number format and shape of an input or output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSpec {
    /// Name in the graph.
    pub name: String,
    /// Number format.
    pub element: ElementType,
    /// Extents.
    pub shape: Vec<Extent>,
}

impl fmt::Display for TensorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape: Vec<String> = self.shape.iter().map(Extent::to_string).collect();
        write!(f, "{} {} [{}]", self.name, self.element, shape.join(","))
    }
}

/// All inputs and outputs of a graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// Inputs.
    pub inputs: Vec<TensorSpec>,
    /// Outputs.
    pub outputs: Vec<TensorSpec>,
}

fn tensor(name: &str, element: ElementType, shape: &[Dim<'_>]) -> TensorSpec {
    let shape = shape
        .iter()
        .map(|dim| match dim {
            Of(size) => Extent::Fixed(*size),
            Any(name) => Extent::Dynamic((*name).into()),
        })
        .collect();
    TensorSpec { name: name.into(), element, shape }
}

enum Dim<'a> {
    Of(usize),
    Any(&'a str),
}
use Dim::{Any, Of};

impl Signature {
    /// Returns the signature of a text encoder.
    pub fn of_text_encoder(spec: &TextEncoderSpec) -> Self {
        Self {
            inputs: vec![tensor("ids", ElementType::I64, &[Of(1), Any("S")])],
            outputs: vec![tensor("states", ElementType::F32, &[Of(1), Any("S"), Of(spec.width)])],
        }
    }

    /// Returns the signature of a denoising step.
    pub fn of_step(spec: &DenoiserSpec) -> Self {
        let video = |name, channels| {
            tensor(name, ElementType::F32, &[Any("B"), Of(channels), Any("F"), Any("H"), Any("W")])
        };
        let half = spec.head_width / 2;
        Self {
            inputs: vec![
                video("latent", spec.in_channels),
                tensor(TIMESTEP_INPUT, ElementType::F32, &[Any("R")]),
                tensor(ROWS_INPUT, ElementType::I64, &[Any("M")]),
                tensor("text", ElementType::F32, &[Any("B"), Of(TEXT_ROWS), Of(spec.text_width)]),
                tensor("cos", ElementType::F32, &[Any("L"), Of(half)]),
                tensor("sin", ElementType::F32, &[Any("L"), Of(half)]),
            ],
            outputs: vec![video("velocity", spec.out_channels)],
        }
    }

    /// Returns the signature of a denoising step on Rushes kernels. Equal text rows are merged into one; `key_bias` is
    /// the logarithm of the number of merged rows, or minus infinity for an absent row.
    pub fn of_step_with_key_bias(spec: &DenoiserSpec) -> Self {
        let mut signature = Self::of_step(spec);
        let is_text = |tensor: &TensorSpec| tensor.name == "text";
        if let Some(at) = signature.inputs.iter().position(is_text) {
            signature.inputs[at] =
                tensor("text", ElementType::F32, &[Any("B"), Any("T"), Of(spec.text_width)]);
            signature.inputs.insert(at + 1, tensor("key_bias", ElementType::F32, &[Any("B"), Any("T")]));
        }
        signature
    }

    /// Returns the signature of a decoder call, without caches.
    pub fn of_decoder(spec: &VaeSpec) -> Self {
        Self {
            inputs: vec![tensor(
                "latent",
                ElementType::F32,
                &[Of(1), Of(spec.latent_channels), Of(1), Any("h"), Any("w")],
            )],
            outputs: vec![tensor("frames", ElementType::F32, &[Any("N"), Of(3), Any("H"), Any("W")])],
        }
    }

    /// Returns the signature of a decoder's trunk, the layers at latent resolution, without caches.
    pub fn of_decoder_trunk(spec: &VaeSpec) -> Self {
        Self { outputs: vec![features(spec)], ..Self::of_decoder(spec) }
    }

    /// Returns the signature of the decoder's upsampler, which turns the trunk's features into frames, without caches.
    pub fn of_decoder_upsampler(spec: &VaeSpec) -> Self {
        Self { inputs: vec![features(spec)], ..Self::of_decoder(spec) }
    }

    /// Returns true if a step's graph takes several timesteps, and with them the input [`ROWS_INPUT`].
    pub fn takes_rows(&self) -> bool {
        self.inputs.iter().any(|input| input.name == ROWS_INPUT)
    }

    /// Checks that `found` has the tensors of this signature and no others except decoder caches. [`ROWS_INPUT`] may
    /// be missing if the graph takes one timestep.
    ///
    /// # Errors
    /// Names the first tensor that is missing, unknown, or of another number format or shape.
    pub fn check(&self, graph: &str, found: &Self) -> Result<(), Error> {
        check_side(graph, &self.inputs, &found.inputs, CACHE_INPUT)?;
        check_side(graph, &self.outputs, &found.outputs, CACHE_OUTPUT)
    }
}

fn features(spec: &VaeSpec) -> TensorSpec {
    tensor("features", ElementType::F32, &[Of(1), Of(spec.deepest_width()), Any("h"), Any("w")])
}

fn check_side(
    graph: &str,
    expected: &[TensorSpec],
    found: &[TensorSpec],
    cache_prefix: &str,
) -> Result<(), Error> {
    for want in expected {
        let Some(have) = found.iter().find(|tensor| tensor.name == want.name) else {
            if want.name == ROWS_INPUT && takes_one_timestep(found) {
                continue;
            }
            return Err(Error::Signature {
                graph: graph.into(),
                tensor: want.name.clone(),
                expected: want.to_string(),
                found: "no tensor with this name".into(),
            });
        };
        if want.element != have.element {
            return Err(Error::element(graph, &want.name, want.element, have.element));
        }
        let fits = want.shape.len() == have.shape.len()
            && want.shape.iter().zip(&have.shape).all(|pair| match pair {
                (Extent::Fixed(a), Extent::Fixed(b)) => a == b,
                (Extent::Fixed(_), Extent::Dynamic(_)) => false,
                // A graph may fix an extent that is dynamic in the signature.
                (Extent::Dynamic(_), _) => true,
            });
        if !fits {
            return Err(Error::Signature {
                graph: graph.into(),
                tensor: want.name.clone(),
                expected: want.to_string(),
                found: have.to_string(),
            });
        }
    }
    let unknown = found.iter().find(|tensor| {
        !tensor.name.starts_with(cache_prefix) && expected.iter().all(|want| want.name != tensor.name)
    });
    match unknown {
        None => Ok(()),
        Some(tensor) => Err(Error::Signature {
            graph: graph.into(),
            tensor: tensor.name.clone(),
            expected: "no such tensor".into(),
            found: tensor.to_string(),
        }),
    }
}

fn takes_one_timestep(inputs: &[TensorSpec]) -> bool {
    inputs.iter().any(|input| input.name == TIMESTEP_INPUT && input.shape == [Extent::Fixed(1)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Patch;

    fn step() -> Signature {
        Signature::of_step(&DenoiserSpec {
            heads: 2,
            head_width: 12,
            layers: 1,
            feed_forward: 8,
            in_channels: 16,
            out_channels: 16,
            patch: Patch { time: 1, height: 2, width: 2 },
            text_width: 32,
            frequency_width: 256,
            epsilon: 1e-6,
        })
    }

    #[test]
    fn a_graph_with_the_signature_passes_also_with_fixed_shapes() {
        let mut found = step();
        assert!(step().check("step", &found).is_ok());
        found.inputs[0].shape[0] = Extent::Fixed(1);
        assert!(step().check("step", &found).is_ok());
    }

    #[test]
    fn a_graph_of_one_timestep_needs_no_rows() {
        let mut found = step();
        assert!(found.takes_rows());
        found.inputs[1].shape[0] = Extent::Fixed(1);
        assert!(step().check("step", &found).is_ok());
        found.inputs.retain(|input| input.name != ROWS_INPUT);
        assert!(!found.takes_rows());
        assert!(step().check("step", &found).is_ok());
        found.inputs[1].shape[0] = Extent::Fixed(2);
        assert!(step().check("step", &found).unwrap_err().to_string().contains("`rows`"));
    }

    #[test]
    fn every_difference_is_reported() {
        let break_with = |change: fn(&mut Signature)| {
            let mut found = step();
            change(&mut found);
            step().check("step", &found).unwrap_err().to_string()
        };
        let message = break_with(|s| s.inputs[3].shape[1] = Extent::Fixed(226));
        insta::assert_snapshot!(message, @"the tensor `text` of the graph step is wrong: expected text f32 [B,512,32], found text f32 [B,226,32] (export the checkpoint again with this version of rushes)");
        assert!(break_with(|s| s.inputs[0].element = ElementType::F16).contains("found f16"));
        assert!(
            break_with(|s| {
                s.inputs.remove(1);
            })
            .contains("timestep")
        );
        let message = break_with(|s| {
            s.inputs.remove(2);
        });
        insta::assert_snapshot!(message, @"the tensor `rows` of the graph step is wrong: expected rows i64 [M], found no tensor with this name (export the checkpoint again with this version of rushes)");
        assert!(break_with(|s| s.outputs.push(tensor("extra", ElementType::F32, &[]))).contains("extra"));
    }
}
