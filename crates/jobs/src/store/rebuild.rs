//! Opening a store as its owner: a damaged database is moved aside and made again from the folders of the jobs, and
//! folders and rows that differ after a crash are made equal.

use super::database::Database;
use super::job_files::{self, JobFiles};
use super::layout::{Entry, Layout};
use super::reconcile::{Verdict, reconcile};
use super::types::JobRow;
use super::{clock, durable, job_rows, submitting};
use crate::Error;
use runtime::scheduler::JobId;
use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The files of a database, by what follows its name: the database, its log, and the index of the log.
const DATABASE_FILES: [&str; 3] = ["", "-wal", "-shm"];

/// Opens the database for the owner. The texts say what was repaired. The jobs and the store must be locked.
///
/// # Errors
/// The store is of a newer version, or cannot be read or written.
pub(super) fn open(layout: &Layout) -> Result<(Database, Vec<String>), Error> {
    let mut aside = Aside { layout, folder: None };
    let mut notes = Vec::new();
    submitting::finish_parts(layout)?;
    let opened = Database::open_or_create(layout).and_then(|mut database| {
        database.check_whole()?;
        take_stock(layout, &mut database, &mut aside, &mut notes)?;
        Ok(database)
    });
    match opened {
        Err(Error::Damaged { path, why }) if path == layout.database() => {
            let folder = aside.take_database()?;
            notes.push(format!(
                "{} was damaged ({why}); it was moved to {} and made again from the folders of the jobs. Orders \
                 without an answer are lost",
                path.display(),
                folder.display()
            ));
            let mut database = Database::connect(layout)?;
            database.create()?;
            take_stock(layout, &mut database, &mut aside, &mut notes)?;
            Ok((database, notes))
        }
        opened => Ok((opened?, notes)),
    }
}

/// Where damaged files are kept: `damaged-1` and so on, created when it is needed.
struct Aside<'a> {
    layout: &'a Layout,
    folder: Option<PathBuf>,
}

impl Aside<'_> {
    fn folder(&mut self) -> Result<PathBuf, Error> {
        if let Some(folder) = &self.folder {
            return Ok(folder.clone());
        }
        let mut number = 0_u64;
        loop {
            number += 1;
            let folder = self.layout.root().join(format!("damaged-{number}"));
            match DirBuilder::new().mode(0o700).create(&folder) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                created => {
                    created.map_err(bundle::Error::file("create", &folder))?;
                    self.folder = Some(folder.clone());
                    return Ok(folder);
                }
            }
        }
    }

    fn take(&mut self, path: &Path, name: &str) -> Result<(), Error> {
        let place = self.folder()?.join(name);
        match std::fs::rename(path, &place) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            renamed => Ok(renamed.map_err(bundle::Error::file("move", path))?),
        }
    }

    fn take_database(&mut self) -> Result<PathBuf, Error> {
        for suffix in DATABASE_FILES {
            let name = format!("jobs.db{suffix}");
            self.take(&self.layout.root().join(&name), &name)?;
        }
        durable::sync_folder(self.layout.root())?;
        self.folder()
    }
}

/// What is to be changed in the database and in the folders.
#[derive(Default)]
struct Stock {
    rows: Vec<JobRow>,
    /// Rows without a folder.
    gone: Vec<JobId>,
    /// Folders that cannot be read, and why.
    lost: Vec<(JobId, String)>,
    /// Rows that were not in the database.
    added: usize,
}

/// Makes the rows equal to the folders.
fn take_stock(
    layout: &Layout,
    database: &mut Database,
    aside: &mut Aside<'_>,
    notes: &mut Vec<String>,
) -> Result<(), Error> {
    let entries = layout.entries()?;
    let mut rows: BTreeMap<JobId, JobRow> =
        database.read(job_rows::all)?.into_iter().map(|row| (row.id, row)).collect();
    let largest = largest_number(layout, &rows, notes)?;
    let mut stock = Stock::default();
    for id in entries.iter().filter(|entry| matches!(entry, Entry::Job(_))).map(|entry| entry.id()) {
        look_at(layout, id, rows.remove(&id), &mut stock, notes)?;
    }
    for id in rows.keys().copied() {
        if !entries.contains(&Entry::Gone(id)) {
            notes.push(format!("{id}: it was removed from the list, because its folder is gone"));
        }
        stock.gone.push(id);
    }
    if !stock.gone.is_empty() || !stock.lost.is_empty() {
        layout.note_last_number(largest)?;
    }
    for (id, why) in &stock.lost {
        let name = format!("job-{}", id.0);
        aside.take(&layout.job(*id), &name)?;
        let place = aside.folder()?.join(name);
        notes.push(format!(
            "{id}: it was moved to {}, because its request is damaged: {why}",
            place.display()
        ));
    }
    for id in entries.iter().filter(|entry| matches!(entry, Entry::Gone(_))).map(|entry| entry.id()) {
        durable::remove_leftover(&layout.gone(id))?;
    }
    match stock.added {
        0 => {}
        1 => notes.push("1 job was read from its folder".to_owned()),
        added => notes.push(format!("{added} jobs were read from their folders")),
    }
    if stock.rows.is_empty() && stock.gone.is_empty() {
        return Ok(());
    }
    database.change(|transaction| {
        stock.rows.iter().try_for_each(|row| job_rows::put(transaction, row))?;
        stock.gone.iter().try_for_each(|id| job_rows::delete(transaction, *id))
    })
}

