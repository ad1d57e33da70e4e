//! The backend.

use super::clock::Clock;
use super::device_memory::DeviceMemory;
use super::graph::FakeGraph;
use super::hash::{Mixer, unit};
use super::log::{Event, LogEntry, OpenGraph};
use super::script::{Call, Calls, Effect, Script};
use super::session::FakeSession;
use crate::{
    Backend, BackendInfo, Device, Error, Executable, GraphError, GraphSource, OpenOptions, ProviderError,
};
use bundle::units::ByteCount;
use bundle::variant::Target;
use kernels::CpuPath;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A backend for tests, see the [module](super). Clones are the same backend.
#[derive(Debug, Clone)]
pub struct FakeBackend {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    deviation: Deviation,
}

/// How far real memory is from the prediction.
#[derive(Debug, Clone, Copy)]
struct Deviation {
    share: f64,
    seed: u64,
}

/// Everything that changes. Locked for a moment only, never while a call waits or computes.
#[derive(Debug)]
pub(super) struct State {
    graphs: BTreeMap<String, FakeGraph>,
    devices: BTreeMap<Device, FakeDevice>,
    /// Pools of closed sessions whose outputs are alive.
    pools: Vec<KeptPool>,
    pub(super) script: Script,
    pub(super) clock: Clock,
    log: Vec<LogEntry>,
    opened: u64,
    pub(super) real_seconds: f64,
    is_measured: bool,
}

#[derive(Debug)]
struct FakeDevice {
    memory: DeviceMemory,
    target: Target,
}

/// Returns true as long as an output is alive.
pub(super) type Alive = Box<dyn Fn() -> bool + Send>;

struct KeptPool {
    device: Device,
    bytes: ByteCount,
    outputs: Vec<Alive>,
}

impl fmt::Debug for KeptPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeptPool({} on {})", self.bytes, self.device)
    }
}

impl Default for FakeBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeBackend {
    /// A backend without devices and graphs, whose sessions take the predicted memory.
    pub fn new() -> Self {
        Self::with_deviation(0.0, 0)
    }

