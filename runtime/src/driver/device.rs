//! The thread of a device. It carries out one task after another, and reports the end of each.

use super::clip::Clip;
use super::commands::{Opening, Worker};
use super::panics::guarded;
use crate::model::Model;
use crate::scheduler::{DeviceName, JobId, Session, Unit};
use bundle::units::ByteCount;
use bundle::{Cancel, Report};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// Something for a device to do.
pub(super) enum Task {
    /// Open a session.
    Load { session: Session, job: JobId, opening: Arc<Opening> },
    /// Close a session.
    Evict { session: Session, model: Box<Model> },
    /// Run a unit of a job.
    Run { job: JobId, unit: Unit, opening: Arc<Opening>, clip: Box<Clip> },
}

/// A task that has ended.
pub(super) enum Done {
    /// A session was to be opened. `result` has its memory, if it was measured.
    Load { device: DeviceName, session: Session, job: JobId, result: Result<Option<ByteCount>, Report> },
    /// A session was closed.
    Evict { device: DeviceName, session: Session },
    /// A unit ran. `result` has the memory of its session, if it was measured.
    Run { job: JobId, clip: Box<Clip>, result: Result<Option<ByteCount>, Report> },
}

/// The thread of a device. Dropping this ends it after the task that it carries out.
#[derive(Debug)]
pub(super) struct DeviceThread {
    /// `None` only while it is dropped.
    tasks: Option<Sender<Task>>,
    thread: Option<JoinHandle<()>>,
}

impl DeviceThread {
    /// Starts the thread. `closing` ends the opening of sessions.
    ///
    /// # Errors
    /// The system does not give another thread.
    pub(super) fn start(device: DeviceName, done: Sender<Done>, closing: &Cancel) -> std::io::Result<Self> {
        let (tasks, receiver) = channel();
        let worker = Worker::new(device, closing.clone());
        let thread = std::thread::Builder::new().name(format!("device {device}"));
        let thread = thread.spawn(move || work(device, worker, &receiver, &done))?;
        Ok(Self { tasks: Some(tasks), thread: Some(thread) })
    }

    /// Gives it a task. Returns the task if the thread has ended.
    pub(super) fn give(&self, task: Task) -> Result<(), Task> {
        match &self.tasks {
            Some(tasks) => tasks.send(task).map_err(|error| error.0),
            None => Err(task),
        }
    }
}

impl Drop for DeviceThread {
    fn drop(&mut self) {
        self.tasks = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of a device has panicked");
        }
    }
}

fn work(device: DeviceName, mut worker: Worker, tasks: &Receiver<Task>, done: &Sender<Done>) {
    for task in tasks {
        // The driver does not wait for tasks that end after it.
        let _ = done.send(carry_out(device, &mut worker, task));
    }
}

fn carry_out(device: DeviceName, worker: &mut Worker, task: Task) -> Done {
    match task {
        Task::Load { session, job, opening } => {
            let what = format!("opening the {session} on {device}");
            let result = guarded(&what, || worker.load(session.stage, &opening));
            Done::Load { device, session, job, result }
        }
        Task::Evict { session, model } => {
            let what = format!("closing the {session} on {device}");
            if let Err(report) = guarded(&what, || worker.evict(session.stage, &model)) {
                tracing::error!("{report}");
            }
            Done::Evict { device, session }
        }
        Task::Run { job, unit, opening, mut clip } => {
            let what = format!("a unit of {job} on {device}");
            let result = guarded(&what, || worker.run(unit, &opening, &mut clip));
            Done::Run { job, clip, result }
        }
    }
}
