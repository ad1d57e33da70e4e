//! Jobs that all end: order, placement, and the sessions that are opened.

use super::setup::{BOAT, FOX, Machine, OWL, SHOTS, Shot, clip, collector, count};
use engines::fake::{Calls, Effect, Event, Gate};
use runtime::driver::{Driver, EndedJob, JobSpan, work_of};
use runtime::job::{ForkSpec, GridSpec, Job, JobEvent, JobFolder, JobStart, NextUnit, ResumeFrom};
use runtime::pipeline::{Pipeline, seeded_noise};
use runtime::scheduler::{Command, Event as Happened, JobId, Order, Outcome, Priority, Stage, Unit};
use std::collections::BTreeMap;
use std::time::Duration;

/// Runs clips that arrive together, and checks their bits.
fn run_all(machine: &Machine, shots: &[Shot]) -> (Driver, BTreeMap<u64, EndedJob>) {
    let mut driver = machine.driver();
    for (id, shot) in (1..).zip(shots) {
        driver.arrive(machine.job(id, *shot, Priority::Normal)).unwrap();
    }
    let ended = machine.run(&mut driver);
    for (id, shot) in (1..).zip(shots) {
        assert_eq!(clip(&ended[&id]), shot.alone(), "job {id}");
        assert_eq!(collector(&ended[&id]).failures, []);
    }
    (driver, ended)
}

#[test]
fn clips_of_a_queue_have_the_bits_of_clips_alone() {
    let machine = Machine::large("");
    let (driver, _) = run_all(&machine, &SHOTS);
    assert_eq!(driver.counts().swaps, 0);
    // The decoder has a graph for the first latent frame and one for the others.
    assert_eq!((driver.counts().loads, machine.model.sessions().opened()), (4, 5));
    let units = count(&driver, |command| matches!(command, Command::Run { .. }));
    assert_eq!(units, 3 * (1 + 2) + 5 + 5 + 4);
}

#[test]
fn three_clips_in_a_wave_open_fewer_experts_than_one_after_another() {
    let opened = |order| {
        let machine = Machine::small(0.0, 0, order);
        let (driver, _) = run_all(&machine, &SHOTS);
        // Nothing is opened that was not ordered.
        let loads = count(&driver, |command| matches!(command, Command::Load { .. }));
        let decoders = count(
            &driver,
            |command| matches!(command, Command::Load { session, .. } if session.stage == Stage::Decoder),
        );
        let opened = machine.model.sessions().opened();
        assert_eq!(opened, (loads + decoders) as u64);
        (driver.counts().swaps, opened)
    };
    let (waves, first_come) = (opened(Order::Waves), opened(Order::FirstCome));
    assert_eq!((waves.0, first_come.0), (1, 5));
    assert!(waves.1 + 4 <= first_come.1, "{waves:?} {first_come:?}");
}

#[test]
fn devices_work_at_the_same_time() {
    let machine = Machine::large("text_encoder=cpu,high=cuda:0,low=cuda:1,decoder=cuda:1");
    let (high, low) = (Gate::new(), Gate::new());
    let on = |device: &str| Calls::runs().on_device(device.parse().unwrap());
    // An expert runs once when it is opened, then come the steps of the first clip.
    let steps = BOAT.plan().expert_steps[0].1 as u64;
    machine.fake.script(on("cuda:0").nth(1 + steps), Effect::Waits(high.clone()));
    machine.fake.script(on("cuda:1").nth(1), Effect::Waits(low.clone()));
    let mut driver = machine.driver();
    for (id, shot) in [(1, BOAT), (2, FOX)] {
        driver.arrive(machine.job(id, shot, Priority::Normal)).unwrap();
    }
    for _ in 0..10_000 {
        if high.waiting() == 1 && low.waiting() == 1 {
            break;
        }
        assert!(driver.wait(Duration::from_millis(10)).unwrap().is_empty());
    }
    assert_eq!((high.waiting(), low.waiting()), (1, 1), "{:?}", driver.activities());
    high.open();
    low.open();
    let ended = machine.run(&mut driver);
    assert_eq!((clip(&ended[&1]), clip(&ended[&2])), (BOAT.alone(), FOX.alone()));
}

