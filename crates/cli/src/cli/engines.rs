//! `rushes engines`: lists and removes compiled engines.

use super::global::GlobalArgs;
use super::render;
use crate::Error;
use bundle::units::ByteCount;
use clap::{Args, Subcommand};
use engines::compiled::{EngineStore, EnginesHere, ListedEngine, PruneOptions, Pruned, list, prune};
use engines::providers::check;
use engines::{Device, Provider};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds of a day.
const DAY: u64 = 24 * 60 * 60;

/// The arguments of `rushes engines`.
#[derive(Debug, Args)]
pub(super) struct EnginesArgs {
    #[command(subcommand)]
    command: EnginesCommand,
}

#[derive(Debug, Subcommand)]
enum EnginesCommand {
    /// Print the compiled engines, and why they cannot be used on this machine
    List(ListArgs),
    /// Remove engines that cannot be used: damaged ones, and those of other versions of ONNX Runtime, of the provider or
    /// of the processor
    Prune(PruneArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Read every byte of the engines
    #[arg(long)]
    verify: bool,
}

#[derive(Debug, Args)]
struct PruneArgs {
    /// Remove all engines
    #[arg(long)]
    all: bool,
    /// Remove engines too that were compiled at least this many days ago
    #[arg(long, value_name = "DAYS")]
    older_than: Option<u32>,
    /// Print what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
}

/// Runs the command.
pub(super) fn run(args: &EnginesArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    // Engines of TensorRT can be judged only by the build of ONNX Runtime that has it.
    let tensorrt = Device::try_new(Provider::TensorRt, 0)?;
    let usable = Some(tensorrt).filter(|device| check(*device, &global.machine()).is_ok());
    let onnx = global.onnx_runtime_for(usable)?;
    let store = onnx.engines().cloned().ok_or(Error::NoEngineFolder)?;
    let here = onnx.engines_here();
    match &args.command {
        EnginesCommand::List(args) => listed(args, &store, &here, global.json),
        EnginesCommand::Prune(args) => pruned(args, &store, &here, global.json),
    }
}

fn listed(
    args: &ListArgs,
    store: &EngineStore,
    here: &EnginesHere,
    as_json: bool,
) -> Result<ExitCode, Error> {
    let engines = list(store, here, args.verify)?;
    let total: ByteCount = engines.iter().map(|engine| engine.bytes).sum();
    let value = json!({
        "event": "engines",
        "folder": render::path(store.folder()),
        "bytes": total,
        "engines": engines.iter().map(as_value).collect::<Vec<_>>(),
    });
    let folder = store.folder().display();
    let text = if engines.is_empty() {
        format!("there are no compiled engines in {folder}")
    } else {
        format!("{}\n\n{} engines, {total}, in {folder}", table(&engines), engines.len())
    };
    render::result(as_json, &value, &text)?;
    Ok(ExitCode::SUCCESS)
}

fn pruned(
    args: &PruneArgs,
    store: &EngineStore,
    here: &EnginesHere,
    as_json: bool,
) -> Result<ExitCode, Error> {
    let options = PruneOptions {
        all: args.all,
        older_than: args.older_than.map(|days| Duration::from_secs(u64::from(days) * DAY)),
        now: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        dry_run: args.dry_run,
    };
    let Pruned { removed, busy, kept } = prune(store, here, &options)?;
    let total: ByteCount = removed.iter().map(|engine| engine.bytes).sum();
    let value = json!({
        "event": "pruned",
        "folder": render::path(store.folder()),
        "dry_run": args.dry_run,
        "bytes": total,
        "removed": removed.iter().map(as_value).collect::<Vec<_>>(),
        "busy": busy.iter().map(as_value).collect::<Vec<_>>(),
        "kept": kept,
    });
    let word = if args.dry_run { "would be removed" } else { "removed" };
    let mut lines: Vec<String> = Vec::new();
    if !removed.is_empty() {
        lines.extend([table(&removed), String::new()]);
    }
    lines.push(format!("{} engines {word}, {total}; {kept} kept", removed.len()));
    if !busy.is_empty() {
        lines.push(format!("{} are in use and stay", busy.len()));
    }
    render::result(as_json, &value, &lines.join("\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn as_value(engine: &ListedEngine) -> Value {
    json!({
        "folder": render::path(&engine.folder),
        "bytes": engine.bytes,
        "state": engine.state.name(),
        "why": engine.state.why(),
        "record": engine.record,
    })
}

/// The engines as a table.
fn table(engines: &[ListedEngine]) -> String {
    let header = ["model", "component", "part", "device", "precision", "shape", "size", "made with", "here"];
    let mut rows: Vec<Vec<String>> = vec![header.map(str::to_owned).into()];
    rows.extend(engines.iter().map(row));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn row(engine: &ListedEngine) -> Vec<String> {
    let here = engine.state.why().unwrap_or_else(|| "usable".into());
    let size = engine.bytes.to_string();
    let Some(record) = &engine.record else {
        let name = engine.folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let unknown = || "?".to_owned();
        return vec![name, unknown(), unknown(), unknown(), unknown(), unknown(), size, unknown(), here];
    };
    let subject = &record.subject;
    let or_graph = |text: &str| if text.is_empty() { subject.graph.clone() } else { text.to_owned() };
    let made_with = format!(
        "{} {}, ONNX Runtime {}",
        record.word("provider"),
        record.word("provider_version"),
        record.word("onnx_runtime")
    );
    vec![
        or_graph(&subject.model),
        subject.component.clone(),
        subject.part.clone(),
        record.word("provider").to_owned(),
        record.word("precision").to_owned(),
        record.word("shape").to_owned(),
        size,
        made_with,
        here,
    ]
}
