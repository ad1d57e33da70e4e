//! Single cases of the scheduler.

use super::run::{Performed, World, simulate};
use super::traces::{
    Chance, HIGH, LOW, arrivals, check, cpu, gpu, memory, memory_on, pair, request, seconds, session,
    settings, story, work,
};
use crate::scheduler::{
    Bounds, Command, Devices, Event, JobId, JobRequest, Order, Outcome, Priority, Scheduler, Settings,
    TimedEvent, Unit, Work,
};
use bundle::units::ByteCount;
use std::collections::BTreeSet;

fn at(time: f64, event: Event) -> TimedEvent {
    TimedEvent { at: seconds(time), event }
}

/// A world in which nothing fails.
fn world() -> Chance {
    Chance::new(1, 0, false)
}

#[test]
fn an_event_that_contradicts_the_state_is_refused_and_changes_nothing() {
    let settings = settings(&[(gpu(0), 20), (gpu(1), 20)]);
    let mut scheduler = Scheduler::try_new(settings.clone()).unwrap();
    let job = request(1, Priority::Normal, work(false, 1, 1, 0), memory_on(gpu(0), [1, 9, 9, 1], 0, 0));
    let high = session(0, HIGH);
    let commands = scheduler.handle(&at(1.0, Event::Arrived(job.clone()))).unwrap();
    assert!(
        matches!(commands[..], [Command::Load { session, swap: false, .. }] if session == high),
        "{commands:?}"
    );
    let mut refused = |event: TimedEvent| scheduler.handle(&event).unwrap_err().to_string();
    let done = |job: u64| Event::UnitDone { job: JobId(job), session_bytes: None };
    insta::assert_snapshot!(refused(at(1.0, Event::Arrived(job.clone()))), @"job 1 cannot be added: another job that has not ended has the same number (give each job its own number)");
    insta::assert_snapshot!(refused(at(0.5, Event::Tick)), @"an event happened at 0.5 s: the one before it happened at 1 s (this is a fault of rushes, not of the input: report it with this message and the command or request)");
    insta::assert_snapshot!(refused(at(1.0, done(1))), @"a unit of job 1 ended: none of its units was running (this is a fault of rushes, not of the input: report it with this message and the command or request)");
    insta::assert_snapshot!(refused(at(1.0, done(7))), @"an event names job 7: no job with this number has arrived (this is a fault of rushes, not of the input: report it with this message and the command or request)");
    insta::assert_snapshot!(refused(at(1.0, Event::Cancelled { job: JobId(7) })), @"an event names job 7: no job with this number has arrived (this is a fault of rushes, not of the input: report it with this message and the command or request)");
    insta::assert_snapshot!(refused(at(1.0, Event::Evicted { device: gpu(0), session: high })), @"the expert 0 of model 0 was opened or closed on cuda:0: the scheduler did not ask for it (this is a fault of rushes, not of the input: report it with this message and the command or request)");
    let wrong = |job: JobRequest| at(1.0, Event::Arrived(JobRequest { id: JobId(2), ..job }));
    insta::assert_snapshot!(refused(wrong(JobRequest { work: Work::default(), ..job.clone() })), @"job 2 cannot be added: it has no units (correct the work or the placement of the job)");
    let mut reversed = job.clone();
    reversed.work.steps.reverse();
    insta::assert_snapshot!(refused(wrong(reversed)), @"job 2 cannot be added: its experts are not in the order of the routing table (correct the work or the placement of the job)");
    let mut without = job.clone();
    without.memory.sessions.remove(1);
    insta::assert_snapshot!(refused(wrong(without)), @"job 2 cannot be added: the memory of the expert 0 is stated 0 times instead of once (correct the work or the placement of the job)");
    let mut mixed = job.clone();
    mixed.memory.sessions[2].session = session(1, LOW);
    insta::assert_snapshot!(refused(wrong(mixed)), @"job 2 cannot be added: it has sessions of model 0 and model 1 (correct the work or the placement of the job)");
    let mut unknown = job.clone();
    unknown.memory.sessions[3].devices = Devices::one(cpu());
    insta::assert_snapshot!(refused(wrong(unknown)), @"job 2 cannot be added: it places the decoder of model 0 on cpu, which has no budget (correct the work or the placement of the job)");
    let mut halves = job.clone();
    halves.memory.sessions[3].devices = pair(gpu(0), gpu(1));
    insta::assert_snapshot!(refused(wrong(halves)), @"job 2 cannot be added: it places the decoder of model 0 on cuda:0+cuda:1, but only an expert can be on a pair of devices (correct the work or the placement of the job)");
    let mut elsewhere = job.clone();
    elsewhere.memory.sessions[2].devices = pair(gpu(0), gpu(1));
    insta::assert_snapshot!(refused(wrong(elsewhere.clone())), @"job 2 cannot be added: it places the expert 1 of model 0 on cuda:0+cuda:1, and job 1 on cuda:0 (use the same placement, or wait until job 1 has ended)");
    let loaded = Event::Loaded { device: gpu(0), session: high, bytes: None };
    let commands = scheduler.handle(&at(2.0, loaded)).unwrap();
    assert!(matches!(commands[..], [Command::Run { job: JobId(1), .. }]), "{commands:?}");
    // Another model has its own sessions.
    for need in &mut elsewhere.memory.sessions {
        need.session.model.0 = 1;
    }
    let event = wrong(elsewhere);
    let event = TimedEvent { at: seconds(2.0), ..event };
    assert_eq!(scheduler.handle(&event).unwrap(), []);
    let mut twice = settings.clone();
    twice.devices.push(twice.devices[0]);
    insta::assert_snapshot!(Scheduler::try_new(twice).unwrap_err(), @"place cannot be `cuda:0`: the device has two budgets (name each device once)");
    let mut never = settings;
    never.bounds.wave_jobs = 0;
    insta::assert_snapshot!(Scheduler::try_new(never).unwrap_err(), @"costs cannot be 0: no job could ever run (use at least 1 for `wave_jobs` and `overdue_units`)");
}

