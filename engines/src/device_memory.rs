//! The memory of a device: allocation, and every copy to, from and within it.
#![expect(
    clippy::disallowed_types,
    reason = "tensors of `ort` are created and copied here, and never cloned"
)]

use crate::copies::{CopyCounter, Direction};
use crate::element::element_type;
use crate::{CopyCounts, Device, Provider};
use ort::AsPointer;
use ort::environment::Environment;
use ort::memory::Allocator;
use ort::sys::{OrtAllocator, OrtDeviceMemoryType};
use ort::value::{DynTensor, DynValue, ValueType};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The memory of a device that the processor cannot read.
///
/// Tensors are allocated by the allocator that the environment of ONNX Runtime has for the device, so they keep no
/// session open.
#[derive(Debug)]
pub(crate) struct DeviceMemory {
    device: Device,
    environment: Environment,
    /// Owned by the environment.
    allocator: NonNull<OrtAllocator>,
    counter: CopyCounter,
    /// Held while the memory is used. Not every provider has a lock of its own for it.
    busy: Mutex<()>,
    /// Host memory takes the place of a device, see [`Self::in_host_memory`].
    #[cfg(test)]
    is_on_host: bool,
}

// SAFETY: the environment owns the allocator and frees it when it is released; `environment` keeps it. Calls of the
// allocator are made by one thread at a time, which has `busy`.
#[expect(unsafe_code, reason = "the allocator is a pointer")]
unsafe impl Send for DeviceMemory {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "the allocator is a pointer")]
unsafe impl Sync for DeviceMemory {}

impl DeviceMemory {
    /// The memory of `device`, as its provider describes it; `None` if the provider offers none.
    ///
    /// # Errors
    /// ONNX Runtime's message.
    #[expect(unsafe_code, reason = "`ort` panics where a device has no memory of its own")]
    pub(crate) fn of(
        device: Device,
        environment: &Environment,
        offered: &ort::device::Device<'_>,
    ) -> ort::Result<Option<Self>> {
        let api = ort::api();
        let mut allocator = std::ptr::null_mut();
        // SAFETY: the device is one of the environment. The description belongs to the device, and the allocator to the
        // environment.
        unsafe {
            let kind = OrtDeviceMemoryType::OrtDeviceMemoryType_DEFAULT;
            let memory = (api.EpDevice_MemoryInfo)(offered.ptr(), kind);
            if memory.is_null() {
                return Ok(None);
            }
            let environment = environment.ptr().cast_mut();
            let status = (api.GetSharedAllocator)(environment, memory, &raw mut allocator);
            ort::Error::result_from_status(status)?;
        }
        Ok(NonNull::new(allocator).map(|allocator| Self::new(device, environment, allocator)))
    }

    fn new(device: Device, environment: &Environment, allocator: NonNull<OrtAllocator>) -> Self {
        let (environment, counter) = (environment.clone(), CopyCounter::default());
        Self {
            device,
            environment,
            allocator,
            counter,
            busy: Mutex::new(()),
            #[cfg(test)]
            is_on_host: false,
        }
    }

    /// Host memory in the place of the memory of `device`.
    #[cfg(test)]
    pub(crate) fn in_host_memory(device: Device, environment: &Environment) -> Self {
        let allocator = NonNull::new(Allocator::default().ptr().cast_mut()).expect("it is not null");
        Self { is_on_host: true, ..Self::new(device, environment, allocator) }
    }

    /// The device.
    pub(crate) fn device(&self) -> Device {
        self.device
    }

    /// What was copied.
    pub(crate) fn counts(&self) -> CopyCounts {
        self.counter.counts()
    }