#[test]
fn a_preview_starts_at_the_next_boundary() {
    let machine = Machine::large("");
    let gate = Gate::new();
    machine.fake.script(Calls::runs().nth(4), Effect::Waits(gate.clone()));
    let mut driver = machine.driver();
    driver.arrive(machine.job(1, BOAT, Priority::Normal)).unwrap();
    machine.wait_at(&mut driver, &gate);
    driver.arrive(machine.job(2, OWL, Priority::Preview)).unwrap();
    gate.open();
    let ended = machine.run(&mut driver);
    assert_eq!((clip(&ended[&1]), clip(&ended[&2])), (BOAT.alone(), OWL.alone()));
    let entries = &driver.log().unwrap().entries;
    let arrived = entries
        .iter()
        .position(|entry| matches!(&entry.event.event, Happened::Arrived(request) if request.id == JobId(2)));
    let after = entries.iter().skip(arrived.unwrap()).flat_map(|entry| &entry.commands);
    let first = after.copied().find(|command| matches!(command, Command::Run { .. }));
    assert!(matches!(first, Some(Command::Run { job: JobId(2), unit: Unit::Encode, .. })), "{first:?}");
}

#[test]
fn work_that_was_not_announced_is_done_within_a_unit() {
    let machine = Machine::large("");
    let mut driver = machine.driver();
    // As if all steps but the last two, and the text, had been stored.
    let mut job = machine.job(1, BOAT, Priority::Normal);
    let span = JobSpan { steps_done: BOAT.steps - 2, ..JobSpan::default() };
    job.work = work_of(&job.plan, &machine.model.manifest().routing, &span);
    assert_eq!(job.work.units(), 2 + 2);
    driver.arrive(job).unwrap();
    let ended = machine.run(&mut driver);
    assert_eq!(clip(&ended[&1]), BOAT.alone());
    assert_eq!(count(&driver, |command| matches!(command, Command::Run { .. })), 4);
}

#[test]
fn a_clip_that_stops_has_its_frames_only_if_chunks_are_asked_for() {
    for chunks in [0, 1, 2] {
        let machine = Machine::large("");
        let mut driver = machine.driver();
        let mut job = machine.job(1, BOAT, Priority::Normal);
        let span = JobSpan { stop_after: Some(3), encode: true, ..JobSpan::default() };
        job.work = work_of(&job.plan, &machine.model.manifest().routing, &span);
        assert_eq!(job.work.chunks, 2);
        job.work.chunks = chunks;
        let plan = job.plan.clone();
        job.make = Box::new(move |pipeline| {
            let noise = seeded_noise(&plan);
            let (job, events) = Job::new(pipeline, JobStart::new(pipeline, plan, noise)?);
            Ok((job.stop_after(Some(3)), events))
        });
        driver.arrive(job).unwrap();
        let ended = machine.run(&mut driver);
        let made = clip(&ended[&1]);
        assert_eq!(made.latents[..], BOAT.alone().latents[..3]);
        assert_eq!(made.frames.len(), chunks as usize);
    }
}

/// A take of an audition announces one chunk of its clip.
#[test]
fn only_announced_chunks_are_decoded() {
    let alone = BOAT.alone();
    assert_eq!(alone.frames.len(), 2);
    let machine = Machine::large("");
    let mut driver = machine.driver();
    let mut job = machine.job(1, BOAT, Priority::Normal);
    job.work.chunks = 1;
    driver.arrive(job).unwrap();
    driver.arrive(machine.job(2, FOX, Priority::Normal)).unwrap();
    let ended = machine.run(&mut driver);
    let made = clip(&ended[&1]);
    assert_eq!((&made.latents, &made.frames[..]), (&alone.latents, &alone.frames[..1]));
    assert_eq!(clip(&ended[&2]), FOX.alone());
    let decoded = |log: Vec<engines::fake::LogEntry>| {
        let runs = log.into_iter().filter_map(|entry| match entry.event {
            Event::RunBegan(graph) => Some(graph.graph),
            _ => None,
        });
        runs.filter(|graph| graph.starts_with("decoder")).count()
    };
    assert_eq!(decoded(machine.fake.log()), 1 + 2);
}

