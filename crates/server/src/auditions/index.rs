//! Which clips are the takes of an audition. The folders of the jobs are what it is made from.

use crate::access::Caller;
use crate::clips::index::{Clip, Clips};
use crate::fault::Fault;
use runtime::scheduler::JobId;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An audition.
#[derive(Debug)]
pub(crate) struct Audition {
    /// Its public name.
    pub id: String,
    /// The id of the token that it belongs to; `None` if it was made without one.
    owner: Option<String>,
    /// The jobs of its takes by their numbers, from 1.
    takes: BTreeMap<usize, JobId>,
    /// Held while takes are kept, cancelled or deleted.
    pub turn: tokio::sync::Mutex<()>,
}

impl Audition {
    /// An audition of these jobs.
    pub(super) fn new(id: String, owner: Option<String>, takes: BTreeMap<usize, JobId>) -> Self {
        Self { id, owner, takes, turn: tokio::sync::Mutex::default() }
    }

    /// The takes that are not deleted, in the order of their numbers.
    pub(super) fn clips(&self, clips: &Clips) -> Vec<Arc<Clip>> {
        let takes = self.takes.values().filter_map(|job| clips.of_job(*job));
        takes.filter(|clip| !clip.status().is_deleted).collect()
    }

    /// A take by its number, from 1.
    ///
    /// # Errors
    /// There is none, or it is deleted.
    pub(super) fn take(&self, clips: &Clips, number: usize) -> Result<Arc<Clip>, Fault> {
        let clip = self
            .takes
            .get(&number)
            .and_then(|job| clips.of_job(*job))
            .filter(|clip| !clip.status().is_deleted);
        clip.ok_or_else(|| Fault::not_found("take"))
    }
}

/// The number of a take.
pub(super) fn number_of(clip: &Clip) -> usize {
    clip.request.take.map_or(0, |take| take.number)
}

/// All auditions of the server.
#[derive(Debug, Default)]
pub(crate) struct Auditions {
    by_id: Mutex<HashMap<String, Arc<Audition>>>,
    /// Held while a contact sheet is drawn: one takes much memory.
    pub drawing: tokio::sync::Mutex<()>,
}

impl Auditions {
    /// Those that clips of the store are takes of.
    pub(crate) fn of(clips: &Clips) -> Self {
        let mut found: BTreeMap<String, Vec<Arc<Clip>>> = BTreeMap::new();
        for clip in clips.all() {
            if let Some(id) = &clip.ticket.audition {
                found.entry(id.clone()).or_default().push(clip);
            }
        }
        let auditions = Self::default();
        for (id, clips) in found {
            let owner = clips.first().and_then(|clip| clip.ticket.owner.clone());
            let takes = clips.iter().map(|clip| (number_of(clip), clip.job)).collect();
            auditions.add(Audition::new(id, owner, takes));
        }
        auditions
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Audition>>> {
        // Every change is complete in itself.
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an audition.
    pub(super) fn add(&self, audition: Audition) -> Arc<Audition> {
        let audition = Arc::new(audition);
        self.lock().insert(audition.id.clone(), Arc::clone(&audition));
        audition
    }

    /// The audition of a name. Nothing says whether the caller may see it.
    pub(super) fn get(&self, clips: &Clips, id: &str) -> Option<Arc<Audition>> {
        let found = self.lock().get(id).cloned();
        found.filter(|audition| !audition.clips(clips).is_empty())
    }

    /// The audition of a name, if the caller may see it.
    ///
    /// # Errors
    /// There is none that the caller may see.
    pub(super) fn find(&self, clips: &Clips, caller: &Caller, id: &str) -> Result<Arc<Audition>, Fault> {
        let found = self.get(clips, id).filter(|audition| caller.may_see(audition.owner.as_deref()));
        found.ok_or_else(|| Fault::not_found("audition"))
    }

    /// The auditions that a caller may see, oldest first.
    pub(super) fn list(&self, clips: &Clips, caller: &Caller) -> Vec<Arc<Audition>> {
        let is_seen = |audition: &Arc<Audition>| caller.may_see(audition.owner.as_deref());
        let mut seen: Vec<Arc<Audition>> = self.lock().values().filter(|one| is_seen(one)).cloned().collect();
        seen.retain(|audition| !audition.clips(clips).is_empty());
        seen.sort_by_key(|audition| audition.takes.values().next().copied());
        seen
    }

    /// Removes an audition, and leaves its takes.
    pub(super) fn remove(&self, audition: &Audition) {
        self.lock().remove(&audition.id);
    }

    /// Forgets auditions without takes.
    pub(crate) fn sweep(&self, clips: &Clips) {
        self.lock().retain(|_, audition| !audition.clips(clips).is_empty());
    }
}
