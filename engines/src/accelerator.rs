//! Opening graphs on accelerators.

use crate::compiled::{
    self, BuiltEngine, Compiler, EngineKey, EngineSubject, GraphOfBundle, Wanted, extents,
};
use crate::engine_compiler::{MakeBuilder, OnnxCompiler};
use crate::node_assignment::{self, IntegerNodes};
use crate::onnx_session::OnnxSession;
use crate::providers::access;
use crate::{
    Compilation, Device, Error, Executable, FirstUse, GraphError, GraphSource, OnnxRuntime, OpenOptions,
    ProviderError, ort_error,
};
use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use std::path::Path;

/// Opens a graph on the accelerator of `options`.
pub(crate) fn open(
    runtime: &OnnxRuntime,
    graph: GraphSource<'_>,
    options: &OpenOptions,
) -> Result<Box<dyn Executable>, Error> {
    runtime.use_provider(options.device)?;
    if options.device.provider().compilation() != Compilation::None {
        return open_compiled(runtime, graph, options);
    }
    let name = graph.name();
    let failed = |error: ort::Error| ort_error::open_error(Path::new(&name), options.device, &error);
    let mut builder = session_builder(runtime, options, None)?;
    let session = match graph {
        GraphSource::File(path) => {
            if let Err(source) = std::fs::File::open(path) {
                return Err(GraphError::Unreadable { path: path.to_owned(), source }.into());
            }
            builder.commit_from_file(path)
        }
        GraphSource::Memory { bytes, .. } => builder.commit_from_memory(bytes),
    };
    let session = session.map_err(failed)?;
    // Its outputs stay in the memory of the device, if that is its own.
    let placement =
        node_assignment::of_session(&session, options.device, &IntegerNodes::of(graph)).map_err(failed)?;
    node_assignment::check(&name, options.device, options.cpu_nodes, &placement)?;
    tracing::debug!(graph = name, device = %options.device, nodes = ?placement.nodes, "nodes are placed");
    let memory = runtime.device_memory(options.device)?;
    Ok(Box::new(OnnxSession::new(name, options.device, session, Some(placement), memory)?))
}

/// Opens a graph on a device that compiles it: with its stored engine, if there is one.
fn open_compiled(
    runtime: &OnnxRuntime,
    graph: GraphSource<'_>,
    options: &OpenOptions,
) -> Result<Box<dyn Executable>, Error> {
    let name = graph.name();
    let builder = |engine: Option<&Path>| session_builder(runtime, options, engine);
    let (wanted, compiler) = wanted(runtime, graph, options, &builder)?;
    let opened = match (runtime.engines(), wanted) {
        _ if options.first_use == FirstUse::InMemory => compiler.in_memory(),
        (Some(store), Some(wanted)) => compiled::open_or_compile(store, &wanted, &compiler),
        _ if options.device.provider().compilation() == Compilation::FixedShape => {
            Err(no_engine(runtime, graph, options.device))
        }
        _ => compiler.in_memory(),
    };
    let (session, placement) = opened?;
    tracing::debug!(graph = name, device = %options.device, nodes = ?placement.nodes, "an engine is open");
    let memory = runtime.device_memory(options.device)?;
    Ok(Box::new(OnnxSession::new(name, options.device, session, Some(placement), memory)?))
}

const NO_STORE: &str = "there is no folder for compiled engines";
const NO_CONTENT: &str = "its bundle has no digests, which engines are found by: export the checkpoint again";

/// Compiles a graph and stores its engine, unless it is stored. Nothing is compiled in memory instead.
///
/// # Errors
/// The device compiles no graphs, the graph is refused, memory is short, or the engine cannot be stored.
pub(crate) fn build(
    runtime: &OnnxRuntime,
    graph: &Path,
    options: &OpenOptions,
) -> Result<BuiltEngine, Error> {
    runtime.use_provider(options.device)?;
    let source = GraphSource::File(graph);
    let cannot = |why: &str| ProviderError::NotCompiled {
        graph: source.name(),
        device: options.device,
        why: why.to_owned(),
    };
    if options.device.provider().compilation() == Compilation::None {
        return Err(cannot("it opens graphs as they are").into());
    }
    let store = runtime.engines().ok_or_else(|| cannot(NO_STORE))?;
    let builder = |engine: Option<&Path>| session_builder(runtime, options, engine);
    let (wanted, compiler) = wanted(runtime, source, options, &builder)?;
    compiled::build(store, &wanted.ok_or_else(|| cannot(NO_CONTENT))?, &compiler)
}

