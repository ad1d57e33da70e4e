//! WebGPU and CUDA, whose devices have memory that the processor cannot read. On machines without a GPU, WebGPU computes
//! on a software driver.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use crate::bundles::Exported;
use crate::support::with_provider;
use bundle::dtype::WeightType;
use bundle::manifest::Bundle;
use bundle::units::ByteCount;
use engines::{
    Backend, Cancel, Copied, CopyCounts, CpuNodes, Device, DeviceChoice, Error, Executable, GraphSource,
    OnnxRuntime, OpenOptions, Provider, TensorError, Value, WeightMemory,
};
use ndarray::{Array1, Array2, arr0};
use runtime::model::{Model, ModelOptions};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use tests::compare::{largest_difference, relative_difference};
use tests::golden::{Case, Computed, case, compute};

/// The copies of a device are counted for the process, so tests that count them run one after another.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A device with memory of its own, and what was copied there before the test.
struct Gpu {
    runtime: OnnxRuntime,
    device: Device,
    before: CopyCounts,
}

/// Makes a check on each provider with such devices.
fn on_each(test: &str, check: impl Fn(&Gpu)) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for provider in [Provider::WebGpu, Provider::Cuda] {
        if let Some((runtime, device)) = with_provider(&format!("{test} on {provider}"), provider) {
            println!("on {device}:");
            let before = runtime.copies(device);
            check(&Gpu { runtime, device, before });
        }
    }
}

impl Gpu {
    /// Opens a graph of the engines' tests on `device`.
    fn open(&self, name: &str, device: Device) -> Box<dyn Executable> {
        Backend::open(&self.runtime, GraphSource::File(&graph_file(name)), &options(device)).unwrap()
    }

    /// Opens a graph whose nodes may run on the CPU beside the device.
    fn open_loosely(&self, name: &str) -> Box<dyn Executable> {
        let options = OpenOptions { cpu_nodes: CpuNodes::All, ..options(self.device) };
        Backend::open(&self.runtime, GraphSource::File(&graph_file(name)), &options).unwrap()
    }

    /// The tensors that crossed to the device and to host memory, and that were moved within the device.
    fn copied(&self) -> [u64; 3] {
        let CopyCounts { to_device, to_host, within } = self.runtime.copies(self.device).since(self.before);
        [to_device.tensors, to_host.tensors, within.tensors]
    }
}

fn graph_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../engines/tests/data/{name}.onnx"))
}

fn options(device: Device) -> OpenOptions {
    OpenOptions { device, ..OpenOptions::cpu(None, WeightMemory::Mapped) }
}

fn floats<const N: usize>(values: [f32; N]) -> Value {
    Value::from_f32(Array1::from_vec(values.to_vec()))
}

fn read(value: &Value) -> Vec<f32> {
    value.to_f32().unwrap().into_raw_vec_and_offset().0
}

/// Runs `running_sum` or `late_read`: the frames, and the next cache.
fn step(graph: &mut dyn Executable, latent: &Value, cache: &Value) -> (Value, Value) {
    let mut outputs = graph.run(&[("latent", latent), ("cache.00", cache)], &Cancel::new()).unwrap();
    (outputs.take("frames").unwrap(), outputs.take("next_cache.00").unwrap())
}

#[test]
fn outputs_stay_on_the_device_and_are_inputs_of_other_sessions() {
    on_each("outputs that stay", |gpu| {
        let mut first = gpu.open("running_sum", gpu.device);
        let mut second = gpu.open("running_sum", gpu.device);
        let latent = floats([1.0, 2.0, 3.0]);
        let mut cache = floats([0.0, 0.0, 0.0]);
        let mut frames = cache.clone();
        for _ in 0..2 {
            for graph in [&mut first, &mut second] {
                (frames, cache) = step(&mut **graph, &latent, &cache);
                assert_eq!((frames.device(), cache.device()), (gpu.device, gpu.device));
                assert_eq!((cache.element().to_string(), cache.shape()), ("f32".into(), &[3][..]));
            }
        }
        // The latent and the first cache crossed once each, although the latent was used four times.
        assert_eq!(gpu.copied(), [2, 0, 0]);
        assert!(matches!(cache.view_f32(), Err(TensorError::NotInHostMemory { .. })));
        assert_eq!((read(&frames), read(&cache)), (vec![-4.0, -8.0, -12.0], vec![4.0, 8.0, 12.0]));
        let copied = gpu.runtime.copies(gpu.device).since(gpu.before);
        assert_eq!(copied.to_host, Copied { tensors: 2, bytes: ByteCount(24) });
    });
}

