//! Jobs that are cancelled, held, refused, or fail.

use super::setup::{BOAT, Collector, FOX, Machine, OWL, clip, collector, fake, refusal};
use bundle::manifest::{Component, Part};
use bundle::units::ByteCount;
use bundle::{ErrorClass, Report};
use engines::fake::{Calls, Effect, Event, Gate};
use runtime::Error;
use runtime::driver::{Activity, Listener};
use runtime::job::{Job, JobEvent, JobFolder, JobStart};
use runtime::pipeline::seeded_noise;
use runtime::scheduler::{JobId, Order, Outcome, Priority};
use std::time::Duration;

/// The calls of a clip: opening and runs.
fn calls() -> u64 {
    let machine = Machine::large("");
    let mut driver = machine.driver();
    driver.arrive(machine.job(1, BOAT, Priority::Normal)).unwrap();
    machine.run(&mut driver);
    machine.fake.calls()
}

fn runs_begun(machine: &Machine) -> usize {
    machine.fake.log().iter().filter(|entry| matches!(entry.event, Event::RunBegan(_))).count()
}

#[test]
fn a_job_is_cancelled_within_every_call() {
    for number in 0..calls() {
        let (machine, gate) = (Machine::large(""), Gate::new());
        machine.fake.script(Calls::any().nth(number), Effect::Waits(gate.clone()));
        let mut driver = machine.driver();
        driver.arrive(machine.job(1, BOAT, Priority::Normal)).unwrap();
        machine.wait_at(&mut driver, &gate);
        let is_loading = driver.activities().iter().any(|(_, what)| matches!(what, Activity::Loading(_)));
        let begun = runs_begun(&machine);
        driver.cancel(JobId(1));
        driver.cancel(JobId(1));
        gate.open();
        let ended = machine.run(&mut driver);
        assert_eq!((ended.len(), ended[&1].outcome), (1, Outcome::Cancelled), "call {number}");
        assert_eq!(ended[&1].report, None, "call {number}");
        // Opening an expert ends with a run of its own.
        assert!(runs_begun(&machine) - begun <= usize::from(is_loading), "call {number}");

        driver.cancel(JobId(1));
        driver.cancel(JobId(77));
        driver.arrive(machine.job(2, FOX, Priority::Normal)).unwrap();
        assert_eq!(clip(&machine.run(&mut driver)[&2]), FOX.alone(), "after call {number}");
    }
}

#[test]
fn a_request_of_the_job_itself_cancels_it_too() {
    let (machine, gate) = (Machine::large(""), Gate::new());
    machine.fake.script(Calls::runs().nth(3), Effect::Waits(gate.clone()));
    let mut driver = machine.driver();
    let cancel = engines::Cancel::new();
    let mut job = machine.job(1, BOAT, Priority::Normal);
    let (make, of_job) = (job.make, cancel.clone());
    job.make = Box::new(move |pipeline| {
        let (job, events) = make(pipeline)?;
        Ok((job.with_cancel(&of_job), events))
    });
    driver.arrive(job).unwrap();
    machine.wait_at(&mut driver, &gate);
    cancel.cancel();
    let ended = machine.run(&mut driver);
    assert_eq!((ended[&1].outcome, &ended[&1].report), (Outcome::Cancelled, &None));
}

#[test]
fn no_unit_starts_while_units_are_held() {
    let machine = Machine::large("");
    let mut driver = machine.driver();
    driver.hold(true);
    for (id, shot) in [(1, BOAT), (2, FOX)] {
        driver.arrive(machine.job(id, shot, Priority::Normal)).unwrap();
    }
    // The text encoder is opened, and then nothing happens.
    assert!(driver.wait(Duration::from_secs(60)).unwrap().is_empty());
    assert!(driver.wait(Duration::from_millis(20)).unwrap().is_empty());
    assert!(driver.activities().iter().all(|(_, what)| *what == Activity::Idle));
    assert_eq!((machine.fake.opened(), runs_begun(&machine)), (1, 0));
    // The job whose unit is held ends at once, and the other one's is ordered then.
    driver.cancel(JobId(1));
    let ended = driver.wait(Duration::from_secs(60)).unwrap();
    assert_eq!((ended[0].id, ended[0].outcome), (JobId(1), Outcome::Cancelled));
    assert!(ended[0].job.is_none());
    driver.hold(true);
    assert_eq!(runs_begun(&machine), 0);
    driver.hold(false);
    assert_eq!(clip(&machine.run(&mut driver)[&2]), FOX.alone());
}

