//! `rushes bench`: measures a model or the machine.

mod batches;
mod generate;
mod graphs;
mod peaks;
mod quality;
mod record;
mod report;

use super::global::GlobalArgs;
use super::threads::Threads;
use crate::Error;
use clap::{Args, Subcommand};
use std::process::ExitCode;

/// The arguments of `rushes bench`.
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    subject: Subject,
}

#[derive(Debug, Subcommand)]
enum Subject {
    /// Measure the peak throughput of the cores and of the memory
    Peaks(peaks::PeaksArgs),
    /// Time one denoising step in every available precision
    Step(graphs::StepArgs),
    /// Time the decoder in every available precision
    Decode(graphs::DecodeArgs),
    /// Time the text encoder in every available precision
    Text(graphs::TextArgs),
    /// Compare the bits of denoising steps alone and in a batch of two
    Batches(batches::BatchesArgs),
    /// Time whole clips of a model in every available precision
    Generate(generate::GenerateArgs),
    /// Measure this machine and write a record of it
    Record(record::RecordArgs),
    /// Score how well a model's clips follow their prompts
    Quality(quality::QualityArgs),
}

impl BenchArgs {
    /// The value of `--threads`.
    pub(super) fn threads(&self) -> Option<Threads> {
        match &self.subject {
            Subject::Peaks(args) => args.threads,
            Subject::Step(args) => args.graph.threads,
            Subject::Decode(args) => args.graph.threads,
            Subject::Text(args) => args.graph.threads,
            Subject::Batches(args) => args.threads,
            Subject::Generate(args) => args.threads,
            Subject::Record(args) => args.threads,
            Subject::Quality(args) => args.threads,
        }
    }
}

/// Runs the command.
pub(super) fn run(args: &BenchArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    match &args.subject {
        Subject::Peaks(args) => peaks::run(args, global),
        Subject::Step(args) => graphs::step(args, global),
        Subject::Decode(args) => graphs::decode(args, global),
        Subject::Text(args) => graphs::text(args, global),
        Subject::Batches(args) => batches::run(args, global),
        Subject::Generate(args) => generate::run(args, global),
        Subject::Record(args) => record::run(args, global),
        Subject::Quality(args) => quality::run(args, global),
    }
}
