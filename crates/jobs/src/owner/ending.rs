//! The end of jobs: their outputs, what is stored about them, and the end of the owner itself.

use super::finishing::{Finished, finish, panicked};
use super::options::Notice;
use super::running::Owner;
use super::takes;
use crate::Error;
use crate::store::{Answer, State};
use bundle::{Diagnose, ErrorClass};
use runtime::driver::EndedJob;
use runtime::scheduler::JobId;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

/// A job whose outputs fill a disk is made again this often. It may need more room than there will be.
const MOST_REFILLS: u32 = 2;

impl Owner {
    /// Completes the outputs of a job on a thread of its own, so that the devices go on.
    pub(super) fn finish(&mut self, ended: EndedJob) {
        let Some(live) = self.live.get_mut(&ended.id) else { return };
        live.is_finishing = true;
        let (clip, request, sender) = (live.clip.clone(), live.request.clone(), self.finished.0.clone());
        let id = ended.id;
        // Shared, because a thread that cannot be started drops what it was given.
        let job = Arc::new(Mutex::new(Some(ended)));
        let of_thread = Arc::clone(&job);
        let work = move || {
            let taken = of_thread.lock().unwrap_or_else(PoisonError::into_inner).take();
            let Some(ended) = taken else { return };
            let finished = catch_unwind(AssertUnwindSafe(|| finish(ended, &clip, &request)));
            // Fails only if the owner is gone.
            let _ = sender.send(finished.unwrap_or_else(|_panic| panicked(id, &clip)));
        };
        self.finishing.retain(|thread| !thread.is_finished());
        match std::thread::Builder::new().name(format!("end of {id}")).spawn(work.clone()) {
            Ok(thread) => self.finishing.push(thread),
            Err(_no_thread) => work(),
        }
    }

    /// Waits for the threads that complete outputs.
    pub(super) fn join_finishing(&mut self) {
        for thread in std::mem::take(&mut self.finishing) {
            // Its panics are caught.
            let _ = thread.join();
        }
    }

    /// Stores how a job ended, or queues it again.
    ///
    /// # Errors
    /// The store is damaged. What cannot be stored for a while is stored later, and a job whose end cannot be stored at
    /// all is left alone.
    pub(super) fn save(
        &mut self,
        mut finished: Finished,
        notify: &mut dyn FnMut(Notice),
    ) -> Result<(), Error> {
        let id = finished.id;
        let is_cancelled = self.live.get(&id).is_some_and(|live| !live.cancels.is_empty());
        let is_full = finished.disk_full.is_some() && !is_cancelled;
        if let Some(path) = finished.disk_full.as_ref().filter(|_| is_full) {
            let path = path.clone();
            self.hold_for(&path, notify);
        }
        let is_refilled = is_full && self.refills.get(&id).is_none_or(|times| *times < MOST_REFILLS);
        let was_stopped =
            finished.outcome.error.as_ref().is_some_and(|error| error.class == ErrorClass::Interrupted)
                && self.options.cancel.is_cancelled();
        let is_put_back = (finished.outcome.state == State::Cancelled || was_stopped) && !is_cancelled;
        if is_cancelled && finished.disk_full.is_some() {
            (finished.outcome.state, finished.outcome.error) = (State::Cancelled, None);
        }
        let saved = if is_put_back || is_refilled {
            self.store.queue_again(id)
        } else {
            self.store.finish(id, &finished.outcome)
        };
        match saved {
            Err(error) if error.passes() => {
                if error.is_disk_full() {
                    let folder = self.store.store().folder().to_owned();
                    self.hold_for(&folder, notify);
                }
                self.unsaved.push(finished);
                return Ok(());
            }
            Err(error @ Error::Damaged { .. }) => return Err(error),
            // Its folder was removed, for example.
            Err(error) => {
                let why = error.report().to_string();
                notify(Notice::Message(format!("warning: {id}: its end cannot be stored: {why}")));
                self.answer_cancels(id, &Answer::Refused { why });
                self.given_up.insert(id);
                self.summary.failed += 1;
                return Ok(());
            }
            Ok(()) => {}
        }
        let state = finished.outcome.state;
        let has_begun = self.live.get(&id).is_some_and(|live| live.clip.has_begun());
        self.answer_cancels(
            id,
            &match state {
                State::Cancelled => Answer::Done,
                state => Answer::Refused { why: format!("it was {state} before") },
            },
        );
        if is_put_back {
            *(if has_begun { &mut self.summary.queued_again } else { &mut self.summary.waiting }) += 1;
        }
        if is_refilled {
            *self.refills.entry(id).or_default() += 1;
        }
        if is_put_back || is_refilled {
            return Ok(());
        }
        match state {
            State::Failed => self.summary.failed += 1,
            State::Cancelled => self.summary.cancelled += 1,
            State::Stopped => self.summary.stopped += 1,
            State::Queued | State::Running | State::Done => self.summary.done += 1,
        }
        notify(Notice::Ended { id, outcome: finished.outcome });
        let written = self.write_sheet(id, notify);
        self.tolerate(written, notify)?;
        self.keep_within_budget(notify)
    }

