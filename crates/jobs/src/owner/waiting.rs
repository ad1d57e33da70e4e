//! Waiting for a full disk or a locked store.

use super::hold::Hold;
use super::options::Notice;
use super::running::Owner;
use crate::Error;
use bundle::Diagnose;
use std::path::Path;

impl Owner {
    /// A store that is locked or full for a while is a warning: clips go on, and it is tried again.
    ///
    /// # Errors
    /// Other errors.
    pub(super) fn tolerate(
        &mut self,
        result: Result<(), Error>,
        notify: &mut dyn FnMut(Notice),
    ) -> Result<(), Error> {
        let has_trouble = match result {
            Err(error) if error.passes() => {
                if !self.has_trouble {
                    let report = error.report();
                    notify(Notice::Message(format!(
                        "warning: {report}; the jobs go on, and it is tried again"
                    )));
                }
                true
            }
            result => {
                result?;
                false
            }
        };
        self.has_trouble = has_trouble;
        Ok(())
    }

    /// Stops new units while a disk is full.
    pub(super) fn look_at_disk(&mut self, notify: &mut dyn FnMut(Notice)) -> Result<(), Error> {
        let full = self.live.values().find_map(|live| live.clip.disk_full());
        if let Some(path) = full.filter(|_| self.hold.is_none()) {
            self.hold_for(&path, notify);
        }
        if !self.hold.as_mut().is_some_and(Hold::has_room) {
            return Ok(());
        }
        self.hold = None;
        self.live.values().for_each(|live| live.clip.has_room());
        self.driver.hold(false);
        notify(Notice::Message("there is room on the disk again: the jobs go on".to_owned()));
        let taken = self.take_jobs(notify);
        self.tolerate(taken, notify)
    }

    /// Waits for room on the disk of `path`, unless the owner waits already.
    pub(super) fn hold_for(&mut self, path: &Path, notify: &mut dyn FnMut(Notice)) {
        if self.hold.is_some() {
            return;
        }
        let hold = Hold::new(path, self.largest_state);
        notify(Notice::Message(format!("warning: {}", hold.message())));
        self.hold = Some(hold);
        self.driver.hold(true);
    }
}

/// What cannot be stored for a while is not an error.
///
/// # Errors
/// Other errors.
pub(super) fn ignore_passing(stored: Result<(), Error>) -> Result<(), Error> {
    match stored {
        Err(error) if error.passes() => Ok(()),
        stored => stored,
    }
}
