//! `rushes bench peaks`: the peak throughput that other results are a share of.

use super::report::{Machine, describe_peaks};
use crate::Error;
use crate::cli::global::GlobalArgs;
use crate::cli::render;
use crate::cli::threads::Threads;
use clap::Args;
use serde_json::json;
use std::process::ExitCode;

/// The arguments of `rushes bench peaks`.
#[derive(Debug, Args)]
pub(super) struct PeaksArgs {
    /// Number of threads, at most one per core that this process may use [default: one per core]
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    pub(super) threads: Option<Threads>,
}

/// Runs the command.
pub(super) fn run(args: &PeaksArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    let machine = Machine::measure(global.kernels()?, args.threads.map(Threads::used));
    let mut value = machine.as_json();
    value["event"] = json!("bench");
    value["what"] = json!("peaks");
    let text = format!("{}\n\n{}", machine.describe(), describe_peaks(&machine.peaks));
    render::result(global.json, &value, &text)?;
    Ok(ExitCode::SUCCESS)
}
