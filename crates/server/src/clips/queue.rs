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

/// Who waits for the jobs of one submission.
type Waiter = oneshot::Sender<Result<Vec<JobRow>, Error>>;

enum Command {
    Submit(Vec<NewJob>, Waiter),
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
        let rows = self.submit_all(vec![job]).await?;
        rows.into_iter().next().ok_or_else(|| gone(&self.folder))
    }

    /// Adds jobs that belong together, all or none. When this returns, they survive a power cut.
    ///
    /// # Errors
    /// See [`Store::submit`].
    pub(crate) async fn submit_all(&self, jobs: Vec<NewJob>) -> Result<Vec<JobRow>, Error> {
        let (sender, answer) = oneshot::channel();
        self.send(Command::Submit(jobs, sender))?;
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
                Command::Submit(jobs, answer) => batch.push((jobs, answer)),
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

/// Adds what was submitted. Each submission is added whole or not at all.
fn submit(store: &mut Store, batch: Vec<(Vec<NewJob>, Waiter)>) {
    if batch.is_empty() {
        return;
    }
    let (mut submissions, waiters): (Vec<Vec<NewJob>>, Vec<Waiter>) = batch.into_iter().unzip();
    match add(store, &mut submissions) {
        Ok(rows) => {
            for (rows, waiter) in rows.into_iter().zip(waiters) {
                drop(waiter.send(Ok(rows)));
            }
        }
        Err(error) if submissions.len() == 1 => {
            if let Some(waiter) = waiters.into_iter().next() {
                drop(waiter.send(Err(error)));
            }
        }
        // None was added. One of them was refused, and the others are not to suffer from it.
        Err(_one) => {
            for (jobs, waiter) in submissions.into_iter().zip(waiters) {
                let added = add(store, &mut [jobs]);
                drop(waiter.send(added.map(|rows| rows.into_iter().flatten().collect())));
            }
        }
    }
}

/// Adds jobs, all or none. Returns those of each submission.
fn add(store: &mut Store, submissions: &mut [Vec<NewJob>]) -> Result<Vec<Vec<JobRow>>, Error> {
    let requests = submissions.iter().flatten().map(|job| job.request.clone()).collect();
    let mut left = submissions.iter_mut().flatten();
    let ids = store.submit(requests, &mut |id, request, folder| {
        let Some(job) = left.next() else { unreachable!("called once for each request, in order") };
        (job.prepare)(id, request, folder)?;
        Ok(job.ticket.write(folder)?)
    })?;
    let mut ids = ids.into_iter();
    let mut rows = Vec::new();
    for jobs in submissions {
        let rows_of = ids.by_ref().take(jobs.len()).map(|id| store.job(id));
        rows.push(rows_of.collect::<Result<Vec<_>, _>>()?);
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use jobs::audition::{consecutive, takes};
    use jobs::request::REQUEST_VERSION;
    use media::post_process::PostProcessSpec;
    use runtime::job::KeepSteps;
    use runtime::plan::GenerateRequest;
    use runtime::scheduler::{Priority, Seconds};
    use std::collections::BTreeMap;

    fn request() -> Request {
        Request {
            version: REQUEST_VERSION,
            bundle: "/bundle".into(),
            model: "mini".into(),
            precision: None,
            kernels: None,
            clip: GenerateRequest::new("a boat", bundle::units::Seed(7)),
            noise: None,
            priority: Priority::Normal,
            deadline: None,
            stop_after: None,
            keep_steps: KeepSteps::None,
            outputs: Vec::new(),
            post_process: PostProcessSpec::default(),
            extras: BTreeMap::new(),
            metadata: true,
            mark: true,
            sign: None,
            output_timeout: Seconds::try_new(1.0).unwrap(),
            origin: None,
            take: None,
        }
    }

    /// A submission of three takes, of which one is refused or none.
    fn submission(prefix: &str, refused: Option<usize>) -> Vec<NewJob> {
        let requests = takes(&request(), &consecutive(bundle::units::Seed(1), 3), 2);
        let job = |(index, request): (usize, Request)| NewJob {
            request,
            ticket: Ticket { id: format!("{prefix}{index}"), ..Ticket::default() },
            prepare: Box::new(move |_, _, _| {
                if refused == Some(index) {
                    Err(Error::Request { why: "refused by the test".into() })
                } else {
                    Ok(())
                }
            }),
        };
        requests.into_iter().enumerate().map(job).collect()
    }

    #[test]
    fn a_submission_is_added_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        let (mut batch, mut answers) = (Vec::new(), Vec::new());
        for (prefix, refused) in [("a", None), ("b", Some(2)), ("c", None)] {
            let (sender, answer) = oneshot::channel();
            batch.push((submission(prefix, refused), sender));
            answers.push(answer);
        }
        submit(&mut store, batch);
        let answers: Vec<_> = answers.into_iter().map(|mut answer| answer.try_recv().unwrap()).collect();
        let lengths: Vec<_> = answers.iter().map(|rows| rows.as_ref().ok().map(Vec::len)).collect();
        assert_eq!(lengths, [Some(3), None, Some(3)]);
        let tickets = |row: &JobRow| Ticket::read(&store.job_folder(row.id)).unwrap().id;
        let stored: Vec<_> = store.list().unwrap().iter().map(tickets).collect();
        assert_eq!(stored, ["a0", "a1", "a2", "c0", "c1", "c2"]);
        let last = answers.last().unwrap().as_ref().unwrap();
        assert_eq!(last.iter().map(tickets).collect::<Vec<_>>(), ["c0", "c1", "c2"]);
    }
}
