//! `rushes bench`: what a model and a machine are worth, measured.

mod generate;
mod graphs;
mod peaks;
mod quality;
mod report;

use super::global::GlobalArgs;
use super::threads::Threads;
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
    /// Measure what the cores and the memory can do at most
    Peaks(peaks::PeaksArgs),
    /// Time one denoising step in every precision there is
    Step(graphs::StepArgs),
    /// Time the decoder in every precision there is
    Decode(graphs::DecodeArgs),
    /// Time the text encoder in every precision there is
    Text(graphs::TextArgs),
    /// Time whole clips of a model in every precision that it has
    Generate(generate::GenerateArgs),
    /// Score how well a model follows its prompts
    Quality(quality::QualityArgs),
}

impl BenchArgs {
    /// What was asked for with `--threads`.
    pub(super) fn threads(&self) -> Option<Threads> {
        match &self.what {
            What::Peaks(args) => args.threads,
            What::Step(args) => args.graph.threads,
            What::Decode(args) => args.graph.threads,
            What::Text(args) => args.graph.threads,
            What::Generate(args) => args.threads,
            What::Quality(args) => args.threads,
        }
    }
}

/// Runs the command.
pub(super) fn run(args: &BenchArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    match &args.what {
        What::Peaks(args) => peaks::run(args, global),
        What::Step(args) => graphs::step(args, global),
        What::Decode(args) => graphs::decode(args, global),
        What::Text(args) => graphs::text(args, global),
        What::Generate(args) => generate::run(args, global),
        What::Quality(args) => quality::run(args, global),
    }
}
