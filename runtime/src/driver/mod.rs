//! Runs jobs on the devices of this machine as the scheduler says: the shell around [`Scheduler`](crate::scheduler).
//!
//! Each device has a thread that carries out its commands: it opens and closes sessions, and advances jobs by one unit.
//! What happened becomes an event of the scheduler. The times of the events and the commands that followed can be kept
//! ([`Driver::log`]); replayed, they give the same commands.
//!
//! In reading order: [`QueuedJob`], [`work_of`], [`Driver`], [`EndedJob`].

mod clip;
mod commands;
mod device;
mod jobs;
mod log;
mod models;
mod panics;
mod queued;
mod request;

pub use queued::{EndedJob, Listener, MakeJob, QueuedJob};
pub use request::{JobSpan, latents_of, work_of};

use crate::Error;
use crate::scheduler::{
    Command, Counts, DeviceName, Event, EventLog, JobId, Outcome, SchedulerError, Session, Settings, Unit,
};
use bundle::{Cancel, ErrorClass, Report};
use clip::{Clip, StopRequest};
use commands::Opening;
use device::{DeviceThread, Done, Task};
use jobs::{End, Ending, Jobs, Removed};
use log::TimedScheduler;
use models::ModelNumbers;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// What a device is doing.
#[derive(Debug, Clone, PartialEq)]
pub enum Activity {
    /// Nothing.
    Idle,
    /// It opens a session.
    Loading(Session),
    /// It closes a session.
    Evicting(Session),
    /// It runs a unit.
    Running(JobId, Unit),
}

/// Runs jobs as the scheduler says. Dropping it stops the jobs that run, within their units, and waits for its threads.
pub struct Driver {
    scheduler: TimedScheduler,
    jobs: Jobs<Entry, Box<Clip>>,
    models: ModelNumbers,
    /// Sessions that the scheduler has on devices: it will order to close them.
    sessions: BTreeSet<(DeviceName, Session)>,
    threads: BTreeMap<DeviceName, DeviceThread>,
    activities: BTreeMap<DeviceName, Activity>,
    /// `Some` while no units are started: those that the scheduler has ordered.
    held: Option<Vec<OrderedUnit>>,
    ended: Vec<EndedJob>,
    /// An error for the next call of [`Self::wait`].
    fault: Option<Error>,
    done: Receiver<Done>,
    sender: Sender<Done>,
    closing: Cancel,
}

/// What is known about a job that has not ended.
struct Entry {
    opening: Arc<Opening>,
    stop: StopRequest,
    report: Option<Report>,
}

/// A unit that the scheduler has ordered.
struct OrderedUnit {
    device: DeviceName,
    /// The other device of a pair. It has no task of its own: the generator makes a pass on it.
    pair: Option<DeviceName>,
    job: JobId,
    unit: Unit,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("jobs", &self.jobs.ids().collect::<Vec<_>>())
            .field("activities", &self.activities)
            .field("is_held", &self.held.is_some())
            .finish_non_exhaustive()
    }
}

impl Driver {
    /// Creates a driver without jobs. `settings` have the devices that jobs may be placed on, with their budgets.
    ///
    /// # Errors
    /// The settings contradict themselves.
    pub fn new(settings: Settings) -> Result<Self, Error> {
        let devices = settings.devices.iter().map(|device| (device.device, Activity::Idle));
        let (sender, done) = channel();
        Ok(Self {
            activities: devices.collect(),
            scheduler: TimedScheduler::new(settings)?,
            jobs: Jobs::default(),
            models: ModelNumbers::default(),
            sessions: BTreeSet::new(),
            threads: BTreeMap::new(),
            held: None,
            ended: Vec::new(),
            fault: None,
            done,
            sender,
            closing: Cancel::new(),
        })
    }

    /// Takes a job. One that cannot fit ends at once, and is returned by [`Self::wait`].
    ///
    /// # Errors
    /// The job has a number or a device that the scheduler refuses. It is dropped then.
    pub fn arrive(&mut self, job: QueuedJob) -> Result<(), Error> {
        if self.jobs.contains(job.id) {
            return Err(SchedulerError::Duplicate(job.id).into());
        }
        let number = self.models.number(&job.model);
        let Self { jobs, sessions, .. } = self;
        self.models.forget(|number| {
            jobs.entries().any(|entry| entry.opening.number == number)
                || sessions.iter().any(|(_, session)| session.model == number)
        });
        let request = request::request_of(&job, number)?;
        let commands = self.scheduler.handle(Event::Arrived(request))?;
        let QueuedJob { id, model, plan, memory, work, make, listener, .. } = job;
        let stop = StopRequest::default();
        let clip = Box::new(Clip::new(make, listener, work, stop.clone()));
        let opening = Arc::new(Opening { model, number, plan, tile: memory.tile });
        self.jobs.insert(id, Entry { opening, stop, report: None }, clip);
        self.carry_out(commands);
        Ok(())
    }

