//! A job inside the driver: made before its first unit, advanced by one unit at a time, and stopped from outside.

use super::queued::{EndedJob, Listener, MakeJob};
use crate::Error;
use crate::job::{Job, JobEvent, JobState, NextUnit};
use crate::pipeline::Pipeline;
use crate::scheduler::{JobId, Outcome, Unit, Work};
use bundle::{Cancel, Diagnose, Report};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A job, and what takes its events. It moves to the thread of a device for each unit.
pub(super) struct Clip {
    make: Option<MakeJob>,
    made: Option<(Job, Receiver<JobEvent>)>,
    listener: Box<dyn Listener>,
    /// False once the listener has refused an event or panicked.
    is_heard: bool,
    /// The work that was announced.
    work: Work,
    stop: StopRequest,
}

impl Clip {
    pub(super) fn new(make: MakeJob, listener: Box<dyn Listener>, work: Work, stop: StopRequest) -> Self {
        Self { make: Some(make), made: None, listener, is_heard: true, work, stop }
    }

    /// Advances the job until a unit of its announced work is done. A job that has more steps than announced does the
    /// rest of them too, and one that has fewer does nothing. A chunk is one chunk: those that are not announced are not
    /// decoded.
    ///
    /// # Errors
    /// The job cannot be made, it fails or is stopped, or its listener refuses an event.
    pub(super) fn run(&mut self, unit: Unit, pipeline: &mut Pipeline) -> Result<(), Report> {
        self.stop.check().map_err(|error| error.report())?;
        if let Some(make) = self.make.take() {
            let (job, events) = make(pipeline)?;
            self.stop.attach(job.canceller());
            self.made = Some((job, events));
        }
        let Self { made, listener, is_heard, work, .. } = self;
        let Some((job, events)) = made else {
            return Err(Report::bug("a job has no state", "it was not made, or its unit panicked"));
        };
        while !is_done(job, unit, work) {
            let state = job.advance(pipeline);
            let heard = hear(&mut **listener, is_heard, events, job);
            match state.map_err(|error| error.report())? {
                JobState::Working => {}
                JobState::Ended => return heard,
                // Only the scheduler decides when a job runs.
                JobState::Paused => job.resume(),
            }
            heard?;
        }
        Ok(())
    }

    /// The job, its listener, and the events that the listener still takes. Waits for nothing.
    pub(super) fn into_ended(self, id: JobId, outcome: Outcome, report: Option<Report>) -> EndedJob {
        let Self { made, listener, is_heard, .. } = self;
        let (job, events) = made.unzip();
        EndedJob { id, outcome, report, job, listener, events: events.filter(|_| is_heard) }
    }

    /// Returns true if the job was made and was asked to stop by somebody else than the driver.
    pub(super) fn is_cancelled(&self) -> bool {
        self.made.as_ref().is_some_and(|(job, _)| job.canceller().is_cancelled())
    }
}

/// Passes the events of a job to its listener, unless that has failed before.
fn hear(
    listener: &mut dyn Listener,
    is_heard: &mut bool,
    events: &Receiver<JobEvent>,
    job: &Job,
) -> Result<(), Report> {
    if std::mem::take(is_heard) {
        events.try_iter().try_for_each(|event| listener.on_event(event, job))?;
        *is_heard = true;
    }
    Ok(())
}

/// Returns true if no more steps are left than after the announced unit, or as many chunks are decoded.
fn is_done(job: &Job, unit: Unit, work: &Work) -> bool {
    let count = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
    match unit {
        Unit::Encode => job.next_unit() != Some(NextUnit::Encode),
        Unit::Step { step, .. } => {
            let steps: usize = work.steps.iter().map(|part| count(part.steps)).sum();
            job.steps_left() <= steps.saturating_sub(count(step).saturating_add(1))
        }
        Unit::Chunk { chunk } => {
            let done = job.plan().latent.frames.saturating_sub(job.chunks_left());
            done > count(chunk)
        }
    }
}

/// The request that a job ends within its unit. It can be made before the job is. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct StopRequest {
    request: Cancel,
    /// The request of the job itself, once it is made.
    of_job: Arc<Mutex<Option<Cancel>>>,
}

impl StopRequest {
    pub(super) fn request(&self) {
        let of_job = self.of_job();
        self.request.cancel();
        if let Some(of_job) = &*of_job {
            of_job.cancel();
        }
    }

    /// Passes the request on to a job that is made.
    fn attach(&self, job: &Cancel) {
        let mut of_job = self.of_job();
        // Requested while the lock is not held, it is seen here; afterwards, it finds the job.
        if self.request.is_cancelled() {
            job.cancel();
        }
        *of_job = Some(job.clone());
    }

    /// # Errors
    /// The stop was requested.
    pub(super) fn check(&self) -> Result<(), Error> {
        Ok(self.request.stop().check()?)
    }

    fn of_job(&self) -> MutexGuard<'_, Option<Cancel>> {
        self.of_job.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
