//! Quantised experts with scales that nothing was calibrated for: their graphs have the form of real ones.

use bundle::manifest::{Bundle, Component};
use bundle::quantization::layers::{self, LayerInput};
use bundle::quantization::{
    Affine, AttentionNumerics, ComponentNumerics, LayerNumerics, Scheme, WeightScales,
};
use bundle::stop::Stop;
use bundle::variant::KernelLibrary;
use export::quantized::{VariantRequest, write_variant};
use std::path::Path;

/// Adds a variant of every expert to the bundle in `folder`, in 8-bit integers or in E4M3.
///
/// # Panics
/// Panics if the bundle cannot be read or written, or for another scheme.
pub fn quantize_experts(folder: &Path, scheme: Scheme) {
    let source = Bundle::open(folder).expect("a bundle");
    let mut manifest = source.manifest.clone();
    let spec = manifest.denoiser.clone();
    let experts = manifest.components.iter_mut();
    for entry in experts.filter(|entry| matches!(entry.component, Component::Expert(_))) {
        let mut numerics = ComponentNumerics::empty(entry.component.clone(), entry.digest.clone());
        let groups = layers::denoiser(&spec).into_iter().filter(|group| group.input != LayerInput::Text);
        for layer in groups.flat_map(|group| group.layers) {
            let rows = if layer.ends_with("ffn.net.0.proj") { spec.feed_forward } else { spec.width() };
            let (weights, zero_point) = match scheme {
                Scheme::Int8 => (WeightScales::Rows(vec![0.01; rows]), 128),
                Scheme::Fp8 => (WeightScales::Tensor(0.01), 0),
                Scheme::Int8Weights | Scheme::Bf16 => panic!("{scheme} has no such scales"),
            };
            let input = Some(Affine { scale: 0.1, zero_point });
            numerics.layers.insert(layer, LayerNumerics::plain(weights, input));
        }
        if scheme == Scheme::Fp8 {
            let scales = AttentionNumerics { queries: 0.02, keys: 0.02, values: 0.02 };
            let names = (0..spec.layers)
                .flat_map(|block| [format!("blocks.{block}.attn1"), format!("blocks.{block}.attn2")]);
            numerics.attention.extend(names.map(|name| (name, scales)));
        }
        let request = VariantRequest {
            scheme,
            numerics: &numerics,
            kernels: &[KernelLibrary::OnnxRuntime, KernelLibrary::Rushes],
            note: None,
            stop: &Stop::new(),
        };
        write_variant(&source, entry, &request).expect("a variant");
    }
    bundle::manifest::write(folder, &manifest).expect("a file");
}
