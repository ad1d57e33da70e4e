//! Quantised variants with scales that nothing was calibrated for: their graphs have the form of real ones.

use bundle::manifest::{Bundle, Component, Manifest};
use bundle::quantization::layers::{self, LayerInput};
use bundle::quantization::{
    Affine, AttentionNumerics, ComponentNumerics, Fold, LayerNumerics, Scheme, Smoothing, WeightScales,
};
use bundle::spec::DenoiserSpec;
use bundle::stop::Stop;
use bundle::variant::{KernelLibrary, Target};
use export::checkpoint::inventory::{self, Required};
use export::quantized::{VariantRequest, write_variant};
use std::path::Path;

/// Adds a variant of every component to the bundle in `folder`, in 8-bit integers or in E4M3, for the CPU and in plain
/// graphs.
///
/// # Panics
/// Panics if the bundle cannot be read or written, or for another scheme.
pub fn quantize(folder: &Path, scheme: Scheme) {
    let source = Bundle::open(folder).expect("a bundle");
    let mut manifest = source.manifest.clone();
    let components = manifest.components.iter_mut();
    for entry in components.filter(|entry| entry.component.is_quantizable()) {
        let mut numerics = ComponentNumerics::empty(entry.component.clone(), entry.digest.clone());
        fill(&mut numerics, &source.manifest, scheme);
        let request = VariantRequest {
            scheme,
            numerics: &numerics,
            targets: &[Target::Cpu, Target::Plain],
            kernels: &[KernelLibrary::OnnxRuntime, KernelLibrary::Rushes],
            merges: &[],
            is_measured: false,
            note: None,
            stop: &Stop::new(),
        };
        write_variant(&source, entry, &request).expect("a variant");
    }
    bundle::manifest::write(folder, &manifest).expect("a file");
}

/// The weights of a component.
pub fn required(manifest: &Manifest, component: &Component) -> Vec<Required> {
    match component {
        Component::TextEncoder => inventory::text_encoder(&manifest.text_encoder),
        Component::Expert(_) => inventory::denoiser(&manifest.denoiser),
        Component::Decoder => inventory::decoder(&manifest.vae),
        Component::ImageEncoder | Component::Preview => Vec::new(),
    }
}

/// Adds numbers for every layer, with all that numbers can have: smoothing, shifts and, in E4M3, attention.
///
/// # Panics
/// Panics for a scheme without such scales.
pub fn fill(numerics: &mut ComponentNumerics, manifest: &Manifest, scheme: Scheme) {
    let component = numerics.component.clone();
    let required = required(manifest, &component);
    let layers: Vec<(String, Option<LayerInput>)> = match &component {
        Component::TextEncoder => of_groups(layers::text_encoder(&manifest.text_encoder)),
        Component::Expert(_) => of_groups(layers::denoiser(&manifest.denoiser)),
        _ => layers::decoder(&manifest.vae).into_iter().map(|name| (name, None)).collect(),
    };
    for (layer, input) in layers {
        let weight = format!("{layer}.weight");
        let Some(Required { shape, .. }) = required.iter().find(|required| required.name == weight) else {
            panic!("there is no {weight}");
        };
        let (rows, columns) = (shape[0], shape[1]);
        let (weights, zero_point) = match scheme {
            Scheme::Int8 => (WeightScales::Rows(vec![0.01; rows]), Affine::SIGNED),
            Scheme::Fp8 => (WeightScales::Tensor(0.01), 0),
            Scheme::Int8Weights | Scheme::Bf16 => panic!("{scheme} has no such scales"),
        };
        let range = Affine { scale: 0.1, zero_point };
        let mut numbers = LayerNumerics::plain(weights, Some(range));
        if scheme == Scheme::Int8 {
            numbers.bias_shift = Some(vec![0.5; rows]);
            let fold = if input == Some(LayerInput::Text) { Fold::Product } else { Fold::Upstream };
            let is_smoothed = matches!(input, Some(LayerInput::Text | LayerInput::Norm));
            numbers.smoothing =
                is_smoothed.then(|| Smoothing { divisors: vec![2.0; columns], fold, alpha: 0.5 });
            numbers.output = (component == Component::Decoder).then_some(range);
        }
        numerics.layers.insert(layer, numbers);
    }
    if scheme == Scheme::Fp8 && matches!(component, Component::Expert(_)) {
        attention(numerics, &manifest.denoiser);
    }
}

fn of_groups(groups: Vec<layers::LayerGroup>) -> Vec<(String, Option<LayerInput>)> {
    let of_group = |group: layers::LayerGroup| {
        let input = group.input;
        group.layers.into_iter().map(move |layer| (layer, Some(input.clone())))
    };
    groups.into_iter().flat_map(of_group).collect()
}

fn attention(numerics: &mut ComponentNumerics, spec: &DenoiserSpec) {
    let scales = AttentionNumerics { queries: 0.02, keys: 0.02, values: 0.02 };
    let names =
        (0..spec.layers).flat_map(|block| [format!("blocks.{block}.attn1"), format!("blocks.{block}.attn2")]);
    numerics.attention.extend(names.map(|name| (name, scales)));
}
