//! Random sequences of everything that is done with a store, beside a model of it.

use super::tests::{nothing, outcome, output, request, scratch};
use super::types::{Answer, JobOrder, JobRow, State};
use super::{OwnedStore, Store};
use crate::request::{Request, Take};
use bundle::units::ByteCount;
use media::OutputSpec;
use proptest::prelude::*;
use proptest::sample::Index;
use runtime::scheduler::JobId;
use std::path::Path;

#[derive(Debug, Clone)]
enum Step {
    Submit {
        clips: usize,
        takes: usize,
    },
    Order(Index, JobOrder),
    Begin(Index),
    Finish(Index, State),
    QueueAgain(Index),
    /// The owner ends, and another one begins.
    Reopen,
    /// The owner is killed: running jobs remain running.
    Rebuild,
    RemoveAll,
}

fn step() -> impl Strategy<Value = Step> {
    let order = prop_oneof![
        Just(JobOrder::Cancel),
        any::<bool>().prop_map(|from_start| JobOrder::Retry { from_start }),
        proptest::option::of(1_usize..8).prop_map(|stop_after| JobOrder::Resume { stop_after }),
        (0_usize..6).prop_map(|place| JobOrder::Keep { outputs: vec![place_of(place)] }),
    ];
    let ended = prop_oneof![
        3 => Just(State::Stopped), 2 => Just(State::Done), 2 => Just(State::Failed), 1 => Just(State::Cancelled),
    ];
    prop_oneof![
        3 => (0_usize..3, 0_usize..3).prop_map(|(clips, takes)| Step::Submit { clips, takes }),
        8 => (any::<Index>(), order).prop_map(|(job, order)| Step::Order(job, order)),
        6 => any::<Index>().prop_map(Step::Begin),
        6 => (any::<Index>(), ended).prop_map(|(job, state)| Step::Finish(job, state)),
        1 => any::<Index>().prop_map(Step::QueueAgain),
        1 => Just(Step::Reopen),
        1 => Just(Step::Rebuild),
        1 => Just(Step::RemoveAll),
    ]
}

/// One of a few outputs, so that jobs meet at them.
fn place_of(number: usize) -> OutputSpec {
    output(&format!("place {}", number % 6))
}

/// A job as the model knows it.
#[derive(Debug, Clone, PartialEq)]
struct Known {
    id: JobId,
    state: State,
    request: Request,
    /// Steps in the outcome; `None` if it has not ended.
    steps: Option<usize>,
}

impl Known {
    fn of(row: &JobRow) -> Self {
        Self {
            id: row.id,
            state: row.state,
            request: row.request.clone(),
            steps: row.outcome.as_ref().map(|outcome| outcome.steps_done),
        }
    }

    fn queue(&mut self) {
        (self.state, self.steps) = (State::Queued, None);
    }

    /// Follows an order; false if it is refused.
    fn follow(&mut self, order: &JobOrder, steps_before: usize) -> bool {
        use State::{Cancelled, Failed, Queued, Stopped};
        let is_open_take = self.request.take.is_some() && self.request.outputs.is_empty();
        match order {
            JobOrder::Cancel if matches!(self.state, Queued | Stopped) => {
                (self.state, self.steps) = (Cancelled, Some(steps_before));
            }
            JobOrder::Retry { .. } if matches!(self.state, Failed | Cancelled) => self.queue(),
            JobOrder::Resume { stop_after } if matches!(self.state, Stopped | Cancelled) => {
                if stop_after.map_or(is_open_take, |stop| stop <= steps_before) {
                    return false;
                }
                self.request.stop_after = *stop_after;
                self.queue();
            }
            JobOrder::Keep { outputs } if matches!(self.state, Stopped | Cancelled | Failed) => {
                if self.request.take.is_none() {
                    return false;
                }
                self.request.outputs.clone_from(outputs);
                self.request.stop_after = None;
                self.queue();
            }
            _ => return false,
        }
        true
    }
}

struct World<'a> {
    folder: &'a Path,
    owner: Option<OwnedStore>,
    jobs: Vec<Known>,
    last: u64,
}

