//! Compiles graphs with ONNX Runtime, and opens compiled engines.

use crate::compiled::{Compatibility, Compiler};
use crate::node_assignment::{self, IntegerNodes};
use crate::{
    Device, Error, GraphError, GraphSource, NodePlacement, OnnxRuntime, OpenOptions, Provider, ProviderError,
    ort_error,
};
use ort::device::{CompatibilityInfo, DeviceCompatibility};
use ort::ep::ExecutionProvider;
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use std::path::Path;

/// Makes the options of a session on the device; with the path of an engine, for a session that writes it.
pub(crate) type MakeBuilder<'a> = &'a dyn Fn(Option<&Path>) -> Result<SessionBuilder, Error>;

/// Compiles one graph for one device.
///
/// It uses sessions that write their engine (`ep.context_enable`) and not the compiler of ONNX Runtime, which writes the
/// same bytes: only a session says on which providers the nodes of the graph run.
pub(crate) struct OnnxCompiler<'a> {
    pub(crate) runtime: &'a OnnxRuntime,
    pub(crate) graph: GraphSource<'a>,
    pub(crate) options: &'a OpenOptions,
    pub(crate) builder: MakeBuilder<'a>,
    /// Extents of the graph's symbols, for engines of one shape.
    pub(crate) extents: Vec<(String, i64)>,
}

/// The names under which the plug-ins write in an engine what it is compatible with. `ort` has them only with features
/// that build the providers in.
macro_rules! plug_ins {
    ($($name:ident),+) => {
        $(struct $name;

        impl ExecutionProvider for $name {
            const NAME: &'static str = Provider::$name.onnx_name();

            fn register(&self, _builder: &mut SessionBuilder) -> ort::Result<()> {
                Err(ort::Error::new("it is registered as a plug-in"))
            }
        })+
    };
}

plug_ins!(OpenVino, TensorRtRtx);

/// Never compile: an engine must be opened as it is.
const NO_COMPILATION: (&str, &str) = ("session.disable_model_compile", "1");

impl OnnxCompiler<'_> {
    fn device(&self) -> Device {
        self.options.device
    }

    fn refused(&self, error: &ort::Error) -> Error {
        ProviderError::Refused { device: self.device(), why: ort_error::text(error) }.into()
    }

    /// The options of a session that compiles the graph.
    fn compiling(&self, engine: Option<&Path>) -> Result<SessionBuilder, Error> {
        let refused = |error: ort::Error| self.refused(&error);
        let mut builder = (self.builder)(engine)?;
        for (symbol, extent) in &self.extents {
            builder =
                builder.with_dimension_override(symbol, *extent).map_err(|error| refused(error.into()))?;
        }
        let Some(engine) = engine else { return Ok(builder) };
        let Some(path) = engine.to_str() else {
            let why = format!("ONNX Runtime writes no engine to {}: the path is not UTF-8", engine.display());
            return Err(ProviderError::Refused { device: self.device(), why }.into());
        };
        let entries =
            [("ep.context_enable", "1"), ("ep.context_file_path", path), ("ep.context_embed_mode", "0")];
        for (key, value) in entries {
            builder = builder.with_config_entry(key, value).map_err(|error| refused(error.into()))?;
        }
        Ok(builder)
    }

    /// Compiles the graph, and checks where its nodes run.
    fn compiled(&self, engine: Option<&Path>) -> Result<(Session, NodePlacement), Error> {
        let name = self.graph.name();
        let failed = |error: ort::Error| ort_error::open_error(Path::new(&name), self.device(), &error);
        let mut builder = self.compiling(engine)?;
        let session = match self.graph {
            GraphSource::File(path) => {
                if let Err(source) = std::fs::File::open(path) {
                    return Err(GraphError::Unreadable { path: path.to_owned(), source }.into());
                }
                builder.commit_from_file(path)
            }
            GraphSource::Memory { bytes, .. } => builder.commit_from_memory(bytes),
        };
        let session = session.map_err(failed)?;
        let placement = node_assignment::of_session(&session, self.device(), &IntegerNodes::of(self.graph))
            .map_err(failed)?;
        node_assignment::check(&name, self.device(), self.options.cpu_nodes, &placement)?;
        Ok((session, placement))
    }

    fn compatibility_as<P: ExecutionProvider>(&self, model: &Path) -> Compatibility {
        let info = match CompatibilityInfo::<P>::from_compiled_model_file(model) {
            Ok(Some(info)) => info,
            Ok(None) => return Compatibility::Unknown,
            Err(error) => return Compatibility::Unsupported(ort_error::text(&error)),
        };
        let index = usize::try_from(self.device().index()).unwrap_or(usize::MAX);
        let found =
            self.runtime.with_device(self.device().provider(), index, |device| device.compatibility(&info));
        match found {
            Some(Ok(DeviceCompatibility::SupportedOptimal)) => Compatibility::Supported,
            Some(Ok(DeviceCompatibility::SupportedPreferRecompilation)) => {
                Compatibility::Unsupported("it advises to compile it again".into())
            }
            Some(Ok(DeviceCompatibility::Unsupported)) => {
                Compatibility::Unsupported("it was made for another processor or version".into())
            }
            Some(Ok(_)) | None => Compatibility::Unknown,
            Some(Err(error)) => Compatibility::Unsupported(ort_error::text(&error)),
        }
    }
}

impl Compiler for OnnxCompiler<'_> {
    type Session = Session;

    fn compile(&self, model: &Path) -> Result<NodePlacement, Error> {
        self.compiled(Some(model)).map(|(_, placement)| placement)
    }

    fn open(&self, model: &Path) -> Result<(Session, Vec<String>), Error> {
        let failed = |error: ort::Error| ort_error::open_error(model, self.device(), &error);
        let (key, yes) = NO_COMPILATION;
        let mut builder =
            (self.builder)(None)?.with_config_entry(key, yes).map_err(|error| self.refused(&error.into()))?;
        let session = builder.commit_from_file(model).map_err(failed)?;
        let operators = node_assignment::operators(&session).map_err(failed)?;
        Ok((session, operators))
    }

    fn in_memory(&self) -> Result<(Session, NodePlacement), Error> {
        self.compiled(None)
    }

    fn compatibility(&self, model: &Path) -> Compatibility {
        match self.device().provider() {
            Provider::OpenVino => self.compatibility_as::<OpenVino>(model),
            Provider::TensorRtRtx => self.compatibility_as::<TensorRtRtx>(model),
            // TensorRT is no plug-in. It checks version and architecture itself when it opens an engine.
            Provider::TensorRt | Provider::Cpu | Provider::Cuda | Provider::WebGpu => Compatibility::Unknown,
        }
    }
}
