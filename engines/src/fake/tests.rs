use super::{Calls, Effect, Event, FakeBackend, FakeGraph, Gate, check_log};
use crate::{
    Backend, Cancel, Device, Engine, Error, GraphError, GraphSource, OpenOptions, Outputs, TensorError,
    Value, WeightMemory,
};
use bundle::dtype::ElementType;
use bundle::signature::{Extent, Signature, TensorSpec};
use bundle::units::ByteCount;
use ndarray::{Array1, Array2};
use proptest::prelude::*;
use std::path::Path;
use std::time::Duration;

fn signature() -> Signature {
    let tensor = |name: &str, element| TensorSpec {
        name: name.into(),
        element,
        shape: vec![Extent::Dynamic("N".into()), Extent::Fixed(3)],
    };
    Signature {
        inputs: vec![tensor("x", ElementType::F32), tensor("ids", ElementType::I64)],
        outputs: vec![tensor("y", ElementType::F32), tensor("counts", ElementType::I64)],
    }
}

/// A backend with the graph `a` of 300 and 50 bytes on a CPU of 1000 bytes.
fn fake() -> FakeBackend {
    let fake = FakeBackend::new();
    fake.add_device(Device::CPU, ByteCount(1000));
    fake.add_graph("a", graph());
    fake
}

fn graph() -> FakeGraph {
    FakeGraph::new("a", signature())
        .with_memory(ByteCount(300), ByteCount(50))
        .with_latencies(Duration::from_secs(2), Duration::from_secs(1))
}

fn open(fake: &FakeBackend, path: &str) -> Result<Engine, Error> {
    let options = OpenOptions::cpu(None, WeightMemory::Prepacked);
    Engine::open(fake, GraphSource::File(Path::new(path)), &signature(), &options)
}

fn run(engine: &mut Engine, rows: usize, cancel: &Cancel) -> Result<Outputs, Error> {
    let (x, ids) = inputs(rows);
    engine.run(&[("x", &x), ("ids", &ids)], cancel)
}

fn inputs(rows: usize) -> (Value, Value) {
    (Value::from_f32(Array2::<f32>::ones((rows, 3))), Value::from_i64(Array2::<i64>::ones((rows, 3))))
}

fn held(fake: &FakeBackend) -> (u64, u64) {
    let memory = fake.memory(Device::CPU).unwrap();
    (memory.held.0, memory.in_use.0)
}

#[test]
fn outputs_depend_on_every_input_and_on_the_name() {
    let of = |graph: &FakeGraph, x: &Value, ids: &Value| {
        let outputs = graph.outputs(&[("x", x), ("ids", ids)]).unwrap();
        assert!(outputs[0].1.view_f32().unwrap().iter().all(|value| (-1.0..1.0).contains(value)));
        let bits: Vec<u32> = outputs[0].1.to_f32().unwrap().iter().map(|value| value.to_bits()).collect();
        (bits, outputs[1].1.view::<i64>().unwrap().to_owned())
    };
    let (x, ids) = inputs(2);
    let expected = of(&graph(), &x, &ids);
    assert_eq!(of(&graph(), &x, &ids), expected);
    let mut other = Array2::<f32>::ones((2, 3));
    other[[1, 2]] = 1.000_000_1;
    assert_ne!(of(&graph(), &Value::from_f32(other), &ids).0, expected.0);
    let mut other = Array2::<i64>::ones((2, 3));
    other[[1, 2]] = 2;
    assert_ne!(of(&graph(), &x, &Value::from_i64(other)).0, expected.0);
    assert_ne!(of(&FakeGraph::new("b", signature()), &x, &ids).0, expected.0);

    let mut engine = open(&fake(), "a").unwrap();
    let mut outputs = run(&mut engine, 2, &Cancel::new()).unwrap();
    let bits = outputs.take("y").unwrap().to_f32().unwrap().mapv(f32::to_bits).into_raw_vec_and_offset().0;
    assert_eq!(bits, expected.0);
    let contradiction = graph().outputs(&[("x", &x), ("ids", &inputs(3).1)]).unwrap_err();
    assert_eq!(contradiction, "the extent N is 2 in one input and 3 in another");
}