    /// Ends a job: at once, or within the unit that it runs. One that has ended is ignored.
    pub fn cancel(&mut self, id: JobId) {
        let Some(entry) = self.jobs.get(id) else { return };
        entry.stop.request();
        // A unit that is held ends without having run.
        let held = self.held.as_mut().and_then(|held| {
            let position = held.iter().position(|unit| unit.job == id)?;
            Some(held.remove(position))
        });
        self.handle(Event::Cancelled { job: id });
        if held.is_some() {
            self.handle(Event::UnitFailed { job: id });
        }
    }

    /// Starts no further units until it is called with `false`: for a full disk. Units that run end, and sessions are
    /// opened and closed.
    pub fn hold(&mut self, hold: bool) {
        if hold {
            self.held.get_or_insert_default();
            return;
        }
        for unit in self.held.take().unwrap_or_default() {
            self.start_unit(unit);
        }
    }

    /// Waits until a unit ends, a session is open or closed, or `limit` has passed, and lets the devices go on. Returns the
    /// jobs that have ended, each once, and waits for no thread of theirs.
    ///
    /// # Errors
    /// The scheduler refuses an event, which is a fault of the program. Jobs that have ended are returned by the next call.
    pub fn wait(&mut self, limit: Duration) -> Result<Vec<EndedJob>, Error> {
        // What has ended already is returned at once.
        let limit = if self.ended.is_empty() && self.fault.is_none() { limit } else { Duration::ZERO };
        let first = self.done.recv_timeout(limit).ok();
        let all: Vec<Done> = first.into_iter().chain(self.done.try_iter()).collect();
        for done in all {
            self.take(done);
        }
        match self.fault.take() {
            Some(fault) => Err(fault),
            None => Ok(std::mem::take(&mut self.ended)),
        }
    }

    /// What each device is doing.
    pub fn activities(&self) -> Vec<(DeviceName, Activity)> {
        self.activities.iter().map(|(device, activity)| (*device, activity.clone())).collect()
    }

