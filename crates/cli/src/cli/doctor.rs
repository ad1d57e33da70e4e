//! `rushes doctor`: prints what this machine can run, and what it lacks.

use super::global::GlobalArgs;
use super::render;
use crate::Error;
use bundle::{ErrorClass, Report};
use engines::Provider;
use engines::doctor::{Examination, examine};
use engines::providers::DeviceFacts;
use kernels::{Kernels, TileRefusal};
use media::{FileFormat, OutputSpec, plugins};
use serde_json::{Value, json};
use std::fmt::Write;
use std::process::ExitCode;

/// Runs the command. The exit code is 4 if something that `generate` needs is missing.
pub(super) fn run(global: &GlobalArgs) -> Result<ExitCode, Error> {
    let kernels = global.kernels()?;
    let machine = examine(&global.load_request());
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
        "devices": machine.devices().iter().map(device_as_json).collect::<Vec<_>>(),
        "providers": machine.accelerators.iter().map(provider_as_json).collect::<Vec<_>>(),
        "nvidia_driver": machine.nvidia_driver.as_ref().ok().map(|(major, minor)| json!({"cuda": format!("{major}.{minor}")})),
        "memory": machine.memory.as_ref().map(|memory| json!({"total": memory.total, "available": memory.available})),
        "onnx_runtime": onnx.map(|onnx| json!({
            "path": render::path(onnx.path()),
            "version": onnx.version(),
            "providers": onnx.providers(),
        })),
        "gstreamer": video.map(|video| json!({
            "version": video.version,
            "h264_encoders": video.encoders.iter().map(|encoder| encoder.element()).collect::<Vec<_>>(),
        })),
        "problems": problems,
    })
}

fn device_as_json(facts: &DeviceFacts) -> Value {
    json!({
        "device": facts.device.to_string(),
        "name": facts.name,
        "architecture": facts.architecture,
        "memory": facts.memory,
        "provider_version": facts.version,
    })
}

fn provider_as_json((provider, found): &(Provider, Result<Vec<DeviceFacts>, engines::Error>)) -> Value {
    json!({
        "provider": provider.name(),
        "usable": found.as_ref().is_ok_and(|devices| !devices.is_empty()),
        "missing": found.as_ref().err().map(render::report),
    })
}

/// A device on one line, such as `cuda:0: NVIDIA H200, sm90, 150 GB; version 1.31.1`.
fn device_as_text(facts: &DeviceFacts) -> String {
    let memory = facts.memory.map(|memory| memory.to_string());
    let parts = [Some(facts.name.clone()), Some(facts.architecture.clone()), memory];
    let parts: Vec<String> = parts.into_iter().flatten().filter(|part| !part.is_empty()).collect();
    let version = facts.version.as_ref().map_or_else(String::new, |version| format!("; version {version}"));
    format!("{}: {}{version}", facts.device, parts.join(", "))
}

/// What a provider lacks, on one line.
fn refusal(report: &Report) -> String {
    format!("{}: {} ({})", report.what, report.why, report.fix)
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
    for (index, device) in machine.devices().iter().enumerate() {
        line(if index == 0 { "devices" } else { "" }, device_as_text(device));
    }
    if let Ok((major, minor)) = machine.nvidia_driver {
        line("", format!("the NVIDIA driver supports CUDA {major}.{minor}"));
    }
    for (provider, found) in &machine.accelerators {
        match found {
            Ok(devices) if devices.is_empty() => line("", format!("{provider}: no device")),
            Ok(_) => {}
            Err(error) => line("", refusal(&render::report(error))),
        }
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
        let encoders: Vec<&str> = video.encoders.iter().map(|encoder| encoder.element()).collect();
        let encoders = if encoders.is_empty() { "none".to_owned() } else { encoders.join(", ") };
        line("", format!("H.264 encoders: {encoders}"));
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
