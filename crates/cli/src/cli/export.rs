//! `rushes export`: exports a checkpoint to a bundle.

use super::args::ExportArgs;
use super::global::GlobalArgs;
use super::{inspect, render};
use crate::Error;
use bundle::units::ByteCount;
use export::lora::resolved::LoraProof;
use export::{ExportEvent, ExportReport, ExportRequest};
use serde_json::json;
use std::process::ExitCode;
use std::time::Instant;

/// Runs the command.
pub(super) fn run(args: &ExportArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    let started = Instant::now();
    let request = ExportRequest {
        targets: args.target.clone(),
        weights: args.weights,
        verify: !args.no_verify,
        tiny_decoder: args.tiny.clone(),
        loras: args.lora.lora.clone(),
        lora_lenient: args.lora.lora_lenient,
        copy: args.copy,
        graphs_only: args.graphs_only,
        stop: global.interrupts.cancel().stop().clone(),
        ..ExportRequest::new(&args.checkpoint, &args.out)
    };
    let as_json = global.json;
    let mut loras = Vec::new();
    let report = export::export(&request, &mut |event| {
        if let ExportEvent::Lora(proof) = &event {
            loras.push(proof.clone());
        }
        if !as_json {
            render::note(&describe(&event));
        }
    })?;
    let seconds = started.elapsed().as_secs_f64();
    print(&report, &loras, args.graphs_only, "exported", (seconds, as_json))?;
    Ok(ExitCode::SUCCESS)
}

/// Prints a new bundle, or graphs without weights.
pub(super) fn print(
    report: &ExportReport,
    loras: &[LoraProof],
    graphs_only: bool,
    event: &str,
    (seconds, as_json): (f64, bool),
) -> Result<(), Error> {
    let files: ByteCount = report.manifest.digests.values().map(|digest| digest.bytes).sum();
    let value = json!({
        "event": event,
        "bundle": render::path(&report.folder),
        "model": report.manifest.model,
        "linked_bytes": report.linked,
        "written_bytes": report.written,
        "graphs_only": graphs_only,
        "weights": inspect::weight_formats(&report.manifest),
        "defaults": report.manifest.defaults,
        "loras": loras,
        "seconds": seconds,
    });
    let defaults = inspect::describe_defaults(&report.manifest.defaults);
    if !as_json {
        render::note(&format!("{}: {defaults}", report.manifest.model));
    }
    let folder = report.folder.display();
    let text = if graphs_only {
        format!("{folder}: {files} of graphs and tokenizer without weights, {seconds:.1} s")
    } else {
        format!("{folder}: {} linked, {} written, {seconds:.1} s", report.linked, report.written)
    };
    render::result(as_json, &value, &text)
}

/// A line of progress.
pub(super) fn describe(event: &ExportEvent) -> String {
    match event {
        ExportEvent::Sampling { component, bytes } => format!("{component}: comparing samples of {bytes}"),
        ExportEvent::Reading { component, bytes, converts: false } => format!("{component}: reading {bytes}"),
        ExportEvent::Reading { component, bytes, converts: true } => {
            format!("{component}: reading and converting {bytes}")
        }
        ExportEvent::MixedFormats { component, stored, weights } => {
            let stored: Vec<String> = stored.iter().map(|format| format.element().to_string()).collect();
            let (stored, weights) = (stored.join(" and "), weights.element());
            format!(
                "{component}: its weights are stored in {stored}, and are written in {weights}, which holds all"
            )
        }
        ExportEvent::Lora(proof) => proof.to_string(),
        ExportEvent::ForeignPreviewMap => {
            "warning: preview_map.json was fitted for another decoder and is not exported; \
             fit it again with `rushes calibrate BUNDLE --preview`"
                .into()
        }
        ExportEvent::Writing { component } => format!("{component}: writing graphs"),
    }
}
