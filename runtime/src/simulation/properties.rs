//! Properties of the scheduler over random arrivals of several models, failures, cancellations and wrong predictions.

use super::audit::Audited;
use super::run::{SimulatedRun, simulate};
use super::traces::{
    AnyJob, Machine, any_job, any_machine, arrivals, chance, check, cpu, events, gpu, memory, pair, request,
    seconds, settings, story, work,
};
use crate::scheduler::{
    Bounds, Command, Counts, DeviceName, Devices, Event, EventLog, JobId, JobRequest, Order, Outcome,
    Priority, Scheduler, Seconds, Session, Settings, TimedEvent,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Random traces of each property.
const CASES: u32 = 500;

fn requests(run: &SimulatedRun) -> impl Iterator<Item = &JobRequest> {
    run.log.entries.iter().filter_map(|entry| match &entry.event.event {
        Event::Arrived(request) => Some(request),
        _ => None,
    })
}

/// The sessions on a device, each with the most that a job needs.
fn sessions_on(run: &SimulatedRun, device: DeviceName) -> BTreeMap<Session, u64> {
    let mut sessions = BTreeMap::new();
    for request in requests(run) {
        let needs = request.work.stages().filter_map(|stage| request.memory.of(stage));
        for need in needs.filter(|need| need.devices.contains(device)) {
            let most: &mut u64 = sessions.entry(need.session).or_default();
            *most = (*most).max(need.bytes.0);
        }
    }
    sessions
}

/// Checks the bound of the swaps on each device. A group of previews causes two swaps; if its model is not that of the
/// wave that it interrupts, the experts of that wave come back as well.
fn check_swaps(run: &SimulatedRun, audited: &Audited) {
    let Counts { waves, preview_groups, .. } = run.counts;
    for (device, swaps) in &audited.swaps {
        let sessions = sessions_on(run, *device);
        let experts: Vec<&Session> = sessions.keys().filter(|session| session.is_expert()).collect();
        let models: BTreeSet<_> = experts.iter().map(|session| session.model).collect();
        let per_group = if models.len() < 2 { 2 } else { 4 };
        let bound = (2 * waves + per_group * preview_groups).saturating_sub(1);
        assert!(*swaps <= bound, "{swaps} swaps on {device}, {:?}\n{}", run.counts, story(run));
        assert!(experts.len() > 1 || *swaps == 0, "{swaps} swaps of one expert on {device}");
        let states: u64 =
            requests(run).map(|request| request.memory.latents.0 + request.memory.caches.0).sum();
        let budget = run.log.settings.budget(*device).unwrap();
        let is_alone = run.log.settings.bounds.one_at_a_time;
        let stay_open = !is_alone && states + sessions.values().sum::<u64>() <= budget.0;
        assert!(!stay_open || *swaps == 0, "{swaps} swaps on {device}, where all stay open");
    }
}

/// A machine with models, and jobs for it.
fn traces(models: usize, jobs: usize) -> impl Strategy<Value = (Machine, Vec<AnyJob>)> {
    (any_machine(models), prop::collection::vec(any_job(), 1..jobs))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn promises_hold_for_one_model((machine, jobs) in traces(1, 14), mut world in chance(0, false)) {
        let run = simulate(machine.settings.clone(), events(&machine, &jobs), &mut world).unwrap();
        let audited = check(&run, jobs.len());
        check_swaps(&run, &audited);
        prop_assert!(audited.refused_late.is_empty(), "{:?}\n{}", audited.refused_late, story(&run));
    }

    #[test]
    fn promises_hold_for_several_models((machine, jobs) in traces(3, 14), mut world in chance(0, false)) {
        let run = simulate(machine.settings.clone(), events(&machine, &jobs), &mut world).unwrap();
        let audited = check(&run, jobs.len());
        check_swaps(&run, &audited);
        prop_assert!(audited.refused_late.is_empty(), "{:?}\n{}", audited.refused_late, story(&run));
    }

    #[test]
    fn promises_hold_when_commands_fail((machine, jobs) in traces(3, 14), mut world in chance(9, false)) {
        let run = simulate(machine.settings.clone(), events(&machine, &jobs), &mut world).unwrap();
        let audited = check(&run, jobs.len());
        check_swaps(&run, &audited);
        prop_assert!(audited.refused_late.is_empty(), "{:?}\n{}", audited.refused_late, story(&run));
    }

    #[test]
    fn promises_hold_when_predictions_are_wrong((machine, jobs) in traces(3, 14), mut world in chance(20, true)) {
        let run = simulate(machine.settings.clone(), events(&machine, &jobs), &mut world).unwrap();
        check(&run, jobs.len());
    }

    #[test]
    fn a_stored_log_replays((machine, jobs) in traces(3, 6), mut world in chance(9, true)) {
        let run = simulate(machine.settings.clone(), events(&machine, &jobs), &mut world).unwrap();
        let stored = serde_json::to_string(&run.log).unwrap();
        let read: EventLog = serde_json::from_str(&stored).unwrap();
        prop_assert_eq!(&read, &run.log);
        prop_assert_eq!(read.replay().unwrap(), None);
    }

    /// All jobs arrive again under their numbers, long after they ended.
    #[test]
    fn ended_jobs_arrive_again((machine, jobs) in traces(3, 8), mut world in chance(9, true)) {
        let first = events(&machine, &jobs);
        let again = first.iter().filter(|event| matches!(event.event, Event::Arrived(_)));
        let again = again.map(|event| TimedEvent { at: event.at + seconds(100_000.0), ..event.clone() });
        let all: Vec<TimedEvent> = first.iter().cloned().chain(again).collect();
        let run = simulate(machine.settings.clone(), all, &mut world).unwrap();
        let audited = check(&run, 2 * jobs.len());
        for number in (1_u64..).take(jobs.len()) {
            prop_assert_eq!(audited.ended.iter().filter(|(job, _)| *job == JobId(number)).count(), 2);
        }
    }

    #[test]
    fn first_come_order_keeps_its_order((machine, jobs) in traces(3, 8), mut world in chance(0, false)) {
        let settings = Settings { order: Order::FirstCome, ..machine.settings.clone() };
        let run = simulate(settings, events(&machine, &jobs), &mut world).unwrap();
        let ended = check(&run, jobs.len()).ended;
        let done = ended.into_iter().filter(|(_, outcome)| *outcome == Outcome::Done);
        let done: Vec<JobId> = done.map(|(job, _)| job).collect();
        let arrived = requests(&run).map(|request| request.id).filter(|job| done.contains(job));
        let arrived: Vec<JobId> = arrived.collect();
        prop_assert_eq!(done, arrived);
    }

    /// While a clip is past its deadline, as many waves begin before it is in one as there are clips with an earlier
    /// deadline, and its own; no later wave goes before that; and as many groups of previews begin as the bound allows.
    #[test]
    fn nobody_starves((machine, jobs) in traces(3, 20), mut world in chance(0, false)) {
        let settings = &machine.settings;
        let run = simulate(settings.clone(), events(&machine, &jobs), &mut world).unwrap();
        let mut scheduler = Scheduler::try_new(settings.clone()).unwrap();
        let mut overdue: BTreeMap<JobId, Overdue> = BTreeMap::new();
        // The deadline of each clip that has not ended.
        let mut alive: BTreeMap<JobId, Seconds> = BTreeMap::new();
        for entry in &run.log.entries {
            let (counts, now) = (scheduler.counts(), entry.event.at);
            let before: Vec<Vec<JobId>> = scheduler.waves().map(<[JobId]>::to_vec).collect();
            let commands = scheduler.handle(&entry.event).unwrap();
            match &entry.event.event {
                Event::Arrived(request) if request.priority != Priority::Preview => {
                    let after = request.deadline.unwrap_or(settings.bounds.deadline(request.priority));
                    alive.insert(request.id, now + after);
                }
                _ => {}
            }
            for (job, deadline) in alive.iter().filter(|(_, deadline)| **deadline < now) {
                let earlier = alive.values().filter(|other| *other <= deadline).count();
                let ahead = ahead(&before, &alive, *job);
                overdue.entry(*job).or_insert(Overdue { earlier, counts, ahead, clip_units: 0 });
            }
            for command in &commands {
                match command {
                    Command::Run { job, .. } if alive.contains_key(job) => {
                        overdue.values_mut().for_each(|waiting| waiting.clip_units += 1);
                    }
                    Command::Finish { job, .. } => {
                        alive.remove(job);
                        if let Some(waited) = overdue.remove(job) {
                            // Groups that begin after its end do not delay it.
                            waited.end(counts, settings.bounds);
                        }
                    }
                    _ => {}
                }
            }
            let after: Vec<Vec<JobId>> = scheduler.waves().map(<[JobId]>::to_vec).collect();
            for (job, waiting) in &mut overdue {
                waiting.goes_on(ahead(&after, &alive, *job), scheduler.counts());
            }
        }
    }

    /// Previews that fit beside everything run at the next unit boundary of their device, or of both devices of a pair.
    #[test]
    fn a_preview_starts_within_one_unit(
        clips in prop::collection::vec((0..5_u32, 1..5_u32, 0..4_u32, 0..40_u32), 1..10),
        previews in prop::collection::vec((1..3_u32, 1..3_u32, 0..3_u32, 0..60_u32), 1..3),
        budget in 12..40_u64, (experts, encode, model) in (0..3_usize, any::<bool>(), 0..2_u32),
        mut world in chance(0, false),
    ) {
        let bounds = Bounds { wave_jobs: 100, ..Bounds::default() };
        let on = Devices::one(gpu(0));
        let experts = [on, pair(gpu(0), gpu(1)), pair(gpu(1), gpu(0))][experts];
        let places = [on, experts, experts, on];
        let settings = Settings { bounds, ..settings(&[(gpu(0), budget), (gpu(1), budget), (cpu(), budget)]) };
        let job = |priority, model, (encode, high, low, chunks, at)| {
            let memory = memory(model, places, [10, 9, 9, 4], 0, 1);
            (request(0, priority, work(encode, high, low, chunks), memory), f64::from(at))
        };
        let clips = clips.into_iter().map(|(high, low, chunks, at)| {
            job(Priority::Normal, 0, (true, high, low, chunks, at))
        });
        let previews = previews.into_iter().map(|(high, low, chunks, at)| {
            job(Priority::Preview, model, (encode, high, low, chunks, at))
        });
        let jobs: Vec<_> = clips.chain(previews).collect();
        let count = jobs.len();
        let run = simulate(settings, arrivals(jobs), &mut world).unwrap();
        let audited = check(&run, count);
        prop_assert!(audited.before_preview.values().all(|units| *units == 0), "{}", story(&run));
    }
}

/// The waves of clips that are served before that of a job; `None` if it is in no wave.
fn ahead(waves: &[Vec<JobId>], clips: &BTreeMap<JobId, Seconds>, job: JobId) -> Option<usize> {
    let position = waves.iter().position(|wave| wave.contains(&job))?;
    let of_clips = |wave: &&Vec<JobId>| wave.iter().any(|job| clips.contains_key(job));
    Some(waves.iter().take(position).filter(of_clips).count())
}

/// A clip past its deadline.
#[derive(Debug)]
struct Overdue {
    /// Clips with an earlier deadline, and itself.
    earlier: usize,
    /// The counts when it was found to be overdue.
    counts: Counts,
    /// The waves before its own; `None` while it is in no wave.
    ahead: Option<usize>,
    /// Units of clips since it was found to be overdue.
    clip_units: u32,
}

impl Overdue {
    fn goes_on(&mut self, ahead: Option<usize>, now: Counts) {
        match (self.ahead, ahead) {
            (Some(before), ahead) => {
                assert!(ahead.is_some_and(|ahead| ahead <= before), "{ahead:?}: {self:?}")
            }
            (None, ahead) => {
                let waves = now.waves - self.counts.waves;
                // The next wave may begin at the same time as its own.
                let most = u64::try_from(self.earlier).unwrap() + u64::from(ahead.is_some());
                assert!(waves <= most, "{waves} waves before {self:?}");
            }
        }
        self.ahead = ahead;
    }

    fn end(&self, now: Counts, bounds: Bounds) {
        let groups = now.preview_groups - self.counts.preview_groups;
        let most = 1 + self.clip_units / bounds.overdue_units;
        assert!(groups <= u64::from(most), "{groups} groups of previews before {self:?}");
    }
}
