//! The command line: arguments in, one command, an exit code out.

mod args;
mod arguments;
mod bench;
mod calibrate;
mod doctor;
mod export;
mod generate;
mod global;
mod inspect;
mod interrupt;
mod logo;
mod os_text;
mod post_process;
mod preview;
mod preview_sinks;
mod progress;
mod quantize;
mod render;
mod seed;
mod threads;
mod timing;

use crate::Error;
use args::{Cli, Command};
use bundle::Report;
use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use interrupt::Interrupts;
use media::OutputSpec;
use render::Stream;
use std::ffi::OsString;
use std::process::ExitCode;

/// Runs one command line, program name first.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = arguments::prepared(arguments.into_iter().collect());
    let stream = stream(&arguments);
    let as_json = arguments.iter().any(|argument| argument == "--json");
    let interrupts = Interrupts::listen(stream, as_json);
    let mut cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return refuse(&error, stream, as_json),
    };
    cli.global.interrupts = interrupts;
    start_log();
    let global = &cli.global;
    if let Some(note) = cli.command.threads().and_then(threads::Threads::note) {
        render::note(&note);
    }
    let result = match &cli.command {
        Command::Generate(args) => generate::run(args, global, stream),
        Command::Export(args) => export::run(args, global),
        Command::Calibrate(args) => calibrate::run(args, global),
        Command::Quantize(args) => quantize::run(args, global),
        Command::Inspect(args) => inspect::run(args, global),
        Command::Bench(args) => bench::run(args, global),
        Command::Doctor => doctor::run(global),
    };
    match result {
        Ok(code) => code,
        Err(error) => fail(&error, stream, global.json),
    }
}

/// Where results and errors go. Known from the arguments alone, so that it holds for those that are refused too.
fn stream(arguments: &[OsString]) -> Stream {
    let outputs = arguments::outputs(arguments);
    let parsed = outputs.iter().filter_map(|output| output.parse::<OutputSpec>().ok());
    let mut taken = parsed.filter(OutputSpec::is_standard_output);
    if taken.next().is_some() { Stream::Error } else { Stream::Output }
}

fn fail(error: &Error, stream: Stream, as_json: bool) -> ExitCode {
    let report = render::report(error);
    render::error(stream, as_json, &report);
    ExitCode::from(report.class.exit_code())
}

/// Arguments that clap or one of our types refuses. `--help` and `--version` come this way too.
fn refuse(error: &clap::Error, stream: Stream, as_json: bool) -> ExitCode {
    if !error.use_stderr() {
        // Nobody reads a help text whose pipe is closed.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let own = std::error::Error::source(error).and_then(|source| source.downcast_ref::<bundle::Error>());
    let report = match own {
        Some(own) => bundle::Diagnose::report(own),
        None => foreign(error),
    };
    render::error(stream, as_json, &report);
    ExitCode::from(report.class.exit_code())
}

/// clap's own words as a report: its first sentence, the rest, and where to look.
fn foreign(error: &clap::Error) -> Report {
    let text = error.render().to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let what = lines.next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    // clap's advice to put `--` before a value takes away the flags after it.
    let is_reason =
        |line: &&str| !line.starts_with("For more information") && !line.contains("as a value, use");
    let why: Vec<&str> = lines.filter(is_reason).collect();
    let why =
        if why.is_empty() { "the command line cannot be understood".to_owned() } else { why.join("; ") };
    let unknown = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(unknown)) if error.kind() == ErrorKind::UnknownArgument => unknown,
        _ => "",
    };
    let fix = if unknown.starts_with('-') {
        "see `rushes COMMAND --help`; a text that begins with a dash is written `--flag=TEXT`, and a prompt like that comes \
         last, after `--`"
    } else {
        "see `rushes --help` or `rushes COMMAND --help`"
    };
    Report::bad_input(what, why, fix)
}

/// Messages of libraries go to standard error; `RUST_LOG` chooses which.
fn start_log() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("error"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time();
    // Fails only if a log was started before, as a test that runs two commands does.
    let _ = log.try_init();
}
