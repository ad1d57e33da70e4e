//! Converts ONNX Runtime's errors.
//!
//! Most failures of the library differ only in their text, so the text is matched. Unrecognised messages are passed on
//! without their source locations.

use crate::out_of_memory::out_of_memory;
use crate::{Device, Error, GraphError, ProviderError};
use ort::ErrorCode;
use std::path::Path;

/// The error for a graph at `path` that could not be opened on `device`.
pub(crate) fn open_error(path: &Path, device: Device, error: &ort::Error) -> Error {
    explain_open(path, device, error.code(), error.message())
}

/// The error for a failed run of `graph` on `device`.
pub(crate) fn run_error(graph: &str, device: Device, error: &ort::Error) -> Error {
    explain_run(graph, device, error.code(), error.message())
}

/// The text of any other error, without source locations.
pub(crate) fn text(error: &ort::Error) -> String {
    without_source_locations(error.message())
}

/// Returns true for the text of `cudaErrorNoDevice`.
pub(crate) fn says_no_device(message: &str) -> bool {
    message.contains("CUDA failure 100:") || message.contains("no CUDA-capable device")
}

fn explain_open(path: &Path, device: Device, code: ErrorCode, message: &str) -> Error {
    let path = path.to_owned();
    let why = without_source_locations(message);
    if let Some(error) = out_of_memory(&path.display().to_string(), device, message) {
        error
    } else if device.provider().is_of_nvidia() && says_no_device(message) {
        ProviderError::no_nvidia_device(device.provider()).into()
    } else if message.contains("External data") || message.contains("External initializer") {
        GraphError::WeightsUnusable { path, why }.into()
    } else if code == ErrorCode::InvalidProtobuf || message.contains("No graph was found in the protobuf") {
        GraphError::Damaged { path, why }.into()
    } else if code == ErrorCode::NotImplemented || message.contains("Unsupported model IR version") {
        GraphError::Unsupported { path, why }.into()
    } else {
        GraphError::Refused { path, why }.into()
    }
}

fn explain_run(graph: &str, device: Device, code: ErrorCode, message: &str) -> Error {
    if let Some(error) = out_of_memory(graph, device, message) {
        error
    } else if code == ErrorCode::InvalidArgument && failing_operator(message).is_none() {
        // Refused before the first operator, although inputs are checked against the graph before each run.
        Error::RunRefused { graph: graph.into(), why: without_source_locations(message) }
    } else {
        Error::RunFailed { graph: graph.into(), why: without_source_locations(message) }
    }
}

/// Returns a message without locations in the library's source code, prefixed with the failing operator.
fn without_source_locations(message: &str) -> String {
    let sentence = last_sentence(message.trim()).trim_end_matches('.');
    match failing_operator(message) {
        Some(operator) => format!("{operator}: {sentence}"),
        None => sentence.to_owned(),
    }
}

/// Returns the operator in `... while running Reshape node. Name:'name' Status Message: ...`.
fn failing_operator(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("while running ")?;
    let (kind, rest) = rest.split_once(" node. Name:'")?;
    let (name, _) = rest.split_once('\'')?;
    Some(if name.is_empty() { kind.to_owned() } else { format!("{kind} `{name}`") })
}

