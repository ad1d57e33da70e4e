//! Checkpoints and bundles that change while they are read: an error names the file, and the process does not crash.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::Diagnose;
use bundle::dtype::WeightType;
use bundle::manifest::{Bundle, Component};
use engines::OnnxRuntime;
use export::quantized::BundleWeights;
use export::{ExportEvent, ExportRequest};
use quality::quantize::clips::decode;
use runtime::model::{Model, ModelOptions};
use std::fs::File;
use std::path::{Path, PathBuf};
use tests::{edit, golden};

/// The folder of a component's weights in a checkpoint.
fn folder_of(component: &Component) -> &'static str {
    match component {
        Component::TextEncoder => "text_encoder",
        Component::Expert(name) if name.0 == "high_noise" => "transformer",
        Component::Expert(_) => "transformer_2",
        Component::ImageEncoder | Component::Decoder => "vae",
        Component::Preview => "tiny_decoder",
    }
}

/// A change of a file.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Change {
    /// Its length becomes 0.
    Emptied,
    /// Its last byte is removed.
    Cut,
    /// Its time of modification changes, but not its length.
    WrittenTo,
}

fn change(path: &Path, change: Change) {
    let file = File::options().write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    match change {
        Change::Emptied => file.set_len(0).unwrap(),
        Change::Cut => file.set_len(length - 1).unwrap(),
        Change::WrittenTo => {
            file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(2)).unwrap();
        }
    }
}

/// Exports `case` as `weights`, and changes the last weight file of a component at the `position`th event of a kind.
fn export_while_changing(
    case: &str,
    weights: WeightType,
    position: usize,
    moment: fn(&ExportEvent) -> Option<&Component>,
    how: Change,
) -> (PathBuf, Result<(), export::Error>, Vec<String>) {
    let checkpoint = edit::copy_of(&golden::case(case).checkpoint());
    let out = tempfile::tempdir().unwrap();
    let request = ExportRequest {
        weights: Some(weights),
        ..ExportRequest::new(checkpoint.path(), &out.path().join("bundle"))
    };
    let mut seen = 0;
    let mut changed = PathBuf::new();
    let result = export::export(&request, &mut |event| {
        if let Some(component) = moment(&event) {
            if seen == position {
                changed = edit::weight_files(&checkpoint.path().join(folder_of(component))).pop().unwrap();
                change(&changed, how);
            }
            seen += 1;
        }
    });
    let remaining = std::fs::read_dir(out.path()).unwrap();
    let remaining =
        remaining.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    (changed, result.map(drop), remaining)
}

fn reading(event: &ExportEvent) -> Option<&Component> {
    match event {
        ExportEvent::Reading { component, .. } => Some(component),
        _ => None,
    }
}

fn writing(event: &ExportEvent) -> Option<&Component> {
    match event {
        ExportEvent::Writing { component } => Some(component),
        _ => None,
    }
}

#[test]
fn a_checkpoint_that_changes_during_its_export_is_refused_by_name() {
    // Four components, before and after they are read, linked and converted.
    for (position, how) in
        [Change::Emptied, Change::Cut, Change::WrittenTo, Change::Cut].into_iter().enumerate()
    {
        for moment in [reading, writing] {
            for weights in [WeightType::F32, WeightType::Bf16] {
                let (path, result, remaining) =
                    export_while_changing("two-experts", weights, position, moment, how);
                let error = result.unwrap_err();
                assert!(
                    matches!(&error, export::Error::Changed { path: found, .. } if *found == path),
                    "{position} {how:?} {weights:?}: {error}"
                );
                assert_eq!(error.report().class.exit_code(), 2);
                assert!(remaining.is_empty(), "{remaining:?}");
            }
        }
    }
}

/// Linked files are shared with the checkpoint, so a change after the component was read must be detected too.
#[test]
fn a_file_that_changes_after_its_component_was_written_is_detected() {
    let checkpoint = edit::copy_of(&golden::case("two-experts").checkpoint());
    let out = tempfile::tempdir().unwrap();
    let request = ExportRequest::new(checkpoint.path(), &out.path().join("bundle"));
    let encoder = edit::weight_files(&checkpoint.path().join("text_encoder")).pop().unwrap();
    let mut components = 0;
    let result = export::export(&request, &mut |event| {
        if writing(&event).is_some() {
            components += 1;
            if components == 4 {
                change(&encoder, Change::Cut);
            }
        }
    });
    let error = result.unwrap_err();
    let named = matches!(&error, export::Error::Changed { path, .. } if *path == encoder);
    assert!(named, "{error}");
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
}

#[test]
fn weights_of_a_bundle_that_become_shorter_are_an_error_when_they_are_read_or_opened() {
    // The bundle's files are links to a copy of the checkpoint.
    let checkpoint = edit::copy_of(&golden::case("two-experts").checkpoint());
    let exported = golden::export(checkpoint.path()).unwrap();
    let bundle = exported.model.bundle().clone();
    let names = ["shared.weight", "patch_embedding.weight", "proj_out.weight", "decoder.conv_in.weight"];
    assert_eq!(bundle.manifest.components.len(), names.len());
    for (entry, name) in bundle.manifest.components.iter().zip(names) {
        let weights = BundleWeights::open(&bundle, entry).unwrap();
        assert!(weights.read(name).is_ok(), "{name}");
        let files = entry.weights.iter().map(|weights| bundle.path(&weights.file));
        let stored: Vec<_> = files.map(|path| (std::fs::read(&path).unwrap(), path)).collect();
        for (_, path) in &stored {
            change(path, Change::Emptied);
        }
        let error = weights.read(name).unwrap_err();
        assert!(matches!(&error, export::Error::Changed { now: 0, .. }), "{name}: {error}");
        for (bytes, path) in &stored {
            std::fs::write(path, bytes).unwrap();
        }
    }
    // ONNX Runtime maps the files that it opens, so their length is checked just before.
    let model =
        Model::new(bundle.clone(), OnnxRuntime::load(None).unwrap(), ModelOptions::default()).unwrap();
    let decoder = bundle.manifest.component(&Component::Decoder).unwrap();
    let path = bundle.path(&decoder.weights[0].file);
    change(&path, Change::Cut);
    let latent = ndarray::Array4::zeros((16, 1, 2, 2));
    let error = decode(&model, &latent, &engines::Cancel::new()).unwrap_err().to_string();
    assert!(error.contains("is damaged: it has") && error.contains(&path.display().to_string()), "{error}");
    assert!(Bundle::open(&bundle.folder).is_err());
}
