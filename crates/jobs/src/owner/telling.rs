//! The progress of jobs, as it is stored and told.

use super::hold::Hold;
use super::options::{JobStatus, Notice};
use super::running::Owner;
use super::waiting::ignore_passing;
use crate::Error;
use crate::store::{Progress, State};
use std::time::{Duration, Instant};

/// How often progress is stored and told.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

impl Owner {
    /// Stores progress that has changed, and tells it.
    ///
    /// # Errors
    /// The store cannot be written.
    pub(super) fn note_progress(&mut self, notify: &mut dyn FnMut(Notice)) -> Result<(), Error> {
        for (id, live) in &mut self.live {
            if !live.is_running && live.clip.has_begun() {
                match self.store.begin(*id) {
                    Ok(()) => live.is_running = true,
                    Err(error @ Error::Damaged { .. }) => return Err(error),
                    // It is tried again. What is wrong with the job is told when it ends.
                    Err(_) => {}
                }
            }
        }
        if self.told.elapsed() < PROGRESS_EVERY {
            return Ok(());
        }
        self.told = Instant::now();
        let held = self.hold.as_ref().map(Hold::message);
        let mut changed = Vec::new();
        for (id, live) in &mut self.live {
            let progress = Progress { held: held.clone(), ..live.clip.progress() };
            if progress != live.stored {
                live.stored = progress.clone();
                changed.push((*id, progress));
            }
        }
        if !changed.is_empty() {
            ignore_passing(self.store.set_progress(&changed))?;
        }
        let jobs = self.live.iter().map(|(id, live)| JobStatus {
            id: *id,
            state: if live.is_running { State::Running } else { State::Queued },
            priority: live.request.priority,
            model: live.request.model.clone(),
            prompt: live.request.clip.prompt.clone(),
            outputs: live.request.outputs.clone(),
            progress: live.stored.clone(),
        });
        notify(Notice::Jobs { jobs: jobs.collect(), devices: self.driver.activities() });
        Ok(())
    }
}
