//! An open graph of the fake.

use super::backend::{Alive, Shared, out_of_memory};
use super::gate::Gate;
use super::graph::FakeGraph;
use super::hash::Mixer;
use super::log::{Event, OpenGraph};
use super::script::{Call, Effect};
use super::values::filled;
use crate::{Cancel, Error, Executable, Outputs, Value};
use bundle::Interrupt;
use bundle::dtype::ElementType;
use bundle::signature::{Extent, Signature};
use bundle::units::ByteCount;
use ndarray::Axis;
use std::fmt;
use std::sync::Arc;

/// An open graph. Dropping it closes it and frees its memory.
pub(super) struct FakeSession {
    shared: Arc<Shared>,
    path: String,
    graph: FakeGraph,
    /// That of the graph, or a wrong one.
    signature: Signature,
    open: OpenGraph,
    weights: ByteCount,
    /// The largest activations of any run so far.
    pool: ByteCount,
    /// Outputs of earlier runs that may be alive. They are in the pool.
    outputs: Vec<Alive>,
}

impl fmt::Debug for FakeSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FakeSession").field(&self.open).finish()
    }
}

impl FakeSession {
    pub(super) fn new(
        shared: Arc<Shared>,
        path: String,
        graph: FakeGraph,
        signature: Signature,
        open: OpenGraph,
        weights: ByteCount,
    ) -> Self {
        Self { shared, path, graph, signature, open, weights, pool: ByteCount(0), outputs: Vec::new() }
    }

    fn outputs(&mut self, inputs: &[(&str, &Value)], cancel: &Cancel) -> Result<Outputs, Error> {
        let cancelled = || Error::Cancelled { graph: self.path.clone() };
        let failed = |why: String| Error::RunFailed { graph: self.path.clone(), why };
        let device = self.open.device;

        let (began, effects) = {
            let mut state = self.shared.state();
            let effects = state.script.count(Call::Run, &self.open.graph, device);
            (state.clock.now(), effects)
        };
        let gates = effects.iter().filter_map(|effect| match effect {
            Effect::Waits(gate) => Some(gate.clone()),
            _ => None,
        });
        let Some(_watch) = cancel.watch(Arc::new(Gates(gates.collect()))) else {
            return Err(cancelled());
        };
        let (_, activations) = self.shared.real_memory(&self.graph, device);
        let growth = ByteCount(activations.0.saturating_sub(self.pool.0));
        if !self.shared.state().take(device, growth) {
            return Err(out_of_memory(&self.path, device, Some(growth)));
        }
        self.pool = self.pool + growth;

        let mut latency = self.graph.running;
        for effect in &effects {
            match effect {
                Effect::Takes(duration) => latency = *duration,
                Effect::Waits(gate) => {
                    gate.pass(Some(cancel));
                    if cancel.is_cancelled() {
                        return Err(cancelled());
                    }
                }
                Effect::OutOfMemory => return Err(out_of_memory(&self.path, device, None)),
                Effect::Fails => return Err(failed("the script says so".into())),
                _ => {}
            }
        }
        let mut outputs = self.graph.outputs(inputs).map_err(failed)?;
        self.shared.sleep(latency);
        if cancel.is_cancelled() {
            return Err(cancelled());
        }
        self.shared.state().clock.end_run(device, began, latency);
        for effect in &effects {
            self.spoil(&mut outputs, effect).map_err(failed)?;
        }
        self.outputs.retain(|is_alive| is_alive());
        self.outputs.extend(outputs.iter().map(|(_, value)| Box::new(value.liveness()) as Alive));
        Ok(Outputs::new(self.path.clone(), outputs))
    }

    /// Makes the first output of the signature wrong. Effects that are the same do not cancel each other.
    fn spoil(&self, outputs: &mut Vec<(String, Value)>, effect: &Effect) -> Result<(), String> {
        let Some(spec) = self.graph.signature().outputs.first() else { return Ok(()) };
        let Some(index) = outputs.iter().position(|(name, _)| *name == spec.name) else { return Ok(()) };
        let value = &mut outputs[index].1;
        let mut shape = value.shape().to_vec();
        match effect {
            Effect::MissingOutput => {
                outputs.remove(index);
            }
            Effect::WrongRank => {
                let array = value.to_f32().map_err(|error| error.to_string())?;
                *value = Value::from_f32(array.insert_axis(Axis(0)));
            }
            Effect::WrongExtent => {
                let dynamic = spec.shape.iter().position(|extent| matches!(extent, Extent::Dynamic(_)));
                if let Some(extent) = shape.get_mut(dynamic.unwrap_or(0)) {
                    *extent += 1;
                }
                *value = filled(value.element(), &shape, Mixer::new(0))?;
            }
            Effect::WrongFormat => {
                let other =
                    if spec.element == ElementType::I64 { ElementType::F32 } else { ElementType::I64 };
                *value = filled(other, &shape, Mixer::new(0))?;
            }
            Effect::NotFinite => {
                let mut array = value.to_f32().map_err(|error| error.to_string())?;
                if let Some(first) = array.first_mut() {
                    *first = f32::NAN;
                }
                *value = Value::from_f32(array);
            }
            _ => {}
        }
        Ok(())
    }
}

impl Executable for FakeSession {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&mut self, inputs: &[(&str, &Value)], cancel: &Cancel) -> Result<Outputs, Error> {
        self.shared.state().record(Event::RunBegan(self.open.clone()));
        let outputs = self.outputs(inputs, cancel);
        let ended = if outputs.is_ok() { Event::Ran } else { Event::RunFailed };
        self.shared.state().record(ended(self.open.clone()));
        outputs
    }
}

impl Drop for FakeSession {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.free(self.open.device, self.weights);
        state.keep_pool(self.open.device, self.pool, std::mem::take(&mut self.outputs));
        state.record(Event::Closed(self.open.clone()));
    }
}

/// The gates at which a run waits.
#[derive(Debug)]
struct Gates(Vec<Gate>);

impl Interrupt for Gates {
    fn interrupt(&self) {
        self.0.iter().for_each(Gate::wake);
    }
}
