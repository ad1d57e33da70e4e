//! Runs whose inputs and outputs stay in the memory of a device.
//!
//! Each run has a binding of its own: the outputs of a binding that is used again are overwritten.

use ort::AsPointer;
use ort::memory::Allocator;
use ort::session::{RunOptions, Session};
use ort::sys::{OrtDeviceMemoryType, OrtIoBinding, OrtMemoryInfo, OrtMemoryInfoDeviceType, OrtValue};
use ort::value::DynValue;
use std::ffi::CString;
use std::marker::PhantomData;
use std::ptr::NonNull;

/// The inputs and outputs of one run of a session.
#[derive(Debug)]
pub(crate) struct IoBinding<'s> {
    binding: NonNull<OrtIoBinding>,
    session: &'s Session,
    /// The tensors that are bound as inputs are borrowed until the run has ended.
    _inputs: PhantomData<&'s DynValue>,
}

impl<'s> IoBinding<'s> {
    /// A binding of nothing.
    ///
    /// # Errors
    /// ONNX Runtime's message.
    #[expect(unsafe_code, reason = "`ort` panics when it binds a borrowed tensor of a plug-in's device")]
    pub(crate) fn new(session: &'s Session) -> ort::Result<Self> {
        let mut binding = std::ptr::null_mut();
        // SAFETY: the session is open. On success the binding is a new one, which is owned here.
        unsafe {
            let status = (ort::api().CreateIoBinding)(session.ptr().cast_mut(), &raw mut binding);
            ort::Error::result_from_status(status)?;
        }
        let binding = NonNull::new(binding).ok_or_else(|| ort::Error::new("there is no binding"))?;
        Ok(Self { binding, session, _inputs: PhantomData })
    }

    /// Binds an input. The tensor is in the memory that the graph reads the input from, see [`inputs_on_host`].
    ///
    /// # Errors
    /// ONNX Runtime's message.
    #[expect(unsafe_code, reason = "`ort` panics when it binds a borrowed tensor of a plug-in's device")]
    pub(crate) fn bind_input(&mut self, name: &str, tensor: &'s DynValue) -> ort::Result<()> {
        let name = c_string(name)?;
        // SAFETY: the binding, the name and the tensor are valid. The binding shares what ONNX Runtime owns of the
        // tensor; memory that Rust owns outlives it by its type.
        unsafe {
            let status = (ort::api().BindInput)(self.binding.as_ptr(), name.as_ptr(), tensor.ptr());
            ort::Error::result_from_status(status)
        }
    }

    /// Binds every output to the memory that the graph writes it to, where it is allocated by the run.
    ///
    /// # Errors
    /// ONNX Runtime's message.
    #[expect(unsafe_code, reason = "`ort` has no function for it")]
    pub(crate) fn bind_outputs(&mut self) -> ort::Result<()> {
        let outputs = self.session.outputs();
        let mut memory: Vec<*const OrtMemoryInfo> = vec![std::ptr::null(); outputs.len()];
        // SAFETY: the session is open and has as many outputs as the array has places. It owns the descriptions.
        unsafe {
            let describe = ort::api().SessionGetMemoryInfoForOutputs;
            let status = describe(self.session.ptr(), memory.as_mut_ptr(), memory.len());
            ort::Error::result_from_status(status)?;
        }
        for (output, memory) in outputs.iter().zip(memory) {
            let name = c_string(output.name())?;
            // SAFETY: the binding, the name and the description are valid.
            unsafe {
                let bind = ort::api().BindOutputToDevice;
                ort::Error::result_from_status(bind(self.binding.as_ptr(), name.as_ptr(), memory))?;
            }
        }
        Ok(())
    }

    /// Runs the graph. Returns when it has ended, or the options were terminated.
    ///
    /// # Errors
    /// ONNX Runtime's message.
    #[expect(unsafe_code, reason = "the run of `ort` needs its own binding")]
    pub(crate) fn run(&mut self, options: &RunOptions) -> ort::Result<()> {
        // SAFETY: the session, the options and the binding, which is one of this session, are valid. A session has one
        // run at a time: its owner is borrowed mutably for it.
        unsafe {
            let session = self.session.ptr().cast_mut();
            let status = (ort::api().RunWithBinding)(session, options.ptr(), self.binding.as_ptr());
            ort::Error::result_from_status(status)
        }
    }

    /// The outputs of the run, in the order of the graph. They outlive the binding.
    ///
    /// # Errors
    /// ONNX Runtime's message.
    #[expect(unsafe_code, reason = "the outputs of `ort` are those of its own binding")]
    pub(crate) fn outputs(&self) -> ort::Result<Vec<DynValue>> {
        let api = ort::api();
        let allocator = Allocator::default();
        let (mut values, mut count): (*mut *mut OrtValue, _) = (std::ptr::null_mut(), 0);
        // SAFETY: on success ONNX Runtime returns an array of `count` new values, or null for none. Each value is owned
        // by the caller, as is the array, which is freed by the allocator that it was requested from.
        unsafe {
            let binding = self.binding.as_ptr();
            let own = allocator.ptr().cast_mut();
            let status = (api.GetBoundOutputValues)(binding, own, &raw mut values, &raw mut count);
            ort::Error::result_from_status(status)?;
            if values.is_null() {
                return Ok(Vec::new());
            }
            let outputs = (0..count)
                .filter_map(|index| NonNull::new(*values.add(index)))
                .map(|value| DynValue::from_ptr(value, Some(self.session.allocator())))
                .collect();
            allocator.free(values);
            Ok(outputs)
        }
    }
}

impl Drop for IoBinding<'_> {
    #[expect(unsafe_code, reason = "the binding is a pointer")]
    fn drop(&mut self) {
        // SAFETY: the binding is owned here, and is released once.
        unsafe { (ort::api().ReleaseIoBinding)(self.binding.as_ptr()) };
    }
}

/// For each input of a graph, in its order: whether the graph reads it from host memory.
///
/// # Errors
/// ONNX Runtime's message.
#[expect(unsafe_code, reason = "`ort` asks for it and keeps the answer to itself")]
pub(crate) fn inputs_on_host(session: &Session) -> ort::Result<Vec<bool>> {
    let api = ort::api();
    let mut memory: Vec<*const OrtMemoryInfo> = vec![std::ptr::null(); session.inputs().len()];
    // SAFETY: the session is open and has as many inputs as the array has places. It owns the descriptions.
    unsafe {
        let status = (api.SessionGetMemoryInfoForInputs)(session.ptr(), memory.as_mut_ptr(), memory.len());
        ort::Error::result_from_status(status)?;
    }
    let is_on_host = |memory: *const OrtMemoryInfo| {
        let mut device = OrtMemoryInfoDeviceType::OrtMemoryInfoDeviceType_CPU;
        // SAFETY: the description is valid, as above.
        let kind = unsafe {
            (api.MemoryInfoGetDeviceType)(memory, &raw mut device);
            (api.MemoryInfoGetDeviceMemType)(memory)
        };
        device == OrtMemoryInfoDeviceType::OrtMemoryInfoDeviceType_CPU
            || kind == OrtDeviceMemoryType::OrtDeviceMemoryType_HOST_ACCESSIBLE
    };
    // An input that no node reads has no description.
    Ok(memory.into_iter().map(|memory| memory.is_null() || is_on_host(memory)).collect())
}

fn c_string(name: &str) -> ort::Result<CString> {
    CString::new(name).map_err(|error| ort::Error::new(format!("the name `{name}` cannot be used: {error}")))
}
