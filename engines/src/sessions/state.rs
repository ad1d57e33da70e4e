//! What the sessions are doing: the state behind the lock. Knows no backend, thread or clock.

use super::key::{Purpose, SessionKey, SessionRequest};
use super::ledger::Ledger;
use crate::eviction::{self, Candidate};
use crate::pool::PoolToken;
use crate::residency::{MemoryNeed, Residency};
use crate::{Device, Engine};
use bundle::manifest::Component;
use bundle::units::ByteCount;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

/// Number of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SlotId(u64);

/// A session that is open, or is being opened or closed.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) id: SlotId,
    pub(super) key: SessionKey,
    pub(super) phase: Phase,
    /// The predicted memory, which is charged. The pool has a block for every time that it had to grow.
    pub(super) predicted: MemoryNeed,
    /// What is charged in addition until it is open.
    opening: ByteCount,
    /// The activations that the largest block of the pool has room for.
    block: ByteCount,
    /// What is charged beyond the prediction, because more was measured.
    pub(super) excess: ByteCount,
    pub(super) measured: Measured,
    pub(super) pool: PoolToken,
    stage: u32,
    last_used: u64,
}

/// What a slot is doing.
#[derive(Debug)]
pub(super) enum Phase {
    Opening,
    Idle(Engine),
    Lent,
    Closing,
}

/// The measured memory of a session; 0 where it was not measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Measured {
    pub(super) weights: ByteCount,
    pub(super) pool: ByteCount,
}

/// A measurement of a device's memory that is going on.
#[derive(Debug)]
pub(super) struct Measuring {
    device: Device,
    begun: u64,
}

/// The pool of a closed session that still has outputs.
#[derive(Debug)]
struct HeldPool {
    device: Device,
    bytes: ByteCount,
    token: Weak<()>,
}

/// Whether there is memory for a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// There is.
    Free,
    /// There is once these are closed. All are idle.
    Close(Vec<SlotId>),
    /// Not before another unit of work is done.
    Wait,
    /// Never, as things are.
    Never,
}

/// All slots and the ledger.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) slots: Vec<Slot>,
    pub(super) ledger: Ledger,
    pub(super) opened: u64,
    held: Vec<HeldPool>,
    /// How often a session of a device began to be opened, used or closed.
    begun: BTreeMap<Device, u64>,
    next_id: u64,
    uses: u64,
}

