//! The store of the process that makes the jobs.

use super::database::Database;
use super::layout::Layout;
use super::orders::{self, Change};
use super::outputs::check_free;
use super::types::{Answer, JobRow, Outcome, PendingOrder, Progress, State};
use super::{Store, budget, clock, job_files, job_rows, lease, order_rows, rebuild};
use crate::Error;
use bundle::lock::Locked;
use bundle::units::ByteCount;
use runtime::scheduler::JobId;
use rusqlite::Connection;
use std::path::Path;

/// How long answers to orders are kept, in seconds.
const ANSWERS_KEPT: f64 = 24.0 * 3600.0;

/// The store of the process that owns it.
#[derive(Debug)]
pub struct OwnedStore {
    store: Store,
    data_version: i64,
    /// False if it only carries out an order.
    has_lease: bool,
    /// Released after the database is closed.
    _lock: Locked,
}

/// Why a process becomes the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To make the jobs.
    Run,
    /// To carry out an order, which takes a moment.
    CarryOut,
}

impl OwnedStore {
    /// Opens the store in a folder and becomes its owner. A damaged database is moved aside and rebuilt from the job
    /// folders; the texts say what was done. Jobs that another owner left running are queued again.
    ///
    /// # Errors
    /// As [`Store::open`], and another process is the owner (its process id is in the error). A damaged database is no
    /// error here.
    pub fn open(folder: &Path) -> Result<(Self, Vec<String>), Error> {
        Self::open_for(folder, Purpose::Run)
    }

    pub(super) fn open_for(folder: &Path, purpose: Purpose) -> Result<(Self, Vec<String>), Error> {
        let layout = Layout::open(folder)?;
        let lock = lease::lock_owner(&layout)?;
        let jobs_lock = layout.lock_jobs()?;
        let (mut database, notes) = rebuild::open(&layout)?;
        drop(jobs_lock);
        database.change(|transaction| {
            order_rows::forget_before(transaction, clock::now() - ANSWERS_KEPT)?;
            match purpose {
                Purpose::Run => lease::take(transaction),
                Purpose::CarryOut => Ok(()),
            }
        })?;
        let data_version = database.data_version()?;
        let has_lease = purpose == Purpose::Run;
        Ok((Self { store: Store { layout, database }, data_version, has_lease, _lock: lock }, notes))
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Returns true if another process has changed the store since the last call (`data_version`).
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn has_changed(&mut self) -> Result<bool, Error> {
        let version = self.store.database.data_version()?;
        Ok(std::mem::replace(&mut self.data_version, version) != version)
    }

    /// Renews the lease.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn renew_lease(&mut self) -> Result<(), Error> {
        self.database().change(|transaction| lease::renew(transaction))
    }

