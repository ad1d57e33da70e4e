//! Opening and running small graphs.

use crate::support::{copied, graph, onnx_runtime, signature};
use bundle::{Diagnose, ErrorClass};
use engines::{Cancel, Engine, Error, GraphError, OpenOptions, TensorError, Value, WeightMemory};
use half::{bf16, f16};
use ndarray::{Array1, Array2, arr0, array};
use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;

const MAPPED: OpenOptions = OpenOptions::cpu(None, WeightMemory::Mapped);

/// Opens a graph of `tests/data` with this signature.
fn open(name: &str, inputs: &[&str], outputs: &[&str]) -> Result<Engine, Error> {
    onnx_runtime().open(&graph(name), &signature(inputs, outputs), &MAPPED)
}

fn add() -> Engine {
    open("add", &["a f32 [N,3]", "b f32 [N,3]"], &["sum f32 [N,3]"]).expect("it has this signature")
}

fn running_sum() -> Engine {
    // Caches are not part of the signature: they are read from the graph.
    open("running_sum", &["latent f32 [N]"], &["frames f32 [N]"]).expect("it has this signature")
}

fn message(error: &Error, folder: &Path) -> String {
    error.to_string().replace(&folder.display().to_string(), "BUNDLE")
}

#[test]
fn inputs_and_outputs_are_named_and_in_any_order() {
    let a = Value::from_f32(array![[1.0f32, 2.0, 3.0], [4.0, 5.0, 6.0]]);
    let b = Value::from_f32(array![[10.0f32, 20.0, 30.0], [40.0, 50.0, 60.0]]);
    let mut outputs = add().run(&[("b", &b), ("a", &a)], &Cancel::new()).unwrap();
    let sum = outputs.take("sum").unwrap().to_f32().unwrap();
    assert_eq!(sum, array![[11.0f32, 22.0, 33.0], [44.0, 55.0, 66.0]].into_dyn());
    let again = outputs.take("sum").unwrap_err();
    assert!(matches!(again, TensorError::MissingOutput { .. }), "{again}");
}

#[test]
fn the_signature_is_read_from_the_graph() {
    let found = running_sum().signature().clone();
    assert_eq!(
        found,
        signature(&["latent f32 [N]", "cache.00 f32 [N]"], &["frames f32 [N]", "next_cache.00 f32 [N]"])
    );
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() {
    let contract = signature(&["a f32 [N,3]", "b f32 [N,3]"], &["sum f32 [N,3]"]);
    for threads in [1, 2, 3].map(NonZeroUsize::new) {
        let options = OpenOptions::cpu(threads, WeightMemory::Prepacked);
        let mut engine = onnx_runtime().open(&graph("add"), &contract, &options).unwrap();
        let ones = Value::from_f32(Array2::<f32>::ones((7, 3)));
        let sum = engine.run(&[("a", &ones), ("b", &ones)], &Cancel::new()).unwrap().take("sum").unwrap();
        assert_eq!(sum.to_f32().unwrap(), Array2::<f32>::from_elem((7, 3), 2.0).into_dyn());
    }
}

#[test]
fn mismatched_inputs_are_refused_before_anything_runs() {
    let mut engine = add();
    let good = Value::from_f32(Array2::<f32>::ones((2, 3)));
    let integers = Value::from_i64(Array2::<i64>::ones((2, 3)));
    let wide = Value::from_f32(Array2::<f32>::ones((2, 4)));
    let mut refused = |inputs: &[(&str, &Value)]| match engine.run(inputs, &Cancel::new()) {
        Err(Error::Tensor(error)) => error,
        other => panic!("{other:?}"),
    };
    assert!(matches!(refused(&[("a", &good)]), TensorError::MissingInput { .. }));
    assert!(matches!(refused(&[("a", &good), ("b", &integers)]), TensorError::WrongInput { .. }));
    assert!(matches!(refused(&[("a", &good), ("b", &wide)]), TensorError::WrongInput { .. }));
    assert!(matches!(refused(&[("a", &good), ("b", &good), ("c", &good)]), TensorError::UnknownInput { .. }));
}

#[test]
fn incompatible_shapes_fail_in_the_run_with_the_operator_named() {
    let two = Value::from_f32(Array2::<f32>::ones((2, 3)));
    let five = Value::from_f32(Array2::<f32>::ones((5, 3)));
    let error = add().run(&[("a", &two), ("b", &five)], &Cancel::new()).unwrap_err();
    assert!(matches!(error, Error::RunFailed { .. }), "{error}");
    insta::assert_snapshot!(message(&error, graph("add").parent().unwrap()), @"the graph BUNDLE/add.onnx failed while running: Add: axis == 1 || axis == largest was false. Attempting to broadcast an axis by a dimension other than 1. 2 by 5 (check the bundle with `rushes inspect` and `verify`; if it is whole, report this message with the model and the size of the clip)");
}

#[test]
fn a_graph_with_another_signature_is_refused_with_the_tensor_named() {
    let error = open("add", &["a f32 [N,4]", "b f32 [N,3]"], &["sum f32 [N,3]"]).unwrap_err();
    assert_eq!(error.report().class, ErrorClass::Damaged);
    insta::assert_snapshot!(message(&error, graph("add").parent().unwrap()), @"the tensor `a` of the graph BUNDLE/add.onnx is wrong: expected a f32 [N,4], found a f32 [N,3] (export the checkpoint again with this version of rushes)");
    let error = open("double_precision", &[], &[]).unwrap_err();
    insta::assert_snapshot!(message(&error, graph("add").parent().unwrap()), @"the graph BUNDLE/double_precision.onnx has `a` of an unsupported type: its type is Tensor<f64>(N) (export the checkpoint again with this version of rushes)");
}

#[test]
fn a_cache_is_passed_from_run_to_run() {
    let mut decoder = running_sum();
    let mut cache = Value::from_f32(Array1::<f32>::zeros(3));
    for (step, expected) in [1.0f32, 3.0, 6.0].into_iter().enumerate() {
        let latent = Value::from_f32(Array1::<f32>::from_elem(3, (step + 1) as f32));
        let mut outputs = decoder.run(&[("latent", &latent), ("cache.00", &cache)], &Cancel::new()).unwrap();
        let frames = outputs.take("frames").unwrap().to_f32().unwrap();
        assert_eq!(frames, Array1::<f32>::from_elem(3, -expected).into_dyn());
        let left: Vec<(String, Value)> = outputs.into_iter().collect();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].0, "next_cache.00");
        cache = left[0].1.clone();
    }
}

