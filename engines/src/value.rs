//! Opaque tensors.
#![expect(
    clippy::disallowed_types,
    reason = "tensors of `ort` are created and inspected here, and never cloned"
)]

use crate::device_memory::DeviceMemory;
use crate::device_tensor::{DeviceElements, DeviceTensor, KeptSession};
use crate::element::{Element, element_type};
use crate::pool::PoolToken;
use crate::{Device, GraphError, TensorError, ort_error};
use bundle::dtype::ElementType;
use ndarray::{Array, ArrayD, ArrayViewD, Dimension};
use ort::value::{DynTensorValueType, DynValue, DynValueRef, TensorRef, ValueType};
use std::any::Any;
use std::ops::Deref;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// An input or output tensor of a graph. Clones share the elements.
///
/// A value is created from an array or is the output of a run. An output can be passed as an input without a copy:
/// caches and states stay in ONNX Runtime's memory, which is that of the device if the device has memory of its own.
///
/// A value that is an input on another device than its own is copied there when it is first used, and keeps the copy: an
/// input of many runs crosses once.
///
/// An output is in the memory pool of its engine, so **the pool of a dropped engine is only returned to the system once
/// its last output is dropped**. Copy outputs that must outlive the engine with [`to_array`](Self::to_array). Outputs on
/// a device with memory of its own are moved out of the pool when the engine is dropped.
#[derive(Clone)]
pub struct Value {
    tensor: Arc<Tensor>,
    /// The pool of the session that made it.
    pool: Option<PoolToken>,
}

/// A tensor, and its copies in other memory.
struct Tensor {
    data: Data,
    on_devices: Mutex<Vec<DeviceTensor>>,
    on_host: OnceLock<DynValue>,
    /// Held while `on_host` is made.
    fetching: Mutex<()>,
}

enum Data {
    Host(Box<dyn HostArray>),
    Output(Output),
    Device(DeviceOutput),
}

/// An output of a run, in host memory.
struct Output {
    tensor: DynValue,
    element: ElementType,
    shape: Vec<usize>,
    /// Address of the first element; `None` if there is none.
    address: Option<usize>,
    /// The input that owns the elements, if a graph names an input as an output. ONNX Runtime passes such elements
    /// through without owning them, so the input's value must be kept alive.
    _owner: Option<Value>,
}

/// An output of a run, in the memory of a device.
struct DeviceOutput {
    tensor: Arc<DeviceTensor>,
    element: ElementType,
    shape: Vec<usize>,
}

/// An input of a run on a device, in the memory that the graph reads it from.
pub(crate) enum DeviceInput<'a> {
    /// In host memory.
    Host(DynValueRef<'a>),
    /// In the memory of the device.
    Device(Arc<DeviceElements>),
}

impl Deref for DeviceInput<'_> {
    type Target = DynValue;

    fn deref(&self) -> &DynValue {
        match self {
            Self::Host(tensor) => tensor,
            Self::Device(elements) => elements.tensor(),
        }
    }
}

/// An array in standard layout.
trait HostArray: Any + Send + Sync {
    fn element(&self) -> ElementType;
    fn shape(&self) -> &[usize];
    /// Address of the first element.
    fn address(&self) -> usize;
    /// Borrows the elements.
    fn borrow(&self) -> ort::Result<DynValueRef<'_>>;
}

impl<T: Element> HostArray for ArrayD<T> {
    fn element(&self) -> ElementType {
        T::ELEMENT
    }

    fn shape(&self) -> &[usize] {
        self.shape()
    }

    fn address(&self) -> usize {
        self.as_ptr().addr()
    }

    fn borrow(&self) -> ort::Result<DynValueRef<'_>> {
        TensorRef::from_array_view(self.view()).map(|tensor| tensor.into_dyn())
    }
}

impl Value {
    /// Creates a tensor of 32-bit floats. See [`from_array`](Self::from_array).
    pub fn from_f32<D: Dimension>(array: Array<f32, D>) -> Self {
        Self::from_array(array)
    }

    /// Creates a tensor of 64-bit integers. See [`from_array`](Self::from_array).
    pub fn from_i64<D: Dimension>(array: Array<i64, D>) -> Self {
        Self::from_array(array)
    }

    /// Creates a tensor in host memory. Takes ownership of the array and copies it only if it is not in standard layout.
    pub fn from_array<T: Element, D: Dimension>(array: Array<T, D>) -> Self {
        Self::new(Data::Host(Box::new(standard_layout(array))))
    }

