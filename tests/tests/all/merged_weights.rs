//! Low-rank changes that are merged into weights by an export.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::dtype::WeightType;
use bundle::manifest::{Bundle, Component, ComponentEntry};
use bundle::routing::ExpertName;
use export::quantized::BundleWeights;
use export::weights::merge::{Factor, Merge};
use export::{Error, ExportReport, ExportRequest, export};
use ndarray::{Array2, ArrayView2};
use std::fs;
use std::path::Path;
use tests::{edit, golden};

const WEIGHT: &str = "blocks.0.attn1.to_q.weight";
/// Inputs and outputs of the weight.
const WIDTH: usize = 24;
const RANK: usize = 2;

fn high_noise() -> Component {
    Component::Expert(ExpertName("high_noise".into()))
}

/// Values between -1 and 1.
fn values(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|index| ((index * 37 + seed) % 65) as f32 / 32.0 - 1.0).collect()
}

fn factor(shape: [usize; 2], seed: usize) -> Factor {
    Factor { shape, values: values(shape[0] * shape[1], seed).into() }
}

fn merge(weight: &str, scale: f32) -> Merge {
    Merge::new(weight, scale, factor([WIDTH, RANK], 1), factor([RANK, WIDTH], 2)).unwrap()
}

fn exported(
    folder: &Path,
    weights: WeightType,
    merges: Vec<(Component, Merge)>,
) -> Result<ExportReport, Error> {
    // A copy, so that the file system of the bundle can link its files.
    let checkpoint = edit::copy_of(&golden::case("moving-clip").checkpoint());
    let request =
        ExportRequest { weights: Some(weights), merges, ..ExportRequest::new(checkpoint.path(), folder) };
    export(&request, &mut |_| ())
}

fn entry<'a>(report: &'a ExportReport, component: &Component) -> &'a ComponentEntry {
    report.manifest.component(component).unwrap()
}

/// A weight of an expert in the bundle.
fn weight(report: &ExportReport, name: &str) -> Vec<f32> {
    let bundle = Bundle::open(&report.folder).unwrap();
    BundleWeights::open(&bundle, entry(report, &high_noise())).unwrap().read(name).unwrap().1
}

fn matrix(shape: [usize; 2], values: &[f32]) -> Array2<f32> {
    ArrayView2::from_shape(shape, values).unwrap().to_owned()
}

#[test]
fn a_merge_changes_one_matrix_and_the_digest_of_its_component() {
    let folder = tempfile::tempdir().unwrap();
    let export = |name: &str, merges| exported(&folder.path().join(name), WeightType::F32, merges).unwrap();
    let plain = export("plain", Vec::new());
    let merged = export("merged", vec![(high_noise(), merge(WEIGHT, 0.5))]);

    let (up, down) = (values(WIDTH * RANK, 1), values(RANK * WIDTH, 2));
    let change = matrix([WIDTH, RANK], &up).dot(&matrix([RANK, WIDTH], &down)) * 0.5;
    let expected = matrix([WIDTH, WIDTH], &weight(&plain, WEIGHT)) + &change;
    let found = matrix([WIDTH, WIDTH], &weight(&merged, WEIGHT));
    assert!((&found - &expected).iter().all(|error| error.abs() < 1e-5));
    assert!(change.iter().any(|change| change.abs() > 0.1), "the change is visible");
    let other = "blocks.0.attn1.to_k.weight";
    assert_eq!(weight(&merged, other), weight(&plain, other));

    for component in &plain.manifest.components {
        let after = entry(&merged, &component.component);
        if component.component == high_noise() {
            assert_ne!(after.digest, component.digest);
            assert!(after.digest.whole);
            assert!(after.graphs[0].file.contains(after.digest.short()), "{:?}", after.graphs);
            assert!(after.weights[0].file.ends_with("/f32.safetensors"), "{:?}", after.weights);
        } else {
            assert_eq!(after, component);
        }
    }
    assert_eq!(plain.written.0, 0, "without merges everything is linked");
    assert_eq!(merged.written, entry(&merged, &high_noise()).weight_bytes());
    Bundle::open(&merged.folder).unwrap();
    let damaged = export::digests::verify(&Bundle::read(&merged.folder).unwrap(), &mut |_, _| ()).damaged;
    assert!(damaged.is_empty(), "{damaged:?}");
}

#[test]
fn the_same_merge_gives_the_same_digest_and_bytes_and_another_scale_others() {
    let folder = tempfile::tempdir().unwrap();
    let export = |name: &str, scale| {
        let merges = vec![(high_noise(), merge(WEIGHT, scale))];
        let report = exported(&folder.path().join(name), WeightType::Bf16, merges).unwrap();
        let entry = entry(&report, &high_noise());
        let bytes = fs::read(report.folder.join(&entry.weights[0].file)).unwrap();
        (entry.digest.clone(), bytes)
    };
    let first = export("first", 0.5);
    assert!(first == export("again", 0.5));
    let other = export("other", 1.0);
    assert!(first.0 != other.0 && first.1 != other.1);
}

#[test]
fn a_merge_that_does_not_fit_is_refused_by_name_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    for (component, merge, named) in [
        (high_noise(), merge("blocks.0.ffn.net.0.proj.weight", 1.0), "[24, 24] and the weight is"),
        (high_noise(), merge("blocks.0.attn1.to_q.bias", 1.0), "[24, 24] and the weight is [24]"),
        (high_noise(), merge("blocks.9.attn1.to_q.weight", 1.0), "the high_noise expert does not have"),
        (Component::Preview, merge(WEIGHT, 1.0), "the checkpoint does not have the tiny decoder"),
    ] {
        let weight = merge.weight().to_owned();
        let error = exported(&out, WeightType::F32, vec![(component, merge)]).unwrap_err().to_string();
        assert!(error.contains(&weight) && error.contains(named), "{error}");
        assert!(!out.exists());
    }
}