#[test]
fn a_job_that_does_not_fit_ends_when_it_arrives() {
    let mut scheduler = Scheduler::try_new(settings(&[(cpu(), 10)])).unwrap();
    let job = request(1, Priority::Normal, work(false, 1, 1, 0), memory_on(cpu(), [0, 5, 9, 0], 2, 0));
    let commands = scheduler.handle(&at(0.0, Event::Arrived(job))).unwrap();
    let outcome = Outcome::DoesNotFit { needed: ByteCount(11), budget: ByteCount(10) };
    assert_eq!(commands, [Command::Finish { device: cpu(), job: JobId(1), outcome }]);
    assert!(scheduler.is_idle());
}

/// The experts fit together for the first job, but not for the second one, which must be encoded first.
#[test]
fn an_expert_waits_for_its_turn_if_not_all_sessions_of_a_wave_stay_open() {
    let job =
        |encode, bytes| request(0, Priority::Normal, work(encode, 1, 1, 0), memory_on(gpu(0), bytes, 0, 0));
    let jobs = arrivals([(job(false, [1, 3, 3, 1]), 0.0), (job(true, [10, 3, 10, 1]), 0.0)]);
    let run = simulate(settings(&[(gpu(0), 12)]), jobs, &mut world()).unwrap();
    check(&run, 2);
    assert_eq!((run.counts.swaps, run.counts.waves), (0, 1), "{}", story(&run));
}

