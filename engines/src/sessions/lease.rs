//! A session on loan to one unit of work.

use super::key::SessionRequest;
use super::state::SlotId;
use super::{Inner, grown, is_out_of_memory};
use crate::pool::PoolToken;
use crate::{Cancel, Engine, Error, NodePlacement, Outputs, Value};
use bundle::signature::Signature;
use std::sync::{Arc, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

/// A session on loan. Dropping it returns the session, which stays open.
#[derive(Debug)]
pub struct Lease {
    // Fields are dropped in this order: the thread may borrow again once the session is returned.
    returned: Returned,
    borrower: Borrower,
    opening: Option<Duration>,
}

/// The engine, which goes back to its slot.
#[derive(Debug)]
struct Returned {
    inner: Arc<Inner>,
    id: SlotId,
    engine: Option<Engine>,
    pool: Option<PoolToken>,
}

impl Lease {
    pub(super) fn new(
        borrower: Borrower,
        id: SlotId,
        engine: Engine,
        pool: PoolToken,
        opening: Option<Duration>,
    ) -> Self {
        let inner = Arc::clone(&borrower.inner);
        Self { returned: Returned { inner, id, engine: Some(engine), pool: Some(pool) }, borrower, opening }
    }

    /// The graph's inputs and outputs.
    pub fn signature(&self) -> &Signature {
        self.returned.engine().signature()
    }

    /// On which providers the nodes of the graph run; `None` if all run on the CPU.
    pub fn nodes(&self) -> Option<&NodePlacement> {
        self.returned.engine().nodes()
    }

    /// The time that opening took; `None` if the session was open before.
    pub fn opening(&self) -> Option<Duration> {
        self.opening
    }

    /// Runs the graph, see [`Engine::run`]. If memory is short, idle sessions of the device are closed and the run is
    /// tried once more.
    ///
    /// # Errors
    /// See [`Engine::run`].
    pub fn run(&mut self, inputs: &[(&str, &Value)], cancel: &Cancel) -> Result<Outputs, Error> {
        let Self { returned, borrower, .. } = self;
        let (inner, id) = (&borrower.inner, returned.id);
        let (device, measuring) = {
            let mut state = inner.lock();
            let device = state.slot_mut(id).map(|slot| slot.key.options.device);
            (device, device.and_then(|device| state.begin_measuring(device, id)))
        };
        let is_measuring = measuring.is_some();
        let measure = || device.and_then(|device| inner.memory_in_use(device, is_measuring));
        let before = measure();
        let mut result = returned.engine_mut().run(inputs, cancel);
        if is_out_of_memory(&result) && device.is_some_and(|device| inner.close_idle_on(device) > 0) {
            result = returned.engine_mut().run(inputs, cancel);
        }
        let after = measure();
        let mut state = inner.lock();
        let growth = grown(&state, measuring, before, after);
        if growth.0 > 0 {
            if let Some(slot) = state.slot_mut(id) {
                slot.measured.pool = slot.measured.pool + growth;
            }
            state = inner.charge_excess(state, id);
        }
        drop(state);
        let mut outputs = result?;
        if let Some(pool) = &returned.pool {
            outputs.hold(pool);
        }
        Ok(outputs)
    }
}

impl Returned {
    fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap_or_else(|| unreachable!("it is taken when the lease is dropped"))
    }

    fn engine_mut(&mut self) -> &mut Engine {
        self.engine.as_mut().unwrap_or_else(|| unreachable!("it is taken when the lease is dropped"))
    }
}

impl Drop for Returned {
    fn drop(&mut self) {
        // First, because an idle session with a second token counts as one with outputs.
        self.pool = None;
        if let Some(engine) = self.engine.take() {
            self.inner.lock().put_back(self.id, engine);
            self.inner.changed.notify_all();
        }
    }
}

/// A thread that has a lease, or is getting one.
#[derive(Debug)]
pub(super) struct Borrower {
    pub(super) inner: Arc<Inner>,
    thread: ThreadId,
}

impl Borrower {
    pub(super) fn new(inner: &Arc<Inner>, request: &SessionRequest<'_>) -> Result<Self, Error> {
        let thread = std::thread::current().id();
        let mut borrowers = inner.borrowers.lock().unwrap_or_else(PoisonError::into_inner);
        if borrowers.insert(thread) {
            Ok(Self { inner: Arc::clone(inner), thread })
        } else {
            Err(Error::SecondLease { component: request.key.component.to_string() })
        }
    }
}

impl Drop for Borrower {
    fn drop(&mut self) {
        self.inner.borrowers.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.thread);
    }
}
