//! What the tests of the store share, and tests of its owner and its orders.

use super::types::{JobRow, Outcome, Progress};
use super::*;
use bundle::units::Seed;
use runtime::plan::GenerateRequest;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// A folder in memory, if the machine has one: tests flush much.
pub(super) fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A request with eight steps and one output, which requests with other prompts do not have.
pub(super) fn request(prompt: &str) -> Request {
    let clip = GenerateRequest { steps: Some(8), ..GenerateRequest::new(prompt, Seed(7)) };
    Request { clip, outputs: vec![output(prompt)], ..crate::request::tests::request() }
}

/// An output with a name of its own for each text.
pub(super) fn output(text: &str) -> media::OutputSpec {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("/clips/{:016x}.mp4", hasher.finish()).parse().unwrap()
}

/// A row as it may stand in the database.
pub(super) fn row(id: u64, state: State) -> JobRow {
    JobRow {
        id: JobId(id),
        state,
        request: request("a"),
        progress: Progress::default(),
        submitted: 5.0,
        started: None,
        ended: None,
        outcome: None,
    }
}

/// An outcome at the time 20.
pub(super) fn outcome(state: State, steps_done: usize) -> Outcome {
    Outcome { state, error: None, outputs: Vec::new(), warnings: Vec::new(), steps_done, ended: 20.0 }
}

/// A preparation that does nothing.
pub(super) fn nothing(_: JobId, _: &mut Request, _: &Path) -> Result<(), Error> {
    Ok(())
}

fn with_jobs(folder: &Path, jobs: usize) -> Store {
    let mut store = Store::open(folder).unwrap();
    store.submit((0..jobs).map(|job| request(&job.to_string())).collect(), &mut nothing).unwrap();
    store
}

#[test]
fn a_job_lives() {
    let folder = scratch();
    let store = with_jobs(folder.path(), 1);
    let (mut owner, _) = OwnedStore::open(folder.path()).unwrap();
    assert!(!owner.has_changed().unwrap());
    owner.begin(JobId(1)).unwrap();
    let running = store.job(JobId(1)).unwrap();
    assert!(running.state == State::Running && running.started.is_some());
    let progress = Progress { phase: "denoise".to_owned(), steps_done: 3, steps: 8, ..Progress::default() };
    owner.set_progress(&[(JobId(1), progress.clone()), (JobId(9), progress.clone())]).unwrap();
    assert_eq!(store.job(JobId(1)).unwrap().progress, progress);
    owner.queue_again(JobId(1)).unwrap();
    let queued = store.job(JobId(1)).unwrap();
    assert_eq!((queued.state, queued.progress.steps_done, &*queued.progress.phase), (State::Queued, 3, ""));
    owner.begin(JobId(1)).unwrap();
    assert!(owner.finish(JobId(1), &outcome(State::Running, 8)).is_err());
    owner.finish(JobId(1), &outcome(State::Done, 8)).unwrap();
    let done = store.job(JobId(1)).unwrap();
    assert_eq!(
        (done.state, done.ended, done.outcome),
        (State::Done, Some(20.0), Some(outcome(State::Done, 8)))
    );
    for refused in [
        owner.begin(JobId(1)),
        owner.queue_again(JobId(1)),
        owner.finish(JobId(1), &outcome(State::Failed, 8)),
    ] {
        assert!(matches!(refused, Err(Error::Unsuitable { state: State::Done, .. })));
    }
    assert!(matches!(owner.begin(JobId(2)), Err(Error::NoJob { id: JobId(2) })));
    assert!(matches!(store.job(JobId(u64::MAX)), Err(Error::NoJob { .. })));
    // Its own changes are none of others.
    assert!(!owner.has_changed().unwrap());
}

#[test]
fn one_process_owns_a_store_and_others_learn_which() {
    let folder = scratch();
    let store = with_jobs(folder.path(), 1);
    assert_eq!(store.lease().unwrap(), None);
    let owner = Store::open(folder.path()).unwrap().own().unwrap();
    let lease = store.lease().unwrap().unwrap();
    assert_eq!(lease.pid, std::process::id());
    let error = OwnedStore::open(folder.path()).unwrap_err();
    assert!(matches!(error, Error::Owned { pid: Some(pid), .. } if pid == std::process::id()), "{error}");
    assert!(error.to_string().contains("runs them already"), "{error}");
    drop(owner);
    assert_eq!(store.lease().unwrap(), None);
    let mut owner = OwnedStore::open(folder.path()).unwrap().0;
    owner.renew_lease().unwrap();
    assert!(store.lease().unwrap().unwrap().heartbeat >= lease.heartbeat);
}

