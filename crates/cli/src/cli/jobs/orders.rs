//! `rushes jobs cancel`, `retry`, `resume` and `keep`: orders about jobs. An owner carries them out; without one, this
//! process does.

use super::list::owner;
use super::outputs::{OutputArgs, check, default_output};
use super::rows::{as_json, owner_as_json};
use super::store::StoreArgs;
use super::values;
use crate::Error;
use crate::cli::global::GlobalArgs;
use crate::cli::render;
use ::jobs::request::Request;
use ::jobs::store::{Answer, JobOrder, JobRow, State, Store, check_free, give};
use clap::Args;
use media::OutputSpec;
use runtime::scheduler::JobId;
use serde_json::json;
use std::process::ExitCode;
use std::time::Duration;

/// How long an owner is given to answer. It looks for orders several times in a second, and after every step.
const WAIT: Duration = Duration::from_secs(10);

/// The arguments of `rushes jobs cancel`.
#[derive(Debug, Args)]
pub(super) struct CancelArgs {
    /// Numbers of the jobs
    #[arg(value_name = "ID", required = true, value_parser = values::job_id)]
    jobs: Vec<JobId>,
}

/// The arguments of `rushes jobs retry`.
#[derive(Debug, Args)]
pub(super) struct RetryArgs {
    /// Numbers of the jobs
    #[arg(value_name = "ID", required = true, value_parser = values::job_id)]
    jobs: Vec<JobId>,
    /// Begin at the first step, instead of the newest snapshot
    #[arg(long)]
    from_start: bool,
}

/// The arguments of `rushes jobs resume`.
#[derive(Debug, Args)]
pub(super) struct ResumeArgs {
    /// Number of the job
    #[arg(value_name = "ID", value_parser = values::job_id)]
    job: JobId,
    /// Stop again after this many of the steps [default: make all of them]
    #[arg(long, value_name = "K")]
    stop_after: Option<usize>,
}

/// The arguments of `rushes jobs keep`.
#[derive(Debug, Args)]
pub(super) struct KeepArgs {
    /// Number of the take's job
    #[arg(value_name = "TAKE", value_parser = values::job_id)]
    job: JobId,
    #[command(flatten)]
    output: OutputArgs,
}

/// A job about which an order was given, and the answer of the owner; `None` if it has not answered yet.
type Ordered = (JobId, Option<Answer>);

/// Runs `rushes jobs cancel`.
pub(super) fn cancel(args: &CancelArgs, store: &StoreArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    let queue = store.open_for(args.jobs[0])?;
    rows_of(args.jobs.iter(), &queue)?;
    let mut ordered = Vec::new();
    for id in &args.jobs {
        ordered.push((*id, order(*id, &JobOrder::Cancel, &queue)?));
    }
    report("cancel", &ordered, &queue, store, global, cancelled)
}

/// Runs `rushes jobs retry`.
pub(super) fn retry(args: &RetryArgs, store: &StoreArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    let queue = store.open_for(args.jobs[0])?;
    rows_of(args.jobs.iter(), &queue)?;
    let mut ordered = Vec::new();
    for id in &args.jobs {
        let retry = JobOrder::Retry { from_start: args.from_start };
        ordered.push((*id, accepted(*id, order(*id, &retry, &queue)?, store)?));
    }
    let from = if args.from_start { "its first step" } else { "its newest snapshot" };
    report("retry", &ordered, &queue, store, global, |row, answer| {
        queued_again("retry", row, answer, &format!("from {from}"))
    })
}

/// Runs `rushes jobs resume`.
pub(super) fn resume(args: &ResumeArgs, store: &StoreArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    let queue = store.open_for(args.job)?;
    let resume = JobOrder::Resume { stop_after: args.stop_after };
    let answer = accepted(args.job, order(args.job, &resume, &queue)?, store)?;
    let rest = match args.stop_after {
        Some(stop) => format!("until step {stop}"),
        None => "to make the rest of its steps".to_owned(),
    };
    report("resume", &[(args.job, answer)], &queue, store, global, |row, answer| {
        queued_again("resume", row, answer, &rest)
    })
}