    /// Keeps other threads from the memory. Not to be called by a thread that has the guard.
    pub(crate) fn exclusive(&self) -> MutexGuard<'_, ()> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps other threads from the memory while a session is opened or run, if the provider requires it: sessions of
    /// WebGPU share one queue and one set of buffers, and are not known to be safe to use from several threads.
    pub(crate) fn exclusive_run(&self) -> Option<MutexGuard<'_, ()>> {
        (self.device.provider() == Provider::WebGpu).then(|| self.exclusive())
    }

    /// Copies a tensor in host memory to the device.
    ///
    /// # Errors
    /// ONNX Runtime's message.
    pub(crate) fn upload(&self, host: &DynValue) -> ort::Result<DynValue> {
        self.copied(host, Direction::ToDevice)
    }

    /// Copies a tensor of this memory to memory that belongs to no session.
    ///
    /// # Errors
    /// ONNX Runtime's message.
    pub(crate) fn duplicate(&self, tensor: &DynValue) -> ort::Result<DynValue> {
        self.copied(tensor, Direction::Within)
    }

    /// Copies a tensor of this memory to host memory.
    ///
    /// # Errors
    /// ONNX Runtime's message.
    pub(crate) fn download(&self, tensor: &DynValue) -> ort::Result<DynValue> {
        let ValueType::Tensor { ty, shape, .. } = tensor.dtype() else { return Err(no_tensor(tensor)) };
        let host = DynTensor::new(&Allocator::default(), *ty, shape.clone())?.into_dyn();
        self.copy(tensor, &host, Direction::ToHost)?;
        Ok(host)
    }

    /// Frees a tensor of this memory.
    pub(crate) fn free(&self, tensor: DynValue) {
        let _exclusive = self.exclusive();
        drop(tensor);
    }

    /// A new tensor of this memory with the elements of `source`.
    fn copied(&self, source: &DynValue, direction: Direction) -> ort::Result<DynValue> {
        let target = self.allocate(source)?;
        match self.copy(source, &target, direction) {
            Ok(()) => Ok(target),
            Err(error) => {
                self.free(target);
                Err(error)
            }
        }
    }

    /// Allocates a tensor of the format and shape of `like`.
    #[expect(unsafe_code, reason = "`ort` has no function for allocators of the environment")]
    fn allocate(&self, like: &DynValue) -> ort::Result<DynValue> {
        let ValueType::Tensor { ty, shape, .. } = like.dtype() else { return Err(no_tensor(like)) };
        byte_length(like)?;
        let mut tensor = std::ptr::null_mut();
        let _exclusive = self.exclusive();
        // SAFETY: the allocator is valid, see `Send`. On success the tensor is a new one, which is owned here.
        let tensor = unsafe {
            let (allocator, element) = (self.allocator.as_ptr(), (*ty).into());
            let create = ort::api().CreateTensorAsOrtValue;
            let status = create(allocator, shape.as_ptr(), shape.len(), element, &raw mut tensor);
            ort::Error::result_from_status(status)?;
            let tensor = NonNull::new(tensor).ok_or_else(|| no_tensor(like))?;
            // The allocator of the environment outlives the tensor; the given one is kept in vain.
            DynValue::from_ptr(tensor, Some(&Allocator::default()))
        };
        Ok(tensor)
    }

    /// Copies the elements of a tensor to another one of its format and shape, and counts them. Every copy to, from and
    /// within the memory of a device is made here.
    #[expect(unsafe_code, reason = "the copies of `ort` know only a fixed list of devices")]
    fn copy(&self, source: &DynValue, target: &DynValue, direction: Direction) -> ort::Result<()> {
        let bytes = byte_length(source)?;
        if bytes == 0 {
            return Ok(());
        }
        #[cfg(test)]
        if self.is_on_host {
            copy_on_host(source, target, bytes);
            self.counter.add(direction, bytes);
            return Ok(());
        }
        let (sources, mut targets) = ([source.ptr()], [target.ptr()]);
        let exclusive = self.exclusive();
        // SAFETY: the environment and both tensors are valid, and as many as stated. Nothing else uses the target, which
        // was made for this copy. Without a stream the copy is complete when the call returns.
        unsafe {
            let (environment, no_stream) = (self.environment.ptr().cast_mut(), std::ptr::null_mut());
            let copy = ort::api().CopyTensors;
            let status = copy(environment, sources.as_ptr(), targets.as_mut_ptr(), no_stream, sources.len());
            ort::Error::result_from_status(status)?;
        }
        drop(exclusive);
        self.counter.add(direction, bytes);
        tracing::trace!(device = %self.device, ?direction, bytes, "a tensor is copied");
        Ok(())
    }
}

/// Copies in host memory, for which ONNX Runtime has no `CopyTensors`.
#[cfg(test)]
#[expect(unsafe_code, reason = "the elements of a tensor of any format")]
fn copy_on_host(source: &DynValue, target: &DynValue, bytes: usize) {
    let elements = |tensor: &DynValue| {
        let mut elements = std::ptr::null_mut();
        // SAFETY: the tensor is valid.
        let status = unsafe { (ort::api().GetTensorMutableData)(tensor.ptr().cast_mut(), &raw mut elements) };
        // SAFETY: the status is that of the call.
        unsafe { ort::Error::result_from_status(status) }.expect("it is a tensor");
        elements
    };
    // SAFETY: both tensors are in host memory, and have this many bytes of elements.
    unsafe { elements(source).cast::<u8>().copy_to_nonoverlapping(elements(target).cast(), bytes) };
}

/// The length of a tensor's elements in bytes.
fn byte_length(tensor: &DynValue) -> ort::Result<usize> {
    let ValueType::Tensor { ty, shape, .. } = tensor.dtype() else { return Err(no_tensor(tensor)) };
    let element = element_type(*ty).ok_or_else(|| no_tensor(tensor))?;
    let length = shape.iter().try_fold(element.bytes(), |length, &extent| {
        usize::try_from(extent).ok().and_then(|extent| length.checked_mul(extent))
    });
    length.ok_or_else(|| ort::Error::new(format!("{} is too large to be copied", tensor.dtype())))
}

fn no_tensor(value: &DynValue) -> ort::Error {
    ort::Error::new(format!("{} cannot be copied to or from a device", value.dtype()))
}
