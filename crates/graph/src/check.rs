//! The rules that every built graph keeps.

use crate::Error;
use crate::formats::Formats;
use crate::model::element_of;
use crate::proto::GraphProto;

/// Checks that the inputs of every node have the formats that its operator takes, that no node ends in an empty input,
/// and that outputs have their declared formats.
///
/// ONNX Runtime refuses most of such graphs, but not all, and TensorRT's parser accepts a wrong declaration of an output
/// and returns values of the other format.
///
/// # Errors
/// Returns an error with the first node or output that breaks a rule.
pub(crate) fn check(graph: &GraphProto, formats: &Formats<'_>) -> Result<(), Error> {
    if let Some((node, why)) = formats.problems.first() {
        return Err(Error::Node { node: node.name.clone(), why: why.clone() });
    }
    let ends_empty = |names: &[String]| names.last().is_some_and(String::is_empty);
    if let Some(node) = graph.node.iter().find(|node| ends_empty(&node.input)) {
        return Err(Error::Node { node: node.name.clone(), why: "its last input is empty".into() });
    }
    for output in &graph.output {
        let tensor = output.r#type.as_ref().and_then(|r#type| r#type.tensor_type.as_ref());
        let declared = tensor.and_then(|tensor| element_of(tensor.elem_type));
        let computed = formats.get(&output.name);
        if declared.is_none() || declared != computed {
            let show = |element: Option<_>| element.map_or("unknown".into(), |element| format!("{element}"));
            return Err(Error::OutputFormat {
                output: output.name.clone(),
                declared: show(declared),
                computed: show(computed),
            });
        }
    }
    Ok(())
}