    /// A backend whose sessions take up to `share` more or less memory than predicted. How much is a function of `seed`,
    /// graph and device, for weights and activations separately.
    pub fn with_deviation(share: f64, seed: u64) -> Self {
        let state = State {
            graphs: BTreeMap::new(),
            devices: BTreeMap::new(),
            pools: Vec::new(),
            script: Script::default(),
            clock: Clock::default(),
            log: Vec::new(),
            opened: 0,
            real_seconds: 0.0,
            is_measured: true,
        };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), deviation: Deviation { share, seed } }) }
    }

    /// Adds a device with this much memory, or changes how much it has. It runs the graphs of [`Target::Cpu`], whatever
    /// its provider, so that a bundle that has no others can be placed on several devices.
    pub fn add_device(&self, device: Device, capacity: ByteCount) {
        let mut state = self.shared.state();
        let new = || FakeDevice { memory: DeviceMemory::new(capacity), target: Target::Cpu };
        state.devices.entry(device).or_insert_with(new).memory.capacity = capacity;
    }

    /// Sets the target whose graphs a device runs.
    pub fn set_target(&self, device: Device, target: Target) {
        if let Some(fake) = self.shared.state().devices.get_mut(&device) {
            fake.target = target;
        }
    }

    /// Sets what other programs use of a device's memory.
    pub fn set_used_by_others(&self, device: Device, bytes: ByteCount) {
        if let Some(fake) = self.shared.state().devices.get_mut(&device) {
            fake.memory.others = bytes;
        }
    }

    /// Adds a graph under the name by which it is opened: the path of its file, or the name of a graph in memory.
    ///
    /// # Panics
    /// Panics if an output has an extent that no input has and that no function gives.
    pub fn add_graph(&self, path: impl Into<PathBuf>, graph: FakeGraph) {
        if let Some(output) = graph.unknown_output() {
            panic!("the graph {} must be told the shape of {output}", graph.name());
        }
        self.shared.state().graphs.insert(path.into().display().to_string(), graph);
    }

    /// Scripts what happens in some calls. Rules that apply to one call all happen, in the order in which they were
    /// scripted.
    pub fn script(&self, calls: Calls, effect: Effect) {
        self.shared.state().script.add(calls, effect);
    }

    /// Removes every rule of the script.
    pub fn clear_script(&self) {
        self.shared.state().script.clear();
    }

    /// Makes each call sleep `seconds` for each second of its latency, so that calls overlap as they would in reality.
    /// Nothing depends on it.
    pub fn set_real_seconds(&self, seconds: f64) {
        self.shared.state().real_seconds = seconds;
    }

    /// Sets whether memory can be measured. It can by default.
    pub fn set_measured(&self, is_measured: bool) {
        self.shared.state().is_measured = is_measured;
    }

    /// The virtual time: the latest time at which a call has ended.
    pub fn now(&self) -> Duration {
        self.shared.state().clock.now()
    }

    /// Lets virtual time pass.
    pub fn advance(&self, by: Duration) {
        self.shared.state().clock.advance(by);
    }

    /// The virtual time that a device was running graphs.
    pub fn busy(&self, device: Device) -> Duration {
        self.shared.state().clock.busy(device)
    }

    /// The memory of a device, if it was added.
    pub fn memory(&self, device: Device) -> Option<DeviceMemory> {
        let mut state = self.shared.state();
        state.free_dropped_pools();
        state.devices.get(&device).map(|fake| fake.memory)
    }

    /// The memory that a graph takes on a device: weights and activations.
    pub fn real_memory(&self, graph: &FakeGraph, device: Device) -> (ByteCount, ByteCount) {
        self.shared.real_memory(graph, device)
    }

    /// Every event since the start.
    pub fn log(&self) -> Vec<LogEntry> {
        self.shared.state().log.clone()
    }

    /// Adds a note to the log, to find in it what the test did.
    pub fn note(&self, text: impl Into<String>) {
        self.shared.state().record(Event::Note(text.into()));
    }

    /// The graphs that are open, in the order of opening.
    pub fn open_graphs(&self) -> Vec<OpenGraph> {
        let mut open = Vec::new();
        for entry in self.log() {
            match entry.event {
                Event::Opened(graph) => open.push(graph),
                Event::Closed(graph) => open.retain(|other| *other != graph),
                _ => {}
            }
        }
        open
    }

    /// The number of graphs that were opened.
    pub fn opened(&self) -> u64 {
        self.shared.state().opened
    }

    /// The number of calls, opening and runs, that were made.
    pub fn calls(&self) -> u64 {
        let is_call =
            |event: &Event| matches!(event, Event::OpenFailed { .. } | Event::Opened(_) | Event::RunBegan(_));
        self.shared.state().log.iter().filter(|entry| is_call(&entry.event)).count() as u64
    }
}

impl Backend for FakeBackend {
    fn info(&self) -> BackendInfo {
        BackendInfo { version: "fake".into(), cpu_path: CpuPath::Avx2 }
    }

    fn target(&self, device: Device) -> Result<Target, Error> {
        let target = self.shared.state().devices.get(&device).map(|fake| fake.target);
        target.ok_or_else(|| ProviderError::NoDevice { device, found: Vec::new() }.into())
    }

    fn open(&self, source: GraphSource<'_>, options: &OpenOptions) -> Result<Box<dyn Executable>, Error> {
        let (name, device) = (source.name(), options.device);
        let opened = self.shared.open(&name, device);
        if opened.is_err() {
            self.shared.state().record(Event::OpenFailed { graph: name, device });
        }
        Ok(Box::new(opened?))
    }

    fn memory_in_use(&self, device: Device) -> Option<ByteCount> {
        self.memory(device).filter(|_| self.shared.state().is_measured).map(|memory| memory.in_use)
    }

    fn available_memory(&self, device: Device) -> Option<ByteCount> {
        self.memory(device).filter(|_| self.shared.state().is_measured).map(|memory| memory.available())
    }

