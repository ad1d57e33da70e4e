//! Jobs on their way into the driver and out of it.

use super::panics::guarded;
use crate::job::{Job, JobEvent};
use crate::memory_plan::MemoryPlan;
use crate::model::Model;
use crate::pipeline::Pipeline;
use crate::plan::GenerationPlan;
use crate::scheduler::{JobId, Outcome, Priority, Seconds, Work};
use bundle::Report;
use std::any::Any;
use std::fmt;
use std::sync::mpsc::Receiver;

/// Makes the state of a job when its first unit is about to run, so that jobs that wait need no memory.
/// An error ends the job, which has failed then.
pub type MakeJob = Box<dyn FnOnce(&Pipeline) -> Result<(Job, Receiver<JobEvent>), Report> + Send>;

/// Receives what a job reports, on the thread of the device that ran the unit, and after the last one on the thread that
/// closes the job. [`EndedJob`] has it as `dyn Listener`, which converts to `dyn Any`.
pub trait Listener: Any + Send {
    /// Takes an event of the job. An error ends the job, which has failed then.
    ///
    /// # Errors
    /// What the job cannot go on with, such as an output that cannot be written.
    fn on_event(&mut self, event: JobEvent, job: &Job) -> Result<(), Report>;
}

/// A job for the driver.
pub struct QueuedJob {
    /// Its number.
    pub id: JobId,
    /// How soon it is wanted.
    pub priority: Priority,
    /// How long after its arrival it is past its deadline.
    pub deadline: Option<Seconds>,
    /// The model. Models of one driver share their [`Sessions`](engines::sessions::Sessions).
    pub model: Model,
    /// The plan of the clip, for which sessions are opened.
    pub plan: GenerationPlan,
    /// The use of memory.
    pub memory: MemoryPlan,
    /// The work that remains, see [`work_of`](super::work_of). If the job turns out to have more, it is done with the
    /// next unit. Without chunks, the job is done after its last step.
    pub work: Work,
    /// Makes it.
    pub make: MakeJob,
    /// Takes its events.
    pub listener: Box<dyn Listener>,
}

/// A job that has ended. Its threads may still write snapshots, see [`Self::close`]; dropping it waits for them too.
pub struct EndedJob {
    /// Its number.
    pub id: JobId,
    /// How it ended.
    pub outcome: Outcome,
    /// The error of a job that failed or does not fit. Another one has an error if something else failed meanwhile.
    pub report: Option<Report>,
    /// Its state; `None` if it never ran.
    pub job: Option<Job>,
    /// What took its events.
    pub listener: Box<dyn Listener>,
    /// Events that the listener has not taken. `None` if it takes no more.
    pub(super) events: Option<Receiver<JobEvent>>,
}

impl EndedJob {
    /// Waits until the snapshots of the job are written, unlocks its folder, and passes its last events to the listener.
    /// [`Driver::wait`](super::Driver::wait) does not, so that whoever calls it need not wait for a disk. A panic becomes
    /// the [report](Self::report), if there is none; an error of the listener is logged. Does nothing the second time.
    pub fn close(&mut self) {
        let Self { id, report, job, listener, events, .. } = self;
        let Some(job) = job else { return };
        let abandoned = guarded(&format!("closing {id}"), || {
            job.abandon();
            Ok(())
        });
        if let Err(panic) = abandoned {
            tracing::error!("{panic}");
            report.get_or_insert(panic);
        }
        let Some(events) = events.take() else { return };
        let heard = guarded(&format!("the listener of {id}"), || {
            events.try_iter().try_for_each(|event| listener.on_event(event, job))
        });
        if let Err(refused) = heard {
            tracing::warn!("an event after the end of {id} was refused: {refused}");
        }
    }
}

impl Drop for EndedJob {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for QueuedJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, priority, work, .. } = self;
        f.debug_struct("QueuedJob")
            .field("id", id)
            .field("priority", priority)
            .field("work", work)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for EndedJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, outcome, report, .. } = self;
        f.debug_struct("EndedJob")
            .field("id", id)
            .field("outcome", outcome)
            .field("report", report)
            .finish_non_exhaustive()
    }
}
