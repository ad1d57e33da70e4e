//! Damage at random places: no panic, and every job whose folder is intact is there again.

use super::tests::{nothing, outcome, request, scratch};
use super::types::{JobRow, State};
use super::{OwnedStore, Store};
use proptest::prelude::*;
use proptest::sample::Index;
use runtime::scheduler::JobId;
use std::path::Path;

/// What is done to a file.
#[derive(Debug, Clone)]
enum Damage {
    /// Bytes are replaced.
    Bytes(Vec<(Index, u8)>),
    /// A part near the start is overwritten with one byte.
    Start(usize, usize, u8),
    /// A part is overwritten with one byte.
    Run(Index, usize, u8),
    /// The file ends early.
    Truncated(Index),
    /// It is replaced by others bytes.
    Replaced(Vec<u8>),
    /// It is removed.
    Removed,
}

impl Damage {
    fn apply(&self, path: &Path) {
        let Ok(mut bytes) = std::fs::read(path) else { return };
        if bytes.is_empty() {
            return;
        }
        match self {
            Self::Bytes(changes) => {
                for (place, byte) in changes {
                    *place.get_mut(&mut bytes) = *byte;
                }
            }
            Self::Start(start, length, byte) => fill(&mut bytes, *start, *length, *byte),
            Self::Run(start, length, byte) => {
                let start = start.index(bytes.len());
                fill(&mut bytes, start, *length, *byte);
            }
            Self::Truncated(length) => bytes.truncate(length.index(bytes.len())),
            Self::Replaced(other) => bytes.clone_from(other),
            Self::Removed => return std::fs::remove_file(path).unwrap(),
        }
        std::fs::write(path, bytes).unwrap();
    }
}

fn fill(bytes: &mut [u8], start: usize, length: usize, byte: u8) {
    bytes.iter_mut().skip(start).take(length).for_each(|place| *place = byte);
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => proptest::collection::vec((any::<Index>(), any::<u8>()), 1..8).prop_map(Damage::Bytes),
        // The header of the database, and of its log.
        4 => (0_usize..100, 1_usize..4, any::<u8>())
            .prop_map(|(start, length, byte)| Damage::Start(start, length, byte)),
        2 => (any::<Index>(), 1_usize..5000, any::<u8>()).prop_map(|(start, length, byte)| Damage::Run(start, length, byte)),
        1 => any::<Index>().prop_map(Damage::Truncated),
        1 => proptest::collection::vec(any::<u8>(), 0..5000).prop_map(Damage::Replaced),
        1 => Just(Damage::Removed),
    ]
}

/// A store with jobs in every state but running, and what is known of them. Its owner still runs: some of its changes are
/// in the log alone.
fn store(folder: &Path) -> (OwnedStore, Vec<JobRow>) {
    let (mut owner, _) = OwnedStore::open(folder).unwrap();
    let requests = (0..12).map(|job| request(&format!("a clip with number {job}, ").repeat(40))).collect();
    let mut other = Store::open(folder).unwrap();
    other.submit(requests, &mut nothing).unwrap();
    for (id, state) in (1..).zip([State::Done, State::Stopped, State::Failed, State::Cancelled]) {
        owner.begin(JobId(id)).unwrap();
        owner.finish(JobId(id), &outcome(state, 3)).unwrap();
    }
    let rows = owner.store().list().unwrap();
    (owner, rows)
}

/// What is made again from a folder.
fn kept(row: &JobRow) -> (JobId, State, &crate::request::Request, f64, Option<&super::Outcome>) {
    (row.id, row.state, &row.request, row.submitted, row.outcome.as_ref())
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let place = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&place).unwrap();
            copy(&entry.path(), &place);
        } else {
            std::fs::copy(entry.path(), &place).unwrap();
        }
    }
}

