//! What a job folder holds after a kill, a power cut or a full disk, at every operation of the writer.

use super::fake_disk::{FakeDisk, Loss, put};
use super::folder::{JobFolder, SPEC};
use super::resume_from::ResumeFrom;
use super::snapshot_files::{BOUNDARY, SnapshotFiles, kept_name};
use super::snapshot_writer::{SnapshotWriter, Storing, ToWrite};
use super::spec::tests::spec;
use super::stored_snapshot::StoredSnapshot;
use super::stored_snapshot::tests::stored;
use bundle::settings::SolverKind;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

const STEPS: usize = 6;

fn snapshots() -> Vec<StoredSnapshot> {
    (0..=STEPS).map(|steps| stored(SolverKind::UniPc, STEPS, steps)).collect()
}

/// The number of steps that a job goes on after, from files; `None` if it says that there is no whole snapshot.
fn found(files: &BTreeMap<String, Vec<u8>>, from: ResumeFrom) -> Option<usize> {
    let folder = tempfile::tempdir().unwrap();
    put(files, folder.path());
    std::fs::write(folder.path().join(SPEC), serde_json::to_vec(&spec()).unwrap()).unwrap();
    let job = JobFolder::open(folder.path()).unwrap();
    job.snapshot(from).ok().map(|found| found.snapshot.steps_done())
}

/// A snapshot that was written, with the time and the operations that were done by then.
struct Written {
    steps: usize,
    at: Duration,
    operations: usize,
}

/// What steps of these durations do to a disk, without threads: what the writer does, in virtual time.
struct Run {
    disk: Arc<FakeDisk>,
    written: Vec<Written>,
    /// Lasting names, and the operations after which they are certain.
    kept: Vec<(ResumeFrom, usize, usize)>,
    /// The time of each operation.
    times: Vec<Duration>,
}

fn run(durations: &[Duration], boundary: usize, kept: usize) -> Run {
    let disk = Arc::new(FakeDisk::default());
    let mut files = SnapshotFiles::new(Arc::clone(&disk) as _);
    let (start, mut now) = (Instant::now(), Duration::ZERO);
    let mut run = Run { disk: Arc::clone(&disk), written: Vec::new(), kept: Vec::new(), times: Vec::new() };
    for (snapshot, duration) in snapshots().into_iter().zip(durations) {
        let (steps, bytes) = (snapshot.steps_done(), snapshot.to_bytes());
        files.write_newest(&bytes, start + now).unwrap();
        run.written.push(Written { steps, at: now, operations: disk.operations() });
        let names = [(ResumeFrom::Boundary, boundary, BOUNDARY.to_owned()), {
            (ResumeFrom::Step(kept), kept, kept_name(kept))
        }];
        for (from, at, name) in names {
            if at == steps {
                files.keep(&name, None).unwrap();
                run.kept.push((from, steps, disk.operations()));
            }
        }
        run.times.resize(disk.operations(), now);
        let next = now + *duration;
        while let Some(due) = files.due_in(start + now).filter(|due| now + *due <= next) {
            now += due;
            files.begin_flush().unwrap().unwrap().run().unwrap();
            run.times.resize(disk.operations(), now);
        }
        now = next;
    }
    // The job ends, and what is left is flushed.
    if let Some(flush) = files.begin_flush().unwrap() {
        flush.run().unwrap();
    }
    run.times.resize(disk.operations(), now);
    run
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5))]
    #[test]
    fn a_kill_loses_nothing_and_a_power_cut_a_second_or_a_step(
        durations in proptest::collection::vec(50_u64..2500, STEPS + 1),
        boundary in 0..=STEPS, kept in 1..=STEPS, losses in any::<[(u32, u32); 3]>(),
    ) {
        let durations: Vec<_> = durations.into_iter().map(Duration::from_millis).collect();
        let Run { disk, written, kept, times } = run(&durations, boundary, kept);
        prop_assert_eq!(disk.files().len(), 4);
        for operations in 0..=times.len() {
            let killed = found(&disk.files_after(operations, None), ResumeFrom::Newest);
            let last = written.iter().rev().find(|written| written.operations <= operations);
            prop_assert!(killed >= last.map(|written| written.steps), "{operations}: {killed:?}");
            // The cut comes just before the next operation.
            let now = times.get(operations).copied().unwrap_or(Duration::MAX);
            let old = |written: &&Written| now.saturating_sub(written.at) > Duration::from_secs(1);
            let certain = written.iter().rev().find(old).map(|written| written.steps);
            let extremes = [(0, 0), (u32::MAX, 0), (0, u32::MAX)];
            for (names, contents) in extremes.into_iter().chain(losses) {
                let files = disk.files_after(operations, Some(Loss { names, contents }));
                let newest = found(&files, ResumeFrom::Newest);
                prop_assert!(newest >= certain, "{operations}: {newest:?}, and {certain:?} is certain");
                for (from, steps, since) in &kept {
                    if *since <= operations {
                        prop_assert_eq!(found(&files, *from), Some(*steps), "{} {}", operations, from);
                    }
                }
            }
        }
    }
}

