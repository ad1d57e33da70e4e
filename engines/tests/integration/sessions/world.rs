//! Seven graphs on up to three fake devices, with budgets.

use crate::support::signature;
use bundle::manifest::{Component, Part};
use bundle::routing::ExpertName;
use bundle::signature::Signature;
use bundle::units::ByteCount;
use bundle::variant::{KernelLibrary, Precision, Variant};
use bundle::{Diagnose, ErrorClass};
use engines::fake::{Calls, Effect, FakeBackend, FakeGraph, check_log};
use engines::residency::{MemoryNeed, Residency};
use engines::sessions::{DeviceUsage, Lease, Purpose, SessionKey, SessionRequest, Sessions};
use engines::{Cancel, Device, Error, MemoryBudgets, OpenOptions, Outputs, Value, WeightMemory};
use ndarray::Array2;
use proptest::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) const GRAPHS: usize = 7;
const DEVICES: [&str; 3] = ["cpu", "cuda:0", "cuda:1"];

/// A device that is never full.
const ENDLESS: ByteCount = ByteCount(1 << 40);

/// What a [`World`] is made of.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// Budget of each device.
    pub(super) budgets: Vec<u64>,
    /// Weights and activations of each graph, and the device, modulo their number.
    pub(super) graphs: [(u64, u64, usize); GRAPHS],
    pub(super) residency: Residency,
    /// How far real memory is from the prediction, and the seed.
    pub(super) deviation: (f64, u64),
    /// True if a device has no more memory than its budget.
    pub(super) is_tight: bool,
    /// What goes wrong in which calls.
    pub(super) faults: Vec<(u64, Fault)>,
}

/// What goes wrong in a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Fails,
    OutOfMemory,
    WrongSignature,
    MissingOutput,
    WrongRank,
    WrongFormat,
}

impl Fault {
    pub(super) const ALL: [Self; 6] = [
        Self::Fails,
        Self::OutOfMemory,
        Self::WrongSignature,
        Self::MissingOutput,
        Self::WrongRank,
        Self::WrongFormat,
    ];

    fn effect(self) -> Effect {
        match self {
            Self::Fails => Effect::Fails,
            Self::OutOfMemory => Effect::OutOfMemory,
            Self::WrongSignature => Effect::WrongSignature,
            Self::MissingOutput => Effect::MissingOutput,
            Self::WrongRank => Effect::WrongRank,
            Self::WrongFormat => Effect::WrongFormat,
        }
    }
}

prop_compose! {
    /// Any settings. `faults` is how many calls go wrong at most.
    pub(super) fn any_settings(faults: usize)(
        budgets in prop::collection::vec(50..300_u64, 1..=DEVICES.len()),
        graphs in prop::array::uniform7((0..100_u64, 0..60_u64, 0..DEVICES.len())),
        residency in prop::sample::select(&Residency::ALL[..]),
        share in prop::sample::select(&[0.0, 0.2][..]),
        seed: u64,
        is_tight: bool,
        faults in prop::collection::vec((0..30_u64, prop::sample::select(&Fault::ALL[..])), 0..=faults),
    ) -> Settings {
        Settings { budgets, graphs, residency, deviation: (share, seed), is_tight, faults }
    }
}

/// One graph and how it is requested.
#[derive(Debug)]
pub(super) struct Graph {
    path: PathBuf,
    pub(super) key: SessionKey,
    pub(super) fake: FakeGraph,
    pub(super) need: MemoryNeed,
    stage: u32,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) fake: FakeBackend,
    pub(super) sessions: Sessions,
    pub(super) graphs: Vec<Graph>,
    pub(super) settings: Settings,
    contract: Signature,
}

