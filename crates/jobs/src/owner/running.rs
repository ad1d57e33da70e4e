//! The loop of the owner.

use super::clip::Clip;
use super::finishing::Finished;
use super::hold::Hold;
use super::options::{Notice, Options, Summary};
use super::preparing::{Prepared, prepare};
use super::starting::{Position, Starting};
use super::waiting;
use crate::Error;
use crate::request::Request;
use crate::store::{Answer, JobOrder, JobRow, Outcome, OwnedStore, Progress, State, now};
use bundle::units::ByteCount;
use bundle::{Cancel, Diagnose};
use engines::residency::Residency;
use engines::sessions::Sessions;
use engines::{Device, MemoryBudgets};
use runtime::driver::{self, Driver, JobSpan, QueuedJob};
use runtime::model::Model;
use runtime::plan::GenerationPlan;
use runtime::scheduler::{Bounds, DeviceBudget, DeviceName, JobId, Seconds, Settings};
use runtime::text_encoder;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The store is looked at this often while units run, and after each.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often the lease is renewed.
const LEASE_EVERY: Duration = Duration::from_secs(1);

/// Owns the store in a folder and makes its jobs, until `options.cancel` is requested or, with `until_idle`, no job is
/// left. Jobs that fail end with their error; the others go on.
///
/// # Errors
/// Another process owns the store, the store cannot be used, or the devices cannot.
pub fn run(folder: &Path, options: Options, notify: &mut dyn FnMut(Notice)) -> Result<Summary, Error> {
    let (store, texts) = OwnedStore::open(folder)?;
    let waiting = store.store().list()?.iter().filter(|row| !row.state.has_ended()).count();
    notify(Notice::Started { waiting });
    texts.into_iter().for_each(|text| notify(Notice::Message(text)));
    let mut owner = Owner::new(store, options)?;
    let ended = owner.run(notify);
    // Also after an error: what can go on is queued again.
    owner.stop(notify);
    owner.join_finishing();
    ended.map(|()| Summary { counts: owner.driver.counts(), ..owner.summary })
}

/// A job that the driver has, or whose outputs are being completed.
pub(super) struct Live {
    pub(super) clip: Clip,
    pub(super) request: Request,
    pub(super) cancel: Cancel,
    /// True once the store says that it runs.
    pub(super) is_running: bool,
    /// The progress that was stored last.
    pub(super) stored: Progress,
    /// The orders to cancel it. They are answered when it has ended, so that a cancel is never forgotten.
    pub(super) cancels: Vec<u64>,
    /// True while its outputs are being completed.
    pub(super) is_finishing: bool,
}

pub(super) struct Owner {
    pub(super) options: Options,
    budgets: MemoryBudgets,
    sessions: Sessions,
    pub(super) driver: Driver,
    pub(super) live: BTreeMap<JobId, Live>,
    pub(super) finished: (Sender<Finished>, Receiver<Finished>),
    pub(super) finishing: Vec<JoinHandle<()>>,
    /// Jobs whose end could not be stored yet.
    pub(super) unsaved: Vec<Finished>,
    /// Answers that could not be stored yet.
    pub(super) answers: BTreeMap<u64, Answer>,
    /// Jobs that this process leaves alone, because their end cannot be stored.
    pub(super) given_up: BTreeSet<JobId>,
    /// How often each job was queued again because a disk was full.
    pub(super) refills: BTreeMap<JobId, u32>,
    pub(super) hold: Option<Hold>,
    /// True while the store cannot be read or written.
    pub(super) has_trouble: bool,
    /// The most that a snapshot of the jobs needs on disk.
    pub(super) largest_state: ByteCount,
    leased: Instant,
    pub(super) told: Instant,
    pub(super) summary: Summary,
    /// The last field: no other process may own the store while anything here still runs.
    pub(super) store: OwnedStore,
}

impl Owner {
    fn new(store: OwnedStore, options: Options) -> Result<Self, Error> {
        let budgets = budgets(&options)?;
        let sessions = Sessions::new(options.backend.clone(), budgets.clone(), options.residency);
        let device = |device: Device| {
            let budget = budgets.of(device)?;
            Some(DeviceBudget { device: DeviceName(device), budget })
        };
        let settings = Settings {
            devices: options.devices().into_iter().filter_map(device).collect(),
            order: options.order,
            bounds: Bounds {
                one_at_a_time: options.bounds.one_at_a_time || options.residency == Residency::One,
                ..options.bounds
            },
        };
        let driver = Driver::new(settings)?;
        let start = Instant::now();
        Ok(Self {
            options,
            budgets,
            sessions,
            driver,
            live: BTreeMap::new(),
            finished: channel(),
            finishing: Vec::new(),
            unsaved: Vec::new(),
            answers: BTreeMap::new(),
            given_up: BTreeSet::new(),
            refills: BTreeMap::new(),
            hold: None,
            has_trouble: false,
            largest_state: ByteCount(0),
            leased: start,
            told: start,
            summary: Summary::default(),
            store,
        })
    }