#[test]
fn an_output_is_the_next_input_at_the_same_address() {
    let mut decoder = running_sum();
    let ones = Value::from_f32(Array1::<f32>::ones(1000));
    let mut outputs = decoder.run(&[("latent", &ones), ("cache.00", &ones)], &Cancel::new()).unwrap();
    let cache = outputs.take("next_cache.00").unwrap();
    let address = cache.view_f32().unwrap().as_ptr();

    // This graph names its input as an output, which reveals the address of the input.
    let mut passthrough = open("passthrough", &["x f32 [N]"], &["negated f32 [N]", "x f32 [N]"]).unwrap();
    let mut outputs = passthrough.run(&[("x", &cache)], &Cancel::new()).unwrap();
    assert_eq!(outputs.take("x").unwrap().view_f32().unwrap().as_ptr(), address);
}

#[test]
fn an_output_that_is_an_input_keeps_it_alive() {
    let mut passthrough = open("passthrough", &["x f32 [N]"], &["negated f32 [N]", "x f32 [N]"]).unwrap();
    let input = Value::from_f32(Array1::<f32>::from_iter((0..50_000u16).map(f32::from)));
    let output = passthrough.run(&[("x", &input)], &Cancel::new()).unwrap().take("x").unwrap();
    drop(input);
    drop(passthrough);
    let other = Value::from_f32(Array1::<f32>::from_elem(50_000, -1.0));
    assert_eq!(output.view_f32().unwrap()[[49_999]], 49_999f32, "{other:?}");
}

#[test]
fn tensors_of_every_format_pass_through_graphs_and_are_kept_alive() {
    const FORMATS: [&str; 6] =
        ["f16 f16 [N]", "bf16 bf16 [N]", "i8 i8 [N]", "u8 u8 [N]", "f8e4m3 f8e4m3 [N]", "bool bool [N]"];
    let as_f32 = FORMATS.map(|text| format!("{}.f32 f32 [N]", text.split(' ').next().unwrap_or_default()));
    let as_f32: Vec<&str> = as_f32.iter().map(|text| &**text).collect();
    let passed = [&["inverted bool [N]"], &FORMATS[..]].concat();
    let mut from_f32 = open("formats_from_f32", &["x f32 [N]"], &FORMATS).unwrap();
    let mut pass = open("formats_passed", &FORMATS, &passed).unwrap();
    let mut to_f32 = open("formats_to_f32", &FORMATS, &as_f32).unwrap();

    let bits = Array1::from_iter((0..30_000u16).map(|index| f32::from(index % 2)));
    let run = |engine: &mut Engine, values: &[(String, Value)]| -> Vec<(String, Value)> {
        let inputs: Vec<(&str, &Value)> = values.iter().map(|(name, value)| (&**name, value)).collect();
        engine.run(&inputs, &Cancel::new()).unwrap().into_iter().collect()
    };
    let mut values = run(&mut from_f32, &[("x".into(), Value::from_f32(bits.clone()))]);
    // Those that arrays can have are given as arrays, which ONNX Runtime does not own.
    for (name, value) in &mut values {
        match &**name {
            "f16" => *value = Value::from_array(bits.mapv(f16::from_f32)),
            "bf16" => *value = Value::from_array(bits.mapv(bf16::from_f32)),
            "i8" => *value = Value::from_array(bits.mapv(|bit| bit as i8)),
            "u8" => *value = Value::from_array(bits.mapv(|bit| bit as u8)),
            _ => {}
        }
    }
    let mut passed = run(&mut pass, &values);
    passed.retain(|(name, _)| name != "inverted");
    drop((values, from_f32, pass));
    let other = Value::from_f32(Array1::<f32>::from_elem(60_000, -1.0));
    let read = run(&mut to_f32, &passed);
    assert_eq!(read.len(), 6);
    for (name, value) in read {
        assert_eq!(value.to_f32().unwrap(), bits.clone().into_dyn(), "{name} {other:?}");
    }
}

