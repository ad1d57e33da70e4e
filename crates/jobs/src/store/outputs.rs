//! An output belongs to one job: two that write it at once would both lose it.

use super::types::{JobRow, State};
use bundle::Field;
use media::OutputSpec;
use runtime::scheduler::JobId;

/// Refuses outputs that another job will write, because it is queued or running. `own` is the number of the job that the
/// outputs are for, if it has one.
///
/// [`Store::submit`](super::Store::submit), [`Store::order`](super::Store::order) and
/// [`OwnedStore::carry_out`](super::OwnedStore::carry_out) do this while no other process can add or queue jobs. A
/// process that does more before it adds a job may do it earlier.
///
/// # Errors
/// Names the output and the job.
pub fn check_free(outputs: &[OutputSpec], rows: &[JobRow], own: Option<JobId>) -> Result<(), bundle::Error> {
    let others = rows.iter().filter(|row| !row.state.has_ended() && Some(row.id) != own);
    for row in others {
        let taken =
            outputs.iter().find(|output| row.request.outputs.iter().any(|of| of.is_same_destination(output)));
        if let Some(output) = taken {
            let does = if row.state == State::Running { "is writing" } else { "will write" };
            let rule = format!("{} {does} it", row.id);
            let fix =
                format!("choose another `output`, or cancel that job with `rushes jobs cancel {}`", row.id.0);
            return Err(bundle::Error::value(Field::Output, format!("`{output}`"), rule, fix));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{nothing, outcome, request, row, scratch};
    use super::super::{Answer, JobOrder, OwnedStore, Store};
    use super::*;
    use crate::Error;
    use crate::request::Request;

    #[test]
    fn an_output_of_a_job_that_has_not_ended_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let output =
            |name: &str| -> OutputSpec { folder.path().join(name).display().to_string().parse().unwrap() };
        let mut other = row(7, State::Queued);
        other.request.outputs = vec![output("a.gif"), output("b.mp4")];
        let check = |rows: &[JobRow], own| {
            let given = [output("c.mp4"), output("./b.mp4")];
            check_free(&given, rows, own)
                .map_err(|error| error.to_string().replace(&folder.path().display().to_string(), "DIR"))
        };
        insta::assert_snapshot!(check(std::slice::from_ref(&other), None).unwrap_err(), @"output cannot be `DIR/./b.mp4`: job 7 will write it (choose another `output`, or cancel that job with `rushes jobs cancel 7`)");
        check(std::slice::from_ref(&other), Some(JobId(7))).unwrap();
        other.state = State::Running;
        assert!(check(std::slice::from_ref(&other), None).unwrap_err().contains("job 7 is writing it"));
        for ended in [State::Stopped, State::Done, State::Failed, State::Cancelled] {
            other.state = ended;
            check(std::slice::from_ref(&other), None).unwrap();
        }
    }

    fn writes(prompt: &str, output: &str) -> Request {
        Request { outputs: vec![output.parse().unwrap()], ..request(prompt) }
    }

    /// Every process looked at the jobs before any of them added one.
    #[test]
    fn of_many_submissions_at_once_one_gets_the_output() {
        const THREADS: usize = 8;
        let folder = scratch();
        let path = folder.path();
        let barrier = std::sync::Barrier::new(THREADS);
        let results: Vec<_> = std::thread::scope(|scope| {
            let submit = |thread: usize| {
                let barrier = &barrier;
                scope.spawn(move || {
                    let mut store = Store::open(path).unwrap();
                    barrier.wait();
                    // Half of them choose the output when they know their number.
                    let mut choose = |_: JobId, request: &mut Request, _: &std::path::Path| {
                        request.outputs = writes("", "/clips/same.mp4").outputs;
                        Ok(())
                    };
                    if thread.is_multiple_of(2) {
                        store.submit(vec![request(&thread.to_string())], &mut choose)
                    } else {
                        store.submit(vec![writes("a", "/clips/same.mp4")], &mut nothing)
                    }
                })
            };
            let threads: Vec<_> = (0..THREADS).map(submit).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let (added, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        assert_eq!(added.len(), 1);
        for error in refused.into_iter().map(Result::unwrap_err) {
            assert!(error.to_string().contains("job 1 will write it"), "{error}");
        }
        assert_eq!(Store::open(path).unwrap().list().unwrap().len(), 1);
        assert_eq!(std::fs::read_dir(path.join("jobs")).unwrap().count(), 1);
    }

    #[test]
    fn jobs_that_are_added_together_have_outputs_of_their_own() {
        let folder = scratch();
        let mut store = Store::open(folder.path()).unwrap();
        let both = vec![writes("a", "/clips/same.mp4"), writes("b", "/clips/same.mp4")];
        let error = store.submit(both, &mut nothing).unwrap_err().to_string();
        assert!(error.contains("job 1 will write it"), "{error}");
        assert!(store.list().unwrap().is_empty());
    }

    /// Both orders were given before one of them was carried out.
    #[test]
    fn of_two_ended_jobs_with_one_output_one_is_queued_again() {
        let folder = scratch();
        let mut store = Store::open(folder.path()).unwrap();
        let (mut owner, _) = OwnedStore::open(folder.path()).unwrap();
        for (id, prompt) in [(1, "a"), (2, "b")] {
            store.submit(vec![writes(prompt, "/clips/same.mp4")], &mut nothing).unwrap();
            owner.finish(JobId(id), &outcome(State::Failed, 3)).unwrap();
        }
        let retry = JobOrder::Retry { from_start: false };
        let orders = [1, 2].map(|id| store.order(JobId(id), &retry).unwrap());
        for order in owner.orders().unwrap() {
            owner.carry_out(&order).unwrap();
        }
        assert_eq!(store.answer(orders[0]).unwrap(), Some(Answer::Done));
        let Some(Answer::Refused { why }) = store.answer(orders[1]).unwrap() else {
            panic!("both are queued")
        };
        assert!(why.contains("job 1 will write it"), "{why}");
        let ended = store.job(JobId(2)).unwrap();
        assert!(ended.state == State::Failed && ended.outcome.is_some());
        // Known before the order is given.
        let error = store.order(JobId(2), &retry).unwrap_err();
        assert!(matches!(error, Error::Contract(_)) && error.to_string().contains("job 1"), "{error}");
    }
}