impl World {
    pub(super) fn new(settings: &Settings) -> Self {
        let (share, seed) = settings.deviation;
        let fake = FakeBackend::with_deviation(share, seed);
        let mut budgets = MemoryBudgets::default();
        let devices: Vec<Device> = DEVICES.iter().map(|name| name.parse().unwrap()).collect();
        let devices = &devices[..settings.budgets.len()];
        for (device, budget) in devices.iter().zip(&settings.budgets) {
            fake.add_device(*device, if settings.is_tight { ByteCount(*budget) } else { ENDLESS });
            budgets.set(Some(*device), ByteCount(*budget)).unwrap();
        }
        let contract = signature(&["x f32 [N,2]"], &["y f32 [N,2]"]);
        let expert = |name: &str| Component::Expert(ExpertName(name.into()));
        let kinds = [
            ("text", Component::TextEncoder, Part::Whole, Purpose::Clip, 0),
            ("high", expert("high_noise"), Part::Whole, Purpose::Clip, 1),
            ("low", expert("low_noise"), Part::Whole, Purpose::Clip, 2),
            ("first", Component::Decoder, Part::First, Purpose::Clip, 3),
            ("next", Component::Decoder, Part::Next, Purpose::Clip, 4),
            ("preview", Component::Preview, Part::First, Purpose::Preview, 5),
            ("other", Component::TextEncoder, Part::Whole, Purpose::Clip, 0),
        ];
        let graphs = kinds.into_iter().zip(settings.graphs).map(|(kind, (weights, activations, device))| {
            let (name, component, part, purpose, stage) = kind;
            let bundle = if name == "other" { "other" } else { "bundle" };
            let device = devices[device % devices.len()];
            let need = MemoryNeed {
                weights: ByteCount(weights),
                activations: ByteCount(activations),
                ..MemoryNeed::default()
            };
            let fake_graph =
                FakeGraph::new(name, contract.clone()).with_memory(need.weights, need.activations);
            let path = Path::new(bundle).join(name);
            fake.add_graph(&path, fake_graph.clone());
            let key = SessionKey {
                bundle: Path::new(bundle).into(),
                digest: "".into(),
                component,
                part,
                variant: Variant::cpu(Precision::F32, KernelLibrary::OnnxRuntime),
                options: OpenOptions { device, ..OpenOptions::cpu(None, WeightMemory::Prepacked) },
                purpose,
            };
            Graph { path, key, fake: fake_graph, need, stage }
        });
        let graphs = graphs.collect();
        for (number, fault) in &settings.faults {
            fake.script(Calls::any().nth(*number), fault.effect());
        }
        let sessions = Sessions::new(Arc::new(fake.clone()), budgets, settings.residency);
        Self { fake, sessions, graphs, settings: settings.clone(), contract }
    }

    pub(super) fn device(&self, graph: usize) -> Device {
        self.graphs[graph].key.options.device
    }

    /// The budget of a graph's device.
    pub(super) fn budget(&self, graph: usize) -> ByteCount {
        let index = DEVICES.iter().position(|name| *name == self.device(graph).to_string());
        ByteCount(self.settings.budgets[index.unwrap()])
    }

    /// The need of a graph whose activations are `more` bytes larger than usual.
    pub(super) fn need(&self, graph: usize, more: u64) -> MemoryNeed {
        let need = self.graphs[graph].need;
        MemoryNeed { activations: ByteCount(need.activations.0 + more), ..need }
    }

    pub(super) fn lend(&self, graph: usize, more: u64, cancel: &Cancel) -> Result<Lease, Error> {
        let Graph { path, key, stage, .. } = &self.graphs[graph];
        let need = self.need(graph, more);
        let request =
            SessionRequest { key: key.clone(), graph: path, contract: &self.contract, need, stage: *stage };
        self.sessions.lend(&request, cancel)
    }

    /// Runs a leased graph. The outputs must be those of the graph.
    pub(super) fn run(&self, graph: usize, lease: &mut Lease, seed: usize) -> Result<Outputs, Error> {
        let x = Value::from_f32(Array2::from_elem((1 + seed % 3, 2), seed as f32));
        let inputs = [("x", &x)];
        let mut outputs = lease.run(&inputs, &Cancel::new())?;
        let made = outputs.take("y").unwrap();
        let expected = self.graphs[graph].fake.outputs(&inputs).unwrap();
        assert_eq!(made.to_f32().unwrap(), expected[0].1.to_f32().unwrap(), "the outputs of another graph");
        Ok(Outputs::new("kept", vec![("y".into(), made)]))
    }