/// Runs `rushes jobs keep`.
pub(super) fn keep(args: &KeepArgs, store: &StoreArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    let queue = store.open_for(args.job)?;
    let row = queue.job(args.job)?;
    let mut outputs = args.output.absolute()?;
    if outputs.is_empty() {
        outputs.push(default_output(row.id)?);
    }
    // The store does it again, when no other process can queue a job.
    check_free(&outputs, &queue.list()?, Some(row.id))?;
    let request = Request { outputs: outputs.clone(), ..row.request };
    let notes = check(&request, &global.interrupts.cancel())?;
    let answer = accepted(row.id, order(row.id, &JobOrder::Keep { outputs }, &queue)?, store)?;
    notes.iter().for_each(|note| render::note(note));
    report("keep", &[(row.id, answer)], &queue, store, global, |row, answer| {
        let outputs: Vec<String> = row.request.outputs.iter().map(OutputSpec::to_string).collect();
        let rest = format!("to make its whole clip; to {}", outputs.join(", "));
        queued_again("keep", row, answer, &rest)
    })
}

/// The jobs with these numbers.
///
/// # Errors
/// Names the first number that no job has.
fn rows_of<'a>(ids: impl Iterator<Item = &'a JobId>, queue: &Store) -> Result<Vec<JobRow>, Error> {
    Ok(ids.map(|id| queue.job(*id)).collect::<Result<_, _>>()?)
}

/// Gives an order, and waits for the answer, if it comes soon. The store refuses an order that does not suit the job as it
/// is then, and one that leads to two jobs with one output.
fn order(id: JobId, order: &JobOrder, queue: &Store) -> Result<Option<Answer>, Error> {
    let given = give(queue.folder(), id, order, WAIT)?;
    given.notes.iter().for_each(|note| render::note(note));
    Ok(given.answer)
}

/// Makes an error of an order that was refused.
fn accepted(id: JobId, answer: Option<Answer>, store: &StoreArgs) -> Result<Option<Answer>, Error> {
    match answer {
        Some(Answer::Refused { why }) => {
            Err(Error::Order { id, why, look: store.command(&format!("show {}", id.0)) })
        }
        answer => Ok(answer),
    }
}

/// What became of an order to cancel, by the state that the job has afterwards; an error if it is not cancelled.
fn cancelled(row: &JobRow, answer: Option<&Answer>) -> Result<String, String> {
    let id = row.id;
    match (row.state, answer) {
        (State::Cancelled, _) => Ok(format!("{id} is cancelled")),
        (State::Done, _) => Err(format!("{id} was done before it could be cancelled")),
        (State::Failed, _) => Err(format!("{id} failed before it could be cancelled")),
        (State::Queued | State::Running | State::Stopped, None) => {
            Err(format!("{id} is being cancelled: the process that makes the jobs has not answered yet"))
        }
        (State::Stopped, _) => {
            Err(format!("{id} had stopped before it could be cancelled; cancel it again to give it up"))
        }
        (State::Queued | State::Running, Some(Answer::Done)) => {
            Ok(format!("{id} was cancelled, and is {} again", row.state))
        }
        (State::Queued | State::Running, Some(Answer::Refused { why })) => {
            Err(format!("{id} was not cancelled: {why}"))
        }
    }
}

/// What became of an order to make a job again; an error if nobody has carried it out yet. `rest` says what is made.
fn queued_again(order: &str, row: &JobRow, answer: Option<&Answer>, rest: &str) -> Result<String, String> {
    match answer {
        Some(_) => Ok(format!("{} is queued again, {rest}", row.id)),
        None => Err(format!(
            "the order to {order} {} waits: the process that makes the jobs has not answered yet",
            row.id
        )),
    }
}

