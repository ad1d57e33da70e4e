//! Keeping the jobs within a budget of disk space.

use super::database::Database;
use super::layout::{Entry, Layout};
use super::types::{JobRow, State};
use super::{durable, job_rows, order_rows};
use crate::Error;
use bundle::units::ByteCount;
use runtime::scheduler::JobId;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes on disk of the files of one folder, by device and inode: a file with several names counts once.
type Files = BTreeMap<(u64, u64), u64>;

/// Removes jobs that have ended until what the jobs use on disk is within `budget`. See
/// [`OwnedStore::keep_within`](super::OwnedStore::keep_within).
pub(super) fn keep_within(
    layout: &Layout,
    database: &mut Database,
    budget: ByteCount,
) -> Result<Vec<JobId>, Error> {
    let mut folders = BTreeMap::new();
    for entry in layout.entries()? {
        if let Entry::Gone(id) = entry {
            durable::remove_leftover(&layout.gone(id))?;
        } else {
            let files: &mut Files = folders.entry(entry.id()).or_default();
            count(&layout.path(entry), files)?;
        }
    }
    let mut others = Files::new();
    count(&layout.auditions(), &mut others)?;
    let (rows, orders) =
        database.read(|database| Ok((job_rows::all(database)?, order_rows::pending(database)?)))?;
    let waited_for: BTreeSet<JobId> = orders.iter().map(|order| order.job).collect();
    let chosen = choose(&folders, &others, &removable(&rows, &waited_for), budget);
    let mut left: BTreeSet<JobId> = rows.iter().map(|row| row.id).collect();
    for id in &chosen {
        left.remove(id);
        if left.last().is_none_or(|last| last < id) {
            // No folder would show any more that its number was given.
            layout.note_last_number(id.0)?;
        }
        // First the folder: a full disk may have no room for a change of the database.
        durable::remove_folder(&layout.job(*id), &layout.gone(*id))?;
        database.change(|transaction| job_rows::delete(transaction, *id))?;
    }
    remove_sheets(layout, &rows, &chosen)?;
    Ok(chosen)
}

/// The jobs that may be removed, the oldest end first.
fn removable(rows: &[JobRow], waited_for: &BTreeSet<JobId>) -> Vec<JobId> {
    let is_over = |row: &&JobRow| matches!(row.state, State::Done | State::Failed | State::Cancelled);
    let mut over: Vec<&JobRow> =
        rows.iter().filter(is_over).filter(|row| !waited_for.contains(&row.id)).collect();
    over.sort_by(|a, b| a.ended.unwrap_or(0.0).total_cmp(&b.ended.unwrap_or(0.0)).then(a.id.cmp(&b.id)));
    over.into_iter().map(|row| row.id).collect()
}

/// The jobs to remove, so that the rest is within the budget.
fn choose(
    folders: &BTreeMap<JobId, Files>,
    others: &Files,
    removable: &[JobId],
    budget: ByteCount,
) -> Vec<JobId> {
    let mut users: BTreeMap<(u64, u64), usize> = BTreeMap::new();
    let mut total: u64 = 0;
    for (file, bytes) in folders.values().chain([others]).flatten() {
        let users = users.entry(*file).or_default();
        if *users == 0 {
            total = total.saturating_add(*bytes);
        }
        *users += 1;
    }
    let mut chosen = Vec::new();
    for id in removable {
        if total <= budget.0 {
            break;
        }
        for (file, bytes) in folders.get(id).into_iter().flatten() {
            if let Some(users) = users.get_mut(file) {
                *users -= 1;
                if *users == 0 {
                    total = total.saturating_sub(*bytes);
                }
            }
        }
        chosen.push(*id);
    }
    chosen
}

/// Adds the files in a folder. Links are not followed, and what disappears meanwhile does not count.
fn count(folder: &Path, files: &mut Files) -> Result<(), Error> {
    let is_gone = |error: &std::io::Error| error.kind() == ErrorKind::NotFound;
    let entries = match std::fs::read_dir(folder) {
        Err(error) if is_gone(&error) || error.kind() == ErrorKind::NotADirectory => return Ok(()),
        entries => entries.map_err(bundle::Error::file("read", folder))?,
    };
    for entry in entries {
        let path = entry.map_err(bundle::Error::file("read", folder))?.path();
        match std::fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => count(&path, files)?,
            Ok(found) => {
                // In units of 512 bytes on every file system.
                files.insert((found.dev(), found.ino()), found.blocks().saturating_mul(512));
            }
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(bundle::Error::file("read", &path)(error).into()),
        }
    }
    Ok(())
}

