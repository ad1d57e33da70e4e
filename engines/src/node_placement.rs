//! On which providers the nodes of a graph run.

use std::collections::BTreeMap;

/// On which providers the nodes of an open graph run, as ONNX Runtime reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodePlacement {
    /// The number of nodes by ONNX Runtime's name of their provider.
    pub nodes: BTreeMap<String, usize>,
    /// Nodes that run on the CPU beside an accelerator and compute integers only, such as shapes, by operator.
    pub integers_on_cpu: BTreeMap<String, usize>,
    /// The other nodes that run on the CPU beside an accelerator, by operator. ONNX Runtime does not report the nodes that
    /// copy between devices in the middle of a run.
    pub others_on_cpu: BTreeMap<String, usize>,
}

impl NodePlacement {
    /// Returns true if nodes run on the CPU beside an accelerator.
    pub fn has_cpu_nodes(&self) -> bool {
        !(self.integers_on_cpu.is_empty() && self.others_on_cpu.is_empty())
    }

    /// All nodes that run on the CPU beside an accelerator, by operator.
    pub fn on_cpu(&self) -> BTreeMap<String, usize> {
        let mut all = self.integers_on_cpu.clone();
        add(&mut all, &self.others_on_cpu);
        all
    }

    /// Adds the nodes of another graph.
    pub fn add(&mut self, other: &Self) {
        add(&mut self.nodes, &other.nodes);
        add(&mut self.integers_on_cpu, &other.integers_on_cpu);
        add(&mut self.others_on_cpu, &other.others_on_cpu);
    }
}

fn add(counts: &mut BTreeMap<String, usize>, more: &BTreeMap<String, usize>) {
    for (name, count) in more {
        *counts.entry(name.clone()).or_default() += count;
    }
}
