//! `rushes bench batches`: compares the bits of steps alone and in a batch of two.

use crate::Error;
use crate::cli::global::GlobalArgs;
use crate::cli::progress::{Progress, ProgressKind};
use crate::cli::render;
use crate::cli::threads::Threads;
use bundle::manifest::{BatchConditions, BatchInvariance, Bundle, Component, GraphEntry};
use bundle::staging::WriteLock;
use bundle::variant::Precision;
use clap::Args;
use engines::placement::name_of;
use engines::{OpenOptions, WeightMemory};
use quality::bench::batches::{Comparison, case_count, compare, conditions, record, step_graphs};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// The arguments of `rushes bench batches`.
#[derive(Debug, Args)]
pub(super) struct BatchesArgs {
    /// Bundle whose experts are compared
    #[arg(value_name = "BUNDLE")]
    bundle: PathBuf,
    /// Precisions, such as f32,int8 [default: all that are available]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    precision: Vec<Precision>,
    /// Write the results into the bundle. They hold for this machine and these threads
    #[arg(long)]
    record: bool,
    /// Number of threads, at most one per core that this process may use [default: one per core]
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    pub(super) threads: Option<Threads>,
    /// Use weights directly from their files, without copies in the layout of the kernels
    #[arg(long)]
    mapped: bool,
    /// Progress on standard error: auto (a bar on a terminal), bar, json or none
    #[arg(long, value_name = "NAME", default_value = "auto")]
    progress: ProgressKind,
}

/// What was found for a graph.
struct Found {
    component: Component,
    graph: GraphEntry,
    comparison: Comparison,
}

/// Runs the command.
pub(super) fn run(args: &BatchesArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    let mut bundle = Bundle::open(&args.bundle)?;
    // Held until the end, so that no other run replaces the graphs that are compared.
    let writing = args.record.then(|| WriteLock::acquire(&bundle.folder)).transpose()?;
    if writing.is_some() {
        // Another run may have changed it before it was locked.
        bundle = Bundle::open(&args.bundle)?;
    }
    let graphs = chosen(&bundle, &args.precision)?;
    let onnx = global.onnx_runtime()?;
    let cancel = global.interrupts.cancel();
    let weights = if args.mapped { WeightMemory::Mapped } else { WeightMemory::Prepacked };
    let options = OpenOptions::cpu(args.threads.map(Threads::used), weights);
    let on = conditions(&onnx, &options);

    let mut progress = Progress::new(args.progress);
    progress.begin("compare", case_count() * graphs.len());
    let mut done = 0;
    let mut results = Vec::new();
    for (component, graph) in graphs {
        let comparison = compare(&onnx, &bundle, &graph, &options, &cancel, &mut || {
            done += 1;
            progress.advance(done, "");
        })?;
        results.push(Found { component, graph, comparison });
    }
    progress.clear();
    if let Some(writing) = &writing {
        let found: Vec<(String, BatchInvariance)> = results
            .iter()
            .map(|found| {
                let equal = found.comparison.is_equal();
                (found.graph.file.clone(), BatchInvariance { equal, on: on.clone() })
            })
            .collect();
        record(writing, &mut bundle, &found)?;
    }
    let value = as_json(&results, &on, args.record);
    let written =
        if args.record { format!("\nrecorded in {}", bundle.folder.display()) } else { String::new() };
    render::result(global.json, &value, &format!("{on}\n\n{}{written}", table(&results)))?;
    Ok(ExitCode::SUCCESS)
}

/// The step graphs of these precisions, or all.
fn chosen(bundle: &Bundle, precisions: &[Precision]) -> Result<Vec<(Component, GraphEntry)>, Error> {
    let all = step_graphs(&bundle.manifest);
    for asked in precisions {
        if !all.iter().any(|(_, graph)| graph.variant.precision == *asked) {
            return Err(bundle::Error::NoGraph {
                component: "the experts".into(),
                asked: format!("cpu {asked}"),
                available: all.iter().map(|(_, graph)| graph.variant.to_string()).collect(),
            }
            .into());
        }
    }
    let is_chosen =
        |graph: &GraphEntry| precisions.is_empty() || precisions.contains(&graph.variant.precision);
    Ok(all.into_iter().filter(|(_, graph)| is_chosen(graph)).collect())
}

fn as_json(results: &[Found], on: &BatchConditions, is_recorded: bool) -> Value {
    let result = |found: &Found| {
        let Comparison { compared, different, largest } = found.comparison;
        json!({
            "component": name_of(&found.component),
            "precision": found.graph.variant.precision,
            "kernels": found.graph.variant.kernels,
            "file": found.graph.file,
            "equal": found.comparison.is_equal(),
            "compared": compared,
            "different": different,
            // JSON has no infinity.
            "largest_difference": largest.is_finite().then_some(largest),
        })
    };
    json!({
        "event": "bench",
        "what": "batches",
        "on": on,
        "results": results.iter().map(result).collect::<Vec<_>>(),
        "recorded": is_recorded,
    })
}

/// One line per graph.
fn table(results: &[Found]) -> String {
    let mut text = String::new();
    let mut line = |cells: [&str; 5]| {
        let [expert, variant, bits, different, largest] = cells;
        // Writing into a String cannot fail.
        let _ = writeln!(text, "{expert:<12} {variant:<28} {bits:<10} {different:>12} {largest:>20}");
    };
    line(["expert", "variant", "bits", "different", "largest difference"]);
    for found in results {
        let Comparison { compared, different, largest } = found.comparison;
        line([
            name_of(&found.component),
            &found.graph.variant.to_string(),
            if found.comparison.is_equal() { "equal" } else { "different" },
            &format!("{different} of {compared}"),
            &format!("{largest:.1e}"),
        ]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::manifest::Part;
    use bundle::routing::ExpertName;
    use bundle::variant::{KernelLibrary, Variant};

    #[test]
    fn graphs_are_lines() {
        let found = |precision, kernels, comparison| Found {
            component: Component::Expert(ExpertName("high_noise".into())),
            graph: GraphEntry {
                part: Part::Whole,
                variant: Variant::cpu(precision, kernels),
                file: "experts/high_noise/x.onnx".into(),
                batch_invariant: None,
            },
            comparison,
        };
        let results = [
            found(
                Precision::F32,
                KernelLibrary::OnnxRuntime,
                Comparison { compared: 52, different: 4, largest: 2.384e-7 },
            ),
            found(
                Precision::Int8,
                KernelLibrary::Rushes,
                Comparison { compared: 52, different: 0, largest: 0.0 },
            ),
        ];
        insta::assert_snapshot!(table(&results), @r"
        expert       variant                      bits          different   largest difference
        high_noise   cpu f32                      different       4 of 52               2.4e-7
        high_noise   cpu int8 on Rushes kernels   equal           0 of 52                0.0e0
        ");
    }
}
