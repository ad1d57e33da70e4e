//! Reads from a session on which providers its nodes run, and refuses nodes on the CPU.

use crate::error::ProviderError;
use crate::{CpuNodes, Device, Error, GraphSource, NodePlacement};
use graph::Model;
use graph::providers::integer_nodes;
use ort::AsPointer;
use ort::session::Session;
use std::collections::BTreeSet;
use std::ffi::{CStr, c_char};
use std::path::Path;

/// The nodes of a graph that compute integers only, by name. ONNX Runtime reports names and operators of nodes, but no
/// number formats.
#[derive(Debug, Default)]
pub(crate) struct IntegerNodes(BTreeSet<String>);

/// Operators whose results are integers, whatever their inputs: nodes that ONNX Runtime has made itself have other names.
const INTEGER_OPERATORS: [&str; 4] = ["Shape", "Size", "NonZero", "ArgMax"];

impl IntegerNodes {
    /// Reads them from a graph. None are known of a graph that cannot be read: the session says what is wrong with it.
    pub(crate) fn of(source: GraphSource<'_>) -> Self {
        let model = match source {
            GraphSource::File(path) => Model::read(path),
            GraphSource::Memory { name, bytes } => Model::from_bytes(bytes, Path::new(name)),
        };
        Self(model.map(|model| integer_nodes(&model)).unwrap_or_default())
    }

    fn has(&self, name: &str, operator: &str) -> bool {
        self.0.contains(name) || INTEGER_OPERATORS.contains(&operator)
    }
}

/// Refuses nodes on the CPU that are not allowed there.
pub(crate) fn check(
    graph: &str,
    device: Device,
    allowed: CpuNodes,
    placement: &NodePlacement,
) -> Result<(), Error> {
    if allowed == CpuNodes::All || placement.others_on_cpu.is_empty() {
        return Ok(());
    }
    let operators = placement.others_on_cpu.iter().map(|(operator, count)| (operator.clone(), *count));
    let operators = operators.collect();
    Err(ProviderError::NodesOnCpu { graph: graph.to_owned(), device, operators }.into())
}

/// Reads on which providers the nodes of a session run. The session was opened with [`RECORD`].
pub(crate) fn of_session(
    session: &Session,
    device: Device,
    integers: &IntegerNodes,
) -> ort::Result<NodePlacement> {
    Ok(placed(assigned(session)?, device, integers))
}

fn placed(
    assigned: Vec<(String, Vec<AssignedNode>)>,
    device: Device,
    integers: &IntegerNodes,
) -> NodePlacement {
    let mut placement = NodePlacement::default();
    for (provider, nodes) in assigned {
        if provider != device.provider().onnx_name() {
            for AssignedNode { name, operator } in &nodes {
                let is_integer = integers.has(name, operator);
                let found =
                    if is_integer { &mut placement.integers_on_cpu } else { &mut placement.others_on_cpu };
                *found.entry(operator.clone()).or_default() += 1;
            }
        }
        *placement.nodes.entry(provider).or_default() += nodes.len();
    }
    placement
}

/// The operators of all nodes of a session, which was opened with [`RECORD`].
pub(crate) fn operators(session: &Session) -> ort::Result<Vec<String>> {
    let nodes = assigned(session)?.into_iter().flat_map(|(_, nodes)| nodes);
    Ok(nodes.map(|node| node.operator).collect())
}

/// The option of a session without which ONNX Runtime does not keep where nodes run.
pub(crate) const RECORD: (&str, &str) = ("session.record_ep_graph_assignment_info", "1");

/// A node, as ONNX Runtime reports it.
struct AssignedNode {
    name: String,
    operator: String,
}

