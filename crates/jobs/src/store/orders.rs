//! What an order makes of a job that is not running.

use super::types::{JobOrder, JobRow, State};
use crate::Error;
use crate::request::Request;
use bundle::Field;
use runtime::scheduler::JobId;

/// What is to be done with a job.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change {
    /// It ends, or is given up.
    Cancel,
    /// It is queued with this request.
    Queue {
        /// The request.
        request: Box<Request>,
        /// True if what its runs have left is removed.
        from_start: bool,
    },
}

impl JobOrder {
    /// The name of the command that gives it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Retry { .. } => "retry",
            Self::Resume { .. } => "resume",
            Self::Keep { .. } => "keep",
        }
    }
}

/// The steps that a job has made.
pub(super) fn steps_done(row: &JobRow) -> usize {
    row.outcome.as_ref().map_or(row.progress.steps_done, |outcome| outcome.steps_done)
}

/// What an order makes of a job.
///
/// # Errors
/// It does not suit the state of the job, or its values are out of range.
pub(super) fn change(row: &JobRow, order: &JobOrder) -> Result<Change, Error> {
    let request = &row.request;
    let queue = |request: Request, from_start| Ok(Change::Queue { request: Box::new(request), from_start });
    match (order, row.state) {
        (JobOrder::Cancel, State::Queued | State::Running | State::Stopped) => Ok(Change::Cancel),
        (JobOrder::Retry { from_start }, State::Failed | State::Cancelled) => {
            queue(request.clone(), *from_start)
        }
        (JobOrder::Resume { stop_after }, State::Stopped | State::Cancelled) => {
            if is_open_take(request) && stop_after.is_none() {
                let fix = format!(
                    "it is a take without outputs: `rushes jobs keep {}` makes the whole clip",
                    row.id.0
                );
                return Err(unsuitable(row, order, fix));
            }
            check_stop(row, *stop_after)?;
            queue(Request { stop_after: *stop_after, ..request.clone() }, false)
        }
        (JobOrder::Keep { outputs }, State::Stopped | State::Cancelled | State::Failed) => {
            if request.take.is_none() {
                let fix = format!("it is not a take; {}", what_can_be_done(row));
                return Err(unsuitable(row, order, fix));
            }
            if outputs.is_empty() {
                let rule = "a take that is kept becomes a clip, which needs an output";
                return Err(
                    bundle::Error::value(Field::Output, "absent", rule, "give one with `output`").into()
                );
            }
            let kept = Request { stop_after: None, outputs: outputs.clone(), ..request.clone() };
            kept.check()?;
            queue(kept, false)
        }
        _ => Err(unsuitable(row, order, what_can_be_done(row))),
    }
}

/// Returns true if a job is what an order asks for. This is so if the process that carried it out was killed before it
/// answered, or if two processes have asked for the same.
pub(super) fn is_carried_out(row: &JobRow, order: &JobOrder, has_runs: bool) -> bool {
    let is_queued = row.state == State::Queued;
    match order {
        JobOrder::Cancel => row.state == State::Cancelled,
        JobOrder::Retry { from_start } => is_queued && !(*from_start && has_runs),
        JobOrder::Resume { stop_after } => is_queued && row.request.stop_after == *stop_after,
        JobOrder::Keep { outputs } => {
            is_queued && row.request.stop_after.is_none() && row.request.outputs == *outputs
        }
    }
}

fn is_open_take(request: &Request) -> bool {
    request.take.is_some() && request.outputs.is_empty()
}

fn check_stop(row: &JobRow, stop_after: Option<usize>) -> Result<(), Error> {
    let Some(stop) = stop_after else { return Ok(()) };
    let done = steps_done(row);
    let steps = row.request.steps().unwrap_or(usize::MAX);
    let refused =
        |rule: String, fix: &str| Err(bundle::Error::value(Field::StopAfter, stop, rule, fix).into());
    if stop <= done {
        return refused(format!("{} has made {done} steps", row.id), "give a larger number");
    }
    if stop > steps {
        return refused(format!("{} has {steps} steps", row.id), "give a smaller number, or leave it out");
    }
    Ok(())
}

fn unsuitable(row: &JobRow, order: &JobOrder, fix: String) -> Error {
    Error::Unsuitable { id: row.id, order: order.name(), state: row.state, fix }
}

