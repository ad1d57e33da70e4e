//! `rushes bench batches`: the bits of steps alone and in a batch, and their record in the bundle.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use super::job_bundle;
use bundle::manifest::{Bundle, Component};
use bundle::staging::WriteLock;
use bundle::units::ByteCount;
use bundle::variant::Target;
use engines::fake::FakeBackend;
use engines::{Cancel, Device, OnnxRuntime, OpenOptions, WeightMemory};
use quality::bench::batches::{BatchCase, case_count, compare, step_graphs};
use runtime::job::ModelIdentity;
use runtime::model::{Model, ModelOptions, step_contract};
use serde_json::{Value, json};
use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::Output;
use tests::program::{event, rushes};
use tests::{edit, golden};

fn bench(folder: &Path, arguments: &[&str]) -> Output {
    let command = ["bench", "batches", "bundle", "--threads", "2", "--json"];
    rushes(folder).args(command).args(arguments).output().unwrap()
}

/// The results by file: whether all bits are equal, the compared velocities and the different ones.
fn results(output: &Output) -> Vec<(String, bool, u64, u64)> {
    let result = |found: &Value| {
        let count = |name: &str| found[name].as_u64().unwrap();
        let file = found["file"].as_str().unwrap().to_owned();
        (file, found["equal"].as_bool().unwrap(), count("compared"), count("different"))
    };
    event(output, "bench")["results"].as_array().unwrap().iter().map(result).collect()
}

/// The compared and the different velocities of a graph, compared here.
fn directly(bundle: &Bundle, file: &str) -> (u64, u64) {
    let (_, graph) = step_graphs(&bundle.manifest).into_iter().find(|(_, graph)| graph.file == file).unwrap();
    let options = OpenOptions::cpu(NonZeroUsize::new(2), WeightMemory::Prepacked);
    let contract = step_contract(&bundle.manifest, graph.variant.kernels);
    let onnx = OnnxRuntime::load(None).unwrap();
    let mut engine = onnx.open(&bundle.path(file), &contract, &options).unwrap();
    let mut bits = |case: &BatchCase, members: &[usize]| -> Vec<Vec<u32>> {
        let inputs = case.inputs(graph.variant.kernels, true, members).unwrap();
        let inputs: Vec<_> = inputs.iter().map(|(name, value)| (*name, value)).collect();
        let velocity = engine.run(&inputs, &Cancel::new()).unwrap().take("velocity").unwrap();
        let velocity = velocity.to_f32().unwrap();
        velocity.outer_iter().map(|one| one.iter().map(|value| value.to_bits()).collect()).collect()
    };
    let (mut compared, mut different) = (0, 0);
    for case in BatchCase::all(&bundle.manifest.denoiser) {
        let alone = [bits(&case, &[0]).remove(0), bits(&case, &[1]).remove(0)];
        for order in [[0, 1], [1, 0]] {
            let batch = bits(&case, &order);
            compared += 2;
            different +=
                order.iter().zip(&batch).filter(|(member, one)| **one != alone[**member]).count() as u64;
        }
    }
    (compared, different)
}

#[test]
fn the_table_of_mini_agrees_with_a_direct_comparison() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bundle");
    export::export(&export::ExportRequest::new(&golden::case("mini").checkpoint(), &path), &mut |_| ())
        .unwrap();
    let output = bench(folder.path(), &[]);
    assert!(output.status.success(), "{output:?}");
    let bundle = Bundle::open(&path).unwrap();
    let found = results(&output);
    assert_eq!(found.len(), bundle.manifest.routing.routes().len());
    for (file, is_equal, compared, different) in found {
        assert_eq!((compared, different), directly(&bundle, &file), "{file}");
        assert_eq!(is_equal, different == 0);
        assert_eq!(compared, 4 * case_count() as u64);
    }
    let value = event(&output, "bench");
    assert_eq!((&value["what"], &value["recorded"]), (&json!("batches"), &json!(false)));
    assert_eq!((&value["on"]["threads"], &value["on"]["mapped_weights"]), (&json!(2), &json!(false)));
}

