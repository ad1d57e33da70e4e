//! Opening and running graphs.

use crate::inputs;
use crate::operators;
use crate::ort_error;
use crate::value::element_type;
use crate::{Cancel, Error, GraphError, OnnxRuntime, TensorError, Value};
use bundle::Interrupt;
use bundle::signature::{Extent, Signature, TensorSpec};
use ort::logging::LogLevel;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{RunOptions, Session, SessionInputValue};
use ort::value::{Outlet, ValueType};
use std::borrow::Cow;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Options for opening a graph.
#[derive(Debug, Clone, Copy)]
pub struct OpenOptions {
    /// Threads per operator; `None` uses all that the process may use. More threads than that are slower, because they
    /// wait for each other at every operator.
    pub threads: Option<NonZeroUsize>,
    /// The location of the weights while the graph is open.
    pub weights: WeightMemory,
}

/// The location of the weights of an open graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightMemory {
    /// In the page cache, mapped from their file. Opening is fast and the system may drop pages when memory is short.
    /// Kernels rearrange the weights in every call, which makes f32 products up to a fifth slower than with prepacked
    /// weights.
    Mapped,
    /// Copied into the layout of each kernel, in anonymous memory of the size of the weights.
    Prepacked,
}

/// An open graph.
///
/// Dropping it frees its weights and, once its last output is dropped too, its memory pool (see [`Value`]).
///
/// # Examples
/// Opens a graph and runs it:
///
/// ```no_run
/// use bundle::dtype::ElementType;
/// use bundle::signature::{Extent, Signature, TensorSpec};
/// use engines::{Cancel, OnnxRuntime, OpenOptions, Value, WeightMemory};
/// use ndarray::{Array2, array};
/// use std::path::Path;
///
/// # fn main() -> Result<(), engines::Error> {
/// let matrix = |name: &str| TensorSpec {
///     name: name.into(),
///     element: ElementType::F32,
///     shape: vec![Extent::Dynamic("N".into()), Extent::Fixed(3)],
/// };
/// let signature = Signature { inputs: vec![matrix("a"), matrix("b")], outputs: vec![matrix("sum")] };
/// let options = OpenOptions { threads: None, weights: WeightMemory::Prepacked };
///
/// let graph = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/add.onnx"));
/// let mut engine = OnnxRuntime::load(None)?.open(graph, &signature, &options)?;
/// let a = Value::from_f32(array![[1.0_f32, 2.0, 3.0]]);
/// let b = Value::from_f32(Array2::<f32>::ones((1, 3)));
/// let mut outputs = engine.run(&[("a", &a), ("b", &b)], &Cancel::new())?;
/// assert_eq!(outputs.take("sum")?.to_f32()?, array![[2.0_f32, 3.0, 4.0]].into_dyn());
/// # Ok(())
/// # }
/// ```
///
/// A [`Cancel`] stops a run from another thread, or before it starts:
///
/// ```no_run
/// # fn run(mut engine: engines::Engine, x: engines::Value) -> Result<(), engines::Error> {
/// let cancel = engines::Cancel::new();
/// let watcher = cancel.clone();
/// std::thread::spawn(move || {
///     std::thread::sleep(std::time::Duration::from_secs(10));
///     watcher.cancel();
/// });
/// match engine.run(&[("x", &x)], &cancel) {
///     Err(engines::Error::Cancelled { graph }) => println!("{graph} took more than ten seconds"),
///     other => drop(other?),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Engine {
    graph: String,
    signature: Signature,
    session: Session,
}

impl OnnxRuntime {
    /// Opens the graph in the file `graph` and checks it against the signature `contract`. External weights are in the
    /// same folder.
    ///
    /// # Errors
    /// The file or its weights are missing or damaged, ONNX Runtime cannot run it, memory is short, or its interface
    /// differs from `contract`.
    pub fn open(&self, graph: &Path, contract: &Signature, options: &OpenOptions) -> Result<Engine, Error> {
        let name = graph.display().to_string();
        if let Err(source) = std::fs::File::open(graph) {
            return Err(GraphError::Unreadable { path: graph.to_owned(), source }.into());
        }
        let session = serialize_first_open(|| builder(self, options)?.commit_from_file(graph))
            .map_err(|error| ort_error::open_error(graph, &error))?;
        Engine::new(name, session, contract)
    }

    /// Opens a graph in memory, weights included, and checks it against the signature `contract`. Errors refer to it as
    /// `name`.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn open_in_memory(
        &self,
        name: &str,
        graph: &[u8],
        contract: &Signature,
        options: &OpenOptions,
    ) -> Result<Engine, Error> {
        let session = serialize_first_open(|| builder(self, options)?.commit_from_memory(graph))
            .map_err(|error| ort_error::open_error(Path::new(name), &error))?;
        Engine::new(name.to_owned(), session, contract)
    }

    /// Writes the graph in the file `graph`, as optimised by ONNX Runtime, to the file `optimized`, weights included.
    ///
    /// # Errors
    /// The file or its weights are missing or damaged, or ONNX Runtime cannot run it.
    pub fn write_optimized(&self, graph: &Path, optimized: &Path) -> Result<(), Error> {
        let options = OpenOptions { threads: None, weights: WeightMemory::Mapped };
        let written = serialize_first_open(|| {
            builder(self, &options)?.with_optimized_model_path(optimized)?.commit_from_file(graph)
        });
        written.map(drop).map_err(|error| ort_error::open_error(graph, &error))
    }
}

