//! What a reader wants to know about a simulation.

use super::run::{Activity, SimulatedRun};
use crate::scheduler::{Command, Counts, DeviceName, Event, JobId, Outcome, Priority, Seconds};
use serde::Serialize;
use std::collections::BTreeMap;

/// The times of one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct JobTimes {
    /// The job.
    pub job: JobId,
    /// Its priority.
    pub priority: Priority,
    /// When it arrived.
    pub arrived: Seconds,
    /// When its first unit began; absent if none did.
    pub started: Option<Seconds>,
    /// When it ended.
    pub finished: Option<Seconds>,
    /// How it ended.
    pub outcome: Option<Outcome>,
}

impl JobTimes {
    /// The time from its arrival to its first unit.
    pub fn waited(&self) -> Option<Seconds> {
        self.started.map(|started| started.since(self.arrived))
    }
}

/// What share of the time a device worked.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DeviceShare {
    /// The device.
    pub device: DeviceName,
    /// Units of jobs, 0 to 1.
    pub busy: f64,
    /// Units on a pair that the device belongs to, 0 to `busy`.
    pub in_pair: f64,
    /// Opening of sessions, 0 to 1.
    pub loading: f64,
}

/// A simulation in numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The jobs, by number.
    pub jobs: Vec<JobTimes>,
    /// What the scheduler counted.
    pub counts: Counts,
    /// From the first arrival to the end of the last job.
    pub seconds: Seconds,
    /// Jobs that were done, per hour of that time; 0 if it is no time.
    pub clips_per_hour: f64,
    /// Each device.
    pub devices: Vec<DeviceShare>,
}

impl Summary {
    /// Sums a run up.
    pub fn new(run: &SimulatedRun) -> Self {
        let mut jobs: BTreeMap<JobId, JobTimes> = BTreeMap::new();
        for entry in &run.log.entries {
            let at = entry.event.at;
            if let Event::Arrived(request) = &entry.event.event {
                let (job, priority) = (request.id, request.priority);
                let times =
                    JobTimes { job, priority, arrived: at, started: None, finished: None, outcome: None };
                jobs.insert(job, times);
            }
            for command in &entry.commands {
                match *command {
                    Command::Run { job, .. } => {
                        if let Some(times) = jobs.get_mut(&job) {
                            times.started.get_or_insert(at);
                        }
                    }
                    Command::Finish { job, outcome, .. } => {
                        if let Some(times) = jobs.get_mut(&job) {
                            (times.finished, times.outcome) = (Some(at), Some(outcome));
                        }
                    }
                    Command::Load { .. } | Command::Evict { .. } => {}
                }
            }
        }
        let jobs: Vec<JobTimes> = jobs.into_values().collect();
        let first = jobs.iter().map(|job| job.arrived).min().unwrap_or_default();
        let last = jobs.iter().filter_map(|job| job.finished).max().unwrap_or_default();
        let seconds = last.since(first);
        let done = jobs.iter().filter(|job| job.outcome == Some(Outcome::Done)).count();
        let done = u32::try_from(done).map_or(f64::INFINITY, f64::from);
        let clips_per_hour = if seconds > Seconds::ZERO { done * 3600.0 / seconds.get() } else { 0.0 };
        let device = |device: DeviceName| {
            let share = |is_counted: &dyn Fn(Activity) -> bool| {
                let spans =
                    run.spans.iter().filter(|span| span.device == device && is_counted(span.activity));
                let sum: Seconds = spans.map(|span| span.to.since(span.from)).sum();
                if seconds > Seconds::ZERO { sum.get() / seconds.get() } else { 0.0 }
            };
            let busy = share(&|activity| matches!(activity, Activity::Run { .. }));
            let in_pair = share(&|activity| matches!(activity, Activity::Run { in_pair: true, .. }));
            let loading = share(&|activity| matches!(activity, Activity::Load { .. }));
            DeviceShare { device, busy, in_pair, loading }
        };
        let devices = run.log.settings.devices.iter().map(|budget| device(budget.device)).collect();
        Self { jobs, counts: run.counts, seconds, clips_per_hour, devices }
    }
}
