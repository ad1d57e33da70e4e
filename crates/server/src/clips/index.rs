//! All clips of the server and their states, in memory. The folders of the jobs are what it is made from.

use super::ticket::Ticket;
use crate::access::Caller;
use crate::fault::Fault;
use jobs::owner::JobStatus;
use jobs::request::Request;
use jobs::store::{JobRow, Outcome, Progress, State};
use runtime::plan::Length;
use runtime::scheduler::JobId;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// A clip.
#[derive(Debug)]
pub(crate) struct Clip {
    /// The number of its job.
    pub job: JobId,
    /// What the server notes about it.
    pub ticket: Ticket,
    /// What was asked for.
    pub request: Request,
    /// When it was submitted, in seconds since 1970.
    pub submitted: f64,
    status: watch::Sender<Status>,
}

/// The state of a clip.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Status {
    /// The state of its job.
    pub state: State,
    /// How far it is.
    pub progress: Progress,
    /// When it began to run, in seconds since 1970.
    pub started: Option<f64>,
    /// When it ended.
    pub ended: Option<f64>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// False as long as it is a take of an audition that nobody has kept.
    pub is_kept: bool,
    /// True once the client has deleted it.
    pub is_deleted: bool,
    /// Why its frames were refused, if they were.
    pub refused: Option<String>,
}

impl Status {
    /// Returns true if it is a video for clients: neither deleted nor a take that nobody has kept.
    pub(crate) fn is_video(&self) -> bool {
        self.is_kept && !self.is_deleted
    }

    /// Returns true if the file of the clip is complete, and may be seen. Of a take it is the picture.
    pub(crate) fn is_complete(&self) -> bool {
        matches!(self.state, State::Done | State::Stopped) && self.refused.is_none()
    }

    /// The state as clients see it: a clip that was refused has failed, also if it was complete before it could be
    /// cancelled.
    pub(crate) fn shown_state(&self) -> State {
        if self.state.has_ended() && self.refused.is_some() { State::Failed } else { self.state }
    }

    fn of(row: &JobRow) -> Self {
        Self {
            state: row.state,
            progress: row.progress.clone(),
            started: row.started,
            ended: row.ended,
            outcome: row.outcome.clone(),
            // A take has no output until it is kept.
            is_kept: row.request.take.is_none() || !row.request.outputs.is_empty(),
            is_deleted: false,
            refused: None,
        }
    }
}

impl Clip {
    /// The state now.
    pub(crate) fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Follows the state.
    pub(crate) fn watch(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Waits until nothing more happens with it, or it is deleted. Returns the state.
    pub(crate) async fn ended(&self) -> Status {
        let mut status = self.watch();
        match status.wait_for(|status| status.state.has_ended() || status.is_deleted).await {
            Ok(status) => status.clone(),
            Err(_the_clip_is_gone) => self.status(),
        }
    }
}

/// All clips of the server.
#[derive(Debug)]
pub(crate) struct Clips {
    folder: PathBuf,
    state: Mutex<Index>,
}

#[derive(Debug, Default)]
struct Index {
    by_job: BTreeMap<JobId, Arc<Clip>>,
    by_id: HashMap<String, JobId>,
    /// The clip of an idempotency key, by owner and key.
    by_key: HashMap<(Option<String>, String), JobId>,
    /// Requests that are being stored, by owner and key.
    keys_in_use: Vec<(Option<String>, String)>,
    /// The jobs that wait or run, and those that are being stored, by owner.
    open: BTreeMap<JobId, Option<String>>,
    arriving: Vec<Option<String>>,
    /// The ends of jobs that are not known yet: the owner may be faster than the thread that has added the job.
    early: BTreeMap<JobId, Outcome>,
}

/// The most ends of jobs that are not known. Jobs of other programs never become known.
const MOST_EARLY: usize = 256;

/// Places in the queue for jobs that are being stored. They are free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    clips: Arc<Clips>,
    owner: Option<String>,
    count: usize,
    key: Option<String>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut index = self.clips.lock();
        for _place in 0..self.count {
            if let Some(at) = index.arriving.iter().position(|owner| *owner == self.owner) {
                index.arriving.swap_remove(at);
            }
        }
        if let Some(key) = self.key.take() {
            let used = (self.owner.clone(), key);
            index.keys_in_use.retain(|other| *other != used);
        }
    }
}

