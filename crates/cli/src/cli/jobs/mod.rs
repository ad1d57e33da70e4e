//! `rushes jobs`: a queue of clips that survives its process.
//!
//! [`submit`] and [`fork`] add jobs, [`list`] and [`show`] print them, [`orders`] change them, [`run`] makes them, and
//! [`live`] shows that, on a terminal as [`screen`] draws it. [`store`] is the folder of the queue, [`outputs`] the
//! rules for where clips are written. [`rows`], [`table`] and [`times`] are how jobs look as JSON and as text.

mod fork;
mod list;
mod live;
mod orders;
mod outputs;
mod rows;
mod run;
mod screen;
mod show;
mod store;
mod submit;
mod table;
mod times;
mod values;

use super::global::GlobalArgs;
use super::threads::Threads;
use crate::Error;
use clap::{Args, Subcommand};
use std::process::ExitCode;
use store::StoreArgs;

pub(in crate::cli) use store::user_data;
pub(in crate::cli) use values::store_budget;

/// The arguments of `rushes jobs`.
#[derive(Debug, Args)]
pub(super) struct JobsArgs {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Queue a clip, or several takes of it
    Submit(Box<submit::SubmitArgs>),
    /// Make the queued clips in this process
    Run(Box<run::RunArgs>),
    /// Print the jobs as a table
    List(list::ListArgs),
    /// Print everything about a job, and what can be done with it
    Show(show::ShowArgs),
    /// End jobs within their current step; they can go on later
    Cancel(orders::CancelArgs),
    /// Queue failed or cancelled jobs again
    Retry(orders::RetryArgs),
    /// Queue a stopped or cancelled job again, to make the rest of its steps
    Resume(orders::ResumeArgs),
    /// Queue a new job that goes on from a step of another one, with other settings
    Fork(Box<fork::ForkArgs>),
    /// Queue a take again, to make its whole clip
    Keep(orders::KeepArgs),
}

impl JobsArgs {
    /// The value of `--threads`.
    pub(super) fn threads(&self) -> Option<Threads> {
        match &self.action {
            Action::Run(args) => args.threads(),
            _ => None,
        }
    }
}

/// Runs the command.
pub(super) fn run(args: &JobsArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    let store = &args.store;
    match &args.action {
        Action::Submit(args) => submit::run(args, store, global),
        Action::Run(args) => run::run(args, store, global),
        Action::List(args) => list::run(args, store, global),
        Action::Show(args) => show::run(args, store, global),
        Action::Cancel(args) => orders::cancel(args, store, global),
        Action::Retry(args) => orders::retry(args, store, global),
        Action::Resume(args) => orders::resume(args, store, global),
        Action::Fork(args) => fork::run(args, store, global),
        Action::Keep(args) => orders::keep(args, store, global),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command};
    use crate::cli::arguments::prepared;
    use clap::Parser;

    fn parse(arguments: &[&str]) -> Result<JobsArgs, String> {
        let arguments = ["rushes", "jobs"].iter().chain(arguments).map(Into::into).collect();
        let Cli { command, .. } =
            Cli::try_parse_from(prepared(arguments)).map_err(|error| error.to_string())?;
        match command {
            Command::Jobs(args) => Ok(*args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_store_is_given_before_or_after_the_command() {
        for arguments in [&["--store", "q", "list"][..], &["list", "--store", "q"], &["list", "--store=q"]] {
            assert_eq!(parse(arguments).unwrap().store.command("run"), "rushes jobs run --store q");
        }
    }

    #[test]
    fn texts_that_begin_with_a_dash_are_texts() {
        for arguments in [
            &["submit", "- a boat", "--negative", "-blurry", "--seed", "-1"][..],
            &["fork", "7", "- a boat", "--from-step", "3", "--negative", "-blurry"],
            &["fork", "7", "--from-step", "3", "--variation", "0.1", "--seed", "-1"],
        ] {
            assert!(parse(arguments).is_ok(), "{:?}", parse(arguments));
        }
    }

    #[test]
    fn arguments_that_do_not_go_together_are_refused() {
        for (arguments, named) in [
            (&["submit"][..], "PROMPT"),
            (&["submit", "fox", "--takes", "3", "--stop-after", "2"], "--stop-after"),
            (&["submit", "fox", "--takes", "3", "--noise", "n"], "--noise"),
            (&["submit", "fox", "--steps-of", "2"], "--takes"),
            (&["submit", "fox", "--ep", "cpu"], "--ep"),
            (&["submit", "fox", "--live", "hls:x"], "--live"),
            (&["fork", "7"], "--from-step"),
            (&["fork", "7", "--from-step", "3", "--seed", "1"], "--variation"),
            (&["fork", "7", "--from-step", "3", "--size", "32x32"], "--size"),
            (&["cancel"], "ID"),
            (&["keep"], "TAKE"),
            (&["resume", "7", "8"], "8"),
            (&["run", "--order", "last"], "last"),
            (&["list", "--state", "ready"], "ready"),
        ] {
            let error = parse(arguments).unwrap_err();
            assert!(error.contains(named), "{arguments:?}: {error}");
        }
    }

    #[test]
    fn only_a_run_has_threads() {
        assert!(parse(&["run", "--threads", "1"]).unwrap().threads().is_some());
        assert!(parse(&["run"]).unwrap().threads().is_none());
        assert!(parse(&["list"]).unwrap().threads().is_none());
    }
}