fn look_at(
    layout: &Layout,
    id: JobId,
    known: Option<JobRow>,
    stock: &mut Stock,
    notes: &mut Vec<String>,
) -> Result<(), Error> {
    let folder = layout.job(id);
    let foreign = || format!("{} is not a job of this store and was left alone", folder.display());
    if !std::fs::symlink_metadata(&folder).is_ok_and(|found| found.is_dir()) {
        stock.gone.extend(known.map(|row| row.id));
        notes.push(foreign());
        return Ok(());
    }
    job_files::remove_leftovers(&folder)?;
    match reconcile(id, JobFiles::read(&folder)?, known.clone(), clock::now()) {
        Verdict::Job { row, write_request, write_outcome, note } => {
            if write_request {
                job_files::write_request(&folder, &row.request)?;
            }
            if write_outcome && let Some(outcome) = &row.outcome {
                job_files::write_outcome(&folder, outcome)?;
            }
            notes.extend(note);
            stock.added += usize::from(known.is_none());
            if known.as_ref() != Some(&*row) {
                stock.rows.push(*row);
            }
        }
        Verdict::Lost(why) => stock.lost.push((id, why)),
        Verdict::Foreign => notes.push(foreign()),
    }
    Ok(())
}

/// The number that was given last. The file of it is written again if it is damaged.
fn largest_number(
    layout: &Layout,
    rows: &BTreeMap<JobId, JobRow>,
    notes: &mut Vec<String>,
) -> Result<u64, Error> {
    let largest_row = rows.keys().next_back().map_or(0, |id| id.0);
    match layout.largest_number(largest_row) {
        Err(Error::Damaged { path, why }) => {
            let largest_folder = layout.entries()?.last().map_or(0, |entry| entry.id().0);
            let largest = largest_row.max(largest_folder);
            layout.note_last_number(largest)?;
            notes.push(format!(
                "{} was damaged ({why}); numbers of removed jobs above {largest} may be given again",
                path.display()
            ));
            Ok(largest)
        }
        largest => largest,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{nothing, outcome, request, scratch};
    use super::super::types::State;
    use super::super::{OwnedStore, Store};
    use super::*;

    /// A store with four jobs: queued, done, running, failed.
    fn four_jobs(folder: &Path) -> Vec<JobRow> {
        let (mut owner, notes) = OwnedStore::open(folder).unwrap();
        assert_eq!(notes, [""; 0]);
        let mut store = Store::open(folder).unwrap();
        let requests = ["a", "b", "c", "d"].map(request).to_vec();
        store.submit(requests, &mut nothing).unwrap();
        for id in [2, 3, 4] {
            owner.begin(JobId(id)).unwrap();
        }
        owner.finish(JobId(2), &outcome(State::Done, 8)).unwrap();
        owner.finish(JobId(4), &outcome(State::Failed, 3)).unwrap();
        store.list().unwrap()
    }

    fn states(store: &Store) -> Vec<State> {
        store.list().unwrap().iter().map(|row| row.state).collect()
    }

    const AFTER: [State; 4] = [State::Queued, State::Done, State::Queued, State::Failed];

    #[test]
    fn a_lost_or_damaged_database_is_made_again() {
        type Damage = fn(&Path);
        let damages: [(&str, Damage); 5] = [
            ("missing", |path| std::fs::remove_file(path).unwrap()),
            ("empty", |path| std::fs::write(path, "").unwrap()),
            ("text", |path| {
                std::fs::write(path, "not a database at all, but longer than a header\n".repeat(99)).unwrap()
            }),
            ("truncated", |path| {
                let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
                file.set_len(file.metadata().unwrap().len() / 2 + 100).unwrap();
            }),
            ("zeros", |path| std::fs::write(path, vec![0; 16384]).unwrap()),
        ];
        for (name, damage) in damages {
            let folder = scratch();
            let before = four_jobs(folder.path());
            let database = folder.path().join("jobs.db");
            damage(&database);
            let error = Store::open(folder.path()).map(|store| store.list()).map_or_else(Some, Result::err);
            if let Some(error) = error {
                assert!(error.to_string().contains("`rushes jobs run`"), "{name}: {error}");
            }
            let (owner, notes) = OwnedStore::open(folder.path()).unwrap();
            assert_eq!(states(owner.store()), AFTER, "{name}");
            for (old, new) in before.iter().zip(owner.store().list().unwrap()) {
                assert_eq!(
                    (old.id, &old.request, old.submitted, &old.outcome),
                    (new.id, &new.request, new.submitted, &new.outcome)
                );
            }
            assert!(notes[0].contains("damaged-1"), "{name}: {notes:?}");
            assert_eq!(notes[1], "4 jobs were read from their folders");
            drop(owner);
            let (_owner, notes) = OwnedStore::open(folder.path()).unwrap();
            assert_eq!(notes, [""; 0], "{name}");
        }
    }

    #[test]
    fn damage_between_the_jobs_and_their_folders_is_repaired_and_said() {
        let folder = scratch();
        four_jobs(folder.path());
        let job = |id: u64| folder.path().join("jobs").join(id.to_string());
        std::fs::write(job(1).join("request.json"), "{").unwrap();
        std::fs::write(job(2).join("outcome.json"), [0xFF, 0xFE]).unwrap();
        std::fs::remove_dir_all(job(4)).unwrap();
        std::fs::create_dir(job(9)).unwrap();
        std::fs::write(job(9).join("mine.txt"), "x").unwrap();
        let (owner, notes) = OwnedStore::open(folder.path()).unwrap();
        assert_eq!(states(owner.store()), AFTER[..3]);
        let said = notes.join("\n");
        for text in [
            "job 1: its request was written again",
            "job 2: its outcome was written again",
            "job 4: it was removed",
            "is not a job",
        ] {
            assert!(said.contains(text), "{text}: {said}");
        }
        drop(owner);
        let (_, notes) = OwnedStore::open(folder.path()).unwrap();
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(job(9).join("mine.txt").exists());
        let mut store = Store::open(folder.path()).unwrap();
        assert_eq!(store.submit(vec![request("e")], &mut nothing).unwrap(), [JobId(10)]);
    }

    #[test]
    fn a_damaged_request_without_a_row_is_kept_aside_and_the_others_survive() {
        let folder = scratch();
        four_jobs(folder.path());
        std::fs::remove_file(folder.path().join("jobs.db")).unwrap();
        std::fs::write(folder.path().join("jobs/4/request.json"), "{}").unwrap();
        let (owner, notes) = OwnedStore::open(folder.path()).unwrap();
        assert_eq!(states(owner.store()), AFTER[..3]);
        assert!(notes.iter().any(|note| note.starts_with("job 4: it was moved to ")), "{notes:?}");
        assert!(folder.path().join("damaged-1/job-4/outcome.json").exists());
        drop(owner);
        // Its number is not given again.
        let mut store = Store::open(folder.path()).unwrap();
        assert_eq!(store.submit(vec![request("e")], &mut nothing).unwrap(), [JobId(5)]);
    }

    #[test]
    fn a_request_of_a_newer_program_is_refused_and_kept() {
        let folder = scratch();
        four_jobs(folder.path());
        let path = folder.path().join("jobs/1/request.json");
        std::fs::write(&path, r#"{"version": 99, "unknown": true}"#).unwrap();
        let error = OwnedStore::open(folder.path()).unwrap_err();
        assert!(matches!(error, Error::Newer { found: 99, .. }), "{error}");
        assert!(path.exists() && !folder.path().join("damaged-1").exists());
    }

    /// Two processes that had the damaged database open go on with the new one.
    #[test]
    fn processes_with_the_damaged_database_open_do_no_harm() {
        let folder = scratch();
        four_jobs(folder.path());
        let mut old = Store::open(folder.path()).unwrap();
        let reader = Store::open(folder.path()).unwrap();
        old.list().unwrap();
        reader.list().unwrap();
        let mut aside = Aside { layout: &old.layout, folder: None };
        aside.take_database().unwrap();
        let (mut owner, _) = OwnedStore::open(folder.path()).unwrap();
        assert_eq!(old.submit(vec![request("e")], &mut nothing).unwrap(), [JobId(5)]);
        assert!(owner.has_changed().unwrap());
        drop(reader);
        drop(old);
        assert_eq!(owner.store().list().unwrap().len(), 5);
        assert!(folder.path().join("jobs.db-wal").exists());
        let other = Store::open(folder.path()).unwrap();
        owner.begin(JobId(5)).unwrap();
        assert_eq!(other.job(JobId(5)).unwrap().state, State::Running);
    }
}