#[test]
fn values_outlive_their_engine() {
    let mut engine = running_sum();
    let ones = Value::from_f32(Array1::<f32>::ones(5));
    let mut outputs = engine.run(&[("latent", &ones), ("cache.00", &ones)], &Cancel::new()).unwrap();
    let cache = outputs.take("next_cache.00").unwrap();
    drop((engine, outputs));
    assert_eq!(cache.to_f32().unwrap(), Array1::<f32>::from_elem(5, 2.0).into_dyn());
}

#[test]
fn a_truncated_graph_is_damaged_and_a_missing_one_unreadable() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("add.onnx");
    let contract = signature(&[], &[]);

    let error = onnx_runtime().open(&path, &contract, &MAPPED).unwrap_err();
    assert!(matches!(error, Error::Graph(GraphError::Unreadable { .. })), "{error}");

    let whole = fs::read(graph("add")).unwrap();
    for length in [0, 10, whole.len() / 2, whole.len() - 3] {
        fs::write(&path, &whole[..length]).unwrap();
        let error = onnx_runtime().open(&path, &contract, &MAPPED).unwrap_err();
        assert!(matches!(error, Error::Graph(GraphError::Damaged { .. })), "{length} bytes: {error}");
        assert_eq!(error.report().class, ErrorClass::Damaged);
    }
}

#[test]
fn weights_are_read_from_the_folder_of_the_graph_at_their_offset() {
    let folder = tempfile::tempdir().unwrap();
    let path = copied("linear", folder.path());
    let contract = signature(&["x f32 [N,3]"], &["y f32 [N,2]"]);
    let open = || onnx_runtime().open(&path, &contract, &MAPPED);

    let absent = open().unwrap_err();
    assert!(matches!(absent, Error::Graph(GraphError::WeightsUnusable { .. })), "{absent}");
    assert!(absent.to_string().contains("weights.bin"), "{absent}");

    let weights: Vec<u8> = [1.0f32, 0.0, 0.0, 0.0, 10.0, 0.0].iter().flat_map(|w| w.to_le_bytes()).collect();
    let header = [0u8; 8];
    fs::write(folder.path().join("weights.bin"), [&header[..], &weights[..20]].concat()).unwrap();
    let short = open().unwrap_err();
    assert!(matches!(short, Error::Graph(GraphError::WeightsUnusable { .. })), "{short}");

    fs::write(folder.path().join("weights.bin"), [&header[..], &weights].concat()).unwrap();
    let x = Value::from_f32(array![[3.0f32, 4.0, 5.0]]);
    let y = open().unwrap().run(&[("x", &x)], &Cancel::new()).unwrap().take("y").unwrap();
    assert_eq!(y.to_f32().unwrap(), array![[3.0f32, 40.0]].into_dyn());
}

#[test]
fn a_failed_allocation_is_an_out_of_memory_error() {
    let mut engine = open("fill", &["shape i64 [2]"], &["filled f32 [A,B]"]).unwrap();
    let shape = Value::from_i64(array![1i64 << 30, 1 << 20]);
    let error = engine.run(&[("shape", &shape)], &Cancel::new()).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { requested: Some(_), .. }), "{error}");
    assert_eq!(error.report().class, ErrorClass::DoesNotFit);
    // The engine is still usable.
    let shape = Value::from_i64(array![2i64, 3]);
    let filled = engine.run(&[("shape", &shape)], &Cancel::new()).unwrap().take("filled").unwrap();
    assert_eq!(filled.shape(), [2, 3]);
}

#[test]
fn a_cancel_request_before_the_run_stops_it() {
    let mut engine = open("loop", &["rounds i64 []", "x f32 [64,64]"], &["y f32 [64,64]"]).unwrap();
    let x = Value::from_f32(Array2::<f32>::eye(64));
    let rounds = Value::from_i64(arr0(3));
    let cancel = Cancel::new();
    assert!(engine.run(&[("rounds", &rounds), ("x", &x)], &cancel).is_ok());
    cancel.cancel();
    let error = engine.run(&[("rounds", &rounds), ("x", &x)], &cancel).unwrap_err();
    assert!(matches!(error, Error::Cancelled { .. }), "{error}");
    assert_eq!(error.report().class, ErrorClass::Interrupted);
}
