//! The process that compiles one component. It prints JSON lines.

use super::{BuildArgs, is_missing, needs, onnx_runtime};
use crate::Error;
use crate::cli::global::GlobalArgs;
use crate::cli::render;
use bundle::ErrorClass;
use engines::compiled::Outcome;
use engines::placement::name_of;
use runtime::engine_builds::EngineNeed;
use serde_json::{Value, json};
use signal_hook::low_level;
use std::io::Read;
use std::process::ExitCode;

/// Compiles a component, one graph after the other. Graphs whose engines are whole are skipped.
///
/// # Errors
/// Returns an error if a graph is refused, memory is short, or an engine cannot be stored.
pub(super) fn run(args: &BuildArgs, component: &str, global: &GlobalArgs) -> Result<ExitCode, Error> {
    end_with_parent();
    let onnx = onnx_runtime(args, global)?;
    let store = onnx.engines().cloned().ok_or(Error::NoEngineFolder)?;
    // The lines say the same.
    let onnx = onnx.with_engines(store.with_notices(|_| ()));
    for need in needs(args, &onnx)? {
        if name_of(&need.component) != component {
            continue;
        }
        if is_missing(&onnx, &need) {
            render::result(true, &line(&need, "compiling"), "")?;
        }
        let built = onnx.build_engine(&need.graph, &need.options)?;
        let state = match built.outcome {
            Outcome::Present => "present",
            Outcome::Compiled => "stored",
        };
        let mut value = line(&need, state);
        value["seconds"] = json!(built.record.seconds);
        value["bytes"] = json!(built.record.bytes());
        value["nodes"] = json!(built.record.nodes);
        render::result(true, &value, "")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn line(need: &EngineNeed, state: &str) -> Value {
    json!({
        "event": "engine",
        "state": state,
        "component": name_of(&need.component),
        "part": need.part,
        "device": need.device.to_string(),
        "shape": need.shape.map(|shape| shape.to_string()),
        "graph": render::path(&need.graph),
    })
}

/// Ends this process when the one that started it has ended: its end of standard input is closed then.
fn end_with_parent() {
    std::thread::spawn(|| {
        let mut bytes = [0; 64];
        let mut input = std::io::stdin().lock();
        while input.read(&mut bytes).is_ok_and(|count| count > 0) {}
        // The compiler is running, so destructors are not run.
        low_level::exit(i32::from(ErrorClass::Interrupted.exit_code()));
    });
}