/// Runs [`an_owner_to_be_killed`] in a process of its own.
fn owner_process(folder: &Path) -> (std::process::Child, u32) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::tests::an_owner_to_be_killed", "--ignored", "--nocapture"])
        .env("RUSHES_TEST_STORE", folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = child.id();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map(Result::unwrap).any(|line| line.ends_with("owns the store")));
    (child, pid)
}

#[test]
#[ignore = "it is the child process of another test"]
fn an_owner_to_be_killed() {
    let Some(folder) = std::env::var_os("RUSHES_TEST_STORE") else { return };
    let (mut owner, _) = OwnedStore::open(Path::new(&folder)).unwrap();
    owner.begin(JobId(1)).unwrap();
    let progress = Progress {
        phase: "denoise".to_owned(),
        steps_done: 3,
        steps: 8,
        seconds_left: Some(60.0),
        held: Some("the disk is full".to_owned()),
        ..Progress::default()
    };
    owner.set_progress(&[(JobId(1), progress.clone()), (JobId(2), progress)]).unwrap();
    println!("\nowns the store");
    std::thread::sleep(Duration::from_secs(600));
}

#[test]
fn the_next_owner_takes_over_from_one_that_was_killed() {
    let folder = scratch();
    let mut store = with_jobs(folder.path(), 2);
    let (mut child, pid) = owner_process(folder.path());
    let error = OwnedStore::open(folder.path()).unwrap_err();
    assert!(matches!(error, Error::Owned { pid: Some(found), .. } if found == pid), "{error}");
    let running = store.job(JobId(1)).unwrap();
    assert_eq!((running.state, running.progress.seconds_left), (State::Running, Some(60.0)));
    assert_eq!(store.list().unwrap()[0], running);
    // It is running, so it cannot be tried again.
    assert!(store.order(JobId(1), &JobOrder::Retry { from_start: false }).is_err());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(store.lease().unwrap(), None);
    // Nobody makes them, whatever the database says.
    let rows = store.list().unwrap();
    for row in &rows {
        let progress = Progress { steps_done: 3, steps: 8, ..Progress::default() };
        assert_eq!((row.state, &row.progress), (State::Queued, &progress));
        assert_eq!(store.job(row.id).unwrap(), *row);
    }
    let (owner, notes) = OwnedStore::open(folder.path()).unwrap();
    assert_eq!(notes, [""; 0]);
    let states: Vec<State> = store.list().unwrap().iter().map(|row| row.state).collect();
    assert_eq!(states, [State::Queued; 2]);
    assert_eq!(store.lease().unwrap().unwrap().pid, std::process::id());
    drop(owner);
}

#[test]
fn orders_are_carried_out_on_folders_and_rows() {
    let folder = scratch();
    let mut store = with_jobs(folder.path(), 2);
    let (mut owner, _) = OwnedStore::open(folder.path()).unwrap();
    let run = store.job_folder(JobId(1)).join("run");
    let outcome_file = store.job_folder(JobId(1)).join("outcome.json");
    let mut carry_out = |owner: &mut OwnedStore, order: JobOrder| {
        let number = store.order(JobId(1), &order).unwrap();
        assert!(owner.has_changed().unwrap());
        let pending = owner.orders().unwrap();
        assert_eq!(pending, [PendingOrder { number, job: JobId(1), order }]);
        owner.carry_out(&pending[0]).unwrap();
        assert_eq!(store.answer(number).unwrap(), Some(Answer::Done));
        store.job(JobId(1)).unwrap()
    };
    assert_eq!(carry_out(&mut owner, JobOrder::Cancel).state, State::Cancelled);
    assert!(outcome_file.exists());
    std::fs::create_dir(&run).unwrap();
    assert_eq!(carry_out(&mut owner, JobOrder::Retry { from_start: false }).state, State::Queued);
    assert!(run.exists() && !outcome_file.exists());
    owner.begin(JobId(1)).unwrap();
    owner.finish(JobId(1), &outcome(State::Failed, 3)).unwrap();
    assert_eq!(carry_out(&mut owner, JobOrder::Retry { from_start: true }).progress, Progress::default());
    assert!(!run.exists());
    owner.begin(JobId(1)).unwrap();
    owner.finish(JobId(1), &outcome(State::Stopped, 3)).unwrap();
    let resumed = carry_out(&mut owner, JobOrder::Resume { stop_after: Some(5) });
    assert_eq!((resumed.state, resumed.request.stop_after), (State::Queued, Some(5)));
    let json = std::fs::read_to_string(store.job_folder(JobId(1)).join("request.json")).unwrap();
    assert_eq!(Request::from_json(&json).unwrap(), resumed.request);
}