/// Removes the contact sheets of auditions whose takes are all removed.
fn remove_sheets(layout: &Layout, rows: &[JobRow], removed: &[JobId]) -> Result<(), Error> {
    let audition = |row: &JobRow| row.request.take.map(|take| take.audition);
    let (gone, kept): (Vec<&JobRow>, Vec<&JobRow>) = rows.iter().partition(|row| removed.contains(&row.id));
    let kept: BTreeSet<JobId> = kept.into_iter().filter_map(audition).collect();
    for id in gone.into_iter().filter_map(audition).filter(|id| !kept.contains(id)) {
        durable::remove_file(&layout.auditions().join(format!("{}.png", id.0)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{nothing, outcome, request, row, scratch};
    use super::super::types::JobOrder;
    use super::super::{OwnedStore, Store};
    use super::*;
    use crate::request::{Request, Take};

    const SIZE: u64 = 1 << 20;

    fn files(of: &[(u64, u64)]) -> Files {
        of.iter().map(|(inode, bytes)| ((1, *inode), *bytes)).collect()
    }

    #[test]
    fn shared_files_count_once_and_free_nothing_while_they_are_used() {
        let folders = BTreeMap::from([
            (JobId(1), files(&[(1, 10), (2, 100)])),
            (JobId(2), files(&[(2, 100), (3, 10)])),
            (JobId(3), files(&[(4, 10)])),
        ]);
        let choose = |budget| choose(&folders, &files(&[(9, 5)]), &[1, 2, 3].map(JobId), ByteCount(budget));
        assert_eq!(choose(135), []);
        assert_eq!(choose(134), [JobId(1)]);
        assert_eq!(choose(125), [JobId(1)]);
        assert_eq!(choose(124), [JobId(1), JobId(2)]);
        assert_eq!(choose(0), [1, 2, 3].map(JobId));
    }

    #[test]
    fn the_oldest_end_goes_first_and_open_jobs_stay() {
        let mut rows: Vec<JobRow> = State::ALL.iter().zip(1..).map(|(state, id)| row(id, *state)).collect();
        for (row, ended) in rows.iter_mut().zip([None, None, Some(1.0), Some(9.0), Some(3.0), Some(2.0)]) {
            row.ended = ended;
        }
        assert_eq!(removable(&rows, &BTreeSet::new()), [6, 5, 4].map(JobId));
        assert_eq!(removable(&rows, &BTreeSet::from([JobId(5)])), [6, 4].map(JobId));
    }

    /// A store with jobs of a megabyte each.
    fn store(folder: &Path, jobs: usize) -> OwnedStore {
        let mut fill = |_: JobId, _: &mut Request, folder: &Path| {
            std::fs::create_dir(folder.join("run")).unwrap();
            std::fs::write(folder.join("run/newest.safetensors"), vec![1; 1 << 20]).unwrap();
            Ok(())
        };
        let requests = (0..jobs).map(|job| request(&format!("{job}"))).collect();
        Store::open(folder).unwrap().submit(requests, &mut fill).unwrap();
        OwnedStore::open(folder).unwrap().0
    }

    #[test]
    fn finished_jobs_are_removed_until_the_rest_fits_and_numbers_are_not_given_again() {
        let folder = scratch();
        let mut owner = store(folder.path(), 4);
        for (id, ended) in [(1, 30.0), (2, 10.0), (4, 20.0)] {
            let outcome = super::super::Outcome { ended, ..outcome(State::Done, 8) };
            owner.begin(JobId(id)).unwrap();
            owner.finish(JobId(id), &outcome).unwrap();
        }
        assert_eq!(owner.keep_within(ByteCount(5 * SIZE)).unwrap(), []);
        assert_eq!(owner.keep_within(ByteCount(3 * SIZE + SIZE / 2)).unwrap(), [JobId(2)]);
        assert_eq!(owner.keep_within(ByteCount(0)).unwrap(), [JobId(4), JobId(1)]);
        let left: Vec<JobId> = owner.store().list().unwrap().iter().map(|row| row.id).collect();
        assert_eq!(left, [JobId(3)]);
        assert!(matches!(owner.store().job(JobId(4)), Err(Error::NoJob { .. })));
        assert_eq!(std::fs::read_dir(folder.path().join("jobs")).unwrap().count(), 1);
        drop(owner);
        // Also after the database is lost.
        std::fs::remove_file(folder.path().join("jobs.db")).unwrap();
        drop(OwnedStore::open(folder.path()).unwrap());
        let mut store = Store::open(folder.path()).unwrap();
        assert_eq!(store.submit(vec![request("next")], &mut nothing).unwrap(), [JobId(5)]);
    }

    #[test]
    fn a_crash_while_a_job_is_removed_leaves_no_half_of_it() {
        let folder = scratch();
        let mut owner = store(folder.path(), 2);
        owner.finish(JobId(2), &outcome(State::Failed, 0)).unwrap();
        let layout = owner.store().layout.clone();
        layout.note_last_number(2).unwrap();
        std::fs::rename(layout.job(JobId(2)), layout.gone(JobId(2))).unwrap();
        std::fs::remove_file(layout.gone(JobId(2)).join("request.json")).unwrap();
        drop(owner);
        let (mut owner, notes) = OwnedStore::open(folder.path()).unwrap();
        assert_eq!(notes, [""; 0]);
        assert_eq!(owner.store().list().unwrap().len(), 1);
        assert_eq!(std::fs::read_dir(layout.jobs()).unwrap().count(), 1);
        assert_eq!(owner.keep_within(ByteCount(0)).unwrap(), []);
    }

    #[test]
    fn a_job_with_a_waiting_order_stays_and_sheets_go_with_their_last_take() {
        let folder = scratch();
        let mut store = Store::open(folder.path()).unwrap();
        let take = |number| Request {
            take: Some(Take { audition: JobId(1), number, of: 2 }),
            outputs: Vec::new(),
            ..request("take")
        };
        store.submit(vec![take(1), take(2)], &mut nothing).unwrap();
        let sheet = store.folder().join("auditions/1.png");
        std::fs::write(&sheet, "picture").unwrap();
        let (mut owner, _) = OwnedStore::open(folder.path()).unwrap();
        for id in [1, 2] {
            owner.finish(JobId(id), &outcome(State::Cancelled, 0)).unwrap();
        }
        store.order(JobId(2), &JobOrder::Retry { from_start: false }).unwrap();
        assert_eq!(owner.keep_within(ByteCount(0)).unwrap(), [JobId(1)]);
        assert!(sheet.exists());
        let order = owner.orders().unwrap().remove(0);
        owner.answer(order.number, &super::super::Answer::Done).unwrap();
        assert_eq!(owner.keep_within(ByteCount(0)).unwrap(), [JobId(2)]);
        assert!(!sheet.exists());
    }
}
