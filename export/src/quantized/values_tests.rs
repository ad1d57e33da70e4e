//! The bytes of quantised variants.

use super::packed_values;
use super::plain_values;
use super::source::BundleWeights;
use super::values::{Planned, plan};
use crate::checkpoint::samples;
use crate::weights::new_file::Stored;
use crate::{ExportRequest, export};
use bundle::dtype::WeightType;
use bundle::manifest::{Bundle, Component};
use bundle::quantization::layers::{self, LayerInput};
use bundle::quantization::{Affine, ComponentNumerics, Fold, LayerNumerics, Smoothing, WeightScales};

/// Exports the sample checkpoint.
fn exported(folder: &std::path::Path, weights: WeightType) -> Bundle {
    samples::write_checkpoint(&folder.join("checkpoint"));
    let out = folder.join(weights.element().to_string());
    let request =
        ExportRequest { weights: Some(weights), ..ExportRequest::new(&folder.join("checkpoint"), &out) };
    let report = export(&request, &mut |_| ()).unwrap();
    Bundle { folder: report.folder, manifest: report.manifest }
}

fn number(index: usize) -> f32 {
    0.01 + f32::from(u8::try_from(index * 7 % 13).unwrap()) / 50.0
}

/// Numbers for these layers, with smoothing, row factors and shifts for some.
fn numerics(
    source: &BundleWeights,
    component: &Component,
    layers: &[String],
    scales: impl Fn(usize, usize) -> WeightScales,
) -> ComponentNumerics {
    let digest = bundle::digest::Digest::of_parts([]);
    let mut all = ComponentNumerics::empty(component.clone(), digest);
    for (index, layer) in layers.iter().enumerate() {
        let (shape, values) = source.read(&format!("{layer}.weight")).unwrap();
        let (rows, columns) = (shape[0], values.len() / shape[0]);
        let range = Some(Affine { scale: 0.1, zero_point: 128 });
        let mut numbers = LayerNumerics::plain(scales(rows, columns), range);
        if index % 2 == 0 {
            numbers.bias_shift = Some((0..rows).map(number).collect());
        }
        if *component != Component::Decoder && index % 3 == 0 {
            numbers.row_factors = Some((0..rows).map(number).collect());
            let divisors = (0..columns).map(number).collect();
            numbers.smoothing = Some(Smoothing { divisors, fold: Fold::Product, alpha: 0.5 });
        }
        all.layers.insert(layer.clone(), numbers);
    }
    all
}

fn hash(planned: &[Planned], source: &BundleWeights, numerics: &ComponentNumerics) -> String {
    let mut hasher = blake3::Hasher::new();
    for bytes in planned.iter().flat_map(|planned| planned.bytes(source, numerics).unwrap()) {
        hasher.update(&bytes);
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

/// Every tensor of a plain variant has as many bytes as its format and shape say. Tests of the whole program compute what
/// the graphs make of them.
fn plain_values_have_their_lengths(
    source: &BundleWeights,
    numerics: &ComponentNumerics,
    exported: WeightType,
) {
    let all = plain_values::plan(source, numerics, exported).unwrap();
    for planned in &all {
        let lengths: Vec<usize> = planned.bytes(source, numerics).unwrap().iter().map(Vec::len).collect();
        let expected: Vec<usize> = planned.stored.iter().map(Stored::bytes).collect();
        assert_eq!(lengths, expected, "{:?}", planned.stored);
    }
    let in_8_bits =
        all.iter().flat_map(|planned| &planned.stored).filter(|stored| stored.element.bytes() == 1);
    assert!(in_8_bits.count() >= numerics.layers.len());
}

#[test]
fn the_weights_of_variants_have_these_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let mut found = Vec::new();
    for weights in [WeightType::F32, WeightType::Bf16] {
        let bundle = exported(folder.path(), weights);
        let manifest = &bundle.manifest;
        let expert = Component::Expert(manifest.routing.routes()[0].expert.clone());
        let rows = |rows, _| WeightScales::Rows((0..rows).map(number).collect());
        let blocks = |rows: usize, columns: usize| {
            let scales = (0..rows * columns.div_ceil(16)).map(number).collect();
            WeightScales::Blocks { size: 16, scales }
        };
        let tensor = |_, _| WeightScales::Tensor(0.01);

        let source = BundleWeights::open(&bundle, manifest.component(&expert).unwrap()).unwrap();
        let groups = layers::denoiser(&manifest.denoiser).into_iter();
        let groups = groups.filter(|group| group.input != LayerInput::Text);
        let names: Vec<String> = groups.flat_map(|group| group.layers).collect();
        let all = [
            numerics(&source, &expert, &names, rows),
            numerics(&source, &expert, &names, blocks),
            numerics(&source, &expert, &names, tensor),
        ];
        for numerics in &all {
            found.push(hash(&plan(&source, numerics).unwrap(), &source, numerics));
        }
        let packed = packed_values::plan_expert(&source, &all[0], &manifest.denoiser).unwrap();
        found.push(hash(&packed, &source, &all[0]));
        for numerics in [&all[0], &all[2]] {
            plain_values_have_their_lengths(&source, numerics, weights);
        }
        let error = plain_values::plan(&source, &all[1], weights).unwrap_err();
        assert!(matches!(error, crate::Error::Numerics { .. }), "blocks are not for plain graphs");

        let component = Component::Decoder;
        let source = BundleWeights::open(&bundle, manifest.component(&component).unwrap()).unwrap();
        let names = layers::decoder(&manifest.vae);
        let numerics = numerics(&source, &component, &names, rows);
        found.push(hash(&plan(&source, &numerics).unwrap(), &source, &numerics));
        let packed = packed_values::plan_decoder(&source, &numerics);
        found.push(hash(&packed, &source, &numerics));
        plain_values_have_their_lengths(&source, &numerics, weights);
    }
    insta::assert_debug_snapshot!(found, @r#"
    [
        "0d814afc14e0c6c6",
        "c3ef737b1448042c",
        "5e5d8b32f6fbb26d",
        "9d8d22819f1f1ec4",
        "562ddc9f89fd81bd",
        "35993adf19402bfe",
        "0d8f2b9453f7d634",
        "8e5035e8cf064541",
        "aee9ad82b852a96d",
        "dd58052455773aca",
        "b718f31d639c928b",
        "f7bf5fe791e433e6",
    ]
    "#);
}
