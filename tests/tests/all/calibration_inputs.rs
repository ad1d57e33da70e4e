//! Inputs of `rushes calibrate` and `rushes quantize`: prompts in any encoding, clips that cover too little.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::layout::component_folder;
use bundle::manifest::Bundle;
use bundle::quantization::Scheme;
use calibration::numerics::plan::{check_observed, groups};
use calibration::observe::set::{SetInfo, weight_digests};
use calibration::observe::statistics::{Points, Statistics};
use calibration::observe::table::Table;
use export::ExportRequest;
use std::fs;
use std::path::Path;
use tempfile::TempDir;
use tests::golden;
use tests::program::{event, rushes};

/// A folder with the bundle `b`.
fn with_bundle(case: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let request = ExportRequest::new(&golden::case(case).checkpoint(), &folder.path().join("b"));
    export::export(&request, &mut |_| ()).unwrap();
    folder
}

/// Runs a calibration that must be refused before anything is recorded. Returns what, why and fix.
fn refused(folder: &Path, more: &[&str]) -> [String; 3] {
    let command = ["calibrate", "b", "--prompts", "p.txt", "--size", "32x32", "--json"];
    let output = rushes(folder).args(command).args(more).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(!folder.join("b/calibration").exists());
    let error = event(&output, "error");
    ["what", "why", "fix"].map(|part| error[part].as_str().unwrap().to_owned())
}

#[test]
fn clips_that_miss_an_expert_or_later_frames_are_refused_before_they_are_recorded() {
    for (case, more, named) in [
        ("two-experts", &["--steps", "1"][..], ["--steps", "low_noise"]),
        ("moving-clip", &["--steps", "1"], ["--steps", "low_noise"]),
        ("two-experts", &["--frames", "1", "--steps", "40"], ["--frames", "one latent frame"]),
        ("no-guidance", &["--frames", "1"], ["--frames", "one latent frame"]),
    ] {
        let folder = with_bundle(case);
        fs::write(folder.path().join("p.txt"), "a boat\n").unwrap();
        let [what, why, fix] = refused(folder.path(), more);
        assert!(what.contains(named[0]) && why.contains(named[1]), "{case}: {what}: {why}");
        if named[0] == "--steps" {
            // The suggested number of steps is enough, and one fewer is not.
            let steps: usize = fix.split(' ').nth(1).unwrap().parse().unwrap();
            let with = |steps: usize| {
                refused(folder.path(), &["--frames", "1", "--steps", &steps.to_string()])[0].clone()
            };
            assert!(with(steps).contains("--frames") && with(steps - 1).contains("--steps"), "{case}: {fix}");
        }
    }
}

#[test]
fn a_calibration_without_an_expert_is_refused_by_quantize_before_any_clip_is_generated() {
    let folder = with_bundle("two-experts");
    let bundle = Bundle::open(&folder.path().join("b")).unwrap();
    let info = SetInfo {
        rushes: String::new(),
        model: bundle.manifest.model.clone(),
        weights: weight_digests(&bundle.manifest),
        settings: Vec::new(),
        samples: vec![("a boat".into(), 1)],
    };
    Table::default().write(&bundle.folder, &info).unwrap();
    let before = fs::read(folder.path().join("b/bundle.json")).unwrap();
    let output =
        rushes(folder.path()).args(["quantize", "b", "--kernels", "onnxruntime", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let error = event(&output, "error");
    assert!(error["what"].as_str().unwrap().contains("the calibration has no statistics of"), "{error}");
    assert_eq!(fs::read(folder.path().join("b/bundle.json")).unwrap(), before);
}

#[test]
fn every_layer_with_quantised_inputs_must_be_in_the_calibration() {
    let folder = with_bundle("two-experts");
    let manifest = Bundle::open(&folder.path().join("b")).unwrap().manifest;
    let mut whole = Table::default();
    for entry in &manifest.components {
        let layers = groups(&manifest, &entry.component).into_iter().flat_map(|group| group.layers);
        let points: Points = layers.map(|layer| (layer, Statistics::default())).collect();
        whole.components.insert(component_folder(&entry.component), [(1, points)].into());
    }
    let missing = |table: &Table, scheme: Scheme| {
        let observed = check_observed(&manifest, table, scheme, scheme.components());
        observed.err().map(|error| error.to_string())
    };
    assert_eq!(missing(&whole, Scheme::Int8), None);
    for entry in &manifest.components {
        let folder = component_folder(&entry.component);
        let mut without_component = whole.clone();
        without_component.components.remove(&folder);
        let mut without_layer = whole.clone();
        let points = without_layer.components.get_mut(&folder).unwrap().get_mut(&1).unwrap();
        let layer = groups(&manifest, &entry.component)[0].layers[0].clone();
        points.remove(&layer);
        for table in [without_component, without_layer] {
            let error = missing(&table, Scheme::Int8).unwrap();
            assert!(error.contains(&layer) && error.contains(&entry.component.to_string()), "{error}");
            // Schemes for weights only need no calibration.
            assert_eq!(missing(&table, Scheme::Int8Weights), None);
        }
    }
    // A calibration with first latent frames only.
    let mut first = whole.clone();
    let decoder = first.components.get_mut("decoder").unwrap();
    let points = decoder.remove(&1).unwrap();
    decoder.insert(0, points);
    assert!(missing(&first, Scheme::Int8).unwrap().contains("the decoder"));
}

/// Encodes a text.
type Encoding = fn(&str) -> Vec<u8>;

#[test]
fn prompts_are_read_in_utf_8_and_in_encodings_with_a_byte_order_mark() {
    let folder = with_bundle("two-experts");
    let utf_16 = |text: &str, bytes: fn(u16) -> [u8; 2]| -> Vec<u8> {
        std::iter::once(0xFEFF).chain(text.encode_utf16()).flat_map(bytes).collect()
    };
    let little: Encoding = |text| text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (content, has_prompt) in [
        (b"\xEF\xBB\xBF# only this\r\n".to_vec(), false),
        (b"\xEF\xBB\xBF# a boat\r\na boat\r\n".to_vec(), true),
        (utf_16("# only this\n", u16::to_le_bytes), false),
        (utf_16("# one\r\na boat", u16::to_be_bytes), true),
        (b"# only this\r# and this\r".to_vec(), false),
        (Vec::new(), false),
        (b"\n  \n".to_vec(), false),
    ] {
        fs::write(folder.path().join("p.txt"), &content).unwrap();
        // One step is too few, which is reported only if there are prompts.
        let [what, why, _] = refused(folder.path(), &["--steps", "1"]);
        let flag = if has_prompt { "--steps" } else { "--prompts" };
        assert!(what.contains(flag), "{content:?}: {what}: {why}");
    }
    for (content, line, fix) in [
        (b"a boat\nein Ballon\xF6\n".to_vec(), "line 2", "iconv -f WINDOWS-1252"),
        (little("a boat\n"), "line 1", "iconv -f UTF-16LE"),
        (b"a boat\nand\0more\n".to_vec(), "line 2", "text file"),
    ] {
        fs::write(folder.path().join("p.txt"), &content).unwrap();
        let [what, why, found] = refused(folder.path(), &["--steps", "1"]);
        assert!(
            what.contains("p.txt") && why.contains(line) && found.contains(fix),
            "{what}: {why} ({found})"
        );
    }
    fs::remove_file(folder.path().join("p.txt")).unwrap();
    fs::create_dir(folder.path().join("p.txt")).unwrap();
    let [what, _, fix] = refused(folder.path(), &[]);
    assert!(what.contains("p.txt") && !fix.contains("write"), "{what} ({fix})");
}