/// Text states of a folder need no encoder, and a job that was cancelled goes on after its last step.
#[test]
fn a_cancelled_job_goes_on_from_its_folder() {
    let machine = Machine::large("");
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("job");
    let gate = Gate::new();
    let experts = machine.model.manifest().routing.routes().len() as u64;
    assert_eq!(experts, 2);
    let mut driver = machine.driver();
    let mut first = machine.job(1, BOAT, Priority::Normal);
    let (plan, folder) = (first.plan.clone(), path.clone());
    first.make = Box::new(move |pipeline| {
        let noise = seeded_noise(&plan);
        let start = JobStart::new(pipeline, plan, noise)?;
        let folder = JobFolder::create(&folder, &start.spec)?;
        let (job, events) = Job::new(pipeline, start);
        Ok((job.with_folder(folder), events))
    });
    // Text, the expert's first run, two steps, then the third one waits.
    machine.fake.script(Calls::runs().nth(2 + 1 + 2), Effect::Waits(gate.clone()));
    driver.arrive(first).unwrap();
    machine.wait_at(&mut driver, &gate);
    driver.cancel(JobId(1));
    let ended = machine.run(&mut driver);
    assert_eq!(ended[&1].outcome, Outcome::Cancelled);
    let before = ended[&1].job.as_ref().unwrap().record().latents;
    assert_eq!(before[..], BOAT.alone().latents[..2]);
    drop(ended);

    machine.fake.clear_script();
    let opened = machine.fake.opened();
    let mut second = machine.job(2, BOAT, Priority::Normal);
    let span = JobSpan { steps_done: 2, ..JobSpan::default() };
    second.work = work_of(&second.plan, &machine.model.manifest().routing, &span);
    second.make = Box::new(move |pipeline| {
        let folder = JobFolder::open(&path)?;
        let found = folder.snapshot(ResumeFrom::Newest)?;
        let start = JobStart::resume(pipeline, &folder, found.snapshot, None)?.start;
        let (job, events) = Job::new(pipeline, start);
        assert_eq!(job.next_unit(), Some(NextUnit::Step));
        Ok((job.with_folder(folder), events))
    });
    driver.arrive(second).unwrap();
    let ended = machine.run(&mut driver);
    assert_eq!(clip(&ended[&2]), BOAT.alone());
    let after = machine.fake.log().into_iter().filter_map(|entry| match entry.event {
        Event::Opened(graph) if graph.session >= opened => Some(graph.graph),
        _ => None,
    });
    assert!(after.into_iter().all(|graph| !graph.starts_with("text_encoder")));
}

#[test]
fn a_job_says_what_it_does_next() {
    use NextUnit::{Chunk, Encode, Step};
    let machine = Machine::large("");
    let mut pipeline = Pipeline::new(&machine.model);
    let plan = BOAT.plan();
    let noise = seeded_noise(&plan);
    let (mut job, events) = Job::new(&pipeline, JobStart::new(&pipeline, plan, noise).unwrap());
    let mut units = Vec::new();
    while let Some(unit) = job.next_unit() {
        let (steps, chunks) = (job.steps_left(), job.chunks_left());
        job.advance(&mut pipeline).unwrap();
        let done = (steps - job.steps_left(), chunks - job.chunks_left());
        let expected = match unit {
            Encode => (0, 0),
            Step => (1, 0),
            Chunk => (0, 1),
        };
        assert_eq!(done, expected, "{unit:?}");
        units.push(unit);
    }
    assert_eq!(units, [Encode, Step, Step, Step, Step, Step, Chunk, Chunk]);
    assert!(matches!(events.try_iter().last(), Some(JobEvent::Finished)));
}

#[test]
fn models_with_equal_sessions_share_them_and_others_do_not() {
    let opened = |threads: [Option<usize>; 2]| {
        let machine = Machine::large("");
        let mut driver = machine.driver();
        for (id, (shot, threads)) in (1..).zip([BOAT, FOX].into_iter().zip(threads)) {
            let mut job = machine.job(id, shot, Priority::Normal);
            job.model = machine.model_with(threads);
            driver.arrive(job).unwrap();
        }
        let ended = machine.run(&mut driver);
        assert_eq!((clip(&ended[&1]), clip(&ended[&2])), (BOAT.alone(), FOX.alone()));
        (driver.counts().waves, machine.fake.opened())
    };
    assert_eq!(opened([Some(1), Some(1)]), (1, 5));
    assert_eq!(opened([Some(1), Some(2)]), (2, 10));
}