/// Clips of two models arrive in turn. Each model has a wave of its own, which takes what arrives until the other one
/// uses an expert.
#[test]
fn a_wave_has_jobs_of_one_model() {
    let job = |model| {
        let memory = memory(model, [Devices::one(gpu(0)); 4], [4, 9, 9, 2], 0, 1);
        (request(0, Priority::Normal, work(true, 3, 3, 1), memory), 0.0)
    };
    let jobs = || arrivals([0, 1, 0, 1, 0, 1, 0, 1].map(job));
    let settings = settings(&[(gpu(0), 14)]);
    let run = simulate(settings.clone(), jobs(), &mut world()).unwrap();
    check(&run, 8);
    assert_eq!((run.counts.swaps, run.counts.waves), (3, 2), "{}", story(&run));
    let first_come = Settings { order: Order::FirstCome, ..settings };
    let run = simulate(first_come, jobs(), &mut world()).unwrap();
    assert_eq!(run.counts.swaps, 15);
}

/// Both devices of a pair open the expert, are busy together, and count a swap each.
#[test]
fn a_step_on_a_pair_occupies_both_devices() {
    let places = [Devices::one(cpu()), pair(gpu(1), gpu(0)), pair(gpu(1), gpu(0)), Devices::one(gpu(0))];
    let job = request(0, Priority::Normal, work(true, 2, 2, 1), memory(0, places, [4, 9, 9, 2], 0, 1));
    let settings = settings(&[(gpu(0), 14), (gpu(1), 14), (cpu(), 14)]);
    let run = simulate(settings, arrivals([(job.clone(), 0.0), (job, 0.0)]), &mut world()).unwrap();
    let audited = check(&run, 2);
    assert_eq!((audited.swaps[&gpu(0)], audited.swaps[&gpu(1)], run.counts.swaps), (1, 1, 2));
    let commands = run.log.entries.iter().flat_map(|entry| &entry.commands);
    let steps = commands.filter(|command| matches!(command, Command::Run { unit: Unit::Step { .. }, .. }));
    let on: Vec<_> = steps.map(|command| command.occupies().collect::<Vec<_>>()).collect();
    assert_eq!(on, vec![vec![gpu(1), gpu(0)]; 8]);
}

/// A world in which encoding takes longer than two steps.
struct SlowText(Chance);

impl World for SlowText {
    fn perform(&mut self, command: &Command) -> Performed {
        let performed = self.0.perform(command);
        match command {
            Command::Run { unit: Unit::Encode, .. } => Performed { seconds: seconds(8.0), ..performed },
            _ => performed,
        }
    }
}

/// Steps on a pair get their turn while both devices always have units of another model: the device that comes first in
/// the settings begins no other unit while a step waits, and the second one none while the first is idle.
#[test]
fn a_step_on_a_pair_waits_for_one_unit_of_each_device() {
    for experts in [pair(gpu(0), gpu(1)), pair(gpu(1), gpu(0))] {
        let [here, there, text] = [gpu(0), gpu(1), cpu()].map(Devices::one);
        let on_pair = memory(0, [text, experts, experts, text], [1, 3, 3, 1], 0, 0);
        let on_pair = request(0, Priority::Normal, work(true, 1, 0, 0), on_pair);
        let others = memory(1, [text, here, there, text], [1, 3, 3, 1], 0, 0);
        let others = [work(false, 150, 0, 0), work(false, 0, 150, 0)]
            .map(|work| (request(0, Priority::Normal, work, others.clone()), 0.0));
        let jobs = std::iter::repeat_n((on_pair, 0.0), 20).chain(others);
        let bounds = Bounds { wave_jobs: 100, ..Bounds::default() };
        let settings = Settings { bounds, ..settings(&[(gpu(0), 40), (gpu(1), 40), (cpu(), 40)]) };
        let run = simulate(settings, arrivals(jobs), &mut SlowText(world())).unwrap();
        check(&run, 22);
        let [first, second] = [JobId(21), JobId(22)];
        // The jobs that are encoded, from the first step on a pair, before which the expert is opened.
        let mut waiting: BTreeSet<JobId> = BTreeSet::new();
        let (mut is_open, mut first_runs, mut waits, mut filled) = (false, false, 0, 0);
        for entry in &run.log.entries {
            match entry.event.event {
                Event::UnitDone { job, .. } if job == first => first_runs = false,
                Event::UnitDone { job, .. } if is_open && job < first => {
                    waiting.insert(job);
                }
                _ => {}
            }
            for command in &entry.commands {
                match command {
                    Command::Run { job, .. } if *job == first => {
                        assert!(waiting.is_empty(), "{}", story(&run));
                        first_runs = true;
                    }
                    Command::Run { job, .. } if *job == second && !waiting.is_empty() => {
                        assert!(first_runs, "{}", story(&run));
                        filled += 1;
                    }
                    Command::Finish { job, .. } => {
                        waiting.remove(job);
                    }
                    Command::Run { job, pair: Some(_), .. } => {
                        is_open = true;
                        waits += u32::from(waiting.remove(job));
                    }
                    _ => {}
                }
            }
        }
        assert!(waits > 10 && filled > 0, "{waits} waited, {filled} units of others\n{}", story(&run));
    }
}