impl State {
    /// The slot of a key.
    pub(super) fn find(&self, key: &SessionKey) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.key == *key)
    }

    /// The slot with this number.
    pub(super) fn slot_mut(&mut self, id: SlotId) -> Option<&mut Slot> {
        self.slots.iter_mut().find(|slot| slot.id == id)
    }

    /// Releases the pools of closed sessions whose last output is dropped.
    pub(super) fn release_dropped_pools(&mut self) {
        let Self { held, ledger, .. } = self;
        held.retain(|pool| {
            let is_alive = pool.token.strong_count() > 0;
            if !is_alive {
                ledger.release(pool.device, pool.bytes);
            }
            is_alive
        });
    }

    /// Memory of closed sessions on a device that still have outputs.
    pub(super) fn held(&self, device: Device) -> ByteCount {
        self.held.iter().filter(|pool| pool.device.memory() == device.memory()).map(|pool| pool.bytes).sum()
    }

    /// Returns true if a session on the device, other than `except`, is being opened, used or closed.
    pub(super) fn is_busy(&self, device: Device, except: Option<SlotId>) -> bool {
        self.slots.iter().any(|slot| {
            slot.is_in_memory_of(device) && Some(slot.id) != except && !matches!(slot.phase, Phase::Idle(_))
        })
    }

    /// Begins to measure what `id` changes in the memory of a device; `None` if other sessions change it too.
    pub(super) fn begin_measuring(&self, device: Device, id: SlotId) -> Option<Measuring> {
        let device = device.memory();
        let begun = self.begun.get(&device).copied().unwrap_or(0);
        (!self.is_busy(device, Some(id))).then_some(Measuring { device, begun })
    }

    /// Returns true if no other session has changed the memory of the device meanwhile.
    pub(super) fn is_undisturbed(&self, measuring: &Measuring) -> bool {
        self.begun.get(&measuring.device).copied().unwrap_or(0) == measuring.begun
    }

    fn count_begun(&mut self, device: Device) {
        *self.begun.entry(device.memory()).or_default() += 1;
    }

    /// The idle slots of a device, but for `except`.
    pub(super) fn idle(&self, device: Device, except: Option<SlotId>) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter(move |slot| {
            slot.is_in_memory_of(device) && Some(slot.id) != except && matches!(slot.phase, Phase::Idle(_))
        })
    }

    /// Decides whether `extra` bytes more can be charged for a request. `own` is its slot, if it is open.
    pub(super) fn room(
        &self,
        request: &SessionRequest<'_>,
        extra: ByteCount,
        own: Option<SlotId>,
        residency: Residency,
    ) -> Room {
        let device = request.key.options.device;
        if residency == Residency::One && request.key.purpose == Purpose::Clip {
            let leaves =
                |slot: &Slot| slot.key.purpose == Purpose::Clip && !slot.key.shares_stage(&request.key);
            let others: Vec<SlotId> =
                self.idle(device, own).filter(|slot| leaves(slot)).map(|slot| slot.id).collect();
            if !others.is_empty() {
                return Room::Close(others);
            }
            if self.slots.iter().any(|slot| slot.is_in_memory_of(device) && leaves(slot)) {
                return Room::Wait;
            }
        }
        let shortage = self.ledger.shortage(device, extra);
        if shortage.0 == 0 {
            return Room::Free;
        }
        if request.need.total() > self.ledger.budget(device) {
            return Room::Never;
        }
        if let Some(own) = own {
            // A new session has one block; this one would keep its smaller ones too.
            return Room::Close(vec![own]);
        }
        if residency != Residency::All
            && let Some(leaving) = self.leaving(request.stage, device, own, shortage)
        {
            return Room::Close(leaving);
        }
        if self.is_busy(device, own) { Room::Wait } else { Room::Never }
    }

    /// Chooses idle sessions of a device whose closing frees `shortage`.
    pub(super) fn leaving(
        &self,
        stage: u32,
        device: Device,
        own: Option<SlotId>,
        shortage: ByteCount,
    ) -> Option<Vec<SlotId>> {
        let idle: Vec<&Slot> = self.idle(device, own).collect();
        let candidates: Vec<Candidate> = idle.iter().map(|slot| slot.candidate()).collect();
        let chosen = eviction::choose(stage, &candidates, shortage)?;
        Some(chosen.into_iter().map(|index| idle[index].id).collect())
    }

    /// Charges a session that is to be opened. Returns `None`, and changes nothing, if it does not fit.
    pub(super) fn reserve(&mut self, request: &SessionRequest<'_>) -> Option<SlotId> {
        if !self.ledger.charge(request.key.options.device, request.need.total()) {
            return None;
        }
        self.count_begun(request.key.options.device);
        self.next_id += 1;
        let id = SlotId(self.next_id);
        self.slots.push(Slot {
            id,
            key: request.key.clone(),
            phase: Phase::Opening,
            predicted: request.need,
            opening: ByteCount(request.need.total().0 - request.need.held().0),
            block: request.need.activations,
            excess: ByteCount(0),
            measured: Measured::default(),
            pool: PoolToken::default(),
            stage: request.stage,
            last_used: 0,
        });
        Some(id)
    }

    /// Releases what only opening a session took.
    pub(super) fn release_opening(&mut self, id: SlotId) {
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.id == id) {
            let opening = std::mem::take(&mut slot.opening);
            self.ledger.release(slot.key.options.device, opening);
        }
    }

    /// Takes the engine of an idle slot. If its pool has no block for the request, it gets one. Returns `None`, and changes
    /// nothing, if that does not fit.
    pub(super) fn take(&mut self, id: SlotId, request: &SessionRequest<'_>) -> Option<(Engine, PoolToken)> {
        let slot = self.slots.iter_mut().find(|slot| slot.id == id)?;
        let extra = slot.extra_for(request);
        if !matches!(slot.phase, Phase::Idle(_)) || !self.ledger.charge(slot.key.options.device, extra) {
            return None;
        }
        slot.predicted.activations = slot.predicted.activations + extra;
        slot.block = slot.block.max(request.need.activations);
        slot.stage = request.stage;
        match std::mem::replace(&mut slot.phase, Phase::Lent) {
            Phase::Idle(mut engine) => {
                engine.reserve(extra);
                let pool = Arc::clone(&slot.pool);
                self.count_begun(request.key.options.device);
                Some((engine, pool))
            }
            other => {
                slot.phase = other;
                None
            }
        }
    }

    /// Puts the engine of a lent slot back.
    pub(super) fn put_back(&mut self, id: SlotId, engine: Engine) {
        self.uses += 1;
        let uses = self.uses;
        if let Some(slot) = self.slot_mut(id) {
            slot.phase = Phase::Idle(engine);
            slot.last_used = uses;
        }
    }

    /// Takes the engines of idle slots to close them. Their memory stays charged until [`Self::remove`].
    pub(super) fn begin_close(&mut self, ids: &[SlotId]) -> Vec<(SlotId, Device, Engine)> {
        let mut engines: Vec<(SlotId, Device, Engine)> = Vec::new();
        for slot in self.slots.iter_mut().filter(|slot| ids.contains(&slot.id)) {
            match std::mem::replace(&mut slot.phase, Phase::Closing) {
                Phase::Idle(engine) => engines.push((slot.id, slot.key.options.device, engine)),
                other => slot.phase = other,
            }
        }
        engines.iter().for_each(|(_, device, _)| self.count_begun(*device));
        engines
    }

    /// Removes a slot and releases what is charged for it. The pool stays charged while outputs are alive.
    pub(super) fn remove(&mut self, id: SlotId) {
        let Some(position) = self.slots.iter().position(|slot| slot.id == id) else { return };
        let slot = self.slots.remove(position);
        let device = slot.key.options.device;
        let held = slot.held_by_outputs();
        if held.0 > 0 {
            self.held.push(HeldPool { device, bytes: held, token: Arc::downgrade(&slot.pool) });
        }
        self.ledger.release(device, ByteCount(slot.charged().0 - held.0));
    }
}

