//! `rushes doctor`: prints what this machine can run, and what it lacks.

use super::global::GlobalArgs;
use super::render;
use crate::Error;
use bundle::{ErrorClass, Report};
use engines::doctor::{Examination, examine};
use kernels::{Kernels, TileRefusal};
use media::{FileFormat, OutputSpec, plugins};
use serde_json::{Value, json};
use std::fmt::Write;
use std::process::ExitCode;

/// Runs the command. The exit code is 4 if something that `generate` needs is missing.
pub(super) fn run(global: &GlobalArgs) -> Result<ExitCode, Error> {
    let kernels = global.kernels()?;
    let machine = examine(global.onnxruntime.as_deref());
    let video = plugins::survey();
    let onnx_problem = machine.onnx_runtime.as_ref().err().map(render::report);
    let video_problem = match &video {
        Ok(survey) => survey.ready(&default_output()).err().map(|error| render::report(&error)),
        Err(error) => Some(render::report(error)),
    };
    let problems: Vec<&Report> = onnx_problem.iter().chain(&video_problem).collect();
    let value = as_json(&machine, kernels, video.as_ref().ok(), &problems);
    let text = as_text(&machine, kernels, video.as_ref().ok(), &problems);
    render::result(global.json, &value, &text)?;
    let code = if problems.is_empty() { 0 } else { ErrorClass::MissingOnMachine.exit_code() };
    Ok(ExitCode::from(code))
}

/// The default output of `generate`.
fn default_output() -> OutputSpec {
    OutputSpec::File { path: "out.mp4".into(), format: FileFormat::Mp4 }
}

/// The reason why AMX tiles are not used; `None` if they are used, or if this processor has none.
fn refused_tiles() -> Option<String> {
    kernels::tile_refusal().filter(|why| *why != TileRefusal::Processor).map(|why| why.to_string())
}

fn as_json(
    machine: &Examination,
    kernels: Kernels,
    video: Option<&plugins::Survey>,
    problems: &[&Report],
) -> Value {
    let instruction_sets: Vec<&str> = machine
        .cpu
        .instruction_sets
        .iter()
        .filter(|(_, present)| *present)
        .map(|(set, _)| set.name())
        .collect();
    let onnx = machine.onnx_runtime.as_ref().ok();
    json!({
        "event": "doctor",
        "cpu": {
            "name": machine.cpu.name,
            "threads": machine.cpu.threads,
            "instruction_sets": instruction_sets,
            "path": kernels.path().name(),
            "bf16_products": kernels.has_bf16(),
            "amx_refused": refused_tiles(),
        },
        "memory": machine.memory.as_ref().map(|memory| json!({"total": memory.total, "available": memory.available})),
        "onnx_runtime": onnx.map(|onnx| json!({
            "path": render::path(onnx.path()),
            "version": onnx.version(),
            "providers": onnx.providers(),
        })),
        "gstreamer": video.map(|video| json!({
            "version": video.version,
            "h264_encoder": video.encoder.map(|encoder| encoder.element()),
        })),
        "problems": problems,
    })
}

fn as_text(
    machine: &Examination,
    kernels: Kernels,
    video: Option<&plugins::Survey>,
    problems: &[&Report],
) -> String {
    let mut text = String::new();
    // Writing into a String cannot fail.
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<13} {value}");
    };
    line("cpu", format!("{}, {} threads", machine.cpu.name, machine.cpu.threads));
    let sets: Vec<String> = machine
        .cpu
        .instruction_sets
        .iter()
        .map(|(set, present)| format!("{}{}", if *present { "" } else { "no " }, set.name()))
        .collect();
    line("", sets.join(", "));
    let bf16 = if kernels.has_bf16() { "with" } else { "without" };
    line("", format!("Rushes kernels on {}, {bf16} bf16 products", kernels.path()));
    if let Some(why) = refused_tiles() {
        line("", format!("amx is not used: {why}"));
    }
    if let Some(memory) = &machine.memory {
        line("memory", format!("{}, {} free", memory.total, memory.available));
    }
    if let Ok(onnx) = &machine.onnx_runtime {
        line("onnxruntime", format!("{} at {}", onnx.version(), onnx.path().display()));
        line("", format!("providers: {}", onnx.providers().join(", ")));
    }
    if let Some(video) = video {
        line("gstreamer", video.version.clone());
        let encoder = video.encoder.map_or("none", |encoder| encoder.element());
        line("", format!("H.264 encoder: {encoder}"));
    }
    for problem in problems {
        line("missing", problem.what.clone());
        line("", format!("why: {}", problem.why));
        line("", format!("fix: {}", problem.fix));
    }
    if problems.is_empty() {
        line("ready", "everything that `rushes generate` needs is installed".into());
    }
    text
}
