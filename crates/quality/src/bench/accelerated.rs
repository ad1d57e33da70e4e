//! Graphs on an accelerator: how long they take to open, where their nodes run, and the memory that they take.

use super::workload::{Workload, timed};
use crate::Error;
use bundle::units::ByteCount;
use bundle::variant::Precision;
use engines::residency::MemoryNeed;
use engines::{Cancel, Device};
use runtime::model::Model;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

/// What is known about graphs on an accelerator besides the times of their runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OnAccelerator {
    /// The device.
    pub device: String,
    /// The precision of the graphs.
    pub precision: Precision,
    /// Seconds until they were open.
    pub opened_s: f64,
    /// Seconds of the first run, which allocates memory and may compile kernels.
    pub first_run_s: f64,
    /// The number of nodes by provider.
    pub nodes: BTreeMap<String, usize>,
    /// Nodes on the CPU, by operator.
    pub on_cpu: BTreeMap<String, usize>,
    /// Predicted bytes of weights and activations.
    pub predicted_memory: Option<ByteCount>,
    /// Growth of the memory in use from before the graphs were opened until after the first run; `None` if the memory of
    /// the device cannot be measured.
    pub measured_memory: Option<ByteCount>,
}

impl OnAccelerator {
    /// Opens the graphs of a model on a device, and runs them once.
    ///
    /// # Errors
    /// They cannot be opened or run, or the run is cancelled.
    pub fn measure<E: From<Error>>(
        model: &Model,
        device: Device,
        precision: Precision,
        cancel: &Cancel,
        open: impl FnOnce() -> Result<Box<dyn Workload>, E>,
    ) -> Result<(Box<dyn Workload>, Self), E> {
        let memory = || model.sessions().backend().memory_in_use(device.memory());
        let before = memory();
        let began = Instant::now();
        let mut workload = open()?;
        let opened_s = began.elapsed().as_secs_f64();
        let first = timed(workload.as_mut(), cancel)?;
        let grown = before.zip(memory()).map(|(before, after)| ByteCount(after.0.saturating_sub(before.0)));
        let nodes = workload.nodes();
        let facts = Self {
            device: device.to_string(),
            precision,
            opened_s,
            first_run_s: first.whole.as_secs_f64(),
            on_cpu: nodes.on_cpu(),
            nodes: nodes.nodes,
            predicted_memory: workload.predicted().map(MemoryNeed::held),
            measured_memory: grown,
        };
        Ok((workload, facts))
    }
}

impl fmt::Display for OnAccelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_unknown =
            |bytes: Option<ByteCount>| bytes.map_or("unknown".to_owned(), |bytes| bytes.to_string());
        let nodes: Vec<String> =
            self.nodes.iter().map(|(provider, count)| format!("{count} {provider}")).collect();
        write!(
            f,
            "{} on {}: open after {:.1} s, first run {:.1} s; nodes: {}; memory: {} predicted, {} measured",
            self.precision,
            self.device,
            self.opened_s,
            self.first_run_s,
            nodes.join(", "),
            or_unknown(self.predicted_memory),
            or_unknown(self.measured_memory)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_a_line() {
        let facts = OnAccelerator {
            device: "cuda:0".into(),
            precision: Precision::Bf16,
            opened_s: 1.25,
            first_run_s: 0.5,
            nodes: BTreeMap::from([
                ("CUDAExecutionProvider".into(), 812),
                ("CPUExecutionProvider".into(), 3),
            ]),
            on_cpu: BTreeMap::from([("Shape".into(), 3)]),
            predicted_memory: Some(ByteCount(2_000_000_000)),
            measured_memory: None,
        };
        insta::assert_snapshot!(facts, @"bf16 on cuda:0: open after 1.2 s, first run 0.5 s; nodes: 3 CPUExecutionProvider, 812 CUDAExecutionProvider; memory: 2.0 GB predicted, unknown measured");
    }
}