    fn run(&mut self, notify: &mut dyn FnMut(Notice)) -> Result<(), Error> {
        self.keep_within_budget(notify)?;
        let written = self.write_missing_sheets(notify);
        self.tolerate(written, notify)?;
        let mut look = true;
        while !self.options.cancel.is_cancelled() {
            let looked = self.look_at_store(std::mem::take(&mut look), notify);
            self.tolerate(looked, notify)?;
            if self.options.until_idle && self.is_idle() {
                return Ok(());
            }
            look = self.turn(notify)?;
        }
        Ok(())
    }

    /// Returns true if nothing is left to do, now or when a disk has room.
    fn is_idle(&self) -> bool {
        let waits = self.hold.is_some() || self.has_trouble;
        self.live.is_empty() && self.unsaved.is_empty() && self.answers.is_empty() && !waits
    }

    /// Follows orders and takes jobs, if the store has changed or `look` is true.
    fn look_at_store(&mut self, look: bool, notify: &mut dyn FnMut(Notice)) -> Result<(), Error> {
        if self.store.has_changed()? || look || self.has_trouble {
            self.follow_orders(notify)?;
            self.take_jobs(notify)?;
        }
        Ok(())
    }

    /// Lets the devices work until something happens. Returns true if the store is to be looked at.
    fn turn(&mut self, notify: &mut dyn FnMut(Notice)) -> Result<bool, Error> {
        let finished = self.wait()?;
        let has_ended = !finished.is_empty();
        for finished in finished {
            self.save(finished, notify)?;
        }
        self.note_progress(notify)?;
        self.look_at_disk(notify)?;
        if self.hold.is_none() {
            for finished in std::mem::take(&mut self.unsaved) {
                self.save(finished, notify)?;
            }
        }
        self.store_answers()?;
        if self.leased.elapsed() >= LEASE_EVERY {
            self.leased = Instant::now();
            waiting::ignore_passing(self.store.renew_lease())?;
        }
        Ok(has_ended)
    }

    /// Waits until something happens, at most until the store is to be looked at. Returns the jobs whose outputs are
    /// complete or closed.
    ///
    /// # Errors
    /// The scheduler refuses an event, which is a fault of the program.
    pub(super) fn wait(&mut self) -> Result<Vec<Finished>, Error> {
        let first = if self.driver.is_idle() {
            // Outputs may still be completed.
            self.finished.1.recv_timeout(LOOK_EVERY).ok()
        } else {
            for ended in self.driver.wait(LOOK_EVERY)? {
                self.finish(ended);
            }
            None
        };
        Ok(first.into_iter().chain(self.finished.1.try_iter()).collect())
    }

    /// Carries out the orders of other processes.
    fn follow_orders(&mut self, notify: &mut dyn FnMut(Notice)) -> Result<(), Error> {
        for order in self.store.orders()? {
            if self.answers.contains_key(&order.number) {
                continue;
            }
            match (self.live.get_mut(&order.job), &order.order) {
                (Some(live), JobOrder::Cancel) => {
                    if !live.cancels.contains(&order.number) {
                        live.cancels.push(order.number);
                        live.cancel.cancel();
                        self.driver.cancel(order.job);
                    }
                }
                (Some(_), JobOrder::Retry { .. } | JobOrder::Resume { .. } | JobOrder::Keep { .. }) => {
                    let why = "it is queued or running".to_owned();
                    self.answers.insert(order.number, Answer::Refused { why });
                }
                (None, _) => match self.store.carry_out(&order) {
                    Err(error) if error.passes() || matches!(error, Error::Damaged { .. }) => {
                        return Err(error);
                    }
                    // The folder of the job cannot be written, for example.
                    Err(error) => {
                        let why = error.report().to_string();
                        notify(Notice::Message(format!("warning: {}: {why}", order.job)));
                        self.answers.insert(order.number, Answer::Refused { why });
                    }
                    Ok(()) => {
                        // It may be made again.
                        self.given_up.remove(&order.job);
                        self.refills.remove(&order.job);
                    }
                },
            }
        }
        self.store_answers()
    }

    /// Stores the answers to orders. What cannot be stored is stored later.
    pub(super) fn store_answers(&mut self) -> Result<(), Error> {
        while let Some((order, answer)) = self.answers.first_key_value() {
            match self.store.answer(*order, answer) {
                Err(error) if error.passes() => return Ok(()),
                stored => stored?,
            }
            self.answers.pop_first();
        }
        Ok(())
    }

