//! A backend for tests. It opens no file and computes no model; what a real backend can do wrong is scripted.
//!
//! A [`FakeBackend`] has devices with a capacity, and graphs with a signature, predicted memory and latencies
//! ([`FakeGraph`]). The memory that its sessions take differs from the prediction by up to a given share, as that of
//! a real backend does. Outputs are a pure function of the graph's name and the inputs ([`FakeGraph::outputs`]).
//! [`Effect`]s make chosen [`Calls`] slow, blocked, wrong or fail. Time is virtual ([`FakeBackend::now`]). Every call
//! is in a log ([`FakeBackend::log`]).
//!
//! [`FakeBackend::add_bundle`] adds every graph of a bundle, so that whole clips run without ONNX Runtime.
//!
//! # Examples
//! Two graphs on two devices. The second run of the day fails:
//!
//! ```
//! use bundle::dtype::ElementType;
//! use bundle::signature::{Extent, Signature, TensorSpec};
//! use bundle::units::ByteCount;
//! use engines::fake::{Calls, Effect, FakeBackend, FakeGraph};
//! use engines::{Backend, Cancel, Device, Engine, Error, GraphSource, OpenOptions, Value, WeightMemory};
//! use ndarray::Array2;
//! use std::path::Path;
//! use std::time::Duration;
//!
//! let rows = |name: &str| TensorSpec {
//!     name: name.into(),
//!     element: ElementType::F32,
//!     shape: vec![Extent::Dynamic("N".into()), Extent::Fixed(3)],
//! };
//! let signature = Signature { inputs: vec![rows("x")], outputs: vec![rows("y")] };
//!
//! let gpu: Device = "cuda:1".parse()?;
//! let fake = FakeBackend::new();
//! fake.add_device(Device::CPU, ByteCount(1000));
//! fake.add_device(gpu, ByteCount(500));
//! for name in ["first", "second"] {
//!     let graph = FakeGraph::new(name, signature.clone())
//!         .with_memory(ByteCount(300), ByteCount(50))
//!         .with_latencies(Duration::from_secs(3), Duration::from_secs(1));
//!     fake.add_graph(name, graph);
//! }
//! fake.script(Calls::runs().nth(1), Effect::Fails);
//!
//! let open = |name: &str, device| {
//!     let options = OpenOptions { device, ..OpenOptions::cpu(None, WeightMemory::Prepacked) };
//!     Engine::open(&fake, GraphSource::File(Path::new(name)), &signature, &options)
//! };
//! let mut first = open("first", Device::CPU)?;
//! let mut second = open("second", gpu)?;
//! let x = Value::from_f32(Array2::<f32>::ones((2, 3)));
//! let mut outputs = first.run(&[("x", &x)], &Cancel::new())?;
//! assert_eq!(outputs.take("y")?.shape(), [2, 3]);
//! assert!(matches!(second.run(&[("x", &x)], &Cancel::new()), Err(Error::RunFailed { .. })));
//!
//! // 300 bytes of weights and 50 of activations are in use; the second graph is closed again.
//! assert_eq!(fake.memory_in_use(Device::CPU), Some(ByteCount(350)));
//! drop(second);
//! fake.return_freed_memory(gpu);
//! assert_eq!(fake.memory_in_use(gpu), Some(ByteCount(0)));
//! // Two openings and one run; the run that failed took no time.
//! assert_eq!(fake.now(), Duration::from_secs(3 + 3 + 1));
//! assert_eq!(fake.open_graphs().len(), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod backend;
mod bundle_graphs;
mod clock;
mod device_memory;
mod gate;
mod graph;
mod hash;
mod log;
mod script;
mod session;
mod values;

pub use backend::FakeBackend;
pub use device_memory::DeviceMemory;
pub use gate::Gate;
pub use graph::{FakeGraph, InputShapes};
pub use log::{Event, LogEntry, OpenGraph, check_log};
pub use script::{Call, Calls, Effect};

#[cfg(test)]
mod tests;