/// The providers of a session's subgraphs, each with its nodes.
#[expect(unsafe_code, reason = "`ort` has no function for it")]
fn assigned(session: &Session) -> ort::Result<Vec<(String, Vec<AssignedNode>)>> {
    let api = ort::api();
    let text = |text: *const c_char| {
        if text.is_null() {
            return String::new();
        }
        // SAFETY: ONNX Runtime returned a NUL-terminated string, which the session owns.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    };
    let (mut subgraphs, mut count) = (std::ptr::null(), 0);
    // SAFETY: the session is open. On success it owns an array of `count` pointers, which live as long as it does.
    unsafe {
        let status =
            (api.Session_GetEpGraphAssignmentInfo)(session.ptr(), &raw mut subgraphs, &raw mut count);
        ort::Error::result_from_status(status)?;
    }
    (0..count)
        .map(|index| {
            let (mut name, mut nodes, mut node_count) = (std::ptr::null(), std::ptr::null(), 0);
            // SAFETY: `index` is below the length of the array, whose pointers are valid; the strings and the array of
            // nodes that are returned belong to the session.
            unsafe {
                let subgraph = *subgraphs.add(index);
                ort::Error::result_from_status((api.EpAssignedSubgraph_GetEpName)(subgraph, &raw mut name))?;
                let status = (api.EpAssignedSubgraph_GetNodes)(subgraph, &raw mut nodes, &raw mut node_count);
                ort::Error::result_from_status(status)?;
            }
            let nodes = (0..node_count).map(|node| {
                let (mut name, mut operator) = (std::ptr::null(), std::ptr::null());
                // SAFETY: as above, for the array of nodes.
                unsafe {
                    let node = *nodes.add(node);
                    ort::Error::result_from_status((api.EpAssignedNode_GetName)(node, &raw mut name))?;
                    let status = (api.EpAssignedNode_GetOperatorType)(node, &raw mut operator);
                    ort::Error::result_from_status(status)?;
                }
                Ok(AssignedNode { name: text(name), operator: text(operator) })
            });
            Ok((text(name), nodes.collect::<ort::Result<_>>()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const CPU: &str = "CPUExecutionProvider";
    const WEBGPU: &str = "WebGpuExecutionProvider";

    fn placement(nodes: &[(&str, &str, &str)]) -> NodePlacement {
        let integers = IntegerNodes(["tokens/Mul".to_owned()].into());
        let assigned = nodes.iter().map(|(provider, name, operator)| {
            let node = AssignedNode { name: (*name).to_owned(), operator: (*operator).to_owned() };
            ((*provider).to_owned(), vec![node])
        });
        placed(assigned.collect(), "webgpu:0".parse().unwrap(), &integers)
    }

    fn counts(of: &BTreeMap<String, usize>) -> Vec<(&str, usize)> {
        of.iter().map(|(name, count)| (name.as_str(), *count)).collect()
    }

    #[test]
    fn integers_on_the_cpu_are_told_from_other_nodes_by_their_name() {
        let found = placement(&[
            (WEBGPU, "block/MatMul", "MatMul"),
            (WEBGPU, "block/Mul", "Mul"),
            (CPU, "tokens/Mul", "Mul"),
            (CPU, "new", "Shape"),
            (CPU, "scale/Mul", "Mul"),
        ]);
        assert_eq!(counts(&found.nodes), [(CPU, 3), (WEBGPU, 2)]);
        assert_eq!(counts(&found.integers_on_cpu), [("Mul", 1), ("Shape", 1)]);
        assert_eq!(counts(&found.others_on_cpu), [("Mul", 1)]);
        assert_eq!(counts(&found.on_cpu()), [("Mul", 2), ("Shape", 1)]);
        assert!(found.has_cpu_nodes());
    }

    #[test]
    fn nodes_that_compute_floats_on_the_cpu_are_refused_by_operator() {
        let device: Device = "webgpu:0".parse().unwrap();
        let shapes = placement(&[(WEBGPU, "a", "MatMul"), (CPU, "tokens/Mul", "Mul")]);
        assert!(check("step.onnx", device, CpuNodes::Integers, &shapes).is_ok());
        let mixed = placement(&[(CPU, "a", "MatMul"), (CPU, "b", "MatMul"), (CPU, "c", "Softmax")]);
        insta::assert_snapshot!(check("step.onnx", device, CpuNodes::Integers, &mixed).unwrap_err(), @"not all of the graph step.onnx can run on webgpu:0: these operators would run on the CPU: 2 MatMul, 1 Softmax (allow it with `cpu_nodes`, or `place` the component on cpu)");
        assert!(check("step.onnx", device, CpuNodes::All, &mixed).is_ok());
    }
}
