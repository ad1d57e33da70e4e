//! Quantised variants of bundles with random weights: the graphs that `rushes quantize` writes, with numbers that time
//! them as well as calibrated ones do.

use crate::Error;
use bundle::manifest::{Bundle, Component, ComponentEntry};
use bundle::quantization::layers::LayerInput;
use bundle::quantization::{Affine, ComponentNumerics, Fold, LayerNumerics, Scheme, Smoothing, WeightScales};
use bundle::stop::Stop;
use bundle::variant::{KernelLibrary, Precision};
use calibration::numerics::plan::{BLOCK, groups};
use export::checkpoint::inventory;
use export::quantized::{VariantRequest, write_variant};
use kernels::Kernels;
use std::collections::BTreeMap;

/// Random weights lie within ±0.035, and 127 steps of this reach there.
const WEIGHT_SCALE: f32 = 2.75e-4;
/// Eight standard deviations of an activation of variance 1 to either side.
const RANGE: Affine = Affine { scale: 16.0 / 255.0, zero_point: 128 };

/// Writes the variants that were asked for beside f32, or every one that can be timed on this machine where nothing was,
/// into a random bundle; int8 steps in both kinds of kernels. A precision that no component has is left out.
///
/// # Errors
/// A file that cannot be written, or a stop.
pub fn add(bundle: &mut Bundle, asked: &[Precision], kernels: Kernels, stop: &Stop) -> Result<(), Error> {
    let by_default = |scheme: Scheme| match scheme {
        Scheme::Int8 | Scheme::Int8Weights => true,
        Scheme::Bf16 => kernels.has_bf16(),
        // Emulated in f32 on a CPU: its speed says nothing.
        Scheme::Fp8 => false,
    };
    let wanted = |scheme: &Scheme| match asked {
        [] => by_default(*scheme),
        asked => *scheme != Scheme::Fp8 && asked.contains(&scheme.precision()),
    };
    for scheme in Scheme::ALL.into_iter().filter(wanted) {
        let mut components = bundle.manifest.components.clone();
        for entry in &mut components {
            let numerics = numerics(bundle, entry, scheme);
            let needs_none = scheme == Scheme::Bf16 && matches!(entry.component, Component::Expert(_));
            if needs_none || !numerics.layers.is_empty() {
                let kernels = &[KernelLibrary::OnnxRuntime, KernelLibrary::Rushes];
                write_variant(
                    bundle,
                    entry,
                    &VariantRequest { scheme, numerics: &numerics, kernels, note: None, stop },
                )?;
            }
        }
        bundle.manifest.components = components;
    }
    Ok(())
}

/// Numbers for every layer that the scheme quantises of a component.
fn numerics(bundle: &Bundle, entry: &ComponentEntry, scheme: Scheme) -> ComponentNumerics {
    let (manifest, component) = (&bundle.manifest, &entry.component);
    let mut numerics = ComponentNumerics::empty(component.clone(), entry.digest.clone());
    // Rounding to bf16 needs no numbers; convolutions are quantised whole or not at all.
    if scheme == Scheme::Bf16 || (scheme == Scheme::Int8Weights && *component == Component::Decoder) {
        return numerics;
    }
    let required = match component {
        Component::TextEncoder => inventory::text_encoder(&manifest.text_encoder),
        Component::Expert(_) => inventory::denoiser(&manifest.denoiser),
        Component::Decoder => inventory::decoder(&manifest.vae),
        Component::Preview => Vec::new(),
    };
    let shapes: BTreeMap<&str, &[usize]> =
        required.iter().map(|weight| (weight.name.as_str(), weight.shape.as_slice())).collect();
    for group in groups(manifest, component) {
        for layer in group.layers {
            let Some([rows, inputs @ ..]) = shapes.get(format!("{layer}.weight").as_str()) else { continue };
            let columns = inputs.iter().product();
            let numbers = match scheme {
                Scheme::Int8 => integers(*rows, columns, &group.input, *component == Component::Decoder),
                _ => weights_alone(*rows, columns),
            };
            numerics.layers.insert(layer, numbers);
        }
    }
    numerics
}

/// A layer in integers: the text states are divided by a product of its own, all else in what is there already.
fn integers(rows: usize, columns: usize, input: &LayerInput, has_output: bool) -> LayerNumerics {
    let product = || Smoothing { divisors: vec![1.0; columns], fold: Fold::Product, alpha: 0.5 };
    LayerNumerics {
        output: has_output.then_some(RANGE),
        smoothing: (*input == LayerInput::Text).then(product),
        ..LayerNumerics::plain(WeightScales::Rows(vec![WEIGHT_SCALE; rows]), Some(RANGE))
    }
}

fn weights_alone(rows: usize, columns: usize) -> LayerNumerics {
    let scales = vec![WEIGHT_SCALE; rows * columns.div_ceil(BLOCK)];
    LayerNumerics::plain(WeightScales::Blocks { size: BLOCK, scales }, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::shape::{Subject, random_bundle};
    use bundle::spec::DenoiserSpec;
    use bundle::variant::Target;
    use kernels::CpuPath;

    #[test]
    fn a_random_step_has_the_precisions_that_are_asked_for() {
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
        let stock = precisions(&bundle, KernelLibrary::OnnxRuntime);
        assert_eq!(stock.len(), 3, "{stock:?}");
        assert!(!bundle.manifest.has_rushes_kernels(Precision::Bf16), "no instruction for it");
        add(&mut bundle, &[Precision::Bf16], kernels, &Stop::new()).unwrap();
        assert!(bundle.manifest.has_rushes_kernels(Precision::Bf16));
        let variants = &bundle.manifest.components[0].variants;
        let int8 = variants.iter().filter(|variant| variant.precision == Precision::Int8);
        assert_eq!(int8.map(|variant| variant.quantized).collect::<Vec<_>>(), [12, 12]);
    }
}