    /// Checks an error that is not one of the program. `holds_outputs` is true if outputs of closed sessions may be
    /// alive.
    pub(super) fn check_error(&self, graph: usize, more: u64, error: &Error, holds_outputs: bool) {
        let Settings { deviation: (share, _), residency, faults, is_tight, .. } = &self.settings;
        assert_ne!(error.report().class, ErrorClass::Bug, "{error}");
        match error {
            Error::NoRoom { device, needed, budget, charged, .. } => {
                let need = self.need(graph, more).total();
                assert_eq!((*device, *needed, *budget), (self.device(graph), need, self.budget(graph)));
                assert!(needed.0 + charged.0 > budget.0, "{error}");
                let may_lack_room = *residency == Residency::All || *share > 0.0 || holds_outputs;
                assert!(may_lack_room || need > *budget, "there is room: {error}");
            }
            Error::OutOfMemory { .. } => {
                let is_scripted = faults.iter().any(|(_, fault)| *fault == Fault::OutOfMemory);
                // With right predictions, what is charged is what is used.
                assert!(is_scripted || (*is_tight && *share > 0.0), "{error}");
            }
            Error::RunFailed { .. } | Error::Graph(_) | Error::Contract(_) | Error::Tensor(_) => {
                assert!(!faults.is_empty(), "{error}");
            }
            other => panic!("{other}"),
        }
    }

    /// Checks what holds at any time, also while other threads use the sessions.
    pub(super) fn check_usage(&self) -> Vec<DeviceUsage> {
        let usage = self.sessions.usage();
        for device in &usage {
            let DeviceUsage { budget, charged, peak, sessions, .. } = device;
            assert!(charged <= peak && peak <= budget, "{device:?}");
            let predicted: ByteCount = sessions.iter().map(|session| session.predicted.total()).sum();
            assert!(predicted <= *charged, "{device:?}");
            for (index, session) in sessions.iter().enumerate() {
                // Memory that is as predicted is not measured to be more: no session is charged for another.
                let (MemoryNeed { weights, activations, .. }, right) = (session.measured, session.predicted);
                let is_right = weights <= right.weights && activations <= right.activations;
                assert!(self.settings.deviation.0 > 0.0 || is_right, "{device:?}");
                assert!(sessions[..index].iter().all(|other| other.key != session.key), "{device:?}");
            }
        }
        usage
    }

    /// Checks what holds while no other thread uses the sessions. `lent` is the graph that is lent.
    pub(super) fn check(&self, lent: Option<usize>) {
        let usage = self.check_usage();
        assert_eq!(check_log(&self.fake.log()), Ok(()));
        let open = self.fake.open_graphs();
        let listed: usize = usage.iter().map(|device| device.sessions.len()).sum();
        assert_eq!(open.len(), listed, "{open:?}, {usage:?}");
        if let Some(lent) = lent {
            let name = self.graphs[lent].fake.name();
            assert!(open.iter().any(|open| *open.graph == *name), "{name} is lent and not in {open:?}");
        }
        for device in &usage {
            let memory = self.fake.memory(device.device).unwrap();
            if self.settings.deviation.0 == 0.0 {
                assert!(memory.held <= device.charged, "{memory:?}, {device:?}");
            }
        }
    }

    /// Checks that the sessions still work, then closes everything. No lease and no output is alive.
    pub(super) fn check_end(&self) {
        self.fake.clear_script();
        for device in DEVICES.iter().take(self.settings.budgets.len()) {
            self.fake.add_device(device.parse().unwrap(), ENDLESS);
        }
        for graph in 0..GRAPHS {
            if self.settings.residency == Residency::All || self.settings.deviation.0 > 0.0 {
                self.sessions.close_idle();
            }
            let lease = self.lend(graph, 0, &Cancel::new());
            if self.need(graph, 0).total() > self.budget(graph) {
                assert!(matches!(lease, Err(Error::NoRoom { .. })), "{lease:?}");
                continue;
            }
            self.run(graph, &mut lease.unwrap(), graph).unwrap();
            self.check(None);
        }
        self.sessions.close_idle();
        self.check(None);
        assert_eq!(self.fake.open_graphs(), []);
        for device in self.sessions.usage() {
            assert_eq!((device.charged, device.sessions.len()), (ByteCount(0), 0), "{device:?}");
            assert_eq!(self.fake.memory(device.device).unwrap().in_use, ByteCount(0));
        }
        let opened = self
            .fake
            .log()
            .iter()
            .filter(|entry| matches!(entry.event, engines::fake::Event::Opened(_)))
            .count();
        assert!(self.sessions.opened() <= opened as u64);
    }
}
