//! The command line: parses the arguments, runs one command, and returns the exit code.

mod args;
mod arguments;
mod attach;
mod audition;
mod bench;
mod build;
mod calibrate;
mod clip_time;
mod cpu_peaks;
mod devices;
mod doctor;
mod engines;
mod export;
mod flags;
mod generate;
mod global;
mod gpu;
#[cfg(test)]
mod help;
mod inspect;
mod interrupt;
mod jobs;
mod logo;
mod lora;
mod memory;
mod mini_form;
mod os_text;
mod owner;
mod plan;
mod post_process;
mod preview;
mod preview_sinks;
mod progress;
mod quantize;
mod render;
mod sampling;
mod seed;
mod serve;
mod simulate;
mod step_ratios;
mod threads;
mod verify;

use crate::Error;
use args::{Cli, Command};
use bundle::{ErrorClass, Report};
use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use media::OutputSpec;
use render::Stream;
use std::ffi::OsString;
use std::process::ExitCode;

pub use interrupt::Interrupts;

/// The arguments of a program run, before they are parsed.
#[derive(Debug, Clone)]
pub struct CommandLine {
    arguments: Vec<OsString>,
    stream: Stream,
    as_json: bool,
}

impl CommandLine {
    /// Takes the arguments; the first is the name of the program.
    pub fn new(arguments: impl IntoIterator<Item = OsString>) -> Self {
        let arguments = arguments::prepared(arguments.into_iter().collect());
        let stream = stream(&arguments);
        let as_json = arguments.iter().any(|argument| argument == "--json");
        Self { arguments, stream, as_json }
    }
}

/// Runs one command. A request of `interrupts` ends it.
pub fn run(line: CommandLine, interrupts: Interrupts) -> ExitCode {
    let CommandLine { arguments, stream, as_json } = line;
    let mut cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return refuse(&error, &arguments, stream, as_json),
    };
    cli.global.interrupts = interrupts;
    start_log(&cli);
    let global = &cli.global;
    if let Some(note) = cli.command.threads().and_then(threads::Threads::note) {
        render::note(&note);
    }
    if let Err(error) = global.check() {
        return fail(&error, stream, global.json);
    }
    let result = match &cli.command {
        Command::Generate(args) => generate::run(args, global, stream),
        Command::Audition(args) => audition::run(args, global),
        Command::Plan(args) => plan::run(args, global),
        Command::Verify(args) => verify::run(args, global),
        Command::Export(args) => export::run(args, global),
        Command::Attach(args) => attach::run(args, global),
        Command::Calibrate(args) => calibrate::run(args, global),
        Command::Quantize(args) => quantize::run(args, global),
        Command::Inspect(args) => inspect::run(args, global),
        Command::Lora(args) => lora::run(args, global),
        Command::Jobs(args) => jobs::run(args, global),
        Command::Serve(args) => serve::run(args, global),
        Command::Simulate(args) => simulate::run(args, global),
        Command::Bench(args) => bench::run(args, global),
        Command::Build(args) => build::run(args, global),
        Command::Engines(args) => engines::run(args, global),
        Command::Doctor => doctor::run(global),
    };
    match result {
        Ok(code) => code,
        Err(error) => fail(&error, stream, global.json),
    }
}

/// The stream for results and errors. It depends on the raw arguments only, so that it is right for refused ones too.
fn stream(arguments: &[OsString]) -> Stream {
    let outputs = arguments::outputs(arguments);
    let parsed = outputs.iter().filter_map(|output| output.parse::<OutputSpec>().ok());
    let mut clips = parsed.filter(OutputSpec::is_standard_output);
    if clips.next().is_some() { Stream::Error } else { Stream::Output }
}

fn fail(error: &Error, stream: Stream, as_json: bool) -> ExitCode {
    let report = render::report(error);
    render::error(stream, as_json, &report);
    ExitCode::from(report.class.exit_code())
}

