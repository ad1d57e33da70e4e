//! Adding jobs.
//!
//! A number is promised when [`submit`] returns it. By then the folder of the job is on disk; the row in the database
//! need not be, and is made again from the folder by the next owner.
//!
//! Folders are filled under other names, `jobs/ID.part`. Renaming the first one of a submission commits all of them: a
//! process that finds the other parts finishes what was begun, and removes parts whose first job does not exist.

use super::database::Database;
use super::job_files::{self, Submitted};
use super::layout::{Entry, Layout, create_private};
use super::outputs::check_free;
use super::types::{JobRow, Progress, State};
use super::{clock, durable, job_rows};
use crate::Error;
use crate::request::Request;
use runtime::scheduler::JobId;
use std::path::Path;

/// Fills the folder of a job and changes its request, before it can be seen.
pub(super) type Prepare<'a> = dyn FnMut(JobId, &mut Request, &Path) -> Result<(), Error> + 'a;

/// Adds jobs, all or none. See [`Store::submit`](super::Store::submit). The jobs must be locked.
pub(super) fn submit(
    layout: &Layout,
    database: &mut Database,
    requests: Vec<Request>,
    prepare: &mut Prepare<'_>,
) -> Result<Vec<JobId>, Error> {
    finish_parts(layout)?;
    let mut last = layout.largest_number(database.read(job_rows::largest)?)?;
    let first = JobId(layout.number_after(last)?);
    let submitted = Submitted { at: clock::now(), first };
    let mut batch = Batch { layout, ids: Vec::new(), is_done: false };
    let mut rows = Vec::new();
    for mut request in requests {
        last = layout.number_after(last)?;
        let id = JobId(last);
        let part = layout.part(id);
        batch.ids.push(id);
        create_private(&part)?;
        prepare(id, &mut request, &part)?;
        request.check()?;
        job_files::write_new(&part, &request, &submitted)?;
        durable::sync_tree(&part)?;
        rows.push(JobRow {
            id,
            state: State::Queued,
            request,
            progress: Progress::default(),
            submitted: submitted.at,
            started: None,
            ended: None,
            outcome: None,
        });
    }
    durable::sync_folder(&layout.jobs())?;
    let failed = Error::database(&layout.database());
    database.change_with(|transaction| {
        // In the transaction: an owner that carries out an order queues a job without the lock.
        let mut open = job_rows::open(transaction).map_err(&failed)?;
        for row in rows {
            check_free(&row.request.outputs, &open, Some(row.id))?;
            job_rows::put(transaction, &row).map_err(&failed)?;
            open.push(row);
        }
        batch.publish()
    })?;
    batch.is_done = true;
    Ok(std::mem::take(&mut batch.ids))
}

/// Jobs that are being added. Those that were not are removed when this is dropped.
struct Batch<'a> {
    layout: &'a Layout,
    ids: Vec<JobId>,
    is_done: bool,
}

impl Batch<'_> {
    fn publish(&self) -> Result<(), Error> {
        self.ids.iter().try_for_each(|id| durable::rename(&self.layout.part(*id), &self.layout.job(*id)))
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        // The first one last: as long as it has its final name, the others belong to it.
        for id in self.ids.iter().rev().filter(|id| self.layout.job(**id).exists()) {
            if let Err(error) = durable::rename(&self.layout.job(*id), &self.layout.part(*id)) {
                tracing::warn!("{id} was not added and cannot be removed: {error}");
                return;
            }
        }
        for id in &self.ids {
            // What is left is removed when the next job is added.
            if let Err(error) = durable::remove_leftover(&self.layout.part(*id)) {
                tracing::debug!("a leftover remains: {error}");
            }
        }
    }
}