#[test]
fn a_unit_that_runs_ends_while_the_others_are_held() {
    let (machine, gate) = (Machine::large(""), Gate::new());
    machine.fake.script(Calls::runs().nth(3), Effect::Waits(gate.clone()));
    let mut driver = machine.driver();
    driver.arrive(machine.job(1, BOAT, Priority::Normal)).unwrap();
    machine.wait_at(&mut driver, &gate);
    driver.hold(true);
    gate.open();
    assert!(driver.wait(Duration::from_secs(60)).unwrap().is_empty());
    let begun = runs_begun(&machine);
    assert!(driver.wait(Duration::from_millis(20)).unwrap().is_empty());
    assert_eq!(runs_begun(&machine), begun);
    driver.hold(false);
    assert_eq!(clip(&machine.run(&mut driver)[&1]), BOAT.alone());
}

#[test]
fn an_error_of_the_listener_fails_its_job_alone() {
    let events = {
        let machine = Machine::large("");
        let mut driver = machine.driver();
        driver.arrive(machine.job(1, BOAT, Priority::Normal)).unwrap();
        collector(&machine.run(&mut driver)[&1]).events
    };
    assert!(events > 10, "{events}");
    for refuses in 1..=events {
        let machine = Machine::large("");
        let mut driver = machine.driver();
        let mut job = machine.job(1, BOAT, Priority::Normal);
        job.listener = Box::new(Collector { refuses: Some(refuses), ..Collector::default() });
        driver.arrive(job).unwrap();
        driver.arrive(machine.job(2, FOX, Priority::Normal)).unwrap();
        let ended = machine.run(&mut driver);
        let refused = (ended[&1].outcome, ended[&1].report.clone(), collector(&ended[&1]).events);
        assert_eq!(refused, (Outcome::Failed, Some(refusal()), refuses));
        assert_eq!(clip(&ended[&2]), FOX.alone(), "event {refuses}");
    }
}

struct Panics;

impl Listener for Panics {
    fn on_event(&mut self, event: JobEvent, _job: &Job) -> Result<(), Report> {
        panic!("no listener for {event:?}");
    }
}

#[test]
fn panics_and_errors_on_a_device_fail_their_job_alone() {
    for way in 0..3 {
        let machine = Machine::large("");
        let mut driver = machine.driver();
        let mut job = machine.job(1, BOAT, Priority::Normal);
        match way {
            0 => job.make = Box::new(|_| panic!("no state")),
            1 => job.make = Box::new(|_| Err(Error::NoTinyDecoder.into())),
            _ => job.listener = Box::new(Panics),
        }
        driver.arrive(job).unwrap();
        driver.arrive(machine.job(2, FOX, Priority::Normal)).unwrap();
        let ended = machine.run(&mut driver);
        assert_eq!(ended[&1].outcome, Outcome::Failed, "{way}");
        let report = ended[&1].report.clone().unwrap();
        let expected = if way == 1 { ErrorClass::BadInput } else { ErrorClass::Bug };
        assert_eq!(report.class, expected, "{report}");
        assert!(way != 0 || report.why.contains("no state"), "{report}");
        assert_eq!(ended[&1].job.is_some(), way == 2);
        assert_eq!(clip(&ended[&2]), FOX.alone(), "{way}");
    }
}

/// `wait` neither waits for snapshots nor calls the listener: whoever closes the job does.
#[test]
fn a_job_is_closed_by_its_owner() {
    let parent = tempfile::tempdir().unwrap();
    for (number, way) in ["closed", "dropped", "panics"].into_iter().enumerate() {
        let machine = Machine::large("");
        let gate = Gate::new();
        machine.fake.script(Calls::runs().nth(4), Effect::Waits(gate.clone()));
        let mut driver = machine.driver();
        let mut job = machine.job(1, BOAT, Priority::Normal);
        let path = parent.path().join(number.to_string());
        let (plan, folder) = (job.plan.clone(), path.clone());
        // The test reports in the place of the job.
        let (sender, receiver) = std::sync::mpsc::channel();
        job.make = Box::new(move |pipeline| {
            let noise = seeded_noise(&plan);
            let start = JobStart::new(pipeline, plan, noise)?;
            let folder = JobFolder::create(&folder, &start.spec)?;
            Ok((Job::new(pipeline, start).0.with_folder(folder), receiver))
        });
        if way == "panics" {
            job.listener = Box::new(Panics);
        }
        driver.arrive(job).unwrap();
        machine.wait_at(&mut driver, &gate);
        driver.cancel(JobId(1));
        // Another job is cancelled while it waits.
        driver.arrive(machine.job(2, FOX, Priority::Batch)).unwrap();
        driver.cancel(JobId(2));
        gate.open();
        let mut all = Vec::new();
        while !driver.is_idle() {
            all.extend(driver.wait(Duration::from_secs(60)).unwrap());
        }
        all.sort_by_key(|job| job.id);
        let ids: Vec<JobId> = all.iter().map(|job| job.id).collect();
        assert_eq!(ids, [JobId(1), JobId(2)], "{way}");
        let mut ended = all.remove(0);
        assert_eq!(ended.outcome, Outcome::Cancelled, "{way}");
        sender.send(JobEvent::Warning(refusal())).unwrap();
        if way == "closed" {
            assert_eq!(collector(&ended).events, 0);
            ended.close();
            ended.close();
            assert_eq!(collector(&ended).events, 1);
            assert!(ended.job.as_ref().unwrap().folder().is_none());
            JobFolder::open(&path).unwrap();
        }
        // A panic of the listener does not leave it.
        drop(ended);
        JobFolder::open(&path).unwrap();
    }
}