#[test]
fn a_cache_that_is_read_after_the_next_one_is_written_keeps_its_elements() {
    on_each("a cache that is read late", |gpu| {
        let mut graph = gpu.open("late_read", gpu.device);
        let latent = floats([1.0, 10.0]);
        let mut cache = floats([1.0, 2.0]);
        let mut all = Vec::new();
        for _ in 0..3 {
            let (frames, next) = step(&mut *graph, &latent, &cache);
            all.push((frames, next.clone()));
            cache = next;
        }
        // Every output has its own elements, those of earlier runs too.
        let read: Vec<_> = all.iter().map(|(frames, cache)| (read(frames), read(cache))).collect();
        let expected =
            [([2.0, 24.0], [2.0, 12.0]), ([6.0, 264.0], [3.0, 22.0]), ([12.0, 704.0], [4.0, 32.0])];
        assert_eq!(read, expected.map(|(frames, cache)| (frames.to_vec(), cache.to_vec())));
        assert_eq!(gpu.copied(), [2, 6, 0]);
    });
}

#[test]
fn outputs_outlive_the_session_that_made_them() {
    on_each("outputs of a closed session", |gpu| {
        let mut graph = gpu.open("running_sum", gpu.device);
        let (frames, cache) = step(&mut *graph, &floats([1.0, 2.0]), &floats([3.0, 4.0]));
        let read_before = read(&cache);
        drop(step(&mut *graph, &floats([0.0]), &floats([0.0])));
        drop(graph);
        // The two that are still used were moved to memory that no session has.
        assert_eq!(gpu.copied(), [4, 1, 2]);
        let mut other = gpu.open("running_sum", gpu.device);
        let (_, sum) = step(&mut *other, &floats([1.0, 1.0]), &cache);
        assert_eq!((read_before, read(&frames)), (vec![4.0, 6.0], vec![-4.0, -6.0]));
        assert_eq!(read(&sum), [5.0, 7.0]);
    });
}

#[test]
fn an_output_that_is_an_input_is_the_same_tensor_on_the_device() {
    on_each("an input that is passed on", |gpu| {
        let mut graph = gpu.open("passthrough", gpu.device);
        let x = floats([1.0, -2.0]);
        let mut outputs = graph.run(&[("x", &x)], &Cancel::new()).unwrap();
        let (negated, passed) = (outputs.take("negated").unwrap(), outputs.take("x").unwrap());
        drop((x, graph));
        assert_eq!((read(&negated), read(&passed)), (vec![-1.0, 2.0], vec![1.0, -2.0]));
    });
}

#[test]
fn tensors_cross_between_devices_through_host_memory() {
    on_each("tensors between devices", |gpu| {
        let (mut on_gpu, mut on_cpu) =
            (gpu.open("running_sum", gpu.device), gpu.open("running_sum", Device::CPU));
        let latent = floats([1.0, 2.0]);
        let (_, cache) = step(&mut *on_gpu, &latent, &latent);
        assert_eq!(gpu.copied(), [1, 0, 0], "one value, two inputs");
        let (_, first) = step(&mut *on_cpu, &latent, &cache);
        let (_, second) = step(&mut *on_cpu, &latent, &cache);
        assert_eq!(gpu.copied(), [1, 1, 0], "the cache crossed once for two runs");
        assert_eq!((first.device(), read(&first)), (Device::CPU, vec![3.0, 6.0]));
        let (_, third) = step(&mut *on_gpu, &second, &cache);
        assert_eq!(read(&third), [5.0, 10.0]);
        assert_eq!(gpu.copied(), [2, 2, 0]);
    });
}

#[test]
fn a_cancelled_run_on_a_device_is_not_made_and_the_next_one_is() {
    on_each("a cancelled run", |gpu| {
        let mut graph = gpu.open("running_sum", gpu.device);
        let (latent, cache) = (floats([1.0]), floats([2.0]));
        let cancel = Cancel::new();
        cancel.cancel();
        let run = graph.run(&[("latent", &latent), ("cache.00", &cache)], &cancel);
        assert!(matches!(run, Err(Error::Cancelled { .. })), "{run:?}");
        assert_eq!(gpu.copied(), [0, 0, 0], "nothing is copied for it");
        assert_eq!(read(&step(&mut *graph, &latent, &cache).1), [3.0]);
        assert_eq!(cancel.runs_in_flight(), 0);
    });
}