    /// Creates the value of output `name` of a run of `graph` on `inputs`. The output is in host memory.
    pub(crate) fn from_output(
        graph: &str,
        name: &str,
        tensor: DynValue,
        inputs: &[(&str, &Self)],
    ) -> Result<Self, GraphError> {
        let (element, shape) = description(graph, name, &tensor)?;
        let Location { address, is_on_host: true } = location(&tensor) else {
            return Err(unsupported(graph, name, &tensor));
        };
        let is_owner = |input: &&Self| address.is_some() && input.address() == address;
        let owner = inputs.iter().map(|(_, input)| *input).find(is_owner).cloned();
        Ok(Self::new(Data::Output(Output { tensor, element, shape, address, _owner: owner })))
    }

    /// Creates the value of output `name` of a run of `graph` in a session on a device. The output is in the memory of
    /// the device, or in host memory if its node runs on the CPU. `placed` are the `inputs` as the run was given them.
    pub(crate) fn from_device_output(
        graph: &str,
        name: &str,
        tensor: DynValue,
        session: &Arc<KeptSession>,
        inputs: &[(&str, &Self)],
        placed: &[DeviceInput<'_>],
    ) -> Result<Self, GraphError> {
        let Location { address, is_on_host } = location(&tensor);
        if is_on_host {
            return Self::from_output(graph, name, tensor, inputs);
        }
        let (element, shape) = description(graph, name, &tensor)?;
        let owner = placed.iter().find_map(|input| match input {
            DeviceInput::Device(elements) if address.is_some() => {
                (location(elements.tensor()).address == address).then_some(elements)
            }
            _ => None,
        });
        let tensor = Arc::new(DeviceTensor::output(tensor, session, owner));
        Ok(Self::new(Data::Device(DeviceOutput { tensor, element, shape })))
    }

    fn new(data: Data) -> Self {
        let (on_devices, on_host, fetching) = (Mutex::default(), OnceLock::new(), Mutex::new(()));
        Self { tensor: Arc::new(Tensor { data, on_devices, on_host, fetching }), pool: None }
    }

    /// Keeps the memory pool of its session charged while this value or a clone is alive.
    pub(crate) fn hold(&mut self, pool: &PoolToken) {
        self.pool = Some(PoolToken::clone(pool));
    }

    /// Returns a function that returns true as long as this value or a clone is alive. The function does not keep it.
    #[cfg(feature = "fake")]
    pub(crate) fn liveness(&self) -> impl Fn() -> bool + Send + use<> {
        let data = Arc::downgrade(&self.tensor);
        move || data.strong_count() > 0
    }

    /// The number format.
    pub fn element(&self) -> ElementType {
        match &self.tensor.data {
            Data::Host(array) => array.element(),
            Data::Output(output) => output.element,
            Data::Device(output) => output.element,
        }
    }

    /// The shape.
    pub fn shape(&self) -> &[usize] {
        match &self.tensor.data {
            Data::Host(array) => array.shape(),
            Data::Output(output) => &output.shape,
            Data::Device(output) => &output.shape,
        }
    }

    /// The device whose memory holds the elements. [`Device::CPU`] means that they can be read in place.
    pub fn device(&self) -> Device {
        match &self.tensor.data {
            Data::Host(_) | Data::Output(_) => Device::CPU,
            Data::Device(output) => output.tensor.device(),
        }
    }

    /// Returns a view of the elements.
    ///
    /// # Errors
    /// The tensor has another number format, or is not in host memory.
    pub fn view<T: Element>(&self) -> Result<ArrayViewD<'_, T>, TensorError> {
        let other = || self.other_element(T::ELEMENT);
        match &self.tensor.data {
            _ if self.element() != T::ELEMENT => Err(other()),
            Data::Host(array) => {
                let array: &dyn Any = &**array;
                array.downcast_ref::<ArrayD<T>>().map(|array| array.view()).ok_or_else(other)
            }
            // Fails for nothing else: the format and the location are those of the tensor.
            Data::Output(output) => output.tensor.try_extract_array::<T>().ok().ok_or_else(other),
            Data::Device(output) => {
                Err(TensorError::NotInHostMemory { memory: output.tensor.device().to_string() })
            }
        }
    }

    /// Returns a copy of the elements, independent of any engine. They are copied from the memory of a device each time.
    ///
    /// # Errors
    /// The tensor has another number format, or cannot be copied from the memory of its device.
    pub fn to_array<T: Element>(&self) -> Result<ArrayD<T>, TensorError> {
        match &self.tensor.data {
            Data::Device(output) if output.element == T::ELEMENT => {
                let host = output.tensor.to_host().map_err(|error| TensorError::NotCopied {
                    device: output.tensor.device(),
                    why: ort_error::text(&error),
                })?;
                let view = host.try_extract_array::<T>().ok();
                view.map(|view| view.to_owned()).ok_or_else(|| self.other_element(T::ELEMENT))
            }
            _ => self.view().map(|view| view.to_owned()),
        }
    }

