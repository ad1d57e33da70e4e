//! Opening and running graphs.

use crate::compiled::BuiltEngine;
use crate::tensors;
use crate::{
    Backend, Cancel, Error, Executable, GraphSource, NodePlacement, OnnxRuntime, OpenOptions, Outputs, Value,
    accelerator,
};
use bundle::signature::Signature;
use bundle::units::ByteCount;
use std::path::Path;

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
/// let options = OpenOptions::cpu(None, WeightMemory::Prepacked);
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
    executable: Box<dyn Executable>,
}

impl OnnxRuntime {
    /// Opens the graph in the file `graph` and checks it against the signature `contract`. External weights are in the
    /// same folder.
    ///
    /// # Errors
    /// See [`Engine::open`].
    pub fn open(&self, graph: &Path, contract: &Signature, options: &OpenOptions) -> Result<Engine, Error> {
        Engine::open(self, GraphSource::File(graph), contract, options)
    }

    /// Compiles the graph in the file `graph` for the device of `options`, and keeps the engine in
    /// [`Self::engines`], unless it is there and can be used.
    ///
    /// # Errors
    /// The device compiles no graphs, the graph is refused, memory is short, or the engine cannot be stored.
    pub fn build_engine(&self, graph: &Path, options: &OpenOptions) -> Result<BuiltEngine, Error> {
        accelerator::build(self, graph, options)
    }

    /// Opens a graph in memory, weights included, and checks it against the signature `contract`. Errors refer to it as
    /// `name`.
    ///
    /// # Errors
    /// See [`Engine::open`].
    pub fn open_in_memory(
        &self,
        name: &str,
        graph: &[u8],
        contract: &Signature,
        options: &OpenOptions,
    ) -> Result<Engine, Error> {
        Engine::open(self, GraphSource::Memory { name, bytes: graph }, contract, options)
    }
}

impl Engine {
    /// Opens a graph on a backend and checks it against the signature `contract`.
    ///
    /// # Errors
    /// The graph or its weights are missing or damaged, the backend cannot run it, memory is short, or its interface
    /// differs from `contract`.
    pub fn open(
        backend: &dyn Backend,
        source: GraphSource<'_>,
        contract: &Signature,
        options: &OpenOptions,
    ) -> Result<Self, Error> {
        let graph = source.name();
        let executable = backend.open(source, options)?;
        contract.check(&graph, executable.signature())?;
        tracing::debug!(graph, device = %options.device, "graph is open");
        Ok(Self { graph, executable })
    }

    /// The graph's inputs and outputs.
    pub fn signature(&self) -> &Signature {
        self.executable.signature()
    }

    /// On which providers its nodes run; `None` if all run on the CPU.
    pub fn nodes(&self) -> Option<&NodePlacement> {
        self.executable.nodes()
    }

    /// Makes room for the activations of runs that need `bytes` in total, see [`Executable::reserve`].
    pub fn reserve(&mut self, bytes: ByteCount) {
        self.executable.reserve(bytes);
    }

    /// Runs the graph on named inputs, in any order.
    ///
    /// # Errors
    /// An input is missing, unknown or has another number format or shape (checked before anything runs), an operator
    /// fails, memory is short, `cancel` was requested before the run ended, or an output differs from the signature.
    pub fn run(&mut self, inputs: &[(&str, &Value)], cancel: &Cancel) -> Result<Outputs, Error> {
        tensors::check_inputs(&self.graph, self.signature(), inputs)?;
        let outputs = self.executable.run(inputs, cancel)?;
        tensors::check_outputs(&self.graph, self.signature(), outputs.values())?;
        Ok(outputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WeightMemory;
    use bundle::dtype::ElementType;
    use bundle::signature::{Extent, TensorSpec};
    use ndarray::{Array2, arr0};
    use std::num::NonZeroUsize;
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
        let options = OpenOptions::cpu(NonZeroUsize::new(1), WeightMemory::Mapped);
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
