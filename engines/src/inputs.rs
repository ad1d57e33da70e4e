//! Checks the inputs of a run against the signature of its graph, before they are passed to ONNX Runtime.

use crate::{TensorError, Value};
use bundle::signature::{Extent, Signature, TensorSpec};

/// Checks that `given` names every input of `graph` exactly once, and that each has its number format and shape.
pub(crate) fn check(graph: &str, signature: &Signature, given: &[(&str, &Value)]) -> Result<(), TensorError> {
    for spec in &signature.inputs {
        let mut named = given.iter().filter(|(name, _)| *name == spec.name);
        match (named.next(), named.next()) {
            (Some((_, value)), None) => check_one(graph, spec, value)?,
            (None, _) => {
                return Err(TensorError::MissingInput {
                    graph: graph.into(),
                    input: spec.to_string(),
                    given: given.iter().map(|(name, _)| (*name).to_owned()).collect(),
                });
            }
            (Some(_), Some(_)) => {
                return Err(TensorError::RepeatedInput { graph: graph.into(), input: spec.name.clone() });
            }
        }
    }
    match given.iter().find(|(name, _)| signature.inputs.iter().all(|spec| spec.name != *name)) {
        None => Ok(()),
        Some((name, _)) => Err(TensorError::UnknownInput {
            graph: graph.into(),
            input: (*name).to_owned(),
            known: signature.inputs.iter().map(|spec| spec.name.clone()).collect(),
        }),
    }
}

fn check_one(graph: &str, spec: &TensorSpec, value: &Value) -> Result<(), TensorError> {
    let shape = value.shape();
    let fits = shape.len() == spec.shape.len()
        && spec.shape.iter().zip(shape).all(|(extent, &given)| match extent {
            Extent::Fixed(size) => *size == given,
            Extent::Dynamic(_) => true,
        });
    if fits && value.element() == spec.element {
        return Ok(());
    }
    Err(TensorError::WrongInput {
        graph: graph.into(),
        input: spec.to_string(),
        element: value.element(),
        shape: shape.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::dtype::ElementType;
    use ndarray::{Array1, Array2};

    fn signature() -> Signature {
        let tensor = |name: &str, element, shape: &[Extent]| TensorSpec {
            name: name.into(),
            element,
            shape: shape.to_vec(),
        };
        let rows = || Extent::Dynamic("L".into());
        Signature {
            inputs: vec![
                tensor("ids", ElementType::I64, &[Extent::Fixed(1), rows()]),
                tensor("cos", ElementType::F32, &[rows(), Extent::Fixed(6)]),
            ],
            outputs: Vec::new(),
        }
    }

    fn message(given: &[(&str, &Value)]) -> String {
        check("step.onnx", &signature(), given).unwrap_err().to_string()
    }

    #[test]
    fn every_mismatch_is_named_in_the_message() {
        let ids = &Value::from_i64(Array2::zeros((1, 7)));
        let cos = &Value::from_f32(Array2::zeros((3, 6)));
        assert!(check("step.onnx", &signature(), &[("cos", cos), ("ids", ids)]).is_ok());

        insta::assert_snapshot!(message(&[("ids", ids)]), @"the graph step.onnx lacks an input: it takes cos f32 [L,6], and was given ids (this is a fault of rushes, not of the input: report it with this message and the command or request)");
        insta::assert_snapshot!(message(&[("ids", ids), ("cos", cos), ("sin", cos)]), @"the graph step.onnx has no input `sin`: it has ids, cos (this is a fault of rushes, not of the input: report it with this message and the command or request)");
        insta::assert_snapshot!(message(&[("ids", ids), ("cos", cos), ("ids", ids)]), @"the graph step.onnx was given `ids` twice: an input takes one tensor (this is a fault of rushes, not of the input: report it with this message and the command or request)");
        insta::assert_snapshot!(message(&[("ids", cos), ("cos", cos)]), @"the graph step.onnx was given an input of the wrong type or shape: it takes ids i64 [1,L], and was given f32 [3, 6] (this is a fault of rushes, not of the input: report it with this message and the command or request)");
        let wide = &Value::from_f32(Array2::zeros((3, 7)));
        insta::assert_snapshot!(message(&[("ids", ids), ("cos", wide)]), @"the graph step.onnx was given an input of the wrong type or shape: it takes cos f32 [L,6], and was given f32 [3, 7] (this is a fault of rushes, not of the input: report it with this message and the command or request)");
        let flat = &Value::from_f32(Array1::zeros(6));
        assert!(message(&[("ids", ids), ("cos", flat)]).contains("f32 [6]"));
    }
}
