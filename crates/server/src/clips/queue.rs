//! The thread that adds jobs to the store and gives orders about them.
//!
//! Everything that waits is added in one change, so that a thousand requests at once do not wait for a thousand of
//! them.

use crate::clips::ticket::Ticket;
use jobs::Error;
use jobs::request::Request;
use jobs::store::{Answer, JobOrder, JobRow, Store};
use runtime::scheduler::JobId;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The most jobs that are added in one change.
const MOST_AT_ONCE: usize = 64;
/// How long the owner may take to carry out an order.
const ORDER_TIME: Duration = Duration::from_secs(10);
/// How often its answer is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Fills the folder of a job and changes its request, before it can be seen.
pub(crate) type Prepare = Box<dyn FnMut(JobId, &mut Request, &Path) -> Result<(), Error> + Send>;

/// A job that is to be added.
pub(crate) struct NewJob {
    /// What is asked for.
    pub request: Request,
    /// What the server notes about it.
    pub ticket: Ticket,
    /// Puts what else is needed into its folder.
    pub prepare: Prepare,
}

impl std::fmt::Debug for NewJob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewJob").field("ticket", &self.ticket).finish_non_exhaustive()
    }
}

enum Command {
    Submit(Box<NewJob>, oneshot::Sender<Result<JobRow, Error>>),
    Order(JobId, JobOrder, oneshot::Sender<Result<Ordered, Error>>),
}

/// What became of an order.
#[derive(Debug)]
pub(crate) struct Ordered {
    /// The answer; `None` if the owner has not carried it out yet. It will.
    pub answer: Option<Answer>,
    /// The job after it.
    pub row: JobRow,
}

/// The queue of a server. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    commands: Sender<Command>,
    folder: PathBuf,
}

impl Queue {
    /// Opens the store in a folder, and starts the thread. Returns the jobs that it has.
    ///
    /// # Errors
    /// The store cannot be opened or read, or the thread cannot be started.
    pub(crate) fn open(folder: &Path) -> Result<(Self, Vec<JobRow>), Error> {
        let store = Store::open(folder)?;
        let rows = store.list()?;
        let (commands, received) = channel();
        let folder = store.folder().to_owned();
        let started = std::thread::Builder::new().name("queue".into()).spawn(move || run(store, &received));
        started.map_err(bundle::Error::file("start the thread of the queue of", &folder))?;
        Ok((Self { commands, folder }, rows))
    }

    /// The folder of the store.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of a job.
    pub(crate) fn job_folder(&self, id: JobId) -> PathBuf {
        self.folder.join("jobs").join(id.0.to_string())
    }

    /// Adds a job. When this returns, it survives a power cut.
    ///
    /// # Errors
    /// See [`Store::submit`].
    pub(crate) async fn submit(&self, job: NewJob) -> Result<JobRow, Error> {
        let (sender, answer) = oneshot::channel();
        self.send(Command::Submit(Box::new(job), sender))?;
        answer.await.unwrap_or_else(|_gone| Err(gone(&self.folder)))
    }

    /// Orders that a job is cancelled, and does not wait for it.
    pub(crate) fn cancel_soon(&self, id: JobId) {
        let (sender, _nobody_waits) = oneshot::channel();
        if let Err(error) = self.send(Command::Order(id, JobOrder::Cancel, sender)) {
            tracing::error!("job {} is not cancelled: {error}", id.0);
        }
    }

    /// Gives an order about a job, and waits for its answer for a while.
    ///
    /// # Errors
    /// See [`Store::order`].
    pub(crate) async fn order(&self, id: JobId, order: JobOrder) -> Result<Ordered, Error> {
        let (sender, answer) = oneshot::channel();
        self.send(Command::Order(id, order, sender))?;
        answer.await.unwrap_or_else(|_gone| Err(gone(&self.folder)))
    }

    fn send(&self, command: Command) -> Result<(), Error> {
        self.commands.send(command).map_err(|_gone| gone(&self.folder))
    }
}

fn gone(folder: &Path) -> Error {
    bundle::Error::file("use", folder)(std::io::Error::other("the thread of the queue has ended")).into()
}

/// An order that the owner has not answered.
struct Waiting {
    number: u64,
    job: JobId,
    until: Instant,
    answer: oneshot::Sender<Result<Ordered, Error>>,
}

fn run(mut store: Store, commands: &Receiver<Command>) {
    let mut waiting: Vec<Waiting> = Vec::new();
    loop {
        let next = if waiting.is_empty() {
            commands.recv().ok()
        } else {
            match commands.recv_timeout(LOOK_EVERY) {
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return,
                received => received.ok(),
            }
        };
        if next.is_none() && waiting.is_empty() {
            return;
        }
        let mut batch = Vec::new();
        for command in next.into_iter().chain(commands.try_iter().take(MOST_AT_ONCE)) {
            match command {
                Command::Submit(job, answer) => batch.push((*job, answer)),
                Command::Order(job, order, answer) => match store.order(job, &order) {
                    Ok(number) => {
                        waiting.push(Waiting { number, job, until: Instant::now() + ORDER_TIME, answer })
                    }
                    // A client that is gone needs no answer, here and below.
                    Err(error) => drop(answer.send(Err(error))),
                },
            }
        }
        submit(&mut store, batch);
        waiting = waiting.into_iter().filter_map(|order| answered(&store, order)).collect();
    }
}

/// Sends the answer of an order, if there is one or it is no longer waited for.
fn answered(store: &Store, order: Waiting) -> Option<Waiting> {
    let found = store.answer(order.number);
    if matches!(found, Ok(None)) && Instant::now() < order.until {
        return Some(order);
    }
    let result = found.and_then(|answer| Ok(Ordered { answer, row: store.job(order.job)? }));
    drop(order.answer.send(result));
    None
}

type Waiter = oneshot::Sender<Result<JobRow, Error>>;

fn submit(store: &mut Store, batch: Vec<(NewJob, Waiter)>) {
    if batch.is_empty() {
        return;
    }
    let (mut jobs, waiters): (Vec<NewJob>, Vec<Waiter>) = batch.into_iter().unzip();
    match add(store, &mut jobs) {
        Ok(rows) => {
            for (row, waiter) in rows.into_iter().zip(waiters) {
                drop(waiter.send(Ok(row)));
            }
        }
        Err(error) if jobs.len() == 1 => {
            if let Some(waiter) = waiters.into_iter().next() {
                drop(waiter.send(Err(error)));
            }
        }
        // None was added. One of them was refused, and the others are not to suffer from it.
        Err(_one) => {
            for (job, waiter) in jobs.into_iter().zip(waiters) {
                let added = add(store, &mut [job]);
                drop(waiter.send(added.map(|mut rows| rows.remove(0))));
            }
        }
    }
}

/// Adds jobs, all or none.
fn add(store: &mut Store, jobs: &mut [NewJob]) -> Result<Vec<JobRow>, Error> {
    let requests = jobs.iter().map(|job| job.request.clone()).collect();
    let mut left = jobs.iter_mut();
    let ids = store.submit(requests, &mut |id, request, folder| {
        let Some(job) = left.next() else { unreachable!("called once for each request, in order") };
        (job.prepare)(id, request, folder)?;
        Ok(job.ticket.write(folder)?)
    })?;
    ids.into_iter().map(|id| store.job(id)).collect()
}