#[test]
fn an_endless_run_on_a_device_is_cancelled_from_another_thread() {
    on_each("an endless run", |gpu| {
        let mut graph = gpu.open_loosely("loop");
        let rounds = Value::from_i64(arr0(i64::MAX));
        let x = Value::from_f32(Array2::<f32>::eye(64));
        let cancel = Cancel::new();
        let result = std::thread::scope(|scope| {
            let run = scope.spawn(|| graph.run(&[("rounds", &rounds), ("x", &x)], &cancel).map(drop));
            while cancel.runs_in_flight() == 0 {
                std::thread::yield_now();
            }
            cancel.cancel();
            run.join().unwrap()
        });
        assert!(matches!(result, Err(Error::Cancelled { .. })), "{result:?}");
        // The session is whole, and its device too.
        let rounds = Value::from_i64(arr0(1));
        let y = graph.run(&[("rounds", &rounds), ("x", &x)], &Cancel::new()).unwrap().take("y").unwrap();
        assert!((y.to_f32().unwrap()[[0, 0]] - 1.0_f32.tanh()).abs() < 1e-5);
    });
}

/// Computes a case on the CPU, with the components of `place` elsewhere.
fn computed(bundle: &Path, runtime: &OnnxRuntime, place: &str, case: &Case) -> Computed {
    let options = ModelOptions { device: DeviceChoice::On(Device::CPU), ..ModelOptions::default() };
    let model = Model::new(Bundle::open(bundle).unwrap(), runtime.clone(), options).unwrap();
    let model = model.placed(&place.parse().unwrap()).unwrap();
    compute(&model, case, case.reference().latent("noise")).unwrap()
}

#[test]
fn a_clip_on_a_device_equals_that_of_the_cpu_and_only_the_latent_crosses_in_each_step() {
    on_each("a golden case", |gpu| {
        let case = case("five-latent-frames");
        let exported = Exported::for_device(&case, WeightType::F32, gpu.device);
        let bundle = exported.path();
        let on_cpu = computed(&bundle, &gpu.runtime, "decoder=cpu", &case);
        assert_eq!(gpu.copied(), [0, 0, 0]);
        let name = gpu.device.provider();
        let on_gpu =
            computed(&bundle, &gpu.runtime, &format!("high={name},low={name},decoder={name}"), &case);
        let copied = gpu.runtime.copies(gpu.device).since(gpu.before);

        assert_eq!(on_gpu.latents.len(), case.steps);
        for (step, (gpu, cpu)) in on_gpu.latents.iter().zip(&on_cpu.latents).enumerate() {
            let difference = relative_difference(gpu.view(), cpu.view());
            assert!(difference < 5e-3, "latent {step}: {difference}");
        }
        let difference = largest_difference(on_gpu.frames.view(), on_cpu.frames.view());
        assert!(difference < 5e-3, "frames: {difference}");

        // Per clip: the text of both passes in one tensor, and the two rotary tables. Per step: the latents of both passes
        // in one tensor, the timestep and the rows of the tokens. Per frame of the decoder: its latent. No cache crosses.
        let noise = case.reference().latent("noise");
        let (steps, latent_frames) = (case.steps as u64, noise.dim().1 as u64);
        assert_eq!(copied.to_device.tensors, 3 + 3 * steps + latent_frames);
        let floats = 2 * case.steps * noise.len() + on_gpu.frames.len();
        let to_host = Copied { tensors: steps + latent_frames, bytes: ByteCount(4 * floats as u64) };
        assert_eq!(copied.to_host, to_host);
        assert_eq!(copied.within.tensors, 0);
    });
}

#[test]
fn no_node_copies_between_the_device_and_host_memory_in_the_middle_of_a_run() {
    on_each("nodes that copy", |gpu| {
        let exported = Exported::for_device(&case("five-latent-frames"), WeightType::F32, gpu.device);
        let (folder, bundle) = (tempfile::tempdir().unwrap(), exported.path());
        let graphs = format!("{}-f32", gpu.device.target());
        let mut read = 0;
        for component in ["experts/high_noise", "experts/low_noise", "decoder"] {
            for file in std::fs::read_dir(bundle.join(component)).unwrap().map(|file| file.unwrap().path()) {
                let name = file.file_name().unwrap().to_str().unwrap();
                if !name.contains(&graphs) || !name.ends_with(".onnx") {
                    continue;
                }
                let optimized = folder.path().join(name);
                gpu.runtime.write_optimized_on(gpu.device, &file, &optimized).unwrap();
                let model = graph::Model::read(&optimized).unwrap();
                let nodes = &model.proto.graph.as_ref().unwrap().node;
                let copies = nodes.iter().filter(|node| node.op_type.starts_with("Memcpy")).count();
                assert_eq!(copies, 0, "{component}/{name}");
                read += 1;
            }
        }
        assert_eq!(read, 8, "two experts, and the six graphs of a decoder");
    });
}