#[test]
fn orders_whose_time_has_passed_are_answered_with_the_reason() {
    let folder = scratch();
    let mut store = with_jobs(folder.path(), 1);
    let (mut owner, _) = OwnedStore::open(folder.path()).unwrap();
    let late = store.order(JobId(1), &JobOrder::Cancel).unwrap();
    owner.begin(JobId(1)).unwrap();
    owner.finish(JobId(1), &outcome(State::Done, 8)).unwrap();
    owner.carry_out(&owner.orders().unwrap()[0]).unwrap();
    let Some(Answer::Refused { why }) = store.answer(late).unwrap() else { panic!("it was carried out") };
    assert!(why.contains("cannot cancel job 1: it is done"), "{why}");
    // Two processes ask for the same.
    let (mut owner, same) = {
        drop(owner);
        let folder = store.folder().to_owned();
        store.submit(vec![request("b")], &mut nothing).unwrap();
        let same = [(); 2].map(|()| store.order(JobId(2), &JobOrder::Cancel).unwrap());
        (OwnedStore::open(&folder).unwrap().0, same)
    };
    for order in owner.orders().unwrap() {
        owner.carry_out(&order).unwrap();
    }
    assert_eq!(same.map(|number| store.answer(number).unwrap()), [Some(Answer::Done), Some(Answer::Done)]);
    let gone = PendingOrder { number: same[0], job: JobId(77), order: JobOrder::Cancel };
    owner.carry_out(&gone).unwrap();
    assert!(matches!(store.answer(same[0]).unwrap(), Some(Answer::Refused { .. })));
}

/// The process was killed after it had changed the folder.
#[test]
fn an_order_that_was_half_carried_out_is_finished_by_the_next_owner() {
    let folder = scratch();
    let mut store = with_jobs(folder.path(), 1);
    let (mut owner, _) = OwnedStore::open(folder.path()).unwrap();
    owner.finish(JobId(1), &outcome(State::Stopped, 3)).unwrap();
    let order = JobOrder::Resume { stop_after: Some(6) };
    let number = store.order(JobId(1), &order).unwrap();
    drop(owner);
    let job = store.job_folder(JobId(1));
    job_files::write_request(&job, &Request { stop_after: Some(6), ..request("0") }).unwrap();
    job_files::remove_outcome(&job).unwrap();
    let (mut owner, _) = OwnedStore::open(folder.path()).unwrap();
    owner.carry_out(&owner.orders().unwrap()[0]).unwrap();
    assert_eq!(store.answer(number).unwrap(), Some(Answer::Done));
    assert_eq!(store.job(JobId(1)).unwrap().request.stop_after, Some(6));
}

#[test]
fn a_full_disk_changes_nothing_and_the_call_can_be_repeated() {
    let folder = scratch();
    with_jobs(folder.path(), 1);
    let (mut owner, _) = OwnedStore::open(folder.path()).unwrap();
    owner.begin(JobId(1)).unwrap();
    let connection = owner.store().database.connection();
    let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
    connection.pragma_update(None, "max_page_count", pages).unwrap();
    let long = Outcome { warnings: vec!["long ".repeat(20_000)], ..outcome(State::Done, 8) };
    let error = owner.finish(JobId(1), &long).unwrap_err();
    assert!(error.is_disk_full(), "{error}");
    assert!(error.to_string().contains("no room on the disk"), "{error}");
    assert_eq!(owner.store().job(JobId(1)).unwrap().state, State::Running);
    owner.store().database.connection().pragma_update(None, "max_page_count", 1_000_000).unwrap();
    owner.finish(JobId(1), &long).unwrap();
    assert_eq!(owner.store().job(JobId(1)).unwrap().outcome, Some(long));
}

/// Prints what a note of progress costs. It is run by hand, on an otherwise idle machine.
#[test]
#[ignore = "it measures"]
fn the_cost_of_progress() {
    const NOTES: u32 = 2000;
    let folder = tempfile::tempdir().unwrap();
    with_jobs(folder.path(), 8);
    let (mut owner, _) = OwnedStore::open(folder.path()).unwrap();
    let start = std::time::Instant::now();
    for note in 0..NOTES {
        let progress =
            Progress { phase: "denoise".to_owned(), steps_done: note as usize, ..Progress::default() };
        let all: Vec<_> = (1..=8).map(|id| (JobId(id), progress.clone())).collect();
        owner.set_progress(&all).unwrap();
    }
    println!("progress of 8 jobs: {:?}", start.elapsed() / NOTES);
}