    /// Returns a view of 32-bit floats. See [`view`](Self::view).
    ///
    /// # Errors
    /// The tensor has another number format, or is not in host memory.
    pub fn view_f32(&self) -> Result<ArrayViewD<'_, f32>, TensorError> {
        self.view()
    }

    /// Returns a copy of 32-bit floats. See [`to_array`](Self::to_array).
    ///
    /// # Errors
    /// The tensor has another number format, or cannot be copied from the memory of its device.
    pub fn to_f32(&self) -> Result<ArrayD<f32>, TensorError> {
        self.to_array()
    }

    fn other_element(&self, expected: ElementType) -> TensorError {
        TensorError::WrongElement { expected, found: self.element() }
    }

    /// Returns the tensor in host memory, as ONNX Runtime knows it. Borrows the elements. Those in the memory of a device
    /// are copied when they are first asked for.
    pub(crate) fn on_host(&self) -> ort::Result<DynValueRef<'_>> {
        let output = match &self.tensor.data {
            Data::Host(array) => return array.borrow(),
            Data::Output(output) => return Ok(output.tensor.view()),
            Data::Device(output) => output,
        };
        let copy = &self.tensor.on_host;
        let _fetching = self.tensor.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        if copy.get().is_none() {
            let made = output.tensor.to_host()?;
            return Ok(copy.get_or_init(|| made).view());
        }
        copy.get().map(DynValue::view).ok_or_else(|| ort::Error::new("there is no copy"))
    }

    /// Returns the elements in the memory of a device. Those in other memory are copied when they are first asked for, in
    /// host memory if they are on another device.
    pub(crate) fn on_device(&self, memory: &Arc<DeviceMemory>) -> ort::Result<Arc<DeviceElements>> {
        if let Some(tensor) = self.device_tensor()
            && tensor.device() == memory.device()
        {
            return Ok(tensor.elements());
        }
        let mut copies = self.tensor.on_devices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(copy) = copies.iter().find(|copy| copy.device() == memory.device()) {
            return Ok(copy.elements());
        }
        let copy = DeviceTensor::upload(memory, &*self.on_host()?)?;
        let elements = copy.elements();
        copies.push(copy);
        Ok(elements)
    }

    /// The tensor, if it is an output in the memory of a device.
    pub(crate) fn device_tensor(&self) -> Option<&Arc<DeviceTensor>> {
        match &self.tensor.data {
            Data::Device(output) => Some(&output.tensor),
            Data::Host(_) | Data::Output(_) => None,
        }
    }

    /// Address of the first element in host memory; `None` if there is none.
    fn address(&self) -> Option<usize> {
        match &self.tensor.data {
            Data::Host(array) => Some(array.address()),
            Data::Output(output) => output.address,
            Data::Device(_) => None,
        }
    }
}

/// The number format and shape of output `name` of `graph`.
fn description(graph: &str, name: &str, tensor: &DynValue) -> Result<(ElementType, Vec<usize>), GraphError> {
    let unsupported = || unsupported(graph, name, tensor);
    let ValueType::Tensor { ty, shape, .. } = tensor.dtype() else { return Err(unsupported()) };
    let element = element_type(*ty).ok_or_else(unsupported)?;
    Ok((element, shape.iter().map(|&extent| usize::try_from(extent).unwrap_or(0)).collect()))
}

fn unsupported(graph: &str, name: &str, tensor: &DynValue) -> GraphError {
    GraphError::UnsupportedTensor {
        graph: graph.into(),
        tensor: name.into(),
        found: tensor.dtype().to_string(),
    }
}

/// Where the elements of a tensor are.
struct Location {
    /// The address of the first element, or its handle on a device; `None` if there is none.
    address: Option<usize>,
    /// The processor can read them.
    is_on_host: bool,
}

/// Where the elements of a tensor are; nowhere if the value is no tensor.
fn location(tensor: &DynValue) -> Location {
    match tensor.view().downcast::<DynTensorValueType>() {
        Ok(tensor) => Location {
            address: Some(tensor.data_ptr().addr()).filter(|&address| address != 0),
            is_on_host: tensor.memory_info().is_cpu_accessible(),
        },
        Err(_) => Location { address: None, is_on_host: false },
    }
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Value({} {:?})", self.element(), self.shape())
    }
}

/// Converts to row-major order without gaps, as ONNX Runtime requires.
fn standard_layout<T: Clone, D: Dimension>(array: Array<T, D>) -> ArrayD<T> {
    if array.is_standard_layout() {
        array.into_dyn()
    } else {
        array.as_standard_layout().into_owned().into_dyn()
    }
}

#[cfg(test)]
mod tests;