impl Slot {
    /// Returns true if it uses the memory of a device.
    pub(super) fn is_in_memory_of(&self, device: Device) -> bool {
        self.key.options.device.memory() == device.memory()
    }

    /// Its place in the order of use.
    pub(super) fn stage(&self) -> u32 {
        self.stage
    }

    /// What is charged for it.
    pub(super) fn charged(&self) -> ByteCount {
        self.predicted.held() + self.opening + self.excess
    }

    /// What must be charged in addition for a use: a new block of the pool if it has none that is large enough.
    pub(super) fn extra_for(&self, request: &SessionRequest<'_>) -> ByteCount {
        let needed = request.need.activations;
        if needed > self.block { needed } else { ByteCount(0) }
    }

    /// Returns true if an output is alive. The slot itself has one token, a lease another.
    fn has_outputs(&self) -> bool {
        Arc::strong_count(&self.pool) > 1
    }

    /// What stays in use when it is closed, because outputs are alive: its pool, with all that was measured beyond the
    /// prediction.
    fn held_by_outputs(&self) -> ByteCount {
        if self.has_outputs() { self.predicted.activations + self.excess } else { ByteCount(0) }
    }

    fn candidate(&self) -> Candidate {
        let kept = self.held_by_outputs();
        let is_expert = matches!(self.key.component, Component::Expert(_));
        Candidate {
            stage: self.stage,
            makes_steps: is_expert || self.key.purpose == Purpose::Preview,
            last_used: self.last_used,
            frees: ByteCount(self.charged().0.saturating_sub(kept.0)),
        }
    }
}