/// Opens a graph. The first one of the process is opened alone, later ones concurrently: the first registers the domain
/// of Rushes kernels, for which ONNX Runtime takes no lock.
fn serialize_first_open(open: impl FnOnce() -> ort::Result<Session>) -> ort::Result<Session> {
    static OPENED: Mutex<bool> = Mutex::new(false);
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if *opened {
        drop(opened);
        return open();
    }
    let session = open()?;
    *opened = true;
    Ok(session)
}

fn builder(runtime: &OnnxRuntime, options: &OpenOptions) -> ort::Result<SessionBuilder> {
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
        // Exported graphs contain the quantised operators explicitly. ONNX Runtime's own QDQ fusion would create E4M3
        // operators that it has no kernels for, and weight-only products that were not requested.
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

impl Engine {
    fn new(graph: String, session: Session, contract: &Signature) -> Result<Self, Error> {
        let signature = Signature {
            inputs: session
                .inputs()
                .iter()
                .map(|outlet| tensor_spec(&graph, outlet))
                .collect::<Result<_, _>>()?,
            outputs: session
                .outputs()
                .iter()
                .map(|outlet| tensor_spec(&graph, outlet))
                .collect::<Result<_, _>>()?,
        };
        contract.check(&graph, &signature)?;
        tracing::debug!(graph, "graph is open");
        Ok(Self { graph, signature, session })
    }

    /// The graph's inputs and outputs.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// Runs the graph on named inputs, in any order.
    ///
    /// # Errors
    /// An input is missing, unknown or has another number format or shape (checked before anything runs), an operator
    /// fails, memory is short, or `cancel` was requested before the run ended.
    pub fn run(&mut self, inputs: &[(&str, &Value)], cancel: &Cancel) -> Result<Outputs, Error> {
        inputs::check(&self.graph, &self.signature, inputs)?;
        let cancelled = || Error::Cancelled { graph: self.graph.clone() };
        let failed = |error: ort::Error| ort_error::run_error(&self.graph, &error);

        let run = Arc::new(Run(RunOptions::new().map_err(failed)?));
        let feeds = inputs
            .iter()
            .map(|(name, value)| Ok((Cow::from(*name), value.as_input()?)))
            .collect::<ort::Result<Vec<(Cow<'_, str>, SessionInputValue<'_>)>>>()
            .map_err(failed)?;
        let Some(_watch) = cancel.watch(Arc::clone(&run) as Arc<dyn Interrupt>) else {
            return Err(cancelled());
        };
        let outputs = self.session.run_with_options(feeds, &run.0);
        if cancel.is_cancelled() {
            return Err(cancelled());
        }
        let values = outputs
            .map_err(failed)?
            .into_iter()
            .map(|(name, tensor)| {
                Ok((name.to_owned(), Value::from_output(&self.graph, name, tensor, inputs)?))
            })
            .collect::<Result<_, Error>>()?;
        Ok(Outputs { graph: self.graph.clone(), values })
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

/// The outputs of a run, by name.
#[derive(Debug)]
pub struct Outputs {
    graph: String,
    values: Vec<(String, Value)>,
}

impl Outputs {
    /// Removes and returns the output `name`.
    ///
    /// # Errors
    /// The graph has no such output, or it was already taken.
    pub fn take(&mut self, name: &str) -> Result<Value, TensorError> {
        match self.values.iter().position(|(known, _)| known == name) {
            Some(index) => Ok(self.values.remove(index).1),
            None => Err(TensorError::MissingOutput {
                graph: self.graph.clone(),
                output: name.into(),
                available: self.values.iter().map(|(known, _)| known.clone()).collect(),
            }),
        }
    }
}

/// Iterates over the outputs that were not taken, in the order of the graph.
impl IntoIterator for Outputs {
    type Item = (String, Value);
    type IntoIter = std::vec::IntoIter<(String, Value)>;

    fn into_iter(self) -> Self::IntoIter {
        self.values.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::dtype::ElementType;
    use ndarray::{Array2, arr0};
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn an_endless_run_is_cancelled_from_another_thread() {
        let tensor = |name: &str, element, shape: &[usize]| TensorSpec {
            name: name.into(),
            element,
            shape: shape.iter().copied().map(Extent::Fixed).collect(),
        };
        let contract = Signature {
            inputs: vec![tensor("rounds", ElementType::I64, &[]), tensor("x", ElementType::F32, &[64, 64])],
            outputs: vec![tensor("y", ElementType::F32, &[64, 64])],
        };
        let graph = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/loop.onnx");
        let options = OpenOptions { threads: NonZeroUsize::new(1), weights: WeightMemory::Mapped };
        let runtime = OnnxRuntime::load(None).unwrap_or_else(|error| panic!("{error}"));
        let mut engine = runtime.open(&graph, &contract, &options).unwrap();

        let cancel = Cancel::new();
        let (sender, receiver) = mpsc::channel();
        let run_cancel = cancel.clone();
        std::thread::spawn(move || {
            let rounds = Value::from_i64(arr0(i64::MAX));
            let x = Value::from_f32(Array2::<f32>::eye(64));
            let result = engine.run(&[("rounds", &rounds), ("x", &x)], &run_cancel);
            sender.send(result.map(drop)).unwrap();
        });
        while cancel.runs_in_flight() == 0 {
            std::thread::yield_now();
        }
        cancel.cancel();
        let result = receiver.recv_timeout(Duration::from_secs(60)).expect("the run was not stopped");
        assert!(matches!(result, Err(Error::Cancelled { .. })), "{result:?}");
        assert_eq!(cancel.runs_in_flight(), 0);
    }
}