#[test]
fn memory_is_held_from_opening_and_the_first_run_to_closing() {
    let fake = fake();
    let mut first = open(&fake, "a").unwrap();
    assert_eq!(held(&fake), (300, 300));
    run(&mut first, 1, &Cancel::new()).unwrap();
    run(&mut first, 2, &Cancel::new()).unwrap();
    let second = open(&fake, "a").unwrap();
    let third = open(&fake, "a").unwrap();
    assert_eq!(held(&fake), (950, 950));
    assert_eq!(fake.available_memory(Device::CPU), Some(ByteCount(50)));
    assert!(matches!(open(&fake, "a"), Err(Error::OutOfMemory { requested: Some(ByteCount(300)), .. })));
    drop(third);
    // The allocator keeps what is freed until it is asked.
    assert_eq!(held(&fake), (650, 950));
    fake.return_freed_memory(Device::CPU);
    assert_eq!((held(&fake), fake.memory_in_use(Device::CPU)), ((650, 650), Some(ByteCount(650))));
    fake.set_used_by_others(Device::CPU, ByteCount(345));
    let mut second = second;
    assert!(matches!(run(&mut second, 1, &Cancel::new()), Err(Error::OutOfMemory { .. })));
    fake.set_used_by_others(Device::CPU, ByteCount(0));
    run(&mut second, 1, &Cancel::new()).unwrap();
    drop((first, second));
    assert_eq!(held(&fake).0, 0);
    assert_eq!(fake.memory(Device::CPU).unwrap().peak, ByteCount(950));
    assert_eq!(check_log(&fake.log()), Ok(()));
    fake.set_measured(false);
    assert_eq!(fake.memory_in_use(Device::CPU), None);
}

#[test]
fn outputs_keep_the_pool_of_a_closed_graph() {
    let fake = fake();
    let mut engine = open(&fake, "a").unwrap();
    let outputs = run(&mut engine, 1, &Cancel::new()).unwrap();
    run(&mut engine, 1, &Cancel::new()).unwrap();
    drop(engine);
    assert_eq!(held(&fake).0, 50);
    let left = outputs.into_iter().next().unwrap().1.clone();
    assert_eq!(held(&fake).0, 50);
    drop(left);
    assert_eq!(held(&fake).0, 0);
}

proptest! {
    #[test]
    fn real_memory_is_within_the_deviation_and_repeats(seed: u64, share in 0.0..0.5_f64) {
        let of = |device: &str| {
            FakeBackend::with_deviation(share, seed).real_memory(&graph(), device.parse().unwrap())
        };
        let (weights, activations) = of("cpu");
        prop_assert!((weights.0 as f64 - 300.0).abs() <= 300.0 * share + 1.0);
        prop_assert!((activations.0 as f64 - 50.0).abs() <= 50.0 * share + 1.0);
        prop_assert_eq!(of("cpu"), (weights, activations));
    }
}

#[test]
fn deviations_go_both_ways_and_differ_between_devices() {
    let of = |seed, device: &str| {
        FakeBackend::with_deviation(0.2, seed).real_memory(&graph(), device.parse().unwrap()).0.0
    };
    let all: Vec<u64> = (0..200).map(|seed| of(seed, "cpu")).collect();
    assert!(*all.iter().min().unwrap() < 245 && *all.iter().max().unwrap() > 355, "{all:?}");
    assert!((0..10).any(|seed| of(seed, "cuda:0") != of(seed, "cuda:1")));
}

