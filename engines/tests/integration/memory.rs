//! Memory of open graphs, measured in a process of its own.

use crate::support::{copied, graph, in_own_process, onnx_runtime, signature};
use engines::memory::settled_anonymous;
use engines::{Cancel, Engine, OpenOptions, Value, WeightMemory};
use ndarray::{Array2, array};
use std::fs::File;

const MB: i64 = 1_000_000;
/// Rows, columns and offset of the weights of `wide.onnx`.
const WEIGHTS: (u64, u64, u64) = (5120, 10240, 73);
const WEIGHT_BYTES: i64 = 5120 * 10240 * 4;

#[test]
fn weights_are_mapped_or_copied_and_all_memory_is_returned() {
    in_own_process(
        "memory::weights_are_mapped_or_copied_and_all_memory_is_returned",
        measure_mapped_and_prepacked_weights,
    );
}

fn measure_mapped_and_prepacked_weights() {
    let folder = tempfile::tempdir().unwrap();
    let path = copied("wide", folder.path());
    let (rows, columns, offset) = WEIGHTS;
    // A sparse file: the weights are zeros that use no disk space.
    let weights = File::create(folder.path().join("weights.bin")).unwrap();
    weights.set_len(offset + rows * columns * 4).unwrap();

    let contract = signature(&["x f32 [N,10240]"], &["y f32 [N,5120]"]);
    let x = Value::from_f32(Array2::<f32>::ones((16, 10240)));
    let runtime = onnx_runtime();
    let open =
        |weights| -> Engine { runtime.open(&path, &contract, &OpenOptions::cpu(None, weights)).unwrap() };
    let run = |engine: &mut Engine| engine.run(&[("x", &x)], &Cancel::new()).unwrap().take("y").unwrap();
    // Allocations that happen once per process are not measured.
    drop(run(&mut open(WeightMemory::Mapped)));
    let start = anonymous();

    let mut mapped = open(WeightMemory::Mapped);
    let output = run(&mut mapped);
    assert!(anonymous() - start < 40 * MB, "mapped weights use {} bytes", anonymous() - start);
    drop((mapped, output));

    let mut prepacked = open(WeightMemory::Prepacked);
    let output = run(&mut prepacked);
    let used = anonymous() - start;
    assert!(used > WEIGHT_BYTES * 9 / 10, "prepacked weights use {used} bytes");
    drop((prepacked, output));
    let remaining = anonymous() - start;
    assert!(remaining < 20 * MB, "{remaining} bytes were not returned");

    // The memory pool is returned too, once its last output is dropped.
    let contract = signature(&["shape i64 [2]"], &["filled f32 [A,B]"]);
    let options = OpenOptions::cpu(None, WeightMemory::Mapped);
    let mut filler = runtime.open(&graph("fill"), &contract, &options).unwrap();
    let mut fill = |rows: i64, columns: i64| {
        let shape = Value::from_i64(array![rows, columns]);
        filler.run(&[("shape", &shape)], &Cancel::new()).unwrap().take("filled").unwrap()
    };
    drop(fill(5120, 10240));
    let small = fill(1, 1);
    drop((filler, small));
    let remaining = anonymous() - start;
    assert!(remaining < 20 * MB, "{remaining} bytes were not returned");
}

fn anonymous() -> i64 {
    let bytes = settled_anonymous().expect("the kernel reports it").0;
    i64::try_from(bytes).expect("a process is smaller than 8 EB")
}