fn what_can_be_done(row: &JobRow) -> String {
    let JobId(id) = row.id;
    match row.state {
        State::Queued | State::Running => {
            format!("wait until it has ended, or end it with `rushes jobs cancel {id}`")
        }
        State::Stopped if is_open_take(&row.request) => {
            format!("`rushes jobs keep {id}` makes the whole clip, `rushes jobs cancel {id}` gives it up")
        }
        State::Stopped => format!("`rushes jobs resume {id}` goes on, `rushes jobs cancel {id}` gives it up"),
        State::Done => format!("`rushes jobs show {id}` lists the steps that another clip can go on from"),
        State::Failed => format!("`rushes jobs retry {id}` tries again"),
        State::Cancelled => format!("`rushes jobs retry {id}` or `rushes jobs resume {id}` goes on"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{outcome, request, row};
    use super::*;
    use crate::request::Take;

    const ORDERS: [JobOrder; 4] = [
        JobOrder::Cancel,
        JobOrder::Retry { from_start: false },
        JobOrder::Resume { stop_after: None },
        JobOrder::Keep { outputs: Vec::new() },
    ];

    fn take(state: State) -> JobRow {
        let mut row = row(5, state);
        row.request.take = Some(Take { audition: JobId(4), number: 2, of: 3 });
        row.request.outputs.clear();
        row.request.stop_after = Some(3);
        row
    }

    /// Which orders suit which states, as a table that users can rely on.
    #[test]
    fn orders_and_states() {
        let mut table = String::new();
        for state in State::ALL {
            for order in &ORDERS[..3] {
                let said = match change(&row(5, state), order) {
                    Ok(Change::Cancel) => "cancelled".to_owned(),
                    Ok(Change::Queue { .. }) => "queued".to_owned(),
                    Err(error) => error.to_string(),
                };
                table += &format!("{state}, {}: {said}\n", order.name());
            }
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn a_resumed_job_stops_where_it_is_told() {
        let mut stopped = row(5, State::Stopped);
        stopped.outcome = Some(outcome(State::Stopped, 4));
        let resume = |stop_after| change(&stopped, &JobOrder::Resume { stop_after });
        for (stop_after, is_right) in
            [(None, true), (Some(5), true), (Some(8), true), (Some(4), false), (Some(9), false)]
        {
            match resume(stop_after) {
                Ok(Change::Queue { request, from_start: false }) if is_right => {
                    assert_eq!(request.stop_after, stop_after)
                }
                Err(error) if !is_right => {
                    assert!(error.to_string().starts_with("stop_after cannot be"), "{error}")
                }
                other => panic!("{stop_after:?}: {other:?}"),
            }
        }
        let error = change(&take(State::Stopped), &JobOrder::Resume { stop_after: None }).unwrap_err();
        assert!(error.to_string().contains("`rushes jobs keep 5`"), "{error}");
    }

    #[test]
    fn a_kept_take_becomes_a_clip_and_remains_a_take() {
        let outputs: Vec<media::OutputSpec> = vec!["/tmp/kept.mp4".parse().unwrap()];
        let keep = JobOrder::Keep { outputs: outputs.clone() };
        let Ok(Change::Queue { request, from_start: false }) = change(&take(State::Stopped), &keep) else {
            panic!()
        };
        assert_eq!((request.stop_after, &request.outputs), (None, &outputs));
        assert!(request.take.is_some());
        assert!(change(&row(5, State::Stopped), &keep).unwrap_err().to_string().contains("not a take"));
        assert!(
            change(&take(State::Stopped), &ORDERS[3])
                .unwrap_err()
                .to_string()
                .starts_with("output cannot be")
        );
        let relative = JobOrder::Keep { outputs: vec!["kept.mp4".parse().unwrap()] };
        assert!(change(&take(State::Stopped), &relative).is_err());
        for state in [State::Queued, State::Running, State::Done] {
            assert!(change(&take(state), &keep).is_err(), "{state}");
        }
    }

    /// An order that was carried out is recognised, whatever it was.
    #[test]
    fn what_was_carried_out_needs_no_second_time() {
        let outputs = vec!["/tmp/kept.mp4".parse().unwrap()];
        let orders = [
            JobOrder::Cancel,
            JobOrder::Retry { from_start: true },
            JobOrder::Resume { stop_after: Some(6) },
            JobOrder::Keep { outputs },
        ];
        for (order, state) in
            orders.iter().zip([State::Queued, State::Failed, State::Stopped, State::Stopped])
        {
            let mut row = take(state);
            assert!(!is_carried_out(&row, order, true), "{order:?}");
            match change(&row, order).unwrap() {
                Change::Cancel => row.state = State::Cancelled,
                Change::Queue { request, .. } => {
                    row.state = State::Queued;
                    row.request = *request;
                }
            }
            assert!(is_carried_out(&row, order, false), "{order:?}");
        }
        assert_eq!(request("a").outputs.len(), 1);
    }
}
