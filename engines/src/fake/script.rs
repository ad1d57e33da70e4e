//! What a test scripts: which calls, and what happens in them.

use super::gate::Gate;
use crate::Device;
use std::time::Duration;

/// A kind of call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Opening a graph.
    Open,
    /// Running it.
    Run,
}

/// What happens in a call.
#[derive(Debug, Clone)]
pub enum Effect {
    /// It has this latency instead of that of its graph.
    Takes(Duration),
    /// It waits until the gate is open. A run also ends when it is cancelled.
    Waits(Gate),
    /// Memory is short: [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    OutOfMemory,
    /// Opening ends with [`GraphError::Refused`](crate::GraphError::Refused), a run with
    /// [`Error::RunFailed`](crate::Error::RunFailed).
    Fails,
    /// The opened graph lacks the first output of its signature. Does not apply to runs.
    WrongSignature,
    /// The first output is missing. Does not apply to opening, nor do the other effects on outputs.
    MissingOutput,
    /// The first output has one axis more than in the signature.
    WrongRank,
    /// The first dynamic extent of the first output is larger by 1: the signature allows it, the caller cannot use it.
    /// Without a dynamic extent it is the first extent.
    WrongExtent,
    /// The first output has another number format.
    WrongFormat,
    /// The first value of the first output is NaN.
    NotFinite,
}

impl Effect {
    /// Returns true if the effect can happen in a call of this kind.
    fn applies_to(&self, call: Call) -> bool {
        match self {
            Self::Takes(_) | Self::Waits(_) | Self::OutOfMemory | Self::Fails => true,
            Self::WrongSignature => call == Call::Open,
            Self::MissingOutput
            | Self::WrongRank
            | Self::WrongExtent
            | Self::WrongFormat
            | Self::NotFinite => call == Call::Run,
        }
    }
}

/// A choice of calls. They are counted from 0, from the time at which the effect is scripted; calls to which the effect
/// does not apply are not counted.
#[derive(Debug, Clone)]
pub struct Calls {
    kind: Option<Call>,
    graph: Option<String>,
    device: Option<Device>,
    which: Which,
}

#[derive(Debug, Clone, Copy)]
enum Which {
    Every,
    Only(u64),
    From(u64),
}

impl Calls {
    /// Every call: opening and runs are counted together.
    pub fn any() -> Self {
        Self { kind: None, graph: None, device: None, which: Which::Every }
    }

    /// Every opening.
    pub fn opens() -> Self {
        Self { kind: Some(Call::Open), ..Self::any() }
    }

    /// Every run.
    pub fn runs() -> Self {
        Self { kind: Some(Call::Run), ..Self::any() }
    }

    /// Only those of a graph, by its name.
    #[must_use]
    pub fn of_graph(self, name: impl Into<String>) -> Self {
        Self { graph: Some(name.into()), ..self }
    }

    /// Only those on a device.
    #[must_use]
    pub fn on_device(self, device: Device) -> Self {
        Self { device: Some(device), ..self }
    }

    /// Only call `number` of them, from 0.
    #[must_use]
    pub fn nth(self, number: u64) -> Self {
        Self { which: Which::Only(number), ..self }
    }

    /// Only call `number` of them, from 0, and all later ones.
    #[must_use]
    pub fn from_nth(self, number: u64) -> Self {
        Self { which: Which::From(number), ..self }
    }

    fn include(&self, call: Call, graph: &str, device: Device) -> bool {
        self.kind.is_none_or(|kind| kind == call)
            && self.graph.as_deref().is_none_or(|name| name == graph)
            && self.device.is_none_or(|only| only == device)
    }
}

/// The rules of a script, and how many calls each has counted.
#[derive(Debug, Default)]
pub(super) struct Script {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    calls: Calls,
    effect: Effect,
    counted: u64,
}

impl Script {
    pub(super) fn add(&mut self, calls: Calls, effect: Effect) {
        self.rules.push(Rule { calls, effect, counted: 0 });
    }

    pub(super) fn clear(&mut self) {
        self.rules.clear();
    }

    /// Counts a call and returns what happens in it, in the order of the rules.
    pub(super) fn count(&mut self, call: Call, graph: &str, device: Device) -> Vec<Effect> {
        let mut effects = Vec::new();
        for Rule { calls, effect, counted } in &mut self.rules {
            if !effect.applies_to(call) || !calls.include(call, graph, device) {
                continue;
            }
            let happens = match calls.which {
                Which::Every => true,
                Which::Only(number) => *counted == number,
                Which::From(number) => *counted >= number,
            };
            *counted += 1;
            effects.extend(happens.then(|| effect.clone()));
        }
        effects
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_counts_the_calls_that_it_includes() {
        let gpu: Device = "cuda".parse().unwrap();
        let mut script = Script::default();
        script.add(Calls::runs().of_graph("a").nth(1), Effect::Fails);
        script.add(Calls::any().on_device(gpu).from_nth(2), Effect::OutOfMemory);
        script.add(Calls::any().nth(0), Effect::NotFinite);
        let mut count = |call, graph, device| {
            let effects = script.count(call, graph, device);
            format!("{effects:?}")
        };
        assert_eq!(count(Call::Open, "a", gpu), "[]");
        assert_eq!(count(Call::Run, "a", gpu), "[NotFinite]");
        assert_eq!(count(Call::Run, "b", Device::CPU), "[]");
        assert_eq!(count(Call::Run, "a", Device::CPU), "[Fails]");
        assert_eq!(count(Call::Run, "a", gpu), "[OutOfMemory]");
        assert_eq!(count(Call::Open, "b", gpu), "[OutOfMemory]");
    }
}