#[test]
fn results_are_recorded_in_the_bundle_and_change_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bundle");
    edit::copy_folder(&job_bundle::BUNDLE.1, &path);
    let text = || fs::read_to_string(path.join("bundle.json")).unwrap();
    let identity = || {
        let bundle = Bundle::open(&path).unwrap();
        let model = Model::new(bundle, OnnxRuntime::load(None).unwrap(), ModelOptions::default()).unwrap();
        ModelIdentity::of(&model).unwrap()
    };
    let (before, before_identity) = (text(), identity());
    let original = Bundle::open(&path).unwrap().manifest;

    let table = results(&bench(folder.path(), &[]));
    assert_eq!(text(), before, "it was written without --record");
    let output = bench(folder.path(), &["--record"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(results(&output), table);
    let on = event(&output, "bench")["on"].clone();

    let recorded = Bundle::open(&path).unwrap().manifest;
    let mut count = 0;
    for entry in &recorded.components {
        for graph in &entry.graphs {
            let found = table.iter().find(|(file, ..)| *file == graph.file);
            let is_step =
                matches!(entry.component, Component::Expert(_)) && graph.variant.target == Target::Cpu;
            assert_eq!(found.is_some(), is_step, "{}", graph.file);
            assert_eq!(graph.batch_invariant.is_some(), is_step, "{}", graph.file);
            if let (Some(recorded), Some((_, is_equal, ..))) = (&graph.batch_invariant, found) {
                count += 1;
                assert_eq!(recorded.equal, *is_equal);
                assert_eq!(serde_json::to_value(&recorded.on).unwrap(), on);
                assert_eq!(recorded.holds(&recorded.on), *is_equal);
            }
        }
    }
    // Two experts in f32 and int8.
    assert_eq!(count, 4);
    // Jobs go on with their snapshots, and an earlier bundle reads as one without results.
    assert_eq!(identity(), before_identity);
    let mut without = recorded;
    without
        .components
        .iter_mut()
        .flat_map(|entry| &mut entry.graphs)
        .for_each(|graph| graph.batch_invariant = None);
    assert_eq!(without, original);
    bundle::manifest::write(&path, &without).unwrap();
    assert_eq!(text(), before);

    // A variant alone; the results of the others stay as they are.
    assert!(bench(folder.path(), &["--record", "--precision", "int8"]).status.success());
    let graphs = step_graphs(&Bundle::open(&path).unwrap().manifest);
    assert!(
        graphs
            .iter()
            .all(|(_, graph)| graph.batch_invariant.is_some() == (graph.variant.precision.name() == "int8"))
    );
    let output = rushes(folder.path()).args(["inspect", "bundle"]).output().unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    assert_eq!(shown.matches(" in a batch of two (").count(), 2, "{shown}");
}

#[test]
fn a_bundle_that_another_run_changes_is_not_recorded_in() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bundle");
    edit::copy_folder(&job_bundle::BUNDLE.1, &path);
    let before = fs::read(path.join("bundle.json")).unwrap();
    let writing = WriteLock::acquire(&path).unwrap();
    let output = bench(folder.path(), &["--record", "--precision", "f32"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(event(&output, "error")["why"].as_str().unwrap().contains("holds the lock"), "{output:?}");
    assert_eq!(fs::read(path.join("bundle.json")).unwrap(), before);
    // A run that only reads goes on.
    assert!(bench(folder.path(), &["--precision", "f32"]).status.success());
    drop(writing);
    let output = bench(folder.path(), &["--precision", "fp8"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(event(&output, "error")["why"].as_str().unwrap().contains("int8"), "{output:?}");
}

#[test]
fn wrong_results_in_a_bundle_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bundle");
    edit::copy_folder(&job_bundle::BUNDLE.1, &path);
    let file = path.join("bundle.json");
    let original: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let on = |threads: Value| {
        json!({
            "onnx_runtime": "1", "processor": "p", "cpu_path": "avx2", "threads": threads, "mapped_weights": false,
        })
    };
    let components = original["components"].as_array().unwrap();
    let index = |is_expert: bool| {
        components.iter().position(|entry| entry["component"].is_object() == is_expert).unwrap()
    };
    let read = |component: usize, found: Value| {
        let mut changed = original.clone();
        changed["components"][component]["graphs"][0]["batch_invariant"] = found;
        fs::write(&file, changed.to_string()).unwrap();
        Bundle::open(&path).map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(read(index(true), json!({"equal": true, "on": on(json!(2))})), Ok(()));
    for (component, found, part) in [
        (index(true), json!({"equal": true, "on": on(json!(0))}), "batch_invariant.on.threads"),
        (index(false), json!({"equal": true, "on": on(json!(2))}), "no expert"),
        (index(true), json!({"equal": true, "on": on(json!(-1))}), "invalid value"),
        (index(true), json!({"equal": true}), "missing field `on`"),
        (index(true), json!(true), "invalid type"),
    ] {
        let error = read(component, found.clone()).unwrap_err();
        assert!(error.contains(part), "{found}: {error}");
    }
}

/// The outputs of the fake depend on all inputs, so no velocity of a batch is that of a latent alone.
#[test]
fn a_backend_that_mixes_the_batch_is_found() {
    let bundle = Bundle::open(&job_bundle::BUNDLE.1).unwrap();
    let fake = FakeBackend::new();
    fake.add_device(Device::CPU, ByteCount(1 << 40));
    fake.add_bundle(&bundle, |_, _, graph| graph);
    let options = OpenOptions::cpu(None, WeightMemory::Prepacked);
    for (_, graph) in step_graphs(&bundle.manifest) {
        let found = compare(&fake, &bundle, &graph, &options, &Cancel::new(), &mut || ()).unwrap();
        assert_eq!((found.compared, found.different), (4 * case_count(), 4 * case_count()));
        assert!(found.largest > 0.1 && !found.is_equal(), "{found:?}");
    }
}