impl Clips {
    /// No clips, whose files will be in a folder.
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder, state: Mutex::default() }
    }

    /// The folder of the files.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        // Every change is complete in itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a clip that was stored.
    pub(crate) fn add(&self, row: JobRow, ticket: Ticket) -> Arc<Clip> {
        let status = Status::of(&row);
        let is_open = !status.state.has_ended();
        let clip = Arc::new(Clip {
            job: row.id,
            ticket,
            request: row.request,
            submitted: row.submitted,
            status: watch::Sender::new(status),
        });
        let mut index = self.lock();
        let early = index.early.remove(&clip.job);
        let owner = clip.ticket.owner.clone();
        index.by_id.insert(clip.ticket.id.clone(), clip.job);
        if let Some(idempotency) = &clip.ticket.idempotency {
            index.by_key.insert((owner.clone(), idempotency.key.clone()), clip.job);
        }
        if is_open {
            index.open.insert(clip.job, owner);
        }
        index.by_job.insert(clip.job, Arc::clone(&clip));
        drop(index);
        if let Some(outcome) = early {
            self.note_end(clip.job, outcome);
        }
        clip
    }

    /// Takes places in the queue for `count` jobs that are going to be stored together.
    ///
    /// # Errors
    /// The queue, or what the token may have in it, has not as many, or a request with the same key is being stored.
    pub(crate) fn reserve(
        self: &Arc<Self>,
        caller: &Caller,
        (bound, count): (usize, usize),
        key: Option<&str>,
    ) -> Result<Place, Fault> {
        let owner = caller.owner().map(str::to_owned);
        let mut index = self.lock();
        let own = |owners: &mut dyn Iterator<Item = &Option<String>>| {
            owners.filter(|other| **other == owner).count()
        };
        let more = if count == 1 { String::new() } else { format!(", and these are {count} more") };
        let taken = index.open.len() + index.arriving.len();
        if taken + count > bound {
            let message = if taken >= bound {
                format!("the queue is full: {bound} jobs wait or run; try again later")
            } else {
                format!("the queue has places for {bound} jobs: {taken} wait or run{more}; try again later")
            };
            return Err(Fault::too_many(message, 30));
        }
        let mine = own(&mut index.open.values()) + own(&mut index.arriving.iter());
        if let Some(most) = caller.most_jobs().filter(|most| mine + count > *most) {
            let message = format!(
                "{mine} jobs of this token wait or run{more}, and it may have {most}; try again later"
            );
            return Err(Fault::too_many(message, 30));
        }
        if let Some(key) = key {
            let used = (owner.clone(), key.to_owned());
            if index.keys_in_use.contains(&used) {
                let message = "a request with this idempotency key is being stored: try again in a moment";
                return Err(Fault {
                    retry_after: Some(1),
                    ..Fault::conflict("idempotency_key_in_use", message)
                });
            }
            index.keys_in_use.push(used);
        }
        index.arriving.extend(std::iter::repeat_n(owner.clone(), count));
        Ok(Place { clips: Arc::clone(self), owner, count, key: key.map(str::to_owned) })
    }

    /// The clip that an earlier request with this idempotency key has made.
    ///
    /// # Errors
    /// That request was another one.
    pub(crate) fn repeated(
        &self,
        caller: &Caller,
        key: &str,
        request: &str,
    ) -> Result<Option<Arc<Clip>>, Fault> {
        let index = self.lock();
        let job = index.by_key.get(&(caller.owner().map(str::to_owned), key.to_owned()));
        let Some(clip) = job.and_then(|job| index.by_job.get(job)) else { return Ok(None) };
        let is_same = clip.ticket.idempotency.as_ref().is_some_and(|known| known.request == request);
        if is_same {
            return Ok(Some(Arc::clone(clip)));
        }
        let message = "another request had this idempotency key: use a new key for a new request";
        Err(Fault::conflict("idempotency_key_reused", message))
    }

    /// The video of a name, if the caller may see it.
    ///
    /// # Errors
    /// There is none that the caller may see.
    pub(crate) fn find(&self, caller: &Caller, id: &str) -> Result<Arc<Clip>, Fault> {
        let clip = self.get(id).filter(|clip| caller.may_see(clip.ticket.owner.as_deref()));
        clip.ok_or_else(|| Fault::not_found("video"))
    }

    /// The video of a name.
    pub(crate) fn get(&self, id: &str) -> Option<Arc<Clip>> {
        let index = self.lock();
        let clip = index.by_id.get(id).and_then(|job| index.by_job.get(job));
        clip.filter(|clip| clip.status.borrow().is_video()).cloned()
    }

    /// The clip of a job.
    pub(crate) fn of_job(&self, job: JobId) -> Option<Arc<Clip>> {
        self.lock().by_job.get(&job).cloned()
    }

    /// The videos that a caller may see, oldest first.
    pub(crate) fn list(&self, caller: &Caller) -> Vec<Arc<Clip>> {
        let index = self.lock();
        let is_seen = |clip: &&Arc<Clip>| {
            caller.may_see(clip.ticket.owner.as_deref()) && clip.status.borrow().is_video()
        };
        index.by_job.values().filter(is_seen).cloned().collect()
    }

    /// Every clip.
    pub(crate) fn all(&self) -> Vec<Arc<Clip>> {
        self.lock().by_job.values().cloned().collect()
    }

    /// The newest complete clip of a caller that is made of what this digest stands for.
    pub(crate) fn made(&self, caller: &Caller, result: &str) -> Option<Arc<Clip>> {
        let index = self.lock();
        let is_meant = |clip: &&Arc<Clip>| {
            let status = clip.status.borrow();
            clip.ticket.owner.as_deref() == caller.owner()
                && clip.ticket.result.as_deref() == Some(result)
                && status.state == State::Done
                && status.is_complete()
                && !status.is_deleted
        };
        index.by_job.values().rev().find(is_meant).cloned()
    }

    /// Returns true if a job that waits or runs needs a bundle.
    pub(crate) fn is_needed(&self, bundle: &Path) -> bool {
        let index = self.lock();
        index.open.keys().filter_map(|job| index.by_job.get(job)).any(|clip| clip.request.bundle == bundle)
    }

    /// The number of jobs that wait or run.
    pub(crate) fn open(&self) -> usize {
        self.lock().open.len()
    }

    /// The numbers of jobs that wait and that run.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let index = self.lock();
        let open = index.open.keys().filter_map(|job| index.by_job.get(job));
        let running = open.filter(|clip| clip.status.borrow().state == State::Running).count();
        (index.open.len() - running, running)
    }

    /// Takes what the owner tells about the jobs that wait or run.
    pub(crate) fn note_progress(&self, jobs: &[JobStatus]) {
        for job in jobs {
            let Some(clip) = self.lock().by_job.get(&job.id).cloned() else { continue };
            clip.status.send_if_modified(|status| {
                if (status.state, &status.progress) == (job.state, &job.progress) {
                    return false;
                }
                if job.state == State::Running && status.state != State::Running {
                    status.started = Some(jobs::store::now());
                }
                (status.state, status.progress) = (job.state, job.progress.clone());
                true
            });
            self.note_open(&clip, job.state);
        }
    }

    /// Takes the end of a job. Returns its clip.
    pub(crate) fn note_end(&self, job: JobId, outcome: Outcome) -> Option<Arc<Clip>> {
        let mut index = self.lock();
        let Some(clip) = index.by_job.get(&job).cloned() else {
            index.early.insert(job, outcome);
            while index.early.len() > MOST_EARLY {
                index.early.pop_first();
            }
            return None;
        };
        drop(index);
        let state = outcome.state;
        clip.status.send_modify(|status| {
            status.state = state;
            status.ended = Some(outcome.ended);
            status.progress.steps_done = outcome.steps_done;
            // The last frames may be more recent than what the owner has told.
            if state == State::Done
                && let Some(Length::Frames(frames)) = clip.request.clip.length
            {
                (status.progress.frames, status.progress.frames_done) = (frames, frames);
            }
            status.outcome = Some(outcome);
        });
        self.note_open(&clip, state);
        Some(clip)
    }

    /// Takes what the store says about a job.
    pub(crate) fn note_row(&self, row: &JobRow) {
        let Some(clip) = self.lock().by_job.get(&row.id).cloned() else { return };
        clip.status.send_if_modified(|status| {
            let (is_deleted, refused) = (status.is_deleted, status.refused.clone());
            let found = Status { is_kept: status.is_kept, is_deleted, refused, ..Status::of(row) };
            let is_other = *status != found;
            *status = found;
            is_other
        });
        self.note_open(&clip, row.state);
    }

    fn note_open(&self, clip: &Clip, state: State) {
        let mut index = self.lock();
        if state.has_ended() {
            index.open.remove(&clip.job);
        } else {
            index.open.insert(clip.job, clip.ticket.owner.clone());
        }
    }

    /// Notes that the client keeps a take, which is a video that waits from now on. Returns its state before.
    ///
    /// This comes before the order: the owner may have made the whole clip before its answer is read.
    pub(crate) fn note_kept(&self, clip: &Clip) -> Status {
        let before = clip.status();
        clip.status.send_modify(|status| {
            let Progress { steps_done, steps, frames, .. } = status.progress;
            status.progress = Progress { steps_done, steps, frames, ..Progress::default() };
            (status.state, status.is_kept) = (State::Queued, true);
            (status.ended, status.outcome) = (None, None);
        });
        self.note_open(clip, State::Queued);
        before
    }

    /// Takes back that a take is kept, because its order was refused.
    pub(crate) fn note_not_kept(&self, clip: &Clip, before: Status) {
        let state = before.state;
        clip.status.send_replace(before);
        self.note_open(clip, state);
    }

    /// Notes that the client has deleted a clip.
    pub(crate) fn note_deleted(&self, clip: &Clip) {
        clip.status.send_modify(|status| status.is_deleted = true);
    }

    /// Notes that the frames of a clip were refused.
    pub(crate) fn note_refused(&self, clip: &Clip, why: String) {
        clip.status.send_modify(|status| status.refused = Some(why));
    }

    /// Forgets a clip whose job is no longer in the store.
    pub(crate) fn forget(&self, clip: &Clip) {
        let mut index = self.lock();
        index.by_job.remove(&clip.job);
        index.by_id.remove(&clip.ticket.id);
        index.open.remove(&clip.job);
        index.by_key.retain(|_, job| *job != clip.job);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_taken_together_and_given_back() {
        let clips = Arc::new(Clips::new(PathBuf::new()));
        let reserve = |count| clips.reserve(&Caller::Local, (4, count), None);
        let three = reserve(3).unwrap();
        let message = reserve(2).unwrap_err().message;
        assert_eq!(
            message,
            "the queue has places for 4 jobs: 3 wait or run, and these are 2 more; try again later"
        );
        let one = reserve(1).unwrap();
        assert_eq!(reserve(1).unwrap_err().message, "the queue is full: 4 jobs wait or run; try again later");
        drop(three);
        let others = reserve(3).unwrap();
        assert!(reserve(1).is_err());
        drop((one, others));
        assert!(reserve(4).is_ok());
    }
}
