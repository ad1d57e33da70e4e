//! Quantised variants of bundles with random weights: the graphs of `rushes quantize`, with arbitrary parameters that
//! give the same speed as calibrated ones.

use crate::Error;
use bundle::manifest::{Bundle, Component, ComponentEntry};
use bundle::quantization::layers::LayerInput;
use bundle::quantization::{Affine, ComponentNumerics, Fold, LayerNumerics, Scheme, Smoothing, WeightScales};
use bundle::stop::Stop;
use bundle::variant::{KernelLibrary, Precision, Target};
use calibration::numerics::plan::{BLOCK, groups};
use export::checkpoint::inventory;
use export::quantized::{VariantRequest, write_variant};
use kernels::Kernels;
use std::collections::BTreeMap;

/// 127 steps of this cover random weights, which are within ±0.035.
const WEIGHT_SCALE: f32 = 2.75e-4;
/// ±8 standard deviations of an activation with variance 1.
const RANGE: Affine = Affine { scale: 16.0 / 255.0, zero_point: 128 };

/// Adds the requested variants to a random bundle, or all that can be timed on this machine if none is requested. INT8
/// steps are written for both kernel libraries. A precision that no component supports is left out.
///
/// # Errors
/// A file cannot be written, or the run is stopped.
pub fn add(bundle: &mut Bundle, requested: &[Precision], kernels: Kernels, stop: &Stop) -> Result<(), Error> {
    let by_default = |scheme: Scheme| match scheme {
        Scheme::Int8 | Scheme::Int8Weights => true,
        Scheme::Bf16 => kernels.has_bf16(),
        // Emulated in f32 on a CPU, so its speed is meaningless.
        Scheme::Fp8 => false,
    };
    let wanted = |scheme: &Scheme| match requested {
        [] => by_default(*scheme),
        requested => *scheme != Scheme::Fp8 && requested.contains(&scheme.precision()),
    };
    for scheme in Scheme::ALL.into_iter().filter(wanted) {
        let mut components = bundle.manifest.components.clone();
        for entry in &mut components {
            let numerics = numerics(bundle, entry, scheme);
            let needs_none = scheme == Scheme::Bf16 && matches!(entry.component, Component::Expert(_));
            if needs_none || !numerics.layers.is_empty() {
                let request = VariantRequest {
                    scheme,
                    numerics: &numerics,
                    targets: &[Target::Cpu],
                    kernels: &[KernelLibrary::OnnxRuntime, KernelLibrary::Rushes],
                    merges: &[],
                    is_measured: false,
                    note: None,
                    stop,
                };
                write_variant(bundle, entry, &request)?;
            }
        }
        bundle.manifest.components = components;
    }
    Ok(())
}

/// Parameters for every layer of a component that the scheme quantises.
fn numerics(bundle: &Bundle, entry: &ComponentEntry, scheme: Scheme) -> ComponentNumerics {
    let (manifest, component) = (&bundle.manifest, &entry.component);
    let mut numerics = ComponentNumerics::empty(component.clone(), entry.digest.clone());
    // Rounding to bf16 needs no parameters; there are no weight-only convolutions.
    if scheme == Scheme::Bf16 || (scheme == Scheme::Int8Weights && *component == Component::Decoder) {
        return numerics;
    }
    let required = match component {
        Component::TextEncoder => inventory::text_encoder(&manifest.text_encoder),
        Component::Expert(_) => inventory::denoiser(&manifest.denoiser),
        Component::Decoder => inventory::decoder(&manifest.vae),
        Component::ImageEncoder | Component::Preview => Vec::new(),
    };
    let shapes: BTreeMap<&str, &[usize]> =
        required.iter().map(|weight| (weight.name.as_str(), weight.shape.as_slice())).collect();
    for group in groups(manifest, component) {
        for layer in group.layers {
            let Some([rows, inputs @ ..]) = shapes.get(format!("{layer}.weight").as_str()) else { continue };
            let columns = inputs.iter().product();
            let numbers = match scheme {
                Scheme::Int8 => integers(*rows, columns, &group.input, *component == Component::Decoder),
                _ => weights_only(*rows, columns),
            };
            numerics.layers.insert(layer, numbers);
        }
    }
    numerics
}

/// An INT8 layer. Text states need an additional multiplication for smoothing; elsewhere it is folded into other
/// operators.
fn integers(rows: usize, columns: usize, input: &LayerInput, has_output: bool) -> LayerNumerics {
    let product = || Smoothing { divisors: vec![1.0; columns], fold: Fold::Product, alpha: 0.5 };
    LayerNumerics {
        output: has_output.then_some(RANGE),
        smoothing: (*input == LayerInput::Text).then(product),
        ..LayerNumerics::plain(WeightScales::Rows(vec![WEIGHT_SCALE; rows]), Some(RANGE))
    }
}

fn weights_only(rows: usize, columns: usize) -> LayerNumerics {
    let scales = vec![WEIGHT_SCALE; rows * columns.div_ceil(BLOCK)];
    LayerNumerics::plain(WeightScales::Blocks { size: BLOCK, scales }, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::shape::{Subject, random_bundle};
    use bundle::spec::DenoiserSpec;
    use kernels::CpuPath;

    #[test]
    fn a_random_step_has_the_requested_precisions() {
        let folder = tempfile::tempdir().unwrap();
        let step = DenoiserSpec {
            heads: 1,
            head_width: 12,
            layers: 1,
            feed_forward: 32,
            text_width: 16,
            ..bundle::catalog::wan_denoiser(1, 1, 1)
        };
        let mut bundle = random_bundle(folder.path(), &Subject::Step(step), &Stop::new()).unwrap();
        let precisions = |bundle: &Bundle, kernels| bundle.manifest.precisions(Target::Cpu, kernels);
        let kernels = Kernels::of(CpuPath::Scalar).unwrap();
        add(&mut bundle, &[Precision::F32], kernels, &Stop::new()).unwrap();
        assert_eq!(precisions(&bundle, KernelLibrary::Rushes), [Precision::F32]);
        add(&mut bundle, &[], kernels, &Stop::new()).unwrap();
        let onnx_runtime = precisions(&bundle, KernelLibrary::OnnxRuntime);
        assert_eq!(onnx_runtime.len(), 3, "{onnx_runtime:?}");
        assert!(!bundle.manifest.has_rushes_kernels(Precision::Bf16), "no instruction for it");
        add(&mut bundle, &[Precision::Bf16], kernels, &Stop::new()).unwrap();
        assert!(bundle.manifest.has_rushes_kernels(Precision::Bf16));
        let variants = &bundle.manifest.components[0].variants;
        let int8 = variants.iter().filter(|variant| variant.precision == Precision::Int8);
        assert_eq!(int8.map(|variant| variant.quantized).collect::<Vec<_>>(), [12, 12]);
    }
}
