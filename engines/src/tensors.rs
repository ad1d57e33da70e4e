//! Checks the tensors of a run against the signature of its graph: inputs before they are passed to the backend, outputs
//! before anything reads them.

use crate::{TensorError, Value};
use bundle::signature::{Extent, Signature, TensorSpec};

/// Checks that `given` names every input of `graph` exactly once, and that each has its number format and shape.
pub(crate) fn check_inputs(
    graph: &str,
    signature: &Signature,
    given: &[(&str, &Value)],
) -> Result<(), TensorError> {
    for spec in &signature.inputs {
        let mut named = given.iter().filter(|(name, _)| *name == spec.name);
        match (named.next(), named.next()) {
            (Some((_, value)), None) => check_input(graph, spec, value)?,
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

fn check_input(graph: &str, spec: &TensorSpec, value: &Value) -> Result<(), TensorError> {
    if fits(spec, value) {
        return Ok(());
    }
    Err(TensorError::WrongInput {
        graph: graph.into(),
        input: spec.to_string(),
        element: value.element(),
        shape: value.shape().to_vec(),
    })
}

/// Checks that `made` has every output of `graph`, each with its number format and shape.
pub(crate) fn check_outputs(
    graph: &str,
    signature: &Signature,
    made: &[(String, Value)],
) -> Result<(), TensorError> {
    for spec in &signature.outputs {
        let Some((_, value)) = made.iter().find(|(name, _)| *name == spec.name) else {
            return Err(TensorError::AbsentOutput {
                graph: graph.into(),
                output: spec.to_string(),
                returned: made.iter().map(|(name, _)| name.clone()).collect(),
            });
        };
        if !fits(spec, value) {
            return Err(TensorError::WrongOutput {
                graph: graph.into(),
                output: spec.to_string(),
                element: value.element(),
                shape: value.shape().to_vec(),
            });
        }
    }
    Ok(())
}

/// Returns true if a tensor has the number format and shape of a signature's entry.
fn fits(spec: &TensorSpec, value: &Value) -> bool {
    let shape = value.shape();
    value.element() == spec.element
        && shape.len() == spec.shape.len()
        && spec.shape.iter().zip(shape).all(|(extent, &given)| match extent {
            Extent::Fixed(size) => *size == given,
            Extent::Dynamic(_) => true,
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
        check_inputs("step.onnx", &signature(), given).unwrap_err().to_string()
    }

    #[test]
    fn every_mismatch_is_named_in_the_message() {
        let ids = &Value::from_i64(Array2::zeros((1, 7)));
        let cos = &Value::from_f32(Array2::zeros((3, 6)));
        assert!(check_inputs("step.onnx", &signature(), &[("cos", cos), ("ids", ids)]).is_ok());

        insta::assert_snapshot!(message(&[("ids", ids)]), @"the graph step.onnx lacks an input: it takes cos f32 [L,6], and was given ids (this is a fault of rushes, not of the input: report it with this message and the command or request)");
        insta::assert_snapshot!(message(&[("ids", ids), ("cos", cos), ("sin", cos)]), @"the graph step.onnx has no input `sin`: it has ids, cos (this is a fault of rushes, not of the input: report it with this message and the command or request)");
        insta::assert_snapshot!(message(&[("ids", ids), ("cos", cos), ("ids", ids)]), @"the graph step.onnx was given `ids` twice: an input takes one tensor (this is a fault of rushes, not of the input: report it with this message and the command or request)");
        insta::assert_snapshot!(message(&[("ids", cos), ("cos", cos)]), @"the graph step.onnx was given an input of the wrong type or shape: it takes ids i64 [1,L], and was given f32 [3, 6] (this is a fault of rushes, not of the input: report it with this message and the command or request)");
        let wide = &Value::from_f32(Array2::zeros((3, 7)));
        insta::assert_snapshot!(message(&[("ids", ids), ("cos", wide)]), @"the graph step.onnx was given an input of the wrong type or shape: it takes cos f32 [L,6], and was given f32 [3, 7] (this is a fault of rushes, not of the input: report it with this message and the command or request)");
        let flat = &Value::from_f32(Array1::zeros(6));
        assert!(message(&[("ids", ids), ("cos", flat)]).contains("f32 [6]"));
    }

    #[test]
    fn an_output_that_differs_from_the_signature_is_refused() {
        let states = TensorSpec {
            name: "states".into(),
            element: ElementType::F32,
            shape: vec![Extent::Dynamic("S".into()), Extent::Fixed(4)],
        };
        let signature = Signature { inputs: Vec::new(), outputs: vec![states] };
        let check =
            |name: &str, value: Value| check_outputs("encoder.onnx", &signature, &[(name.into(), value)]);
        assert!(check("states", Value::from_f32(Array2::zeros((7, 4)))).is_ok());
        insta::assert_snapshot!(check("other", Value::from_f32(Array2::zeros((7, 4)))).unwrap_err(), @"the graph encoder.onnx did not return an output: states f32 [S,4] was expected, and it returned other (check the bundle with `rushes inspect` and `verify`; if it is whole, report this message)");
        insta::assert_snapshot!(check("states", Value::from_f32(Array2::zeros((7, 5)))).unwrap_err(), @"the graph encoder.onnx returned an output of the wrong type or shape: states f32 [S,4] was expected, and it is f32 [7, 5] (check the bundle with `rushes inspect` and `verify`; if it is whole, report this message)");
        assert!(check("states", Value::from_i64(Array2::zeros((7, 4)))).is_err());
    }
}