/// Prints jobs about which an order was given. The exit code is 1 if one of the orders was not carried out.
fn report(
    order: &str,
    ordered: &[Ordered],
    queue: &Store,
    store: &StoreArgs,
    global: &GlobalArgs,
    sentence: impl Fn(&JobRow, Option<&Answer>) -> Result<String, String>,
) -> Result<ExitCode, Error> {
    let rows = rows_of(ordered.iter().map(|(id, _)| id), queue)?;
    let lease = queue.lease()?;
    let answers = || ordered.iter().map(|(_, answer)| answer.as_ref());
    let sentences: Vec<_> = rows.iter().zip(answers()).map(|(row, answer)| sentence(row, answer)).collect();
    let jobs = rows.iter().zip(answers()).zip(&sentences).map(|((row, answer), sentence)| {
        let mut job = as_json(row, queue);
        job["answer"] = json!(answer);
        job["carried_out"] = json!(sentence.is_ok());
        job
    });
    let value = json!({
        "event": "ordered",
        "order": order,
        "store": render::path(queue.folder()),
        "owner": owner_as_json(lease.as_ref()),
        "jobs": jobs.collect::<Vec<_>>(),
    });
    let lines: Vec<&str> = sentences
        .iter()
        .map(|said| match said {
            Ok(said) | Err(said) => &**said,
        })
        .collect();
    render::result(global.json, &value, &lines.join("\n"))?;
    if answers().any(|answer| answer.is_none()) && !global.json {
        let look = store.command("list");
        render::note(&format!("an order without an answer is not lost; `{look}` shows what became of it"));
    }
    let is_waiting = rows.iter().any(|row| row.state == State::Queued);
    if lease.is_none() && is_waiting && !global.json {
        render::note(&owner(store, None));
    }
    let is_carried_out = sentences.iter().all(Result::is_ok);
    Ok(if is_carried_out { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

#[cfg(test)]
mod tests {
    use super::super::rows::tests::row;
    use super::*;

    /// The sentences of a cancel, by the state of the job afterwards and the answer.
    #[test]
    fn a_cancel_says_what_became_of_the_job() {
        let refused = Answer::Refused { why: "it ended first".to_owned() };
        let mut table = String::new();
        for state in State::ALL {
            for answer in [Some(&Answer::Done), Some(&refused), None] {
                let (code, said) = match cancelled(&row(7, state), answer) {
                    Ok(said) => (0, said),
                    Err(said) => (1, said),
                };
                let answer =
                    answer.map_or("none", |answer| if *answer == refused { "refused" } else { "done" });
                table += &format!("{state}, {answer}: {code}, {said}\n");
            }
        }
        insta::assert_snapshot!(table, @r"
        queued, done: 0, job 7 was cancelled, and is queued again
        queued, refused: 1, job 7 was not cancelled: it ended first
        queued, none: 1, job 7 is being cancelled: the process that makes the jobs has not answered yet
        running, done: 0, job 7 was cancelled, and is running again
        running, refused: 1, job 7 was not cancelled: it ended first
        running, none: 1, job 7 is being cancelled: the process that makes the jobs has not answered yet
        stopped, done: 1, job 7 had stopped before it could be cancelled; cancel it again to give it up
        stopped, refused: 1, job 7 had stopped before it could be cancelled; cancel it again to give it up
        stopped, none: 1, job 7 is being cancelled: the process that makes the jobs has not answered yet
        done, done: 1, job 7 was done before it could be cancelled
        done, refused: 1, job 7 was done before it could be cancelled
        done, none: 1, job 7 was done before it could be cancelled
        failed, done: 1, job 7 failed before it could be cancelled
        failed, refused: 1, job 7 failed before it could be cancelled
        failed, none: 1, job 7 failed before it could be cancelled
        cancelled, done: 0, job 7 is cancelled
        cancelled, refused: 0, job 7 is cancelled
        cancelled, none: 0, job 7 is cancelled
        ");
    }

    #[test]
    fn an_order_without_an_answer_is_not_carried_out() {
        let said = |answer| queued_again("resume", &row(7, State::Stopped), answer, "until step 5");
        insta::assert_snapshot!(said(Some(&Answer::Done)).unwrap(), @"job 7 is queued again, until step 5");
        insta::assert_snapshot!(said(None).unwrap_err(), @"the order to resume job 7 waits: the process that makes the jobs has not answered yet");
        let refused = Some(Answer::Refused { why: "it is done".to_owned() });
        let error = accepted(JobId(7), refused, &StoreArgs::default()).unwrap_err();
        assert!(error.to_string().contains("it is done"), "{error}");
        assert_eq!(accepted(JobId(7), None, &StoreArgs::default()).unwrap(), None);
    }
}