/// A job is cancelled while a session is opened for it, and arrives again under its number. That the session cannot be
/// opened does not end it.
#[test]
fn a_failed_opening_ends_only_the_arrival_that_asked_for_it() {
    let mut scheduler = Scheduler::try_new(settings(&[(gpu(0), 20)])).unwrap();
    let mut handle = |time, event| scheduler.handle(&at(time, event)).unwrap();
    let job = request(1, Priority::Normal, work(false, 1, 0, 0), memory_on(gpu(0), [1, 9, 9, 1], 0, 0));
    let high = session(0, HIGH);
    let load = Command::Load { device: gpu(0), session: high, job: JobId(1), swap: false };
    assert_eq!(handle(0.0, Event::Arrived(job.clone())), [load]);
    let finish = |outcome| Command::Finish { device: gpu(0), job: JobId(1), outcome };
    assert_eq!(handle(1.0, Event::Cancelled { job: JobId(1) }), [finish(Outcome::Cancelled)]);
    assert_eq!(handle(1.0, Event::Cancelled { job: JobId(1) }), []);
    assert_eq!(handle(2.0, Event::Arrived(job)), []);
    assert_eq!(handle(3.0, Event::LoadFailed { device: gpu(0), session: high }), [load]);
    assert_eq!(handle(4.0, Event::LoadFailed { device: gpu(0), session: high }), [finish(Outcome::Failed)]);
    assert!(scheduler.is_idle() && scheduler.counts().loads == 2);
}

/// In a wave, normal jobs go before batch jobs that arrived earlier, and a job past its deadline before both.
#[test]
fn jobs_of_a_wave_go_by_deadline_and_priority() {
    let job = |id: u64, priority: Priority, deadline: Option<f64>| {
        let memory = memory_on(gpu(0), [1, 2, 2, 1], 0, 0);
        JobRequest { deadline: deadline.map(seconds), ..request(id, priority, work(true, 4, 4, 2), memory) }
    };
    let jobs = [
        job(1, Priority::Batch, None),
        job(2, Priority::Batch, Some(2.0)),
        job(3, Priority::Normal, None),
        job(4, Priority::Batch, None),
        job(5, Priority::Normal, None),
    ];
    let events = jobs.into_iter().map(|job| at(0.0, Event::Arrived(job))).collect();
    // With room for all sessions, and with room for one at a time.
    for budget in [20, 4] {
        let run = simulate(settings(&[(gpu(0), budget)]), Vec::clone(&events), &mut world()).unwrap();
        let commands = run.log.entries.iter().flat_map(|entry| &entry.commands);
        let ended = commands.filter_map(|command| match command {
            Command::Finish { job, .. } => Some(job.0),
            _ => None,
        });
        let ended: Vec<u64> = ended.collect();
        assert_eq!(ended, [2, 3, 5, 1, 4], "{}", story(&run));
    }
}