/// What a decoder returns is checked as what an expert returns.
#[test]
fn frames_that_are_not_finite_fail_their_job() {
    let machine = Machine::large("");
    let bundle = machine.model.bundle();
    let decoder = bundle.manifest.component(&Component::Decoder).unwrap();
    for graph in decoder.graphs.iter().filter(|graph| graph.part == Part::Next) {
        machine.fake.script(Calls::runs().of_graph(&*graph.file).nth(0), Effect::NotFinite);
    }
    let mut driver = machine.driver();
    driver.arrive(machine.job(1, BOAT, Priority::Normal)).unwrap();
    driver.arrive(machine.job(2, FOX, Priority::Normal)).unwrap();
    let ended = machine.run(&mut driver);
    let failed: Vec<u64> =
        ended.values().filter(|job| job.outcome == Outcome::Failed).map(|job| job.id.0).collect();
    let [failed] = failed[..] else { panic!("{failed:?}") };
    let report = ended[&failed].report.as_ref().unwrap();
    assert!(report.what.contains("latent frame 2 of 2"), "{report}");
    assert_eq!(collector(&ended[&failed]).frames.len(), 1);
    let (other, shot) = if failed == 1 { (2, FOX) } else { (1, BOAT) };
    assert_eq!(clip(&ended[&other]), shot.alone());
}

#[test]
fn every_failure_at_every_call_fails_one_job() {
    let mut failed = 0;
    let calls = calls();
    for number in 0..calls {
        for effect in [Effect::Fails, Effect::OutOfMemory, Effect::WrongSignature, Effect::MissingOutput] {
            let machine = Machine::large("");
            let name = format!("{effect:?} in call {number}");
            machine.fake.script(Calls::any().nth(number), effect);
            let mut driver = machine.driver();
            driver.arrive(machine.job(1, BOAT, Priority::Normal)).unwrap();
            driver.arrive(machine.job(2, FOX, Priority::Normal)).unwrap();
            let ended = machine.run(&mut driver);
            let mut failures = 0;
            for (id, shot) in [(1, BOAT), (2, FOX)] {
                match ended[&id].outcome {
                    Outcome::Done => assert_eq!(clip(&ended[&id]), shot.alone(), "{name}"),
                    Outcome::Failed => {
                        failures += 1;
                        assert!(ended[&id].report.is_some(), "{name}");
                    }
                    other => panic!("{name}: {other:?}"),
                }
            }
            assert!(failures <= 1, "{name}");
            failed += failures;
        }
    }
    assert!(failed > calls, "{failed} of {calls} calls");
}

#[test]
fn a_clip_that_does_not_fit_ends_with_a_report() {
    let machine = Machine::new(fake(0.0, 0), [ByteCount(1000); 2], "", Order::Waves);
    let mut driver = machine.driver();
    driver.arrive(machine.job(1, BOAT, Priority::Normal)).unwrap();
    // Nothing is waited for.
    let ended = driver.wait(Duration::from_secs(3600)).unwrap();
    assert!(matches!(ended[0].outcome, Outcome::DoesNotFit { budget: ByteCount(1000), .. }));
    assert_eq!(ended[0].report.as_ref().unwrap().class, ErrorClass::DoesNotFit);
    assert!(ended[0].job.is_none() && driver.is_idle());
    assert_eq!(machine.fake.calls(), 0);
}

#[test]
fn a_number_is_taken_once() {
    let machine = Machine::large("");
    let mut driver = machine.driver();
    driver.arrive(machine.job(1, BOAT, Priority::Normal)).unwrap();
    let error = driver.arrive(machine.job(1, FOX, Priority::Normal)).unwrap_err();
    assert!(error.to_string().contains("same number"), "{error}");
    assert_eq!(clip(&machine.run(&mut driver)[&1]), BOAT.alone());
}

#[test]
fn dropping_the_driver_stops_its_jobs() {
    let (machine, gate) = (Machine::large(""), Gate::new());
    machine.fake.script(Calls::runs().nth(3), Effect::Waits(gate.clone()));
    let mut driver = machine.driver();
    driver.arrive(machine.job(1, BOAT, Priority::Normal)).unwrap();
    driver.arrive(machine.job(2, OWL, Priority::Batch)).unwrap();
    machine.wait_at(&mut driver, &gate);
    // The gate stays closed.
    drop(driver);
    assert_eq!(gate.waiting(), 0);
    assert!(
        machine.model.sessions().usage().iter().all(|device| device.sessions.iter().all(|one| !one.is_busy))
    );
}
