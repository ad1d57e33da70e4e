//! Runs of a session whose inputs and outputs are in the memory of its device.

use crate::device_memory::DeviceMemory;
use crate::device_tensor::{DeviceTensor, KeptSession};
use crate::io_binding::{self, IoBinding};
use crate::value::DeviceInput;
use crate::{Device, GraphError, Value};
use ort::session::{RunOptions, Session};
use ort::value::DynValue;
use std::sync::{Arc, Weak};

/// The side of a session that is in the memory of its device.
#[derive(Debug)]
pub(crate) struct DeviceRuns {
    session: Arc<KeptSession>,
    /// The inputs that the graph reads from host memory.
    inputs_on_host: Vec<String>,
    /// Outputs of runs, which are in the memory pool of the session.
    outputs: Vec<Weak<DeviceTensor>>,
}

impl DeviceRuns {
    /// Prepares runs of `session` in `memory`, which is that of its device.
    ///
    /// # Errors
    /// ONNX Runtime's message.
    pub(crate) fn new(memory: Arc<DeviceMemory>, session: &Session) -> ort::Result<Self> {
        let places = io_binding::inputs_on_host(session)?;
        let inputs = session.inputs().iter().zip(places).filter(|(_, is_on_host)| *is_on_host);
        let inputs_on_host = inputs.map(|(input, _)| input.name().to_owned()).collect();
        let session = Arc::new(KeptSession::new(memory, session.inner()));
        Ok(Self { session, inputs_on_host, outputs: Vec::new() })
    }

    /// Returns the inputs in the memory that the graph reads them from. Those in other memory are copied, each value
    /// once.
    ///
    /// # Errors
    /// ONNX Runtime's message.
    pub(crate) fn place<'a>(&self, inputs: &[(&str, &'a Value)]) -> ort::Result<Vec<DeviceInput<'a>>> {
        let is_on_host = |name: &str| self.inputs_on_host.iter().any(|known| known == name);
        let place = |(name, value): &(&str, &'a Value)| {
            if is_on_host(name) {
                value.on_host().map(DeviceInput::Host)
            } else {
                value.on_device(self.session.memory()).map(DeviceInput::Device)
            }
        };
        inputs.iter().map(place).collect()
    }

    /// Runs `session` on inputs that are placed. Returns its outputs in the order of the graph, where it wrote them.
    ///
    /// # Errors
    /// ONNX Runtime's message.
    pub(crate) fn run(
        &self,
        session: &Session,
        inputs: &[(&str, &Value)],
        placed: &[DeviceInput<'_>],
        options: &RunOptions,
    ) -> ort::Result<Vec<DynValue>> {
        let _exclusive = self.session.memory().exclusive_run();
        let mut binding = IoBinding::new(session)?;
        for ((name, _), tensor) in inputs.iter().zip(placed) {
            binding.bind_input(name, tensor)?;
        }
        binding.bind_outputs()?;
        binding.run(options)?;
        binding.outputs()
    }

    /// The values of the outputs of a run of `graph`, which are `names` in its order.
    ///
    /// # Errors
    /// An output is not a tensor, or has an unsupported number format.
    pub(crate) fn values<'n>(
        &mut self,
        graph: &str,
        names: impl Iterator<Item = &'n str>,
        outputs: Vec<DynValue>,
        inputs: &[(&str, &Value)],
        placed: &[DeviceInput<'_>],
    ) -> Result<Vec<(String, Value)>, GraphError> {
        let value = |(name, tensor): (&str, DynValue)| {
            let value = Value::from_device_output(graph, name, tensor, &self.session, inputs, placed)?;
            Ok((name.to_owned(), value))
        };
        let values = names.zip(outputs).map(value).collect::<Result<Vec<_>, _>>()?;
        self.outputs.retain(|output| output.strong_count() > 0);
        self.outputs.extend(values.iter().filter_map(|(_, value)| value.device_tensor()).map(Arc::downgrade));
        Ok(values)
    }

    /// Moves outputs that are still used out of the memory pool of the session, which is closed. Its weights and its pool
    /// are then freed.
    pub(crate) fn close(&self, graph: &str, device: Device) {
        for output in self.outputs.iter().filter_map(Weak::upgrade) {
            if let Err(error) = output.leave_session() {
                tracing::warn!(
                    graph,
                    %device,
                    %error,
                    "a closed session keeps its memory, because an output of it cannot be moved"
                );
            }
        }
    }
}
