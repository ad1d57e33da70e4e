//! The owner of all open graphs.
//!
//! [`Sessions`] opens a graph when it is first needed, lends it to one unit of work at a time, and keeps it open for the
//! next one as long as the budget of its device allows. What is charged is predicted before opening and measured
//! afterwards.

mod key;
mod lease;
mod ledger;
mod state;

pub use key::{Purpose, SessionKey, SessionRequest};
pub use lease::Lease;

use crate::pool::PoolToken;
use crate::residency::{MemoryNeed, Residency};
use crate::{Backend, Cancel, Device, Engine, Error, GraphSource, MemoryBudgets, OpenOptions};
use bundle::units::ByteCount;
use lease::Borrower;
use state::{Measuring, Phase, Room, SlotId, State};
use std::collections::HashSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

/// The time after which a waiting request looks again whether it was cancelled.
const WAIT: Duration = Duration::from_millis(50);

/// The open graphs of a process, shared by all its jobs. Clones share them.
///
/// A thread borrows one session at a time: [`Lease`] returns it when it is dropped. A request waits while another thread
/// has its session, or memory that it needs. Since no thread waits while it holds a session, some thread can always go
/// on.
///
/// # Examples
/// Opens a graph, runs it twice, and opens nothing the second time:
///
/// ```no_run
/// use bundle::manifest::{Component, Part};
/// use bundle::signature::Signature;
/// use bundle::variant::{KernelLibrary, Precision, Variant};
/// use engines::residency::{MemoryNeed, Residency};
/// use engines::sessions::{Purpose, SessionKey, SessionRequest, Sessions};
/// use engines::{Cancel, MemoryBudgets, OnnxRuntime, OpenOptions, Value, WeightMemory};
/// use std::path::Path;
/// use std::sync::Arc;
///
/// # fn run(contract: &Signature, ids: &Value) -> Result<(), engines::Error> {
/// let sessions = Sessions::new(Arc::new(OnnxRuntime::load(None)?), MemoryBudgets::default(), Residency::Auto);
/// let request = SessionRequest {
///     key: SessionKey {
///         bundle: Path::new("bundle").into(),
///         digest: "".into(),
///         component: Component::TextEncoder,
///         part: Part::Whole,
///         variant: Variant::cpu(Precision::F32, KernelLibrary::OnnxRuntime),
///         options: OpenOptions::cpu(None, WeightMemory::Prepacked),
///         purpose: Purpose::Clip,
///     },
///     graph: Path::new("bundle/text_encoder/cpu-f32.onnx"),
///     contract,
///     need: MemoryNeed::default(),
///     stage: 0,
/// };
/// for _ in 0..2 {
///     let mut lease = sessions.lend(&request, &Cancel::new())?;
///     lease.run(&[("ids", ids)], &Cancel::new())?;
/// }
/// assert_eq!(sessions.opened(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Sessions {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    backend: Arc<dyn Backend>,
    budgets: MemoryBudgets,
    residency: Residency,
    state: Mutex<State>,
    /// Notified when a session is returned, opened or closed.
    changed: Condvar,
    /// Threads that have a lease.
    borrowers: Mutex<HashSet<ThreadId>>,
}

/// The memory of a device, as counted by the sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceUsage {
    /// The device. Sessions on devices without memory of their own are among those of the CPU.
    pub device: Device,
    /// The memory that may be used.
    pub budget: ByteCount,
    /// The memory that is charged: at most the budget.
    pub charged: ByteCount,
    /// The most that was ever charged.
    pub peak: ByteCount,
    /// The sessions on it.
    pub sessions: Vec<SessionUsage>,
}

/// The memory of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionUsage {
    /// What it is found by.
    pub key: SessionKey,
    /// True while a unit of work has it, or while it is being opened or closed.
    pub is_busy: bool,
    /// The predicted memory.
    pub predicted: MemoryNeed,
    /// The measured memory; 0 where it could not be measured, because other sessions of the device were in use.
    pub measured: MemoryNeed,
}

impl Sessions {
    /// Creates the owner of the sessions of a backend. Opens nothing. A device without a budget may use what is available
    /// when it is first used.
    pub fn new(backend: Arc<dyn Backend>, budgets: MemoryBudgets, residency: Residency) -> Self {
        Self {
            inner: Arc::new(Inner {
                backend,
                budgets,
                residency,
                state: Mutex::default(),
                changed: Condvar::new(),
                borrowers: Mutex::default(),
            }),
        }
    }

    /// As [`Self::new`], with the memory that is available as the budget of every device.
    pub fn in_available_memory(backend: impl Backend + 'static, residency: Residency) -> Self {
        Self::new(Arc::new(backend), MemoryBudgets::default(), residency)
    }

    /// What opens the graphs.
    pub fn backend(&self) -> &dyn Backend {
        &*self.inner.backend
    }