    /// The job is over: its cancels get this answer.
    fn answer_cancels(&mut self, id: JobId, answer: &Answer) {
        let cancels = self.live.remove(&id).map_or(Vec::new(), |live| live.cancels);
        self.answers.extend(cancels.into_iter().map(|order| (order, answer.clone())));
    }

    /// Writes the contact sheet of an audition after its last take.
    fn write_sheet(&mut self, id: JobId, notify: &mut dyn FnMut(Notice)) -> Result<(), Error> {
        let request = self.store.store().job(id)?.request;
        // A take that is kept had its picture before.
        let Some(take) = request.take.filter(|_| request.outputs.is_empty()) else { return Ok(()) };
        let rows = self.store.store().list()?;
        let message = takes::write_sheet(self.store.store(), &rows, take.audition);
        message.into_iter().for_each(|message| notify(Notice::Message(message)));
        Ok(())
    }

    /// Writes the contact sheets that are missing, because the last take was cancelled while nobody owned the store.
    pub(super) fn write_missing_sheets(&mut self, notify: &mut dyn FnMut(Notice)) -> Result<(), Error> {
        let rows = self.store.store().list()?;
        for audition in takes::without_sheet(self.store.store(), &rows) {
            let message = takes::write_sheet(self.store.store(), &rows, audition);
            message.into_iter().for_each(|message| notify(Notice::Message(message)));
        }
        Ok(())
    }

    /// Removes the folders of jobs that ended long ago, if the store is too large.
    pub(super) fn keep_within_budget(&mut self, notify: &mut dyn FnMut(Notice)) -> Result<(), Error> {
        let kept = self.store.keep_within(self.options.store_budget).map(|removed| {
            if !removed.is_empty() {
                let jobs: Vec<String> = removed.iter().map(|id| id.0.to_string()).collect();
                let budget = self.options.store_budget;
                notify(Notice::Message(format!(
                    "the store was larger than {budget}: removed the folders of ended jobs {}",
                    jobs.join(", ")
                )));
            }
        });
        self.tolerate(kept, notify)
    }

    /// Ends what runs, and puts it back into the queue.
    pub(super) fn stop(&mut self, notify: &mut dyn FnMut(Notice)) {
        self.driver.hold(false);
        for (id, live) in self.live.iter().filter(|(_, live)| !live.is_finishing) {
            live.cancel.cancel();
            self.driver.cancel(*id);
        }
        let ended = self.wait_for_all(notify);
        let stored = ended.and_then(|()| self.store_answers());
        if let Err(error) = stored {
            // The next owner queues the jobs that the store says are running.
            notify(Notice::Message(format!("warning: {}", error.report())));
        }
        for lost in std::mem::take(&mut self.unsaved) {
            let why = "its end could not be stored; it is made again";
            notify(Notice::Message(format!("warning: {}: {why}", lost.id)));
        }
    }

    /// Waits until every job has ended and is stored, or cannot be stored.
    fn wait_for_all(&mut self, notify: &mut dyn FnMut(Notice)) -> Result<(), Error> {
        let is_open = |owner: &Self| {
            owner.live.keys().any(|id| owner.unsaved.iter().all(|finished| finished.id != *id))
        };
        while is_open(self) {
            // Looked at before the results are read: what had ended by then has sent its result.
            let is_over = self.driver.is_idle() && self.finishing.iter().all(|thread| thread.is_finished());
            for finished in self.wait()? {
                self.save(finished, notify)?;
            }
            if is_over {
                return Ok(());
            }
        }
        Ok(())
    }
}
