//! Where jobs are kept: an SQLite database and a folder for each job.
//!
//! | path | content |
//! |---|---|
//! | `jobs.db` | requests, states and progress of the jobs, orders of other processes, the lease of the owner |
//! | `owner.lock` | locked by the process that makes the jobs |
//! | `jobs.lock` | locked while jobs are added |
//! | `last-number` | the largest number of a job, once the job with it was removed |
//! | `jobs/ID/request.json` | the [`Request`] of a job |
//! | `jobs/ID/submitted.json` | when the job was submitted, and with which others |
//! | `jobs/ID/outcome.json` | how the job ended, once it has |
//! | `jobs/ID/run` | the [`JobFolder`](runtime::job::JobFolder) of its runs |
//! | `jobs/ID/origin` | the job folder that a fork goes on from |
//! | `jobs/ID/take.png` | the picture of a take |
//! | `auditions/ID.png` | the contact sheet of an audition |
//! | `damaged-N` | what was damaged, and was made again |
//!
//! The folders are what is promised: everything in the database can be made from them again, but for progress, the time
//! at which a job began, and orders without an answer.

mod budget;
mod clock;
mod database;
mod durable;
mod file_system;
mod giving;
mod job_files;
mod job_rows;
mod layout;
mod lease;
mod order_rows;
mod orders;
mod outputs;
mod owned;
mod rebuild;
mod reconcile;
mod submitting;
mod types;

#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;

pub use clock::now;
pub use giving::{Given, give};
pub use layout::{ORIGIN, PICTURE, RUN};
pub use outputs::check_free;
pub use owned::OwnedStore;
pub use types::{Answer, JobOrder, JobRow, Lease, Outcome, PendingOrder, Progress, State};

use crate::Error;
use crate::request::Request;
use database::Database;
use layout::Layout;
use orders::Change;
use runtime::scheduler::JobId;
use std::path::{Path, PathBuf};

/// An open store. Any number of processes may have one.
#[derive(Debug)]
pub struct Store {
    layout: Layout,
    database: Database,
}

impl Store {
    /// Opens the store in a folder, which is created with the mode 0700 if it does not exist. An existing folder must be
    /// a store or empty; permissions of other users on it are taken away.
    ///
    /// # Errors
    /// The folder is on a network file system, is not a store, cannot be created, is of a newer version, or its database
    /// is damaged (the owner rebuilds it).
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let layout = Layout::open(folder)?;
        let database = Database::open(&layout)?;
        Ok(Self { layout, database })
    }

    /// The folder of the store. It is absolute.
    pub fn folder(&self) -> &Path {
        self.layout.root()
    }

    /// The folder of a job.
    pub fn job_folder(&self, id: JobId) -> PathBuf {
        self.layout.job(id)
    }

    /// The job folder of the runs of a job.
    pub fn run_folder(&self, id: JobId) -> PathBuf {
        self.job_folder(id).join(RUN)
    }

    /// The picture of a take.
    pub fn take_picture(&self, id: JobId) -> PathBuf {
        self.job_folder(id).join(PICTURE)
    }

    /// The contact sheet of an audition.
    pub fn contact_sheet(&self, audition: JobId) -> PathBuf {
        self.layout.sheet(audition)
    }

    /// Adds jobs, all or none, and returns their numbers in order. When this returns, the jobs survive a power cut.
    ///
    /// `prepare` is called for each with its number and the folder that becomes [`Self::job_folder`], under another name
    /// until all are complete. It may change the request and put files there. No other process adds jobs meanwhile.
    ///
    /// # Errors
    /// A request cannot be stored, another job that has not ended writes one of the outputs, `prepare` has failed, or the store cannot be written. No job was added.
    pub fn submit(
        &mut self,
        requests: Vec<Request>,
        prepare: &mut dyn FnMut(JobId, &mut Request, &Path) -> Result<(), Error>,
    ) -> Result<Vec<JobId>, Error> {
        requests.iter().try_for_each(Request::check)?;
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let _lock = self.layout.lock_jobs()?;
        self.refresh(Database::open_or_create)?;
        submitting::submit(&self.layout, &mut self.database, requests, prepare)
    }

    /// All jobs, oldest first. Without an owner no job is running: one whose owner was killed is queued.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn list(&self) -> Result<Vec<JobRow>, Error> {
        let rows = self.database.read(job_rows::all)?;
        if rows.iter().all(|row| row.state.has_ended()) || lease::is_owned(&self.layout) {
            return Ok(rows);
        }
        Ok(rows.into_iter().map(without_owner).collect())
    }

    /// One job, as in [`Self::list`].
    ///
    /// # Errors
    /// There is no such job, or the store cannot be read.
    pub fn job(&self, id: JobId) -> Result<JobRow, Error> {
        let row = self.database.read(|database| job_rows::get(database, id))?.ok_or(Error::NoJob { id })?;
        let is_as_stored = row.state.has_ended() || lease::is_owned(&self.layout);
        Ok(if is_as_stored { row } else { without_owner(row) })
    }

    /// Gives an order about a job to the owner. Returns its number, for [`Self::answer`]. Without an owner the order
    /// waits for the next one; [`give`] carries it out.
    ///
    /// # Errors
    /// There is no such job, the order does not suit its state, another job that has not ended writes one of the outputs,
    /// or the store cannot be written.
    pub fn order(&mut self, id: JobId, order: &JobOrder) -> Result<u64, Error> {
        self.refresh(Database::open)?;
        let is_owned = lease::is_owned(&self.layout);
        let failed = Error::database(&self.layout.database());
        self.database.change_with(|transaction| {
            let row = job_rows::get(transaction, id).map_err(&failed)?.ok_or(Error::NoJob { id })?;
            // The owner of a running job may have been killed, and the next one queues it again.
            let row = if is_owned { row } else { without_owner(row) };
            if let Change::Queue { request, .. } = orders::change(&row, order)? {
                let open = job_rows::open(transaction).map_err(&failed)?;
                check_free(&request.outputs, &open, Some(id))?;
            }
            order_rows::add(transaction, id, order, now()).map_err(&failed)
        })
    }

    /// The answer to an order; `None` as long as no owner has read it.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn answer(&self, order: u64) -> Result<Option<Answer>, Error> {
        self.database.read(|database| order_rows::answer_to(database, order))
    }

    /// The process that makes the jobs, if one does. A process that only carries out an order is none.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn lease(&self) -> Result<Option<Lease>, Error> {
        lease::of_owner(&self.layout, &self.database)
    }

    /// Becomes the owner, if there is none. What was repaired is logged; [`OwnedStore::open`] returns it.
    ///
    /// # Errors
    /// Another process is the owner (its process id is in the error), or the store cannot be written.
    pub fn own(self) -> Result<OwnedStore, Error> {
        let folder = self.folder().to_owned();
        drop(self);
        let (owned, notes) = OwnedStore::open(&folder)?;
        for note in notes {
            tracing::warn!("{note}");
        }
        Ok(owned)
    }

    /// Opens the database again if an owner has replaced it.
    fn refresh(&mut self, open: impl FnOnce(&Layout) -> Result<Database, Error>) -> Result<(), Error> {
        if !self.database.is_current() {
            self.database = open(&self.layout)?;
        }
        Ok(())
    }
}

/// What a row says while no process owns the store: what has not ended waits, with the steps that are done.
fn without_owner(row: JobRow) -> JobRow {
    if row.state.has_ended() { row } else { owned::waiting(row) }
}

impl Drop for Store {
    fn drop(&mut self) {
        // An owner does it itself.
        if !lease::is_owned(&self.layout) {
            self.database.checkpoint();
        }
    }
}
