//! `rushes bench`: what a model and a machine are worth, measured.

mod quality;

use super::args::Everywhere;
use crate::Error;
use clap::{Args, Subcommand};
use std::process::ExitCode;

/// `rushes bench`.
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Score how well a model follows its prompts
    Quality(quality::QualityArgs),
}

/// Runs the command.
pub(super) fn run(args: &BenchArgs, everywhere: &Everywhere) -> Result<ExitCode, Error> {
    match &args.what {
        What::Quality(args) => quality::run(args, everywhere),
    }
}