#[test]
fn a_write_that_fails_at_any_operation_leaves_the_last_snapshot_and_no_part() {
    let all = snapshots();
    let (first, second) = (all[1].to_bytes(), all[2].to_bytes());
    let now = Instant::now();
    let mut failed = 0;
    for fails_after in 0..20 {
        let disk = Arc::new(FakeDisk::default());
        let mut files = SnapshotFiles::new(Arc::clone(&disk) as _);
        files.write_newest(&first, now).unwrap();
        files.keep(&kept_name(1), None).unwrap();
        disk.fail_after(Some(fails_after));
        let written = files
            .write_newest(&second, now)
            .and_then(|()| files.keep(&kept_name(2), None))
            .and_then(|()| files.begin_flush()?.unwrap().run());
        failed += usize::from(written.is_err());
        let at_least = if fails_after >= 2 { 2 } else { 1 };
        assert!(found(&disk.files(), ResumeFrom::Newest) >= Some(at_least), "{fails_after}");
        assert_eq!(found(&disk.files(), ResumeFrom::Step(1)), Some(1), "{fails_after}");
        disk.fail_after(None);
        files.write_newest(&second, now).unwrap();
        files.keep(&kept_name(2), None).unwrap();
        files.begin_flush().unwrap().unwrap().run().unwrap();
        let names: Vec<_> = disk.files().into_keys().collect();
        assert_eq!(names, ["newest.safetensors", &kept_name(1), &kept_name(2), "synced.safetensors"]);
        assert_eq!(
            found(
                &disk.files_after(disk.operations(), Some(Loss { names: 0, contents: 0 })),
                ResumeFrom::Newest
            ),
            Some(2)
        );
    }
    assert!((8..20).contains(&failed), "{failed}");
}

fn to_write(snapshot: &StoredSnapshot, names: &[&str]) -> ToWrite {
    ToWrite { snapshot: snapshot.clone(), names: names.iter().map(|name| (*name).to_owned()).collect() }
}

#[test]
fn a_full_disk_is_told_and_what_is_owed_is_written_when_there_is_room() {
    let all = snapshots();
    let disk = Arc::new(FakeDisk::default());
    let mut writer = SnapshotWriter::start(Arc::clone(&disk) as _, PathBuf::from("job"));
    let never = || false;
    writer.write(to_write(&all[1], &[]), never);
    assert_eq!(writer.write_again(never), Storing::Ok);
    disk.set_full(true);
    writer.write(to_write(&all[2], &[BOUNDARY]), never);
    writer.write(to_write(&all[3], &[&kept_name(3)]), never);
    assert_eq!((writer.write_again(never), writer.storing()), (Storing::DiskFull, Storing::DiskFull));
    let error = writer.take_error().unwrap().to_string();
    assert!(error.contains("write a snapshot in job"), "{error}");
    assert_eq!(found(&disk.files(), ResumeFrom::Newest), Some(1));
    assert_eq!(found(&disk.files(), ResumeFrom::Boundary), None);
    disk.set_full(false);
    assert_eq!((writer.write_again(never), writer.storing()), (Storing::Ok, Storing::Ok));
    writer.finish().unwrap();
    let files = disk.files();
    assert_eq!(found(&files, ResumeFrom::Newest), Some(3));
    assert_eq!(found(&files, ResumeFrom::Boundary), Some(2));
    assert_eq!(found(&files, ResumeFrom::Step(3)), Some(3));
    assert_eq!(files.len(), 4, "{:?}", files.keys());
    let cut = disk.files_after(disk.operations(), Some(Loss { names: 0, contents: 0 }));
    assert_eq!(found(&cut, ResumeFrom::Newest), Some(3));
}

#[test]
fn one_snapshot_may_be_unwritten_while_a_step_runs() {
    let all = snapshots();
    let disk = Arc::new(FakeDisk::default());
    let mut writer = SnapshotWriter::start(Arc::clone(&disk) as _, PathBuf::from("job"));
    disk.set_stuck(true);
    // Does not wait, and the next one does until it gives up.
    writer.write(to_write(&all[1], &[]), || panic!("it waits for the first snapshot"));
    let polls = std::cell::Cell::new(0);
    let gives_up = || polls.replace(polls.get() + 1) == 2;
    writer.write(to_write(&all[2], &[]), gives_up);
    assert_eq!((polls.get(), disk.operations()), (3, 0));
    disk.set_stuck(false);
    writer.write(to_write(&all[3], &[]), || false);
    assert!(found(&disk.files(), ResumeFrom::Newest) >= Some(2));
    writer.finish().unwrap();
    assert_eq!(found(&disk.files(), ResumeFrom::Newest), Some(3));
}

#[test]
fn the_oldest_snapshot_that_is_not_on_disk_decides_when_a_flush_is_due() {
    let bytes = snapshots()[1].to_bytes();
    let mut files = SnapshotFiles::new(Arc::new(FakeDisk::default()));
    let start = Instant::now();
    let at = |millis| start + Duration::from_millis(millis);
    assert_eq!(files.due_in(at(0)), None);
    files.write_newest(&bytes, at(0)).unwrap();
    files.write_newest(&bytes, at(700)).unwrap();
    assert_eq!(files.due_in(at(700)), Some(Duration::from_millis(300)));
    assert_eq!(files.due_in(at(1500)), Some(Duration::ZERO));
    let flush = files.begin_flush().unwrap().unwrap();
    assert_eq!(files.due_in(at(1500)), None);
    files.write_newest(&bytes, at(1600)).unwrap();
    flush.run().unwrap();
    assert_eq!(files.due_in(at(1700)), Some(Duration::from_millis(900)));
}
