//! `rushes export`: exports a checkpoint to a bundle.

use super::args::ExportArgs;
use super::global::GlobalArgs;
use super::{inspect, render};
use crate::Error;
use export::{ExportEvent, ExportRequest};
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
        copy: args.copy,
        stop: global.interrupts.cancel().stop().clone(),
        ..ExportRequest::new(&args.checkpoint, &args.out)
    };
    let as_json = global.json;
    let report = export::export(&request, &mut |event| {
        if !as_json {
            render::note(&describe(&event));
        }
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let value = json!({
        "event": "exported",
        "bundle": render::path(&report.folder),
        "model": report.manifest.model,
        "linked_bytes": report.linked,
        "written_bytes": report.written,
        "weights": inspect::weight_formats(&report.manifest),
        "defaults": report.manifest.defaults,
        "seconds": seconds,
    });
    let defaults = inspect::describe_defaults(&report.manifest.defaults);
    if !as_json {
        render::note(&format!("{}: {defaults}", report.manifest.model));
    }
    let text = format!(
        "{}: {} linked, {} written, {seconds:.1} s",
        report.folder.display(),
        report.linked,
        report.written
    );
    render::result(as_json, &value, &text)?;
    Ok(ExitCode::SUCCESS)
}

fn describe(event: &ExportEvent) -> String {
    match event {
        ExportEvent::Reading { component, bytes } => format!("{component}: reading {bytes}"),
        ExportEvent::MixedFormats { component, stored, weights } => {
            let stored: Vec<String> = stored.iter().map(|format| format.element().to_string()).collect();
            let (stored, weights) = (stored.join(" and "), weights.element());
            format!(
                "{component}: its weights are stored in {stored}, and are written in {weights}, which holds all"
            )
        }
        ExportEvent::ForeignPreviewMap => {
            "warning: preview_map.json was fitted for another decoder and is not exported; \
             fit it again with `rushes calibrate BUNDLE --preview`"
                .into()
        }
        ExportEvent::Writing { component } => format!("{component}: writing weights and graphs"),
    }
}
