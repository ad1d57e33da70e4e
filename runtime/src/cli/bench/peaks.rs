//! `rushes bench peaks`: what everything else is a share of.

use super::report::{Machine, describe_peaks};
use crate::Error;
use crate::cli::args::Everywhere;
use crate::cli::render;
use clap::Args;
use serde_json::json;
use std::num::NonZeroUsize;
use std::process::ExitCode;

/// `rushes bench peaks`.
#[derive(Debug, Args)]
pub(super) struct PeaksArgs {
    /// Threads [default: every core]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

/// Runs the command.
pub(super) fn run(args: &PeaksArgs, everywhere: &Everywhere) -> Result<ExitCode, Error> {
    let machine = Machine::measure(everywhere.kernels()?, args.threads);
    let mut value = machine.as_json();
    value["event"] = json!("bench");
    value["what"] = json!("peaks");
    let text = format!("{}\n\n{}", machine.describe(), describe_peaks(&machine.peaks));
    render::result(everywhere.json, &value, &text)?;
    Ok(ExitCode::SUCCESS)
}