#[test]
fn a_damaged_header_that_the_log_hides_is_found_at_once() {
    for place in [18, 19] {
        let (killed, folder) = (scratch(), scratch());
        let (owner, before) = store(killed.path());
        copy(killed.path(), folder.path());
        drop(owner);
        let database = folder.path().join("jobs.db");
        let mut bytes = std::fs::read(&database).unwrap();
        assert_eq!(bytes[place], 2);
        bytes[place] = 9;
        std::fs::write(&database, bytes).unwrap();
        let (mut owner, notes) = OwnedStore::open(folder.path()).unwrap();
        assert!(!notes.is_empty());
        assert_eq!(owner.store().list().unwrap().len(), before.len());
        owner.begin(JobId(12)).unwrap();
    }
}

#[test]
fn every_job_survives_damage_to_the_database() {
    let (ended, killed) = (scratch(), scratch());
    let (owner, before) = store(ended.path());
    copy(ended.path(), killed.path());
    drop(owner);
    let strategy = (damage(), damage(), 0_usize..6, any::<bool>());
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(150));
    runner
        .run(&strategy, |(first, second, which, was_killed)| {
            let folder = scratch();
            copy(if was_killed { killed.path() } else { ended.path() }, folder.path());
            let at = |suffix: &str| folder.path().join(format!("jobs.db{suffix}"));
            match which {
                0..=2 => first.apply(&at("")),
                3 => first.apply(&at("-wal")),
                4 => first.apply(&at("-shm")),
                _ => {
                    first.apply(&at(""));
                    second.apply(&at("-wal"));
                }
            }
            // A reader may see what is left, or an error.
            drop(Store::open(folder.path()).map(|store| store.list()));
            let (mut owner, notes) = OwnedStore::open(folder.path()).unwrap();
            let after = owner.store().list().unwrap();
            prop_assert_eq!(
                before.iter().map(kept).collect::<Vec<_>>(),
                after.iter().map(kept).collect::<Vec<_>>(),
                "{:?}",
                notes
            );
            // And the store works.
            owner.begin(JobId(12)).unwrap();
            owner.finish(JobId(12), &outcome(State::Done, 8)).unwrap();
            let mut store = Store::open(folder.path()).unwrap();
            prop_assert_eq!(store.submit(vec![request("next")], &mut nothing).unwrap(), [JobId(13)]);
            Ok(())
        })
        .unwrap();
}

#[test]
fn damage_to_the_files_of_a_job_harms_no_other() {
    let pristine = scratch();
    let (owner, before) = store(pristine.path());
    drop(owner);
    let names = ["request.json", "submitted.json", "outcome.json"];
    let strategy = (damage(), 0_usize..12, 0..names.len(), any::<bool>());
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(150));
    runner
        .run(&strategy, |(damage, job, name, loses_database)| {
            let folder = scratch();
            copy(pristine.path(), folder.path());
            let id = before[job].id;
            damage.apply(&folder.path().join("jobs").join(id.0.to_string()).join(names[name]));
            if loses_database {
                std::fs::remove_file(folder.path().join("jobs.db")).unwrap();
            }
            let (owner, notes) = match OwnedStore::open(folder.path()) {
                Ok(opened) => opened,
                // The damage has changed the version of a request.
                Err(error) => {
                    prop_assert!(matches!(error, crate::Error::Newer { .. }), "{}", error);
                    return Ok(());
                }
            };
            let after = owner.store().list().unwrap();
            let others = |rows: &[JobRow]| -> Vec<JobRow> {
                rows.iter()
                    .filter(|row| row.id != id)
                    .map(|row| JobRow { progress: super::Progress::default(), started: None, ..row.clone() })
                    .collect()
            };
            prop_assert_eq!(others(&before), others(&after), "{:?}", notes);
            let is_there = after.iter().any(|row| row.id == id);
            prop_assert!(
                is_there || notes.iter().any(|note| note.starts_with(&format!("{id}: it was moved"))),
                "{:?}",
                notes
            );
            Ok(())
        })
        .unwrap();
}
