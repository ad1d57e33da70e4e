//! The jobs that have not been returned, and which of them a device has.

use crate::scheduler::{DeviceName, JobId, Outcome};
use std::collections::BTreeMap;

/// How the scheduler says that a job has ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ending {
    /// The device that the scheduler names.
    pub(super) device: DeviceName,
    pub(super) outcome: Outcome,
}

/// A job that has ended and is not here anymore: what is known about it, and its state.
#[derive(Debug, PartialEq)]
pub(super) struct Removed<E, C> {
    pub(super) entry: E,
    pub(super) clip: C,
    pub(super) ending: Ending,
}

/// What [`Jobs::end`] did.
#[derive(Debug, PartialEq)]
pub(super) enum End<E, C> {
    /// The job is removed.
    Removed(Removed<E, C>),
    /// A device has it. [`Jobs::take_back`] removes it.
    Away,
    /// There is no such job.
    Unknown,
}

#[derive(Debug)]
struct Slot<E, C> {
    entry: E,
    /// `None` while a device has it.
    clip: Option<C>,
    /// How it ended while a device had it.
    ending: Option<Ending>,
}

/// Jobs by number: an entry that stays here, and the state, which a device has while it runs a unit. A job is removed
/// with its state, so that none is lost.
#[derive(Debug)]
pub(super) struct Jobs<E, C> {
    slots: BTreeMap<JobId, Slot<E, C>>,
}

impl<E, C> Default for Jobs<E, C> {
    fn default() -> Self {
        Self { slots: BTreeMap::new() }
    }
}

impl<E, C> Jobs<E, C> {
    /// Adds a job, which must not be there.
    pub(super) fn insert(&mut self, id: JobId, entry: E, clip: C) {
        self.slots.insert(id, Slot { entry, clip: Some(clip), ending: None });
    }

    pub(super) fn contains(&self, id: JobId) -> bool {
        self.slots.contains_key(&id)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &JobId> {
        self.slots.keys()
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &E> {
        self.slots.values().map(|slot| &slot.entry)
    }

    pub(super) fn get(&self, id: JobId) -> Option<&E> {
        self.slots.get(&id).map(|slot| &slot.entry)
    }

    pub(super) fn get_mut(&mut self, id: JobId) -> Option<&mut E> {
        self.slots.get_mut(&id).map(|slot| &mut slot.entry)
    }

    /// Takes the state of a job for a device; `None` if there is no such job or a device has it.
    pub(super) fn lend(&mut self, id: JobId) -> Option<(&E, C)> {
        let Slot { entry, clip, .. } = self.slots.get_mut(&id)?;
        Some((entry, clip.take()?))
    }

    /// Takes the state of a job back from a device. Removes the job if it has ended meanwhile.
    pub(super) fn take_back(&mut self, id: JobId, clip: C) -> Option<Removed<E, C>> {
        let slot = self.slots.get_mut(&id)?;
        slot.clip = Some(clip);
        let ending = slot.ending?;
        self.remove(id, ending)
    }

    /// Ends a job, which is removed at once or when its state is taken back.
    pub(super) fn end(&mut self, id: JobId, ending: Ending) -> End<E, C> {
        match self.slots.get_mut(&id) {
            None => return End::Unknown,
            Some(slot) if slot.clip.is_none() => {
                slot.ending.get_or_insert(ending);
                return End::Away;
            }
            Some(_) => {}
        }
        self.remove(id, ending).map_or(End::Unknown, End::Removed)
    }

    /// Takes every state that no device has.
    pub(super) fn take_all(&mut self) -> Vec<(JobId, C)> {
        let clips = std::mem::take(&mut self.slots).into_iter();
        clips.filter_map(|(id, slot)| Some((id, slot.clip?))).collect()
    }

    fn remove(&mut self, id: JobId, ending: Ending) -> Option<Removed<E, C>> {
        let Slot { entry, clip, .. } = self.slots.remove(&id)?;
        Some(Removed { entry, clip: clip?, ending })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engines::Device;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    const CANCELLED: Ending = Ending { device: DeviceName(Device::CPU), outcome: Outcome::Cancelled };
    const DONE: Ending = Ending { outcome: Outcome::Done, ..CANCELLED };

    #[test]
    fn a_job_that_ends_while_a_device_has_it_is_removed_when_it_is_back() {
        let mut jobs = Jobs::default();
        jobs.insert(JobId(1), "entry", "clip");
        assert_eq!(jobs.lend(JobId(1)), Some((&"entry", "clip")));
        assert_eq!(jobs.lend(JobId(1)), None);
        assert_eq!(jobs.end(JobId(1), CANCELLED), End::Away);
        // The first end counts.
        assert_eq!(jobs.end(JobId(1), DONE), End::Away);
        assert!(jobs.contains(JobId(1)));
        let removed = Removed { entry: "entry", clip: "clip", ending: CANCELLED };
        assert_eq!(jobs.take_back(JobId(1), "clip"), Some(removed));
        assert_eq!(jobs.end(JobId(1), DONE), End::Unknown);
        assert_eq!(jobs.ids().next(), None);
    }

    proptest! {
        /// Whatever the order of commands and of what devices do, every job that has ended is removed once, with its state.
        #[test]
        fn every_job_that_ends_is_removed_once(actions in prop::collection::vec((0..3_u8, 0..4_u64), 0..60)) {
            let mut jobs = Jobs::default();
            for id in 0..4 {
                jobs.insert(JobId(id), id, id);
            }
            let (mut away, mut ended, mut removed) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
            for (action, id) in actions {
                match action {
                    0 => {
                        if let Some((entry, clip)) = jobs.lend(JobId(id)) {
                            prop_assert_eq!(*entry, clip);
                            prop_assert_eq!(away.insert(id, clip), None);
                        }
                    }
                    1 => {
                        let back = away.remove(&id).and_then(|clip| jobs.take_back(JobId(id), clip));
                        removed.extend(back);
                    }
                    _ => {
                        ended.insert(id);
                        if let End::Removed(one) = jobs.end(JobId(id), DONE) {
                            removed.push(one);
                        }
                    }
                }
            }
            for (id, clip) in away {
                removed.extend(jobs.take_back(JobId(id), clip));
            }
            let ids: Vec<u64> = removed.iter().map(|one| one.clip).collect();
            prop_assert_eq!(ids.iter().copied().collect::<BTreeSet<_>>(), ended);
            prop_assert_eq!(ids.len() + jobs.take_all().len(), 4);
        }
    }
}
