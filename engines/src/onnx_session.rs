//! Open graphs of ONNX Runtime, and how those on the CPU are opened.

use crate::device_memory::DeviceMemory;
use crate::device_run::DeviceRuns;
use crate::element::element_type;
use crate::first_open::FirstOpen;
use crate::operators;
use crate::ort_error;
use crate::{
    Cancel, Device, Error, Executable, GraphError, NodePlacement, OnnxRuntime, OpenOptions, Outputs, Value,
    WeightMemory, memory,
};
use bundle::Interrupt;
use bundle::signature::{Extent, Signature, TensorSpec};
use bundle::units::ByteCount;
use ort::logging::LogLevel;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{RunOptions, Session, SessionInputValue};
use ort::value::{Outlet, ValueType};
use std::borrow::Cow;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

/// A graph that is open in ONNX Runtime.
#[derive(Debug)]
pub(crate) struct OnnxSession {
    graph: String,
    device: Device,
    signature: Signature,
    session: Session,
    /// Where its nodes run; `None` on the CPU.
    nodes: Option<NodePlacement>,
    /// `None` if inputs and outputs are in host memory.
    on_device: Option<DeviceRuns>,
}

/// Opens a graph on the CPU with `commit`. Errors refer to it as `graph`.
pub(crate) fn open_on_cpu(
    runtime: &OnnxRuntime,
    options: &OpenOptions,
    graph: &Path,
    commit: impl FnOnce(SessionBuilder) -> ort::Result<Session>,
) -> Result<Session, Error> {
    static FIRST_OPEN: FirstOpen = FirstOpen::new();
    let failed = |error: ort::Error| ort_error::open_error(graph, options.device, &error);
    FIRST_OPEN.open(true, || {
        let builder = cpu_builder(runtime, options).map_err(failed)?;
        let pinned = runtime.with_cpu_device(|device| Ok(builder.with_devices([device], None)?))?;
        commit(pinned.map_err(failed)?).map_err(failed)
    })
}

/// A builder for the CPU provider, with the operators of Rushes.
fn cpu_builder(runtime: &OnnxRuntime, options: &OpenOptions) -> ort::Result<SessionBuilder> {
    // The library would count the cores of the whole machine instead of those that the process may use.
    let threads = options.threads.or_else(|| std::thread::available_parallelism().ok());
    let threads = threads.unwrap_or(NonZeroUsize::MIN);
    let builder = Session::builder(runtime.environment())?
        .with_operators(operators::domain(runtime.kernels(), threads)?)?
        .with_log_level(LogLevel::Warning)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_intra_threads(threads.get())?
        .with_inter_threads(1)?
        .with_prepacking(options.weights == WeightMemory::Prepacked)?
        // Rearranging weights on all cores opens a large graph three to four times faster.
        .with_config_entry("session.prepack.enable_parallel", "1")?
        // Graphs for the CPU contain the quantised operators explicitly. ONNX Runtime's own QDQ fusion would create E4M3
        // operators that its CPU provider has no kernels for, and weight-only products that were not requested.
        .with_config_entry("session.disable_quant_qdq", "1")?
        // A memory pattern allocates one more block of the size of all activations, in addition to those of the first
        // run.
        .with_memory_pattern(false)?;
    Ok(builder)
}

/// Converts the description of a session's input or output.
fn tensor_spec(graph: &str, outlet: &Outlet) -> Result<TensorSpec, GraphError> {
    let unsupported = || GraphError::UnsupportedTensor {
        graph: graph.into(),
        tensor: outlet.name().into(),
        found: outlet.dtype().to_string(),
    };
    let ValueType::Tensor { ty, shape, dimension_symbols } = outlet.dtype() else {
        return Err(unsupported());
    };
    let extent = |(index, &size): (usize, &i64)| match (usize::try_from(size), dimension_symbols.get(index)) {
        (Ok(size), _) => Extent::Fixed(size),
        (Err(_), Some(symbol)) if !symbol.is_empty() => Extent::Dynamic(symbol.clone()),
        (Err(_), _) => Extent::Dynamic("?".into()),
    };
    Ok(TensorSpec {
        name: outlet.name().into(),
        element: element_type(*ty).ok_or_else(unsupported)?,
        shape: shape.iter().enumerate().map(extent).collect(),
    })
}

impl OnnxSession {
    /// `memory` is that of the device, if it is its own: outputs of runs stay there, and inputs are copied there once.
    pub(crate) fn new(
        graph: String,
        device: Device,
        session: Session,
        nodes: Option<NodePlacement>,
        memory: Option<Arc<DeviceMemory>>,
    ) -> Result<Self, Error> {
        let specs = |outlets: &[Outlet]| {
            outlets.iter().map(|outlet| tensor_spec(&graph, outlet)).collect::<Result<Vec<_>, _>>()
        };
        let signature = Signature { inputs: specs(session.inputs())?, outputs: specs(session.outputs())? };
        let on_device = memory.map(|memory| DeviceRuns::new(memory, &session)).transpose();
        let on_device =
            on_device.map_err(|error| ort_error::open_error(Path::new(&graph), device, &error))?;
        Ok(Self { graph, device, signature, session, nodes, on_device })
    }

