//! `rushes attach`: makes a bundle from graphs without weights and a checkpoint.

use super::export::{describe, print};
use super::global::GlobalArgs;
use super::render;
use crate::Error;
use clap::Args;
use export::AttachRequest;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// The arguments of `rushes attach`.
#[derive(Debug, Args)]
pub(super) struct AttachArgs {
    /// Graphs without weights: a folder that `rushes export --graphs-only` wrote
    pub(super) graphs: PathBuf,
    /// Checkpoint: a folder in the diffusers layout with the weights that the graphs were made for
    pub(super) checkpoint: PathBuf,
    /// Write the bundle to this folder [default: GRAPHS.bundle]
    #[arg(short, long, value_name = "DIR")]
    pub(super) out: Option<PathBuf>,
    /// Read every byte of the weights [default: a sample of each]
    #[arg(long)]
    pub(super) verify: bool,
    /// Tiny decoder for previews, if the graphs have one [default: the checkpoint's]
    #[arg(long, value_name = "FILE")]
    pub(super) tiny: Option<PathBuf>,
    /// Copy weights instead of hard-linking them, so that the bundle does not change with the checkpoint; without
    /// this flag, up to 1 GB is copied if the file system refuses links
    #[arg(long)]
    pub(super) copy: bool,
}

/// Runs the command.
pub(super) fn run(args: &AttachArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    let started = Instant::now();
    let out = args.out.clone().unwrap_or_else(|| default_out(&args.graphs));
    let request = AttachRequest {
        verify: args.verify,
        tiny_decoder: args.tiny.clone(),
        copy: args.copy,
        stop: global.interrupts.cancel().stop().clone(),
        ..AttachRequest::new(&args.graphs, &args.checkpoint, &out)
    };
    let as_json = global.json;
    let report = export::attach(&request, &mut |event| {
        if !as_json {
            render::note(&describe(&event));
        }
    })?;
    print(&report, &[], false, "attached", (started.elapsed().as_secs_f64(), as_json))?;
    Ok(ExitCode::SUCCESS)
}

/// The folder of the graphs with `.bundle` at its end.
fn default_out(graphs: &Path) -> PathBuf {
    // Without the separator that may end the path.
    let mut path = OsString::from(graphs.components().as_path());
    path.push(".bundle");
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_next_to_the_graphs() {
        for (graphs, out) in [("a14b", "a14b.bundle"), ("a/b/", "a/b.bundle"), ("./a", "./a.bundle")] {
            assert_eq!(default_out(Path::new(graphs)), Path::new(out));
        }
    }
}
