//! The version of the standard operators that a graph needs.

use crate::formats::Formats;
use crate::proto::GraphProto;
use bundle::dtype::ElementType;

/// The operators of [`GraphBuilder`](crate::GraphBuilder) that take bf16 only in a version after 21, and the first such
/// version. Source: the schemas of ONNX 1.23.
const FIRST_WITH_BF16: [(&str, i64); 3] = [("Conv", 22), ("Cos", 22), ("Sin", 22)];

/// Returns the lowest version from `least` upward whose operators take the formats of a graph.
pub(crate) fn needed(graph: &GraphProto, formats: &Formats<'_>, least: i64) -> i64 {
    let in_bf16 = graph.node.iter().filter(|node| {
        let first = node.input.first().and_then(|input| formats.get(input));
        node.domain.is_empty() && first == Some(ElementType::Bf16)
    });
    let versions = in_bf16.filter_map(|node| {
        FIRST_WITH_BF16.iter().find(|(operator, _)| *operator == node.op_type).map(|(_, version)| *version)
    });
    versions.fold(least, i64::max)
}
