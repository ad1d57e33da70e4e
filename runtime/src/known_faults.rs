//! Graphs that an execution provider computes wrongly, which are refused instead.

use crate::Error;
use bundle::Field;
use bundle::dtype::WeightType;
use bundle::manifest::Component;
use bundle::variant::Precision;
use engines::Provider;

/// Refuses the graphs of a component with layers quantised to a precision, made from exported weights in the format `weights`, on a provider
/// that is known to compute them wrongly.
///
/// OpenVINO 2026.4 takes a convolution for an integer one if both of its operands are dequantised to bf16, and returns
/// other values: frames are 7 dB from those of the exported decoder, even with products in f32. They are right if one of
/// the operands is dequantised to f32 first. Matrix products are right in both forms.
///
/// # Errors
/// The INT8 decoder of a bundle in bf16 on OpenVINO.
pub(crate) fn refuse(
    provider: Provider,
    component: &Component,
    precision: Precision,
    weights: WeightType,
) -> Result<(), Error> {
    let found = (provider, component, precision, weights);
    if found != (Provider::OpenVino, &Component::Decoder, Precision::Int8, WeightType::Bf16) {
        return Ok(());
    }
    let rule = "OpenVINO computes convolutions of INT8 graphs in bf16 wrongly, and the decoder has them";
    let fix = "export the checkpoint in f32 and quantise that, or quantise only text encoder and experts of this bundle";
    Err(bundle::Error::value(Field::Precision, "int8", rule, fix).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_int8_decoder_in_bf16_is_refused_on_openvino() {
        let decoder = Component::Decoder;
        let refused = |provider, component, precision, weights| {
            refuse(provider, component, precision, weights).is_err()
        };
        use {Precision as P, Provider as E, WeightType as W};
        assert!(refused(E::OpenVino, &decoder, P::Int8, W::Bf16));
        assert!(!refused(E::OpenVino, &decoder, P::Int8, W::F32));
        assert!(!refused(E::OpenVino, &decoder, P::Bf16, W::Bf16));
        assert!(!refused(E::OpenVino, &Component::TextEncoder, P::Int8, W::Bf16));
        assert!(!refused(E::TensorRt, &decoder, P::Int8, W::Bf16));
    }
}