/// Returns the sentence at the end of a message like `Load failed:/src/model.cc:256 onnx::Model::Model(int) Text`.
fn last_sentence(message: &str) -> &str {
    let locations =
        [".cc:", ".h:"].iter().filter_map(|ending| message.rsplit_once(ending)).map(|(_, rest)| rest);
    let Some(located) = locations.min_by_key(|rest| rest.len()) else {
        let after_path =
            message.strip_prefix("Load model from ").and_then(|text| text.split_once(" failed:"));
        return after_path.map_or(message, |(_, sentence)| sentence);
    };
    let mut text = located.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start();
    // A function follows: either its bare name, or its whole signature.
    let is_signature = text.find('(').is_some_and(|paren| text[..paren].contains("::"));
    if !is_signature {
        return text.split_once(' ').map_or(message, |(_, sentence)| sentence.trim());
    }
    while let Some((_, rest)) = text.split_once(") ").filter(|(before, _)| before.contains("::")) {
        text = rest;
    }
    text.trim_start_matches("const ").trim()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::{Diagnose, ErrorClass};

    fn opened(code: ErrorCode, message: &str) -> String {
        explain_open(Path::new("experts/high/cpu-f32.onnx"), Device::CPU, code, message).to_string()
    }

    #[test]
    fn a_truncated_file_is_reported_as_damaged() {
        let message = "Load model from experts/high/cpu-f32.onnx failed:Protobuf parsing failed.";
        insta::assert_snapshot!(opened(ErrorCode::InvalidProtobuf, message), @"the graph experts/high/cpu-f32.onnx is damaged: Protobuf parsing failed (export the checkpoint again with this version of rushes)");
    }

    #[test]
    fn missing_short_or_outside_weights_are_distinguished_from_the_graph() {
        let fail = ErrorCode::GenericFailure;
        insta::assert_snapshot!(opened(fail, "External data path validation failed for initializer: weight. Error: tensorprotoutils.cc:461 ValidateExternalDataPathFromDir External data path does not exist: \"/b/w.safetensors\""), @r#"the weights of the graph experts/high/cpu-f32.onnx cannot be used: External data path does not exist: "/b/w.safetensors" (copy the bundle whole, weights included, or export the checkpoint again)"#);
        insta::assert_snapshot!(opened(fail, "Exception during initialization: /src/onnxruntime/core/optimizer/initializer.cc:51 onnxruntime::Initializer::Initializer(const onnx::TensorProto&) [ONNXRuntimeError] : 1 : FAIL : tensorprotoutils.cc:1876 GetExtDataFromTensorProto External initializer: weight offset: 8 size to read: 24 given file_length: 12 are out of bounds or can not be read in full.\n"), @"the weights of the graph experts/high/cpu-f32.onnx cannot be used: External initializer: weight offset: 8 size to read: 24 given file_length: 12 are out of bounds or can not be read in full (copy the bundle whole, weights included, or export the checkpoint again)");
        insta::assert_snapshot!(opened(fail, "External data path validation failed for initializer: weight. Error: External data path escapes model directory. External data path: \"w.bin\" resolved path: \"/tmp/w.bin\" allowed directory: \"/b\""), @r#"the weights of the graph experts/high/cpu-f32.onnx cannot be used: External data path validation failed for initializer: weight. Error: External data path escapes model directory. External data path: "w.bin" resolved path: "/tmp/w.bin" allowed directory: "/b" (copy the bundle whole, weights included, or export the checkpoint again)"#);
    }

    #[test]
    fn an_unsupported_graph_is_reported_with_the_reason() {
        let missing = "Could not find an implementation for Add(14) node with name ''";
        insta::assert_snapshot!(opened(ErrorCode::NotImplemented, missing), @"this ONNX Runtime cannot run the graph experts/high/cpu-f32.onnx: Could not find an implementation for Add(14) node with name '' (use the ONNX Runtime that `make setup` in the checkout gets, and name its file with `onnx_runtime`)");
        let too_new = "Load model from g.onnx failed:/src/onnxruntime/core/graph/model.cc:256 onnxruntime::Model::Model(onnx::ModelProto&&, const onnxruntime::logging::Logger&) Unsupported model IR version: 20, max supported IR version: 13";
        insta::assert_snapshot!(opened(ErrorCode::GenericFailure, too_new), @"this ONNX Runtime cannot run the graph experts/high/cpu-f32.onnx: Unsupported model IR version: 20, max supported IR version: 13 (use the ONNX Runtime that `make setup` in the checkout gets, and name its file with `onnx_runtime`)");
        let invalid = "This is an invalid model. Error: the graph is not acyclic.";
        insta::assert_snapshot!(opened(ErrorCode::InvalidGraph, invalid), @"ONNX Runtime cannot run the graph experts/high/cpu-f32.onnx: This is an invalid model. Error: the graph is not acyclic (export the checkpoint again with this version of rushes)");
    }

    #[test]
    fn failed_allocations_are_recognised_when_opening_and_running() {
        let device: Device = "tensorrt:1".parse().unwrap();
        let message = "Non-zero status code returned while running MatMul node. Name:'m' Status Message: /src/bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool) Failed to allocate memory for requested buffer of size 1024";
        for error in [
            explain_open(Path::new("step"), device, ErrorCode::RuntimeException, message),
            explain_run("step", device, ErrorCode::InvalidArgument, message),
        ] {
            assert_eq!(error.report().class, ErrorClass::DoesNotFit);
            assert!(
                matches!(&error, Error::OutOfMemory { graph, device: on, .. } if graph == "step" && *on == device)
            );
        }
    }

    #[test]
    fn a_failing_operator_is_named_without_source_locations() {
        let message = "Non-zero status code returned while running Reshape node. Name:'r' Status Message: /src/reshape_helper.cc:45 onnxruntime::ReshapeHelper::ReshapeHelper(const onnxruntime::TensorShape&, bool) input_shape_size == size was false.";
        insta::assert_snapshot!(explain_run("step", Device::CPU, ErrorCode::RuntimeException, message), @"the graph step failed while running: Reshape `r`: input_shape_size == size was false (check the bundle with `rushes inspect` and `verify`; if it is whole, report this message with the model and the size of the clip)");
        // An operator may refuse its inputs with the code of refused graph inputs.
        assert!(matches!(
            explain_run("step", Device::CPU, ErrorCode::InvalidArgument, message),
            Error::RunFailed { .. }
        ));
    }

    #[test]
    fn inputs_that_are_refused_before_the_first_operator_are_a_fault_of_the_program() {
        let message = "Got invalid dimensions for input: latent for the following indices index: 3 Got: 5 Expected: 4 Please fix either the inputs/outputs or the model.";
        let error = explain_run("step", Device::CPU, ErrorCode::InvalidArgument, message);
        assert_eq!(error.report().class, ErrorClass::Bug);
        insta::assert_snapshot!(error, @"ONNX Runtime refuses the inputs of the graph step: Got invalid dimensions for input: latent for the following indices index: 3 Got: 5 Expected: 4 Please fix either the inputs/outputs or the model (this is a fault of rushes, not of the input: report it with this message and the command or request)");
    }
}