/// Reports arguments that clap or a value parser refused. clap also returns `--help` and `--version` as errors.
fn refuse(error: &clap::Error, arguments: &[OsString], stream: Stream, as_json: bool) -> ExitCode {
    if !error.use_stderr() {
        // Fails only if the pipe of the help text is closed.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if is_without_command(error) {
        let mut command = arguments::command_of(arguments);
        if as_json {
            render::error(stream, true, &command_is_missing(&command));
        } else {
            render::note(command.render_help().to_string().trim_end());
        }
        return ExitCode::from(ErrorClass::BadInput.exit_code());
    }
    let source = std::error::Error::source(error);
    let of_setting = source.and_then(|source| source.downcast_ref::<bundle::Error>()).map(render::report);
    let of_argument = source.and_then(|source| source.downcast_ref::<Error>()).map(render::report);
    let report = of_setting.or(of_argument).unwrap_or_else(|| report_of_clap(error));
    render::error(stream, as_json, &report);
    ExitCode::from(report.class.exit_code())
}

/// Returns true if the name of a command ended where one of its own commands was expected.
fn is_without_command(error: &clap::Error) -> bool {
    matches!(error.kind(), ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand)
}

/// The report of a command that was called without one of its own commands.
fn command_is_missing(command: &clap::Command) -> Report {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    let names: Vec<&str> =
        command.get_subcommands().map(clap::Command::get_name).filter(|name| *name != "help").collect();
    Report::bad_input(
        format!("`{name}` was called without a command"),
        format!("its commands are {}", names.join(", ")),
        format!("see `{name} --help`"),
    )
}

/// clap's message as a report: its first sentence, the rest, and a hint.
fn report_of_clap(error: &clap::Error) -> Report {
    let text = error.render().to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let what = lines.next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    // clap advises to put `--` before a value, which would turn the flags after it into values.
    let is_reason =
        |line: &&str| !line.starts_with("For more information") && !line.contains("as a value, use");
    let why: Vec<&str> = lines.filter(is_reason).collect();
    let why = if why.is_empty() { "the command line cannot be parsed".to_owned() } else { why.join("; ") };
    let unknown = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(unknown)) if error.kind() == ErrorKind::UnknownArgument => unknown,
        _ => "",
    };
    let fix = if unknown.starts_with('-') {
        "see `rushes COMMAND --help`; write a text that begins with a dash as `--flag=TEXT`, and such a prompt \
         last, after `--`"
    } else {
        "see `rushes --help` or `rushes COMMAND --help`"
    };
    Report::bad_input(what, why, fix)
}

/// Writes log messages to standard error; `RUST_LOG` selects which. A server logs its requests, with times.
fn start_log(cli: &Cli) {
    use tracing_subscriber::EnvFilter;
    let is_server = matches!(cli.command, Command::Serve(_));
    // A server also says what its LoRAs change, and which files of its caches are damaged.
    let of_server = "error,server=info,rushes::cli::serve=info,runtime::text_store=warn";
    let usual = if is_server { of_server } else { "error" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(usual));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Fails only if a log was started before, for example by a test that runs two commands.
    let _ = match (is_server, cli.global.json) {
        (true, true) => log.json().try_init(),
        (true, false) => log.try_init(),
        (false, _) => log.without_time().try_init(),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_without_its_own_command_is_answered_with_its_help() {
        for (given, usage) in [
            (&["rushes"][..], "Usage: rushes [OPTIONS] <COMMAND>"),
            (&["rushes", "jobs"], "Usage: rushes jobs [OPTIONS] <COMMAND>"),
            (&["rushes", "bench"], "Usage: rushes bench [OPTIONS] <COMMAND>"),
            (&["rushes", "--json", "jobs"], "Usage: rushes jobs [OPTIONS] <COMMAND>"),
            // The value of a flag is no command.
            (&["rushes", "jobs", "--store", "list"], "Usage: rushes jobs [OPTIONS] <COMMAND>"),
        ] {
            let arguments = arguments::prepared(given.iter().map(Into::into).collect());
            let error = Cli::try_parse_from(&arguments).unwrap_err();
            assert!(is_without_command(&error), "{given:?}: {:?}", error.kind());
            let help = arguments::command_of(&arguments).render_help().to_string();
            assert!(help.contains(usage), "{given:?}: {help}");
        }
        let error = Cli::try_parse_from(["rushes", "jobs", "submit"]).unwrap_err();
        assert!(!is_without_command(&error));
        let bench = arguments::command_of(&["rushes".into(), "bench".into()]);
        insta::assert_snapshot!(command_is_missing(&bench), @"`rushes bench` was called without a command: its commands are peaks, step, decode, text, batches, generate, record, quality (see `rushes bench --help`)");
    }
}