/// A bundle that was written again to the same folder is another model, with sessions of its own.
#[test]
fn a_bundle_that_replaces_another_one_is_another_model() {
    let machine = Machine::large("");
    let mut driver = machine.driver();
    let replaced = machine.replaced();
    assert_eq!(machine.model.bundle().folder, replaced.bundle().folder);
    let mut made = Vec::new();
    for (id, model) in (1..).zip([&machine.model, &replaced, &machine.model]) {
        let mut job = machine.job(id, BOAT, Priority::Normal);
        let (make, expected) = (job.make, model.manifest().clone());
        job.make = Box::new(move |pipeline| {
            assert!(*pipeline.model().manifest() == expected, "it runs on the other bundle");
            make(pipeline)
        });
        job.model = model.clone();
        driver.arrive(job).unwrap();
        while !driver.is_idle() {
            made.extend(driver.wait(Duration::from_secs(60)).unwrap());
        }
    }
    made.iter().for_each(|job| assert_eq!(clip(job), BOAT.alone()));
    assert_eq!((made.len(), machine.fake.opened()), (3, 10));
    machine.check(&driver);
}

#[test]
fn a_pair_of_devices_makes_the_same_clip_in_a_queue_as_alone() {
    let placement = "high=cuda:0+cuda:1,low=cuda:1";
    let machine = Machine::large(placement);
    let mut driver = machine.driver();
    for (id, shot) in [(1, BOAT), (2, FOX)] {
        driver.arrive(machine.job(id, shot, Priority::Normal)).unwrap();
    }
    let ended = machine.run(&mut driver);
    assert_eq!((clip(&ended[&1]), clip(&ended[&2])), (BOAT.alone_at(placement), FOX.alone_at(placement)));
    // Both devices have the expert before its first step.
    let loads = count(&driver, |command| matches!(command, Command::Load { .. }));
    assert_eq!((loads, machine.fake.opened()), (5, 6));
    let on_pair = |command: &Command| matches!(command, Command::Run { pair: Some(_), .. });
    assert!(count(&driver, on_pair) >= 2);
}

#[test]
fn a_fork_that_changes_the_grid_is_announced_with_its_steps() {
    let machine = Machine::large("");
    let mut driver = machine.driver();
    let mut job = machine.job(1, BOAT, Priority::Normal);
    let plan = job.plan.clone();
    let (sampler, schedule, shift) = (plan.solver, plan.schedule_kind, plan.shift);
    let grid = GridSpec { sampler, schedule, steps: 9, shift, timesteps: None };
    let fork =
        ForkSpec { after: 2, prompt: Some("a red boat".into()), grid: Some(grid), ..ForkSpec::default() };
    let forks = vec![fork];
    let span = JobSpan { encode: true, forks: &forks, ..JobSpan::default() };
    job.work = work_of(&plan, &machine.model.manifest().routing, &span);
    let steps: u32 = job.work.steps.iter().map(|part| part.steps).sum();
    assert!(steps > 5, "{steps}");
    job.make = Box::new(move |pipeline| {
        let noise = seeded_noise(&plan);
        let mut start = JobStart::new(pipeline, plan, noise)?;
        start.spec.forks = forks;
        let (job, events) = Job::new(pipeline, start);
        assert_eq!(job.steps_left(), steps as usize);
        Ok((job, events))
    });
    driver.arrive(job).unwrap();
    let ended = machine.run(&mut driver);
    let made = clip(&ended[&1]);
    assert_eq!((made.latents.len(), made.frames.len()), (steps as usize, 2));
    assert_eq!(made.latents[..2], BOAT.alone().latents[..2]);
    let units = count(&driver, |command| matches!(command, Command::Run { .. }));
    assert_eq!(units, 1 + steps as usize + 2);
}