    fn return_freed_memory(&self, device: Device) {
        let mut state = self.shared.state();
        state.free_dropped_pools();
        if let Some(fake) = state.devices.get_mut(&device) {
            fake.memory.return_freed();
        }
    }
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The memory that a graph takes on a device: weights and activations.
    pub(super) fn real_memory(&self, graph: &FakeGraph, device: Device) -> (ByteCount, ByteCount) {
        let Deviation { share, seed } = self.deviation;
        let mut mixer = Mixer::new(seed);
        mixer.add_text(graph.name());
        mixer.add_text(&device.to_string());
        let real = |index: u64, predicted: ByteCount| {
            let factor = 1.0 + share * (2.0 * unit(mixer.at(index)) - 1.0);
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a positive number of bytes, rounded down"
            )]
            let bytes = (predicted.0 as f64 * factor) as u64;
            ByteCount(if share == 0.0 { predicted.0 } else { bytes })
        };
        (real(0, graph.weights), real(1, graph.activations))
    }

    fn open(self: &Arc<Self>, path: &str, device: Device) -> Result<FakeSession, Error> {
        let (began, graph, effects) = {
            let mut state = self.state();
            if !state.devices.contains_key(&device) {
                return Err(ProviderError::NoDevice { device, found: Vec::new() }.into());
            }
            let Some(graph) = state.graphs.get(path).cloned() else {
                let source = io::Error::from(io::ErrorKind::NotFound);
                return Err(GraphError::Unreadable { path: path.into(), source }.into());
            };
            let effects = state.script.count(Call::Open, graph.name(), device);
            (state.clock.now(), graph, effects)
        };
        let mut latency = graph.opening;
        let mut signature = graph.signature().clone();
        for effect in effects {
            match effect {
                Effect::Takes(duration) => latency = duration,
                Effect::Waits(gate) => gate.pass(None),
                Effect::OutOfMemory => return Err(out_of_memory(path, device, None)),
                Effect::Fails => {
                    let why = "the script says so".into();
                    return Err(GraphError::Refused { path: path.into(), why }.into());
                }
                Effect::WrongSignature if signature.outputs.is_empty() => {}
                Effect::WrongSignature => {
                    signature.outputs.remove(0);
                }
                _ => unreachable!("effects on outputs do not apply to opening"),
            }
        }
        self.sleep(latency);
        let (weights, _) = self.real_memory(&graph, device);
        let mut state = self.state();
        if !state.take(device, weights) {
            return Err(out_of_memory(path, device, Some(weights)));
        }
        state.clock.end_opening(began, latency);
        let open = OpenGraph { session: state.opened, graph: Arc::clone(&graph.name), device };
        state.opened += 1;
        state.record(Event::Opened(open.clone()));
        drop(state);
        Ok(FakeSession::new(Arc::clone(self), path.to_owned(), graph, signature, open, weights))
    }

    /// Sleeps for the real time of a latency.
    pub(super) fn sleep(&self, latency: Duration) {
        let real = latency.mul_f64(self.state().real_seconds);
        if !real.is_zero() {
            std::thread::sleep(real);
        }
    }
}

impl State {
    pub(super) fn record(&mut self, event: Event) {
        self.log.push(LogEntry { at: self.clock.now(), event });
    }

    /// Takes memory of a device. Returns false, and takes nothing, if it is not available.
    pub(super) fn take(&mut self, device: Device, bytes: ByteCount) -> bool {
        self.free_dropped_pools();
        self.devices.get_mut(&device).is_some_and(|fake| fake.memory.take(bytes))
    }

    pub(super) fn free(&mut self, device: Device, bytes: ByteCount) {
        if let Some(fake) = self.devices.get_mut(&device) {
            fake.memory.free(bytes);
        }
    }

    /// Keeps the pool of a closed session until `outputs` are dropped.
    pub(super) fn keep_pool(&mut self, device: Device, bytes: ByteCount, outputs: Vec<Alive>) {
        self.pools.push(KeptPool { device, bytes, outputs });
        self.free_dropped_pools();
    }

    fn free_dropped_pools(&mut self) {
        let is_kept = |pool: &KeptPool| pool.outputs.iter().any(|is_alive| is_alive());
        let (kept, dropped) = std::mem::take(&mut self.pools).into_iter().partition(is_kept);
        self.pools = kept;
        for KeptPool { device, bytes, .. } in dropped {
            self.free(device, bytes);
        }
    }
}

/// The error of a call for which memory is short.
pub(super) fn out_of_memory(graph: &str, device: Device, requested: Option<ByteCount>) -> Error {
    Error::OutOfMemory { graph: graph.to_owned(), device, requested }
}