/// Finishes or removes what processes that were killed have left of their submissions. The jobs must be locked.
///
/// # Errors
/// A folder cannot be read, renamed or removed.
pub(super) fn finish_parts(layout: &Layout) -> Result<(), Error> {
    let entries = layout.entries()?;
    for id in entries.iter().filter(|entry| matches!(entry, Entry::Part(_))).map(|entry| entry.id()) {
        let part = layout.part(id);
        if !std::fs::symlink_metadata(&part).is_ok_and(|found| found.is_dir()) {
            continue;
        }
        let first = job_files::read_submitted(&part)?.map(|submitted| submitted.first);
        let is_committed = first.is_some_and(|first| first != id && entries.contains(&Entry::Job(first)));
        if is_committed && !entries.contains(&Entry::Job(id)) {
            durable::rename(&part, &layout.job(id))?;
        } else {
            durable::remove_leftover(&part)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::super::tests::{nothing, request, scratch};
    use super::*;
    use std::collections::BTreeSet;

    fn names(store: &Store) -> BTreeSet<String> {
        let entries = std::fs::read_dir(store.folder().join("jobs")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn refused() -> Error {
        Error::Request { why: "refused by the test".to_owned() }
    }

    #[test]
    fn a_job_has_its_files_and_what_was_prepared() {
        let folder = scratch();
        let mut store = Store::open(folder.path()).unwrap();
        let mut prepare = |id: JobId, request: &mut Request, folder: &Path| {
            request.model = format!("model of {id}");
            std::fs::create_dir(folder.join("origin")).unwrap();
            std::fs::write(folder.join("origin/newest.safetensors"), "x").unwrap();
            Ok(())
        };
        let ids = store.submit(vec![request("a"), request("b")], &mut prepare).unwrap();
        assert_eq!(ids, [JobId(1), JobId(2)]);
        let row = store.job(JobId(2)).unwrap();
        assert_eq!(
            (row.state, &*row.request.model, &*row.request.clip.prompt),
            (State::Queued, "model of job 2", "b")
        );
        assert!(store.job_folder(JobId(2)).join("origin/newest.safetensors").exists());
        let json = std::fs::read_to_string(store.job_folder(JobId(2)).join("request.json")).unwrap();
        assert_eq!(Request::from_json(&json).unwrap(), row.request);
        assert_eq!(store.submit(Vec::new(), &mut nothing).unwrap(), []);
    }

    #[test]
    fn all_jobs_are_added_or_none() {
        let folder = scratch();
        let mut store = Store::open(folder.path()).unwrap();
        let mut prepare = |id: JobId, _: &mut Request, folder: &Path| {
            std::fs::write(folder.join("large"), "x").unwrap();
            if id == JobId(3) { Err(refused()) } else { Ok(()) }
        };
        let error = store.submit(vec![request("a"), request("b"), request("c")], &mut prepare).unwrap_err();
        assert!(error.to_string().contains("refused by the test"), "{error}");
        assert!(names(&store).is_empty() && store.list().unwrap().is_empty());
        // The numbers were not promised.
        assert_eq!(store.submit(vec![request("d")], &mut nothing).unwrap(), [JobId(1)]);
    }

    #[test]
    fn a_database_that_cannot_grow_leaves_nothing() {
        let folder = scratch();
        let mut store = Store::open(folder.path()).unwrap();
        store.submit(vec![request("first")], &mut nothing).unwrap();
        let pages: i64 =
            store.database.connection().query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
        store.database.connection().pragma_update(None, "max_page_count", pages).unwrap();
        let long = "long ".repeat(20_000);
        let error = store.submit(vec![request("short"), request(&long)], &mut nothing).unwrap_err();
        assert!(error.is_disk_full(), "{error}");
        assert_eq!(names(&store), BTreeSet::from(["1".to_owned()]));
        assert_eq!(store.list().unwrap().len(), 1);
        store.database.connection().pragma_update(None, "max_page_count", 1_000_000).unwrap();
        assert_eq!(store.submit(vec![request(&long)], &mut nothing).unwrap(), [JobId(2)]);
    }

    #[test]
    fn leftovers_of_killed_processes_are_finished_or_replaced_and_other_files_are_kept() {
        let folder = scratch();
        let mut store = Store::open(folder.path()).unwrap();
        store.submit(vec![request("one")], &mut nothing).unwrap();
        let layout = store.layout.clone();
        let leave = |id: u64, first: u64| {
            let part = layout.part(JobId(id));
            std::fs::create_dir(&part).unwrap();
            let submitted = Submitted { at: 1.0, first: JobId(first) };
            job_files::write_new(&part, &request("left"), &submitted).unwrap();
        };
        leave(2, 1);
        leave(3, 3);
        leave(4, 3);
        std::fs::create_dir(layout.part(JobId(5))).unwrap();
        std::fs::write(layout.jobs().join("6.part"), "not of a store").unwrap();
        std::fs::create_dir(layout.jobs().join("mine")).unwrap();
        std::fs::create_dir(layout.jobs().join("8")).unwrap();
        assert_eq!(store.submit(vec![request("next")], &mut nothing).unwrap(), [JobId(9)]);
        let expected = ["1", "2", "6.part", "8", "9", "mine"].map(str::to_owned);
        assert_eq!(names(&store), BTreeSet::from(expected));
    }

    #[test]
    fn many_submissions_at_once_get_numbers_of_their_own() {
        const THREADS: usize = 10;
        let folder = scratch();
        let ids = std::thread::scope(|scope| {
            let submit = |thread: usize| {
                let path = folder.path();
                scope.spawn(move || {
                    let mut store = Store::open(path).unwrap();
                    let requests =
                        |round| (0..2).map(|k| request(&format!("{thread} {round} {k}"))).collect();
                    (0..3)
                        .flat_map(|round| store.submit(requests(round), &mut nothing).unwrap())
                        .collect::<Vec<_>>()
                })
            };
            let threads: Vec<_> = (0..THREADS).map(submit).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert!(ids.chunks(2).all(|pair| pair[1].0 == pair[0].0 + 1));
        let numbers: BTreeSet<u64> = ids.iter().map(|id| id.0).collect();
        assert_eq!(numbers, (1..=60).collect());
        assert_eq!(Store::open(folder.path()).unwrap().list().unwrap().len(), 60);
    }

    #[test]
    fn requests_that_cannot_be_stored_are_refused() {
        let folder = scratch();
        let mut store = Store::open(folder.path()).unwrap();
        let mut relative = request("a");
        relative.bundle = "bundle".into();
        assert!(store.submit(vec![request("b"), relative], &mut nothing).is_err());
        let mut not_a_number = request("c");
        not_a_number.clip.noise_scale = f32::NAN;
        assert!(store.submit(vec![not_a_number], &mut nothing).is_err());
        assert!(names(&store).is_empty() && store.list().unwrap().is_empty());
    }
}