    /// Lends a session, which is opened if it is not open. Idle sessions are closed if their memory is needed.
    ///
    /// # Errors
    /// The graph cannot be opened, it does not fit the budget of its device, `cancel` is requested, or this thread already
    /// has a lease.
    pub fn lend(&self, request: &SessionRequest<'_>, cancel: &Cancel) -> Result<Lease, Error> {
        let borrower = Borrower::new(&self.inner, request)?;
        let state = self.inner.lock();
        self.inner.acquire(state, borrower, request, cancel)
    }

    /// Returns true if the session is open.
    pub fn is_open(&self, key: &SessionKey) -> bool {
        self.inner.lock().find(key).is_some_and(|slot| matches!(slot.phase, Phase::Idle(_) | Phase::Lent))
    }

    /// Closes every session that is not lent, and returns their memory to the system. Returns how many were closed.
    pub fn close_idle(&self) -> usize {
        self.close_idle_where(|_| true)
    }

    /// Closes the sessions that are not lent and whose key fits, as [`Self::close_idle`]. `fits` must not use the sessions.
    pub fn close_idle_where(&self, fits: impl Fn(&SessionKey) -> bool) -> usize {
        let state = self.inner.lock();
        let is_idle = |phase: &Phase| matches!(phase, Phase::Idle(_));
        let idle: Vec<SlotId> = state
            .slots
            .iter()
            .filter(|slot| is_idle(&slot.phase) && fits(&slot.key))
            .map(|slot| slot.id)
            .collect();
        drop(self.inner.close(state, &idle));
        idle.len()
    }

    /// The number of sessions that were opened since the start.
    pub fn opened(&self) -> u64 {
        self.inner.lock().opened
    }