#[test]
fn calls_fail_as_scripted_and_the_session_goes_on() {
    let fake = fake();
    fake.script(Calls::opens().nth(0), Effect::Fails);
    fake.script(Calls::opens().nth(1), Effect::OutOfMemory);
    fake.script(Calls::opens().nth(2), Effect::WrongSignature);
    assert!(matches!(open(&fake, "a"), Err(Error::Graph(GraphError::Refused { .. }))));
    assert!(matches!(open(&fake, "a"), Err(Error::OutOfMemory { .. })));
    assert!(matches!(open(&fake, "a"), Err(Error::Contract(_))));
    assert!(matches!(open(&fake, "b"), Err(Error::Graph(GraphError::Unreadable { .. }))));
    assert_eq!(held(&fake).0, 0);

    let mut engine = open(&fake, "a").unwrap();
    let effects = [
        Effect::Fails,
        Effect::OutOfMemory,
        Effect::MissingOutput,
        Effect::WrongRank,
        Effect::WrongFormat,
        Effect::WrongExtent,
        Effect::NotFinite,
    ];
    for (number, effect) in effects.into_iter().enumerate() {
        fake.script(Calls::runs().nth(number as u64), effect);
    }
    let mut run = || run(&mut engine, 2, &Cancel::new());
    assert!(matches!(run(), Err(Error::RunFailed { .. })));
    assert!(matches!(run(), Err(Error::OutOfMemory { .. })));
    assert!(matches!(run(), Err(Error::Tensor(TensorError::AbsentOutput { .. }))));
    assert!(matches!(run(), Err(Error::Tensor(TensorError::WrongOutput { .. }))));
    assert!(matches!(run(), Err(Error::Tensor(TensorError::WrongOutput { .. }))));
    assert_eq!(run().unwrap().take("y").unwrap().shape(), [3, 3]);
    assert!(run().unwrap().take("y").unwrap().view_f32().unwrap()[[0, 0]].is_nan());
    assert!(run().unwrap().take("y").unwrap().view_f32().unwrap()[[0, 0]].is_finite());
    assert_eq!(check_log(&fake.log()), Ok(()));
    assert_eq!(fake.calls(), 5 + 8);
}

#[test]
fn a_waiting_run_ends_when_the_gate_opens_or_it_is_cancelled() {
    for cancels in [false, true] {
        let (fake, gate, cancel) = (fake(), Gate::new(), Cancel::new());
        fake.script(Calls::runs().nth(0), Effect::Waits(gate.clone()));
        let mut engine = open(&fake, "a").unwrap();
        let thread = {
            let cancel = cancel.clone();
            std::thread::spawn(move || run(&mut engine, 1, &cancel).map(drop))
        };
        gate.wait_for(1);
        assert_eq!(cancel.runs_in_flight(), 1);
        assert!(matches!(fake.log().last().unwrap().event, Event::RunBegan(_)));
        if cancels {
            cancel.cancel()
        } else {
            gate.open()
        }
        let done = thread.join().unwrap();
        assert_eq!(matches!(done, Err(Error::Cancelled { .. })), cancels, "{done:?}");
        assert_eq!(done.is_ok(), !cancels);
        assert_eq!((gate.waiting(), cancel.runs_in_flight()), (0, 0));
    }
    let cancel = Cancel::new();
    cancel.cancel();
    let mut engine = open(&fake(), "a").unwrap();
    assert!(matches!(run(&mut engine, 1, &cancel), Err(Error::Cancelled { .. })));
}

#[test]
fn time_passes_by_latencies() {
    let fake = fake();
    fake.script(Calls::runs().nth(1), Effect::Takes(Duration::from_secs(30)));
    let mut engine = open(&fake, "a").unwrap();
    run(&mut engine, 1, &Cancel::new()).unwrap();
    assert_eq!(fake.now(), Duration::from_secs(3));
    run(&mut engine, 1, &Cancel::new()).unwrap();
    assert_eq!((fake.now(), fake.busy(Device::CPU)), (Duration::from_secs(33), Duration::from_secs(31)));
}

#[test]
fn an_output_without_a_known_shape_is_refused() {
    let mut signature = signature();
    signature.outputs[0].shape[0] = Extent::Dynamic("M".into());
    let graph = FakeGraph::new("a", signature);
    assert_eq!(graph.unknown_output().unwrap().name, "y");
    let known = graph.clone().with_shape("y", |inputs| vec![2 * inputs.extent("N"), 3]);
    assert_eq!(known.unknown_output(), None);
    let flat = Value::from_f32(Array1::<f32>::zeros(1));
    assert!(graph.outputs(&[("x", &flat)]).unwrap_err().contains("the extent M"));
}

#[test]
fn a_log_that_cannot_be_is_found() {
    let fake = fake();
    let mut engine = open(&fake, "a").unwrap();
    run(&mut engine, 1, &Cancel::new()).unwrap();
    fake.note("closing");
    drop(engine);
    let log = fake.log();
    assert_eq!(check_log(&log), Ok(()));
    assert_eq!(log.len(), 5);
    for missing in 0..3 {
        let mut log = log.clone();
        log.remove(missing);
        assert!(check_log(&log).is_err(), "without entry {missing}");
    }
    assert!(check_log(&[&log[..], &log[4..]].concat()).is_err());
}