impl World<'_> {
    fn owner(&mut self) -> &mut OwnedStore {
        self.owner.as_mut().unwrap()
    }

    fn reopen(&mut self) {
        self.owner = None;
        self.owner = Some(OwnedStore::open(self.folder).unwrap().0);
        for job in self.jobs.iter_mut().filter(|job| job.state == State::Running) {
            job.state = State::Queued;
        }
    }

    /// The outputs of the jobs that have not ended.
    fn taken_by_others(&self, own: Option<JobId>) -> Vec<OutputSpec> {
        let others = self.jobs.iter().filter(|job| !job.state.has_ended() && Some(job.id) != own);
        others.flat_map(|job| job.request.outputs.clone()).collect()
    }

    fn submit(&mut self, clips: usize, takes: usize) {
        let audition = JobId(self.last + 1 + clips as u64);
        let take = |number| Request {
            take: Some(Take { audition, number, of: takes }),
            outputs: Vec::new(),
            stop_after: Some(2),
            ..request("take")
        };
        let clip =
            |number: usize| Request { outputs: vec![place_of(self.jobs.len() + number)], ..request("clip") };
        let requests: Vec<Request> = (0..clips).map(clip).chain((1..=takes).map(take)).collect();
        let taken = self.taken_by_others(None);
        let is_free =
            requests.iter().flat_map(|request| &request.outputs).all(|output| !taken.contains(output));
        let added = Store::open(self.folder).unwrap().submit(requests.clone(), &mut nothing);
        assert_eq!(added.is_ok(), is_free, "{added:?}");
        let Ok(ids) = added else { return };
        for (id, request) in ids.into_iter().zip(requests) {
            self.last += 1;
            assert_eq!(id, JobId(self.last));
            self.jobs.push(Known { id, state: State::Queued, request, steps: None });
        }
    }

    fn order(&mut self, job: usize, order: &JobOrder) {
        let id = self.jobs[job].id;
        let mut store = Store::open(self.folder).unwrap();
        let row = store.job(id).unwrap();
        let steps_before = row.outcome.map_or(row.progress.steps_done, |outcome| outcome.steps_done);
        let is_running = self.jobs[job].state == State::Running;
        let before = self.jobs[job].clone();
        let mut after = before.clone();
        let expected = if is_running {
            *order == JobOrder::Cancel
        } else {
            let taken = self.taken_by_others(Some(id));
            let suits = after.follow(order, steps_before);
            suits
                && (after.state != State::Queued
                    || after.request.outputs.iter().all(|output| !taken.contains(output)))
        };
        let given = store.order(id, order);
        assert_eq!(given.is_ok(), expected, "{order:?} for {before:?}: {given:?}");
        let Ok(number) = given else { return };
        if is_running {
            let outcome = outcome(State::Cancelled, 4);
            self.owner().finish(id, &outcome).unwrap();
            self.owner().answer(number, &Answer::Done).unwrap();
            (self.jobs[job].state, self.jobs[job].steps) = (State::Cancelled, Some(4));
        } else {
            self.jobs[job] = after;
            let pending = self.owner().orders().unwrap().remove(0);
            self.owner().carry_out(&pending).unwrap();
        }
        assert_eq!(store.answer(number).unwrap(), Some(Answer::Done));
    }

    fn make(&mut self, step: &Step) {
        let job = |index: &Index, jobs: &[Known]| (!jobs.is_empty()).then(|| index.index(jobs.len()));
        match step {
            Step::Submit { clips, takes } => self.submit(*clips, *takes),
            Step::Order(index, order) => {
                if let Some(job) = job(index, &self.jobs) {
                    self.order(job, order);
                }
            }
            Step::Begin(index) | Step::Finish(index, _) | Step::QueueAgain(index) => {
                let Some(job) = job(index, &self.jobs) else { return };
                let id = self.jobs[job].id;
                let is_open = !self.jobs[job].state.has_ended();
                let (made, state, steps) = match step {
                    Step::Begin(_) => (self.owner().begin(id), State::Running, None),
                    Step::Finish(_, state) => {
                        let steps = 3 + job % 5;
                        (self.owner().finish(id, &outcome(*state, steps)), *state, Some(steps))
                    }
                    _ => (self.owner().queue_again(id), State::Queued, None),
                };
                assert_eq!(made.is_ok(), is_open, "{made:?}");
                if is_open {
                    (self.jobs[job].state, self.jobs[job].steps) = (state, steps);
                }
            }
            Step::Reopen => self.reopen(),
            Step::Rebuild => {
                self.owner = None;
                std::fs::remove_file(self.folder.join("jobs.db")).unwrap();
                self.reopen();
            }
            Step::RemoveAll => {
                let removed = self.owner().keep_within(ByteCount(0)).unwrap();
                let is_over =
                    |job: &Known| matches!(job.state, State::Done | State::Failed | State::Cancelled);
                assert_eq!(removed.len(), self.jobs.iter().filter(|job| is_over(job)).count());
                self.jobs.retain(|job| !is_over(job));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_store_is_what_was_done_with_it(steps in proptest::collection::vec(step(), 1..40)) {
        let folder = scratch();
        let owner = Some(OwnedStore::open(folder.path()).unwrap().0);
        let mut world = World { folder: folder.path(), owner, jobs: Vec::new(), last: 0 };
        for step in &steps {
            world.make(step);
            let found: Vec<Known> = world.owner().store().list().unwrap().iter().map(Known::of).collect();
            prop_assert_eq!(&found, &world.jobs, "after {:?}", step);
        }
        world.owner = None;
        std::fs::remove_file(folder.path().join("jobs.db")).unwrap();
        world.reopen();
        let found: Vec<Known> = world.owner().store().list().unwrap().iter().map(Known::of).collect();
        prop_assert_eq!(&found, &world.jobs);
    }
}