    /// Gives queued jobs to the driver.
    pub(super) fn take_jobs(&mut self, notify: &mut dyn FnMut(Notice)) -> Result<(), Error> {
        if self.hold.is_some() {
            return Ok(());
        }
        for row in self.store.store().list()? {
            if row.state.has_ended() || self.has_taken(row.id) {
                continue;
            }
            if let Err(error) = self.take_job(&row) {
                let outcome = Outcome {
                    state: State::Failed,
                    error: Some(error.report()),
                    outputs: Vec::new(),
                    warnings: Vec::new(),
                    steps_done: row.progress.steps_done,
                    ended: now(),
                };
                self.save(Finished { id: row.id, outcome, disk_full: None }, notify)?;
            }
        }
        Ok(())
    }

    /// Returns true if this process makes a job, has made it, or has given it up.
    fn has_taken(&self, id: JobId) -> bool {
        let is_unsaved = self.unsaved.iter().any(|finished| finished.id == id);
        self.live.contains_key(&id) || self.given_up.contains(&id) || is_unsaved
    }

    fn take_job(&mut self, row: &JobRow) -> Result<(), Error> {
        let request = &row.request;
        let Prepared { model, plan, memory } =
            prepare(request, &self.options, &self.budgets, &self.sessions)?;
        let folder = self.store.store().job_folder(row.id);
        let is_open_take = request.take.is_some() && request.outputs.is_empty();
        let picture = is_open_take.then(|| self.store.store().take_picture(row.id));
        let steps = request.steps().unwrap_or_else(|| plan.schedule.steps());
        let progress = Progress {
            steps: request.stop_after.unwrap_or(steps),
            frames: plan.frames.get(),
            ..Progress::default()
        };
        let follower = self.options.follower.clone().map(|follower| (row.id, follower));
        let clip = Clip::new(request, &folder, progress.clone(), picture, follower);
        let cancel = Cancel::new();
        let starting = Starting {
            request: request.clone(),
            plan: plan.clone(),
            folder,
            clip: clip.clone(),
            cancel: cancel.clone(),
        };
        let Position { steps_done, has_text, forks, plan: base } = starting.position(model.manifest());
        clip.set_steps_done(steps_done);
        let encode = !has_text && !has_texts(&model, &plan)?;
        let span = JobSpan { steps_done, stop_after: request.stop_after, encode, forks: &forks };
        let mut work = driver::work_of(base.as_ref().unwrap_or(&plan), &model.manifest().routing, &span);
        if is_open_take {
            work.chunks = work.chunks.min(1);
        }
        self.largest_state = self.largest_state.max(driver::latents_of(&plan, model.manifest()));
        self.driver.arrive(QueuedJob {
            id: row.id,
            priority: request.priority,
            deadline: request.deadline.map(|deadline| self.left_of(deadline, row.submitted)),
            model,
            plan,
            memory,
            work,
            make: Box::new(move |pipeline| starting.make(pipeline)),
            listener: Box::new(clip.clone()),
        })?;
        let live = Live {
            clip,
            request: request.clone(),
            cancel,
            is_running: false,
            stored: progress,
            cancels: Vec::new(),
            is_finishing: false,
        };
        self.live.insert(row.id, live);
        Ok(())
    }

    /// What is left of a deadline.
    fn left_of(&self, deadline: Seconds, submitted: f64) -> Seconds {
        Seconds::try_new(deadline.get() - (now() - submitted)).unwrap_or(Seconds::ZERO)
    }
}

/// Returns true if the text encoder is not needed: the states of the prompts are stored. They may be gone when the job
/// runs; then it encodes them within its first step.
fn has_texts(model: &Model, plan: &GenerationPlan) -> Result<bool, runtime::Error> {
    let is_stored = |text: &str| text_encoder::is_stored(model, text);
    Ok(is_stored(&plan.prompt)? && (!plan.is_guided() || is_stored(&plan.negative)?))
}

/// The memory of each device that may be used: what was asked for, or what is free.
fn budgets(options: &Options) -> Result<MemoryBudgets, Error> {
    let mut budgets = MemoryBudgets::default();
    for device in options.devices() {
        options.backend.target(device).map_err(runtime::Error::from)?;
        // Devices that share their memory have one budget.
        if budgets.of(device).is_some() {
            continue;
        }
        let free = || options.backend.available_memory(device.memory());
        if let Some(bytes) = options.budgets.of(device).or_else(free) {
            budgets.set(Some(device), bytes)?;
        }
    }
    Ok(budgets)
}