    /// The memory of each device that was used.
    pub fn usage(&self) -> Vec<DeviceUsage> {
        let mut state = self.inner.lock();
        state.release_dropped_pools();
        let sessions = |device: Device| {
            let on_device = state.slots.iter().filter(move |slot| slot.is_in_memory_of(device));
            on_device
                .map(|slot| SessionUsage {
                    key: slot.key.clone(),
                    is_busy: !matches!(slot.phase, Phase::Idle(_)),
                    predicted: slot.predicted,
                    measured: MemoryNeed {
                        weights: slot.measured.weights,
                        activations: slot.measured.pool,
                        ..MemoryNeed::default()
                    },
                })
                .collect()
        };
        let ledger = &state.ledger;
        ledger
            .devices()
            .map(|device| DeviceUsage {
                device,
                budget: ledger.budget(device),
                charged: ledger.charged(device),
                peak: ledger.peak(device),
                sessions: sessions(device),
            })
            .collect()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is changed by calls that do not panic halfway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lends the session of a request: waits, closes others or opens it as necessary.
    fn acquire<'a>(
        self: &'a Arc<Self>,
        mut state: MutexGuard<'a, State>,
        borrower: Borrower,
        request: &SessionRequest<'_>,
        cancel: &Cancel,
    ) -> Result<Lease, Error> {
        let device = request.key.options.device;
        state.ledger.open(device, || {
            let budget = self.budgets.of(device).or_else(|| self.backend.available_memory(device.memory()));
            budget.unwrap_or(ByteCount(u64::MAX))
        });
        loop {
            if cancel.is_cancelled() {
                return Err(Error::Cancelled { graph: request.graph.display().to_string() });
            }
            state.release_dropped_pools();
            let room = match state.find(&request.key) {
                Some(slot) if matches!(slot.phase, Phase::Idle(_)) => {
                    let (id, extra) = (slot.id, slot.extra_for(request));
                    match state.room(request, extra, Some(id), self.residency) {
                        Room::Free => match state.take(id, request) {
                            Some((engine, pool)) => return Ok(Lease::new(borrower, id, engine, pool, None)),
                            None => Room::Wait,
                        },
                        other => other,
                    }
                }
                Some(_) => Room::Wait,
                None => match state.room(request, request.need.total(), None, self.residency) {
                    Room::Free => match state.reserve(request) {
                        Some(id) => {
                            let measuring = state.begin_measuring(device, id);
                            drop(state);
                            let (engine, pool, took) = self.open(id, request, measuring)?;
                            return Ok(Lease::new(borrower, id, engine, pool, Some(took)));
                        }
                        None => Room::Wait,
                    },
                    other => other,
                },
            };
            state = match room {
                Room::Close(leaving) => self.close(state, &leaving),
                Room::Never => return Err(no_room(&state, request)),
                Room::Free | Room::Wait => {
                    self.changed.wait_timeout(state, WAIT).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Opens the session of a reserved slot, which is lent then. A failure frees the slot.
    fn open(
        &self,
        id: SlotId,
        request: &SessionRequest<'_>,
        measuring: Option<Measuring>,
    ) -> Result<(Engine, PoolToken, Duration), Error> {
        let mut reservation = Reservation { inner: self, id, is_kept: false };
        let OpenOptions { device, .. } = request.key.options;
        let before = self.memory_in_use(device, measuring.is_some());
        let began = Instant::now();
        let open = || {
            let source = GraphSource::File(request.graph);
            Engine::open(&*self.backend, source, request.contract, &request.key.options)
        };
        let mut opened = open();
        if is_out_of_memory(&opened) && self.close_idle_on(device) > 0 {
            opened = open();
        }
        let mut engine = opened?;
        engine.reserve(request.need.activations);
        let took = began.elapsed();
        let after = self.memory_in_use(device, measuring.is_some());
        let mut state = self.lock();
        let measured = grown(&state, measuring, before, after);
        state.opened += 1;
        // Not cloned before: the slot of a failed opening would count as one with outputs.
        let mut pool = PoolToken::default();
        if let Some(slot) = state.slot_mut(id) {
            slot.phase = Phase::Lent;
            slot.measured.weights = measured;
            pool = Arc::clone(&slot.pool);
        }
        reservation.is_kept = true;
        state.release_opening(id);
        self.changed.notify_all();
        drop(self.charge_excess(state, id));
        Ok((engine, pool, took))
    }

    /// Closes idle sessions, outside the lock. Their memory is released once they are closed.
    fn close<'a>(&'a self, mut state: MutexGuard<'a, State>, ids: &[SlotId]) -> MutexGuard<'a, State> {
        let engines = state.begin_close(ids);
        drop(state);
        let mut closed = Vec::new();
        for (id, device, engine) in engines {
            drop(engine);
            self.backend.return_freed_memory(device);
            closed.push(id);
        }
        let mut state = self.lock();
        for id in closed {
            if let Some(slot) = state.slot_mut(id) {
                tracing::debug!(component = %slot.key.component, part = ?slot.key.part, "a session is closed");
            }
            state.remove(id);
        }
        self.changed.notify_all();
        state
    }

    /// Closes every idle session of a device. Returns how many were closed.
    fn close_idle_on(&self, device: Device) -> usize {
        let state = self.lock();
        let idle: Vec<SlotId> = state.idle(device, None).map(|slot| slot.id).collect();
        drop(self.close(state, &idle));
        idle.len()
    }

    /// Charges what a session was measured to need beyond its prediction. Idle sessions are closed if that is more than
    /// the budget has left. What the budget does not have is not charged, but reported.
    fn charge_excess<'a>(&'a self, mut state: MutexGuard<'a, State>, id: SlotId) -> MutexGuard<'a, State> {
        let Some(slot) = state.slot_mut(id) else { return state };
        let (device, stage) = (slot.key.options.device, slot.stage());
        let measured = slot.measured.weights + slot.measured.pool;
        let mut excess = ByteCount(measured.0.saturating_sub(slot.charged().0));
        if excess.0 == 0 {
            return state;
        }
        let component = slot.key.component.clone();
        let shortage = state.ledger.shortage(device, excess);
        if shortage.0 > 0 {
            if self.residency != Residency::All
                && let Some(leaving) = state.leaving(stage, device, Some(id), shortage)
            {
                state = self.close(state, &leaving);
            }
            let still_short = state.ledger.shortage(device, excess);
            if still_short.0 > 0 {
                tracing::warn!(
                    "{component} uses {measured} on {device}, {still_short} more than its memory budget has left"
                );
                excess = ByteCount(excess.0 - still_short.0.min(excess.0));
            }
        }
        if state.ledger.charge(device, excess)
            && let Some(slot) = state.slot_mut(id)
        {
            slot.excess = slot.excess + excess;
        }
        state
    }

    /// The memory of a device that is in use; `None` if it is not being measured.
    fn memory_in_use(&self, device: Device, is_measuring: bool) -> Option<ByteCount> {
        if is_measuring { self.backend.memory_in_use(device.memory()) } else { None }
    }
}

/// The growth from one measurement to the next; 0 if one is missing, or other sessions had a part in it.
fn grown(
    state: &State,
    measuring: Option<Measuring>,
    before: Option<ByteCount>,
    after: Option<ByteCount>,
) -> ByteCount {
    match (measuring, before, after) {
        (Some(measuring), Some(before), Some(after)) if state.is_undisturbed(&measuring) => {
            ByteCount(after.0.saturating_sub(before.0))
        }
        _ => ByteCount(0),
    }
}

fn is_out_of_memory<T>(result: &Result<T, Error>) -> bool {
    matches!(result, Err(Error::OutOfMemory { .. }))
}

/// The error for a request that does not fit.
fn no_room(state: &State, request: &SessionRequest<'_>) -> Error {
    let device = request.key.options.device;
    Error::NoRoom {
        component: request.key.component.to_string(),
        device,
        needed: request.need.total(),
        budget: state.ledger.budget(device),
        charged: state.ledger.charged(device),
        held: state.held(device),
    }
}

/// A slot that is being opened. Removes it unless it is kept, so that a failure leaves nothing behind.
struct Reservation<'a> {
    inner: &'a Inner,
    id: SlotId,
    is_kept: bool,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            self.inner.lock().remove(self.id);
            self.inner.changed.notify_all();
        }
    }
}