    /// The orders without an answer, in the order in which they were given.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn orders(&self) -> Result<Vec<PendingOrder>, Error> {
        self.store.database.read(order_rows::pending)
    }

    /// Answers an order.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn answer(&mut self, order: u64, answer: &Answer) -> Result<(), Error> {
        self.database().change(|transaction| order_rows::answer(transaction, order, answer))
    }

    /// Carries out an order about a job that is not running, and answers it: the job is queued again with the changes,
    /// or ended. An order that does not suit the job, or that would queue it beside another one with the same output, is
    /// answered with the reason.
    ///
    /// # Errors
    /// The store cannot be written, or the job is running and is to be cancelled, which its owner does itself. The order
    /// has no answer then.
    pub fn carry_out(&mut self, order: &PendingOrder) -> Result<(), Error> {
        let Some(row) = self.store.database.read(|database| job_rows::get(database, order.job))? else {
            let why = Error::NoJob { id: order.job }.to_string();
            return self.answer(order.number, &Answer::Refused { why });
        };
        let folder = self.store.layout.job(row.id);
        let change = match orders::change(&row, &order.order) {
            Ok(Change::Cancel) if row.state == State::Running => {
                let fix = "end its run first".to_owned();
                return Err(Error::Unsuitable {
                    id: row.id,
                    order: order.order.name(),
                    state: row.state,
                    fix,
                });
            }
            Ok(change) => Some(change),
            Err(_) if orders::is_carried_out(&row, &order.order, job_files::has_runs(&folder)) => None,
            Err(error) => {
                return self.answer(order.number, &Answer::Refused { why: error.to_string() });
            }
        };
        let failed = Error::database(&self.store.layout.database());
        self.database().change_with(|transaction| {
            let changed = match change {
                None => None,
                Some(Change::Cancel) => Some(cancel(&folder, row)?),
                Some(Change::Queue { request, from_start }) => {
                    let open = job_rows::open(transaction).map_err(&failed)?;
                    if let Err(error) = check_free(&request.outputs, &open, Some(row.id)) {
                        let refused = Answer::Refused { why: error.to_string() };
                        return order_rows::answer(transaction, order.number, &refused).map_err(&failed);
                    }
                    Some(queue(&folder, JobRow { request: *request, ..row }, from_start)?)
                }
            };
            if let Some(row) = &changed {
                job_rows::put(transaction, row).map_err(&failed)?;
            }
            order_rows::answer(transaction, order.number, &Answer::Done).map_err(&failed)
        })
    }

    /// Notes that a job runs.
    ///
    /// # Errors
    /// There is no such job, it has ended, or the store cannot be written.
    pub fn begin(&mut self, id: JobId) -> Result<(), Error> {
        self.change_open(id, "begin", |transaction, row| {
            let started = Some(clock::now());
            job_rows::put(transaction, &JobRow { state: State::Running, started, ..row })
        })
    }

    /// Notes the progress of jobs. The write is not flushed: a power cut may lose it.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn set_progress(&mut self, progress: &[(JobId, Progress)]) -> Result<(), Error> {
        self.database().change(|transaction| job_rows::set_progress(transaction, progress))
    }

    /// Notes how a job ended: first in its folder, then in the database. It can be called again if it fails.
    ///
    /// # Errors
    /// There is no such job, it has ended already, `outcome` has the state of a job that has not ended, or the store
    /// cannot be written.
    pub fn finish(&mut self, id: JobId, outcome: &Outcome) -> Result<(), Error> {
        if !outcome.state.has_ended() {
            let fix = "give the state that it ended in".to_owned();
            return Err(Error::Unsuitable { id, order: "finish", state: outcome.state, fix });
        }
        let folder = self.store.layout.job(id);
        let row = self.store.job(id)?;
        check_open(&row, "finish")?;
        job_files::write_outcome(&folder, outcome)?;
        self.change_open(id, "finish", |transaction, row| job_rows::put(transaction, &ended(row, outcome)))
    }

    /// Puts a running job back into the queue, when the owner ends before the job does.
    ///
    /// # Errors
    /// There is no such job, it has ended, or the store cannot be written.
    pub fn queue_again(&mut self, id: JobId) -> Result<(), Error> {
        self.change_open(id, "queue", |transaction, row| job_rows::put(transaction, &waiting(row)))
    }

    /// Removes the folders of jobs that are done, failed or cancelled, the oldest end first, until what the jobs use on
    /// disk is within `budget`. Queued, running and stopped jobs are kept, and so are jobs about which an order is
    /// waiting, and outputs, which are outside the store. Returns the jobs that were removed.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub fn keep_within(&mut self, budget: ByteCount) -> Result<Vec<JobId>, Error> {
        let Store { layout, database } = &mut self.store;
        budget::keep_within(layout, database, budget)
    }

    fn database(&mut self) -> &mut Database {
        &mut self.store.database
    }

    /// Changes a job that has not ended.
    fn change_open(
        &mut self,
        id: JobId,
        order: &'static str,
        change: impl FnOnce(&Connection, JobRow) -> rusqlite::Result<()>,
    ) -> Result<(), Error> {
        let failed = Error::database(&self.store.layout.database());
        self.database().change_with(|transaction| {
            let row = job_rows::get(transaction, id).map_err(&failed)?.ok_or(Error::NoJob { id })?;
            check_open(&row, order)?;
            change(transaction, row).map_err(&failed)
        })
    }
}

impl Drop for OwnedStore {
    fn drop(&mut self) {
        if self.has_lease {
            // A lease that remains is stale: the lock is released.
            if let Err(error) = self.database().change(|transaction| lease::give_back(transaction)) {
                tracing::debug!("the lease remains: {error}");
            }
        }
        self.store.database.checkpoint();
    }
}

fn check_open(row: &JobRow, order: &'static str) -> Result<(), Error> {
    if row.state.has_ended() {
        let fix = "give an order for it first, such as `rushes jobs retry`".to_owned();
        return Err(Error::Unsuitable { id: row.id, order, state: row.state, fix });
    }
    Ok(())
}

/// A job that has ended.
pub(super) fn ended(row: JobRow, outcome: &Outcome) -> JobRow {
    let progress =
        Progress { steps_done: outcome.steps_done, seconds_left: None, held: None, ..row.progress };
    JobRow {
        state: outcome.state,
        progress,
        ended: Some(outcome.ended),
        outcome: Some(outcome.clone()),
        ..row
    }
}

/// A job that waits.
pub(super) fn waiting(row: JobRow) -> JobRow {
    let progress = Progress { phase: String::new(), seconds_left: None, held: None, ..row.progress };
    JobRow { state: State::Queued, progress, ended: None, outcome: None, ..row }
}

fn cancel(folder: &Path, row: JobRow) -> Result<JobRow, Error> {
    let outcome = Outcome {
        state: State::Cancelled,
        error: None,
        outputs: Vec::new(),
        warnings: Vec::new(),
        steps_done: orders::steps_done(&row),
        ended: clock::now(),
    };
    job_files::write_outcome(folder, &outcome)?;
    Ok(ended(row, &outcome))
}

/// Changes the folder of a job so that it is queued. The outcome is removed last: until then it has not been queued.
fn queue(folder: &Path, mut row: JobRow, from_start: bool) -> Result<JobRow, Error> {
    if from_start {
        job_files::remove_runs(folder)?;
        row.progress = Progress::default();
    }
    job_files::write_request(folder, &row.request)?;
    job_files::remove_outcome(folder)?;
    Ok(waiting(row))
}