    /// Returns true if every job has ended and was returned by [`Self::wait`].
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle() && self.ended.is_empty()
    }

    /// What the scheduler has counted.
    pub fn counts(&self) -> Counts {
        self.scheduler.counts()
    }

    /// Keeps the events and commands from now on. Must be called before the first job arrives.
    pub fn keep_log(&mut self) {
        self.scheduler.keep_log();
    }

    /// The events so far, if they are kept.
    pub fn log(&self) -> Option<&EventLog> {
        self.scheduler.log()
    }

    /// Tells the scheduler what a device has done.
    fn take(&mut self, done: Done) {
        match done {
            Done::Load { device, session, job, result } => {
                self.set_activity(device, Activity::Idle);
                match result {
                    Ok(bytes) => self.handle(Event::Loaded { device, session, bytes }),
                    Err(report) => {
                        self.sessions.remove(&(device, session));
                        self.keep_report(job, report);
                        self.handle(Event::LoadFailed { device, session });
                    }
                }
            }
            Done::Evict { device, session } => {
                self.set_activity(device, Activity::Idle);
                self.sessions.remove(&(device, session));
                self.handle(Event::Evicted { device, session });
            }
            Done::Run { job, clip, result } => {
                for activity in self.activities.values_mut() {
                    if matches!(activity, Activity::Running(running, _) if *running == job) {
                        *activity = Activity::Idle;
                    }
                }
                let is_cancelled = clip.is_cancelled();
                if let Some(removed) = self.jobs.take_back(job, clip) {
                    self.return_ended(job, removed);
                }
                match result {
                    Ok(session_bytes) => self.handle(Event::UnitDone { job, session_bytes }),
                    Err(report) => {
                        // Its own request can be made by somebody else than the driver.
                        if is_cancelled && report.class == ErrorClass::Interrupted {
                            self.handle(Event::Cancelled { job });
                        }
                        self.keep_report(job, report);
                        self.handle(Event::UnitFailed { job });
                    }
                }
            }
        }
    }

    fn keep_report(&mut self, job: JobId, report: Report) {
        if let Some(entry) = self.jobs.get_mut(job) {
            entry.report.get_or_insert(report);
        }
    }

    fn set_activity(&mut self, device: DeviceName, activity: Activity) {
        self.activities.insert(device, activity);
    }

    /// Gives an event to the scheduler and carries out what follows. A refusal is an error of the next
    /// [`Self::wait`].
    fn handle(&mut self, event: Event) {
        match self.scheduler.handle(event) {
            Ok(commands) => self.carry_out(commands),
            Err(error) => {
                self.fault.get_or_insert(error);
            }
        }
    }

    fn carry_out(&mut self, commands: Vec<Command>) {
        for command in commands {
            match command {
                Command::Load { device, session, job, .. } => {
                    let Some(entry) = self.jobs.get(job) else {
                        self.broken(&format!("the {session} is to be opened for {job}"), "it has ended");
                        continue;
                    };
                    self.sessions.insert((device, session));
                    let opening = Arc::clone(&entry.opening);
                    self.set_activity(device, Activity::Loading(session));
                    self.give(device, Task::Load { session, job, opening });
                }
                Command::Evict { device, session } => {
                    let Some(model) = self.models.model(session.model).cloned() else {
                        self.broken(&format!("the {session} is to be closed"), "no job had its model");
                        continue;
                    };
                    self.set_activity(device, Activity::Evicting(session));
                    self.give(device, Task::Evict { session, model: Box::new(model) });
                }
                Command::Run { device, pair, job, unit } => {
                    let unit = OrderedUnit { device, pair, job, unit };
                    match &mut self.held {
                        Some(held) => held.push(unit),
                        None => self.start_unit(unit),
                    }
                }
                Command::Finish { device, job, outcome } => self.finish(device, job, outcome),
            }
        }
    }

    /// Keeps an error for the next [`Self::wait`]: a command that contradicts the state.
    fn broken(&mut self, what: &str, why: &str) {
        self.fault.get_or_insert_with(|| Error::Driver { what: what.to_owned(), why: why.to_owned() });
    }

    fn start_unit(&mut self, OrderedUnit { device, pair, job, unit }: OrderedUnit) {
        let Some((entry, clip)) = self.jobs.lend(job) else {
            return self
                .broken(&format!("a unit of {job} is to run"), "it has ended, or runs on another device");
        };
        let opening = Arc::clone(&entry.opening);
        for device in pair.into_iter().chain([device]) {
            self.set_activity(device, Activity::Running(job, unit));
        }
        self.give(device, Task::Run { job, unit, opening, clip });
    }

    /// Gives a task to the thread of a device, which is started if necessary. If there is no thread, the task has failed.
    fn give(&mut self, device: DeviceName, task: Task) {
        let thread = match self.threads.entry(device) {
            std::collections::btree_map::Entry::Occupied(thread) => Ok(&*thread.into_mut()),
            std::collections::btree_map::Entry::Vacant(vacant) => {
                DeviceThread::start(device, self.sender.clone(), &self.closing)
                    .map(|thread| &*vacant.insert(thread))
            }
        };
        let (task, report) = match thread {
            Ok(thread) => match thread.give(task) {
                Ok(()) => return,
                Err(task) => {
                    (task, Report::bug(format!("the thread of {device} has ended"), "its driver has not"))
                }
            },
            Err(error) => {
                let fix = "end other programs, or raise the limit of threads of this user";
                (
                    task,
                    Report::failed(format!("no thread for {device} can be started"), error.to_string(), fix),
                )
            }
        };
        let done = match task {
            Task::Load { session, job, .. } => Done::Load { device, session, job, result: Err(report) },
            Task::Evict { session, .. } => Done::Evict { device, session },
            Task::Run { job, clip, .. } => Done::Run { job, clip, result: Err(report) },
        };
        // The driver itself has the receiver.
        let _ = self.sender.send(done);
    }

    fn finish(&mut self, device: DeviceName, id: JobId, outcome: Outcome) {
        match self.jobs.end(id, Ending { device, outcome }) {
            End::Removed(removed) => self.return_ended(id, removed),
            End::Away => self.broken(&format!("{id} has ended"), "a device still runs a unit of it"),
            End::Unknown => self.broken(&format!("{id} has ended"), "it has ended before"),
        }
    }

    /// Keeps a job for the next [`Self::wait`].
    fn return_ended(&mut self, id: JobId, removed: Removed<Entry, Box<Clip>>) {
        let Removed { entry: Entry { report, .. }, clip, ending: Ending { device, outcome } } = removed;
        let report = match outcome {
            Outcome::Done => None,
            Outcome::Failed => report,
            Outcome::Cancelled => report.filter(|report| report.class != ErrorClass::Interrupted),
            Outcome::DoesNotFit { needed, budget } => Some(Report::new(
                ErrorClass::DoesNotFit,
                format!("{id} does not fit in the memory of {device}"),
                format!("it needs {needed}, and {budget} may be used"),
                "make a smaller or shorter clip, or place components on other devices",
            )),
        };
        self.ended.push(clip.into_ended(id, outcome, report));
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.closing.cancel();
        self.jobs.entries().for_each(|entry| entry.stop.request());
        // Joins them.
        self.threads.clear();
        let returned = self.done.try_iter().filter_map(|done| match done {
            Done::Run { job, clip, .. } => Some((job, clip)),
            Done::Load { .. } | Done::Evict { .. } => None,
        });
        for (id, clip) in self.jobs.take_all().into_iter().chain(returned) {
            clip.into_ended(id, Outcome::Cancelled, None).close();
        }
    }
}
