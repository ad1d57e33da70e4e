//! Weights of an expert or a decoder for Rushes kernels: packed layers, and higher precision for the rest.

use super::source::BundleWeights;
use super::values::{Content, Planned, taps_first, unquantized};
use crate::Error;
use crate::checkpoint::inventory::Required;
use crate::weights::INPUT_FACTORS;
use crate::weights::new_file::Stored;
use crate::weights::packed::PackedFormat;
use bundle::dtype::ElementType;
use bundle::quantization::ComponentNumerics;
use bundle::quantization::layers::{LayerInput, denoiser, fused};
use bundle::spec::DenoiserSpec;
use std::collections::BTreeSet;

/// Returns all tensors of an expert in file order. A fused layer is stored in int8 if its parts are quantised, else in
/// bf16.
pub(super) fn plan_expert(
    source: &BundleWeights,
    numerics: &ComponentNumerics,
    spec: &DenoiserSpec,
) -> Result<Vec<Planned>, Error> {
    let fused = fused(spec);
    let parts: BTreeSet<&str> = fused.iter().flat_map(|layer| &layer.parts).map(String::as_str).collect();
    let is_part = |name: &str| name.rsplit_once('.').is_some_and(|(layer, _)| parts.contains(layer));
    let mut all = Vec::new();
    for required in source.required.iter().filter(|required| !is_part(&required.name)) {
        let stored = unquantized(source, required)?;
        all.push(Planned::one(stored, Content::Rounded(required.name.clone())));
    }
    // The input of the other layers is divided by the layer before.
    let needs_factors = |input: &LayerInput| matches!(input, LayerInput::Norm | LayerInput::Text);
    for group in denoiser(spec).into_iter().filter(|group| needs_factors(&group.input)) {
        let layer = &group.layers[0];
        let smoothing = numerics.layers.get(layer).and_then(|numbers| numbers.smoothing.as_ref());
        if let Some(smoothing) = smoothing.filter(|_| parts.contains(layer.as_str())) {
            let name = format!("{layer}.{INPUT_FACTORS}");
            let stored = Stored { name, element: ElementType::F32, shape: vec![smoothing.divisors.len()] };
            all.push(Planned::one(stored, Content::InputFactors(layer.clone())));
        }
    }
    for layer in fused {
        let is_quantized = layer.parts.iter().all(|part| numerics.layers.contains_key(part));
        let format = if is_quantized { PackedFormat::Int8 } else { PackedFormat::Bf16 };
        all.push(Planned::packed(layer, format));
    }
    Ok(all)
}

/// Returns all tensors of a decoder in file order. A convolution that is not quantised, or that Rushes kernels do not
/// support, is stored in f32.
pub(super) fn plan_decoder(source: &BundleWeights, numerics: &ComponentNumerics) -> Vec<Planned> {
    let packed = |layer: &str, shape: &[usize]| {
        let is_quantized = numerics.layers.contains_key(layer);
        is_quantized.then(|| Planned::packed_kernel(layer, shape)).flatten()
    };
    let shape_of = |weight: String| {
        source.required.iter().find(|other| other.name == weight).map(|other| other.shape.as_slice())
    };
    let mut all = Vec::new();
    for required in &source.required {
        let Required { name, shape } = required;
        let (layer, part) = name.rsplit_once('.').unwrap_or((name, ""));
        let one = |shape: Vec<usize>, content: fn(String) -> Content| {
            let stored = Stored { name: name.clone(), element: ElementType::F32, shape };
            Planned::one(stored, content(name.clone()))
        };
        match part {
            "weight" => {
                all.push(packed(layer, shape).unwrap_or_else(|| one(taps_first(shape), Content::TapsFirst)))
            }
            "bias"
                if shape_of(format!("{layer}.weight")).and_then(|shape| packed(layer, shape)).is_some() => {}
            _ => all.push(one(shape.clone(), Content::Rounded)),
        }
    }
    all
}
