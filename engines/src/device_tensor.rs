//! Tensors in the memory of a device.

use crate::Device;
use crate::device_memory::DeviceMemory;
use ort::session::SharedSessionInner;
use ort::value::DynValue;
use std::sync::{Arc, Mutex, PoisonError};

/// A tensor in the memory of a device.
///
/// An output of a run is in the memory pool of its session, and keeps the session with its weights in the memory of the
/// device. When the session is closed, [`leave_session`](Self::leave_session) moves the tensor to memory of its own.
#[derive(Debug)]
pub(crate) struct DeviceTensor {
    memory: Arc<DeviceMemory>,
    elements: Mutex<Arc<DeviceElements>>,
}

/// The elements of a tensor. Runs that use them keep them, so that they can move in the meantime.
#[derive(Debug)]
pub(crate) struct DeviceElements {
    memory: Arc<DeviceMemory>,
    /// Only `None` while it is dropped.
    tensor: Option<DynValue>,
    /// The session whose pool they are in.
    session: Option<Arc<KeptSession>>,
    /// The input that owns the elements, if a graph names an input as an output.
    _owner: Option<Arc<DeviceElements>>,
}

/// A session on a device, open for as long as a tensor is in its pool.
#[derive(Debug)]
pub(crate) struct KeptSession {
    memory: Arc<DeviceMemory>,
    /// Only `None` while it is dropped.
    session: Option<Arc<SharedSessionInner>>,
}

impl DeviceTensor {
    /// Copies a tensor in host memory to the device.
    ///
    /// # Errors
    /// ONNX Runtime's message.
    pub(crate) fn upload(memory: &Arc<DeviceMemory>, host: &DynValue) -> ort::Result<Self> {
        let tensor = memory.upload(host)?;
        Ok(Self::new(DeviceElements::new(memory, tensor, None, None)))
    }

    /// The output of a run of `session`. `owner` is the input that it was passed through from, if any.
    pub(crate) fn output(
        tensor: DynValue,
        session: &Arc<KeptSession>,
        owner: Option<&Arc<DeviceElements>>,
    ) -> Self {
        let (memory, session, owner) = (&session.memory, Some(Arc::clone(session)), owner.cloned());
        Self::new(DeviceElements::new(memory, tensor, session, owner))
    }

    fn new(elements: DeviceElements) -> Self {
        Self { memory: Arc::clone(&elements.memory), elements: Mutex::new(Arc::new(elements)) }
    }

    /// The device.
    pub(crate) fn device(&self) -> Device {
        self.memory.device()
    }

    /// The elements.
    pub(crate) fn elements(&self) -> Arc<DeviceElements> {
        Arc::clone(&self.elements.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Copies the tensor to host memory.
    ///
    /// # Errors
    /// ONNX Runtime's message.
    pub(crate) fn to_host(&self) -> ort::Result<DynValue> {
        self.memory.download(self.elements().tensor())
    }

    /// Moves the tensor out of the pool of its session, which is closed.
    ///
    /// # Errors
    /// ONNX Runtime's message. The tensor stays where it is, and keeps the session.
    pub(crate) fn leave_session(&self) -> ort::Result<()> {
        let elements = self.elements();
        if elements.session.is_some() {
            let tensor = self.memory.duplicate(elements.tensor())?;
            let moved = Arc::new(DeviceElements::new(&self.memory, tensor, None, None));
            *self.elements.lock().unwrap_or_else(PoisonError::into_inner) = moved;
        }
        Ok(())
    }
}

impl DeviceElements {
    fn new(
        memory: &Arc<DeviceMemory>,
        tensor: DynValue,
        session: Option<Arc<KeptSession>>,
        owner: Option<Arc<DeviceElements>>,
    ) -> Self {
        Self { memory: Arc::clone(memory), tensor: Some(tensor), session, _owner: owner }
    }

    /// The tensor, as ONNX Runtime knows it.
    pub(crate) fn tensor(&self) -> &DynValue {
        self.tensor.as_ref().unwrap_or_else(|| unreachable!("it is taken when the elements are dropped"))
    }
}

impl Drop for DeviceElements {
    fn drop(&mut self) {
        // Before the session, whose pool it is in.
        if let Some(tensor) = self.tensor.take() {
            self.memory.free(tensor);
        }
    }
}

impl KeptSession {
    /// Keeps a session on the device of `memory`.
    pub(crate) fn new(memory: Arc<DeviceMemory>, session: Arc<SharedSessionInner>) -> Self {
        Self { memory, session: Some(session) }
    }

    /// The memory of the device.
    pub(crate) fn memory(&self) -> &Arc<DeviceMemory> {
        &self.memory
    }
}

impl Drop for KeptSession {
    fn drop(&mut self) {
        let _exclusive = self.memory.exclusive();
        self.session = None;
    }
}