/// Checks that a graph can be opened without an engine, or that there is one that looks whole.
///
/// # Errors
/// There is none, and the graph is not compiled when it is opened.
pub(crate) fn check(
    runtime: &OnnxRuntime,
    graph: GraphSource<'_>,
    options: &OpenOptions,
) -> Result<(), Error> {
    let compilation = options.device.provider().compilation();
    if compilation == Compilation::None {
        return Ok(());
    }
    runtime.use_provider(options.device)?;
    let builder = |engine: Option<&Path>| session_builder(runtime, options, engine);
    let (wanted, _) = wanted(runtime, graph, options, &builder)?;
    match (runtime.engines(), wanted) {
        (Some(store), Some(wanted)) => compiled::check(store, &wanted),
        _ if compilation == Compilation::FixedShape => Err(no_engine(runtime, graph, options.device)),
        _ => Ok(()),
    }
}

/// There is no store, or nothing to find an engine by.
fn no_engine(runtime: &OnnxRuntime, graph: GraphSource<'_>, device: Device) -> Error {
    let why = if runtime.engines().is_none() { NO_STORE } else { NO_CONTENT };
    ProviderError::NoEngine { graph: graph.name(), device, why: Some(why.into()) }.into()
}

/// The engine of a graph, if its content is known, and what compiles it.
fn wanted<'a>(
    runtime: &'a OnnxRuntime,
    graph: GraphSource<'a>,
    options: &'a OpenOptions,
    builder: MakeBuilder<'a>,
) -> Result<(Option<Wanted>, OnnxCompiler<'a>), Error> {
    let provider = options.device.provider();
    let of_bundle = match graph {
        GraphSource::File(path) => GraphOfBundle::find(path),
        GraphSource::Memory { .. } => None,
    };
    let extents = match (options.shape, &of_bundle) {
        (Some(shape), Some(found)) => extents(shape, found.patch),
        _ => Vec::new(),
    };
    let compiler = OnnxCompiler { runtime, graph, options, builder, extents };
    let Some(content) = options.content else { return Ok((None, compiler)) };
    let devices = runtime.devices_of(provider)?;
    let Some(facts) = devices.into_iter().find(|facts| facts.device == options.device) else {
        return Err(ProviderError::NoDevice { device: options.device, found: Vec::new() }.into());
    };
    let name = graph.name();
    let wanted = Wanted {
        key: EngineKey {
            content,
            provider,
            provider_version: facts.version_word(),
            onnx_runtime: runtime.version().to_owned(),
            architecture: facts.architecture_word(),
            precision: options.precision,
            shape: options.shape,
            lora: options.lora,
        },
        device: options.device,
        subject: of_bundle.map_or_else(|| EngineSubject::of_file(&name), |found| found.subject),
        graph: name,
        first_use: match provider.compilation() {
            Compilation::FixedShape => FirstUse::Refuse,
            Compilation::None | Compilation::AnyShape => options.first_use,
        },
    };
    Ok((Some(wanted), compiler))
}

/// The options of a session on the accelerator of `options`. The operators of Rushes are not in it. With `engine`, the
/// session compiles its graph and writes the engine to that file.
pub(crate) fn session_builder(
    runtime: &OnnxRuntime,
    options: &OpenOptions,
    engine: Option<&Path>,
) -> Result<SessionBuilder, Error> {
    let refused = |error: ort::Error| refused(options.device, &error);
    let builder = general_options(runtime).map_err(refused)?;
    match (access(options.device.provider()), engine) {
        (Some(access), Some(engine)) => access.append_compiling(runtime, builder, options, engine),
        (Some(access), None) => access.append(runtime, builder, options),
        (None, _) => Ok(builder),
    }
}

fn refused(device: Device, error: &ort::Error) -> Error {
    ProviderError::Refused { device, why: ort_error::text(error) }.into()
}

fn general_options(runtime: &OnnxRuntime) -> ort::Result<SessionBuilder> {
    let (record, yes) = node_assignment::RECORD;
    Ok(Session::builder(runtime.environment())?
        .with_log_level(LogLevel::Warning)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_config_entry(record, yes)?
        // What is folded is copied into memory, and TensorRT takes no more than 2 GB of it.
        .with_config_entry("optimization.constant_folding_max_output_size_in_bytes", "1048576")?
        .with_memory_pattern(false)?)
}