    /// Allocates and frees a block of the session's memory pool. The pool keeps the region that it got for it.
    fn try_reserve(&self, bytes: ByteCount) -> ort::Result<()> {
        let info = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Arena, MemoryType::Default)?;
        let bytes = memory::reserved_pool(bytes);
        let length = usize::try_from(bytes.0).unwrap_or(usize::MAX);
        Allocator::new(&self.session, info)?.alloc::<u8>(length).map(drop)
    }
}

impl Executable for OnnxSession {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn nodes(&self) -> Option<&NodePlacement> {
        self.nodes.as_ref()
    }

    fn reserve(&mut self, bytes: ByteCount) {
        if self.device != Device::CPU || bytes.0 == 0 {
            return;
        }
        if let Err(error) = self.try_reserve(bytes) {
            tracing::debug!(graph = self.graph, %bytes, %error, "no memory is reserved; the pool grows run by run");
        }
    }

    fn run(&mut self, inputs: &[(&str, &Value)], cancel: &Cancel) -> Result<Outputs, Error> {
        let run = RunOptions::new();
        let run = run.map_err(|error| ort_error::run_error(&self.graph, self.device, &error))?;
        let run = Arc::new(Run(run));
        let values = if self.on_device.is_some() {
            self.run_on_device(&run, inputs, cancel)?
        } else {
            self.run_in_host_memory(&run, inputs, cancel)?
        };
        Ok(Outputs::new(self.graph.clone(), values))
    }
}

impl OnnxSession {
    /// A run whose inputs and outputs are in host memory.
    fn run_in_host_memory(
        &mut self,
        run: &Arc<Run>,
        inputs: &[(&str, &Value)],
        cancel: &Cancel,
    ) -> Result<Vec<(String, Value)>, Error> {
        let cancelled = || Error::Cancelled { graph: self.graph.clone() };
        let failed = |error: ort::Error| ort_error::run_error(&self.graph, self.device, &error);
        let feeds = inputs
            .iter()
            .map(|(name, value)| Ok((Cow::from(*name), value.on_host()?.into())))
            .collect::<ort::Result<Vec<(Cow<'_, str>, SessionInputValue<'_>)>>>()
            .map_err(failed)?;
        let Some(_watch) = cancel.watch(Arc::clone(run) as Arc<dyn Interrupt>) else {
            return Err(cancelled());
        };
        let outputs = self.session.run_with_options(feeds, &run.0);
        if cancel.is_cancelled() {
            return Err(cancelled());
        }
        let values = outputs.map_err(failed)?.into_iter();
        values
            .map(|(name, tensor)| {
                Ok((name.to_owned(), Value::from_output(&self.graph, name, tensor, inputs)?))
            })
            .collect()
    }

    /// A run whose inputs and outputs are in the memory of the device.
    fn run_on_device(
        &mut self,
        run: &Arc<Run>,
        inputs: &[(&str, &Value)],
        cancel: &Cancel,
    ) -> Result<Vec<(String, Value)>, Error> {
        let Some(runs) = &mut self.on_device else { return Ok(Vec::new()) };
        let cancelled = || Error::Cancelled { graph: self.graph.clone() };
        let failed = |error: ort::Error| ort_error::run_error(&self.graph, self.device, &error);
        // Before inputs are copied for nothing.
        if cancel.is_cancelled() {
            return Err(cancelled());
        }
        let placed = runs.place(inputs).map_err(failed)?;
        let Some(_watch) = cancel.watch(Arc::clone(run) as Arc<dyn Interrupt>) else {
            return Err(cancelled());
        };
        let outputs = runs.run(&self.session, inputs, &placed, &run.0);
        if cancel.is_cancelled() {
            return Err(cancelled());
        }
        let names = self.session.outputs().iter().map(Outlet::name);
        Ok(runs.values(&self.graph, names, outputs.map_err(failed)?, inputs, &placed)?)
    }
}

impl Drop for OnnxSession {
    fn drop(&mut self) {
        if let Some(runs) = &self.on_device {
            runs.close(&self.graph, self.device);
        }
    }
}

/// A run in progress. Terminating its options stops it before its next node.
struct Run(RunOptions);

impl Interrupt for Run {
    fn interrupt(&self) {
        if let Err(error) = self.0.terminate() {
            tracing::warn!(%error, "a run could not be cancelled");
        }
    }
}
