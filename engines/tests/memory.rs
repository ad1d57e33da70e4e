//! Memory that is taken and given back: one test, because the numbers are those of the whole process.

mod support;

use engines::memory::{resident_anonymous, return_freed_memory};
use engines::{Cancel, Engine, OpenOptions, Value, WeightMemory};
use ndarray::{Array2, array};
use std::fs::File;
use support::{copied, graph, onnx_runtime, signature};

const MB: i64 = 1_000_000;
/// Rows, columns and offset of the weights of `wide.onnx`.
const WEIGHTS: (u64, u64, u64) = (5120, 10240, 73);
const WEIGHT_BYTES: i64 = 5120 * 10240 * 4;

#[test]
fn weights_are_mapped_or_copied_as_asked_and_everything_is_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = copied("wide", folder.path());
    let (rows, columns, offset) = WEIGHTS;
    // A file of holes: the weights are zeros that take no disk.
    let weights = File::create(folder.path().join("weights.bin")).unwrap();
    weights.set_len(offset + rows * columns * 4).unwrap();

    let contract = signature(&["x f32 [N,10240]"], &["y f32 [N,5120]"]);
    let x = Value::from_f32(Array2::<f32>::ones((16, 10240)));
    let runtime = onnx_runtime();
    let open = |weights| -> Engine {
        runtime.open(&path, &contract, &OpenOptions { threads: None, weights }).unwrap()
    };
    let run = |engine: &mut Engine| engine.run(&[("x", &x)], &Cancel::new()).unwrap().take("y").unwrap();
    // What is allocated once per process must not count.
    drop(run(&mut open(WeightMemory::Mapped)));
    let start = anonymous();

    let mut mapped = open(WeightMemory::Mapped);
    let output = run(&mut mapped);
    assert!(anonymous() - start < 40 * MB, "mapped weights took {} bytes", anonymous() - start);
    drop((mapped, output));

    let mut prepacked = open(WeightMemory::Prepacked);
    let output = run(&mut prepacked);
    let taken = anonymous() - start;
    assert!(taken > WEIGHT_BYTES * 9 / 10, "prepacked weights took {taken} bytes");
    drop((prepacked, output));
    let kept = anonymous() - start;
    assert!(kept < 20 * MB, "{kept} bytes were kept");

    // So is the memory pool, once the last output that lies in it is dropped.
    let contract = signature(&["shape i64 [2]"], &["filled f32 [A,B]"]);
    let options = OpenOptions { threads: None, weights: WeightMemory::Mapped };
    let mut filler = runtime.open(&graph("fill"), &contract, &options).unwrap();
    let mut fill = |rows: i64, columns: i64| {
        let shape = Value::from_i64(array![rows, columns]);
        filler.run(&[("shape", &shape)], &Cancel::new()).unwrap().take("filled").unwrap()
    };
    drop(fill(5120, 10240));
    let small = fill(1, 1);
    drop((filler, small));
    let kept = anonymous() - start;
    assert!(kept < 20 * MB, "{kept} bytes were kept");
}

fn anonymous() -> i64 {
    return_freed_memory();
    let bytes = resident_anonymous().expect("the kernel tells it").0;
    i64::try_from(bytes).expect("a process is smaller than 8 EB")
}
