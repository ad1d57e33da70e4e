//! A bundle with its run options.

pub use crate::graph_use::{GraphUse, content_of, engine_shape, loras_of};
pub use crate::model_options::{ModelOptions, choose_variant};

use crate::Error;
use crate::engine_command::EngineCommand;
use crate::footprint::SessionSettings;
use crate::known_faults;
use crate::text_store::TextStore;
use bundle::Field;
use bundle::lock::ReadLock;
use bundle::manifest::{Bundle, Component, ComponentEntry, GraphEntry, Manifest, Part};
use bundle::routing::ExpertName;
use bundle::signature::Signature;
use bundle::units::ByteCount;
use bundle::variant::{KernelLibrary, Variant};
use engines::residency::Residency;
use engines::sessions::{Lease, Purpose, SessionKey, SessionRequest, Sessions};
use engines::{
    Cancel, Compilation, Device, Engine, EngineShape, FirstUse, GraphSource, NodePlacement, OnnxRuntime,
    OpenOptions, Outputs, Placement, PlacementRequest, Provider, ProviderError,
};
use ndarray::{Array, Dimension};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A bundle, the sessions that its graphs are opened in, and the run options. Cheap to clone. The parts of the pipeline
/// borrow sessions.
///
/// # Examples
/// ```no_run
/// use runtime::model::{Model, ModelOptions};
/// use std::path::Path;
///
/// let model = Model::open(Path::new("bundle"), ModelOptions::default())?;
/// println!("{} with {:?}", model.manifest().model, model.variant());
/// # Ok::<(), runtime::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Model {
    bundle: Arc<Bundle>,
    folder: Arc<Path>,
    digest: Arc<str>,
    sessions: Sessions,
    variant: Variant,
    placement: Arc<Placement>,
    engine_options: OpenOptions,
    purpose: Purpose,
    opening: Arc<AtomicU64>,
    placed: Arc<Mutex<Vec<PlacedGraph>>>,
    texts: Option<Arc<TextStore>>,
    /// Keeps other processes from removing files of the bundle.
    _read_lock: Arc<ReadLock>,
}

impl Model {
    /// Creates a model from an open bundle, with sessions of its own that may use the memory that is available.
    ///
    /// # Errors
    /// The bundle has no graphs for the device, precision or kernels.
    pub fn new(bundle: Bundle, onnx: OnnxRuntime, options: ModelOptions) -> Result<Self, Error> {
        Self::with_sessions(bundle, &Sessions::in_available_memory(onnx, Residency::Auto), options)
    }

    /// Creates a model from an open bundle whose graphs are opened in `sessions`.
    ///
    /// # Errors
    /// The bundle has no graphs for the device, precision or kernels.
    pub fn with_sessions(bundle: Bundle, sessions: &Sessions, options: ModelOptions) -> Result<Self, Error> {
        let has_graphs = |target| !bundle.manifest.precisions(target, KernelLibrary::Rushes).is_empty();
        let best = || sessions.backend().best_device(&has_graphs).device;
        let device = options.device.device().unwrap_or_else(best);
        let target = sessions.backend().target(device)?;
        let path = sessions.backend().info().cpu_path;
        let variant = choose_variant(&bundle.manifest, target, path, &options)?;
        let read_lock = Arc::new(ReadLock::acquire(&bundle.folder));
        Ok(Self {
            folder: bundle.folder.as_path().into(),
            digest: bundle.manifest.digest().blake3.into(),
            bundle: Arc::new(bundle),
            sessions: sessions.clone(),
            variant,
            placement: Arc::new(Placement::on(device)),
            engine_options: OpenOptions {
                device,
                cpu_nodes: options.cpu_nodes,
                ..OpenOptions::cpu(options.threads, options.weights)
            },
            purpose: Purpose::Clip,
            opening: Arc::default(),
            placed: Arc::default(),
            texts: None,
            _read_lock: read_lock,
        })
    }

    /// Places components on devices. The others stay on the device of the options.
    ///
    /// # Errors
    /// The bundle lacks a component, or no graphs can run on a device.
    pub fn placed(self, request: &PlacementRequest) -> Result<Self, Error> {
        let placement = Placement::new(self.manifest(), self.engine_options.device, request)?;
        for device in placement.devices() {
            self.sessions.backend().target(device)?;
        }
        Ok(Self { placement: Arc::new(placement), ..self })
    }

    /// Keeps text states in a store, and takes them from there.
    #[must_use]
    pub fn with_text_store(self, texts: Option<Arc<TextStore>>) -> Self {
        Self { texts, ..self }
    }

    /// Where text states are kept, if they are.
    pub fn text_store(&self) -> Option<&TextStore> {
        self.texts.as_deref()
    }

    /// The device of each component.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Opens the bundle in `folder` and loads ONNX Runtime from its default locations.
    ///
    /// # Errors
    /// The bundle or the library is missing, or the bundle has no graphs for the options.
    pub fn open(folder: &Path, options: ModelOptions) -> Result<Self, Error> {
        let bundle = Bundle::open(folder)?;
        Self::new(bundle, OnnxRuntime::load(None)?, options)
    }

    /// A digest of `bundle.json`, which has the digests of the files: another bundle may be written to the same folder.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The content of `bundle.json`.
    pub fn manifest(&self) -> &Manifest {
        &self.bundle.manifest
    }

    /// The bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Returns the same model for previews: its sessions are its own, run on one thread, because denoising needs the
    /// others, and have a [`Self::time_opening`] of their own.
    pub fn for_previews(&self) -> Self {
        let engine_options = OpenOptions { threads: Some(NonZeroUsize::MIN), ..self.engine_options };
        Self { engine_options, purpose: Purpose::Preview, opening: Arc::default(), ..self.clone() }
    }

    /// On which providers the nodes of the graphs ran that this model and its clones have borrowed. Graphs on the CPU are
    /// not in it: all their nodes run there.
    pub fn placed_graphs(&self) -> Vec<PlacedGraph> {
        self.placed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The owner of the open graphs.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// The options that a graph of a component is opened with on a device, for clips of a shape.
    pub(crate) fn open_options(
        &self,
        device: Device,
        entry: &ComponentEntry,
        graph: &GraphEntry,
        shape: Option<EngineShape>,
    ) -> OpenOptions {
        let options = OpenOptions { device, ..self.engine_options };
        match device.provider().compilation() {
            _ if device.provider() == Provider::Cpu => options,
            Compilation::None => OpenOptions { precision: graph.variant.precision, ..options },
            compilation => OpenOptions {
                precision: graph.variant.precision,
                content: content_of(self.manifest(), entry, graph),
                lora: loras_of(entry),
                shape: shape.filter(|_| compilation == Compilation::FixedShape),
                first_use: if entry.weights_of(graph.variant) < FIRST_USE_WEIGHTS {
                    FirstUse::Compile
                } else {
                    FirstUse::Refuse
                },
                ..options
            },
        }
    }

    /// The options that the graphs are opened with, on the device of components that are not placed elsewhere.
    pub fn engine_options(&self) -> OpenOptions {
        self.engine_options
    }

    /// The variant that runs for a component.
    ///
    /// # Errors
    /// The bundle lacks the component or its graphs.
    pub fn variant_of(&self, component: &Component) -> Result<Variant, Error> {
        self.variant_on(self.placement.device_of(component), component)
    }

    /// As [`Self::variant_of`], on one of the devices of a component.
    ///
    /// # Errors
    /// The bundle lacks the component or its graphs.
    pub fn variant_on(&self, device: Device, component: &Component) -> Result<Variant, Error> {
        let part = if *component == Component::Decoder { Part::First } else { Part::Whole };
        Ok(self.graph_on(device, component, part)?.variant)
    }

    /// Time that this model and its clones have spent opening graphs and the tokenizer.
    pub fn time_opening(&self) -> Duration {
        Duration::from_nanos(self.opening.load(Ordering::Relaxed))
    }

    /// The variant that runs. Parts without graphs for its kernels run on ONNX Runtime kernels.
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// The variant that runs, with the kernels that its graphs are written for: those of ONNX Runtime if no component
    /// has graphs for Rushes kernels.
    pub fn effective_variant(&self) -> Variant {
        let has_rushes = self.manifest().has_rushes_kernels(self.variant.precision);
        let kernels = if has_rushes { self.variant.kernels } else { KernelLibrary::OnnxRuntime };
        Variant { kernels, ..self.variant }
    }

    /// Returns the graph that runs for a part. Its precision may differ from that of [`Self::variant`], see
    /// [`Manifest::precision_of`].
    ///
    /// # Errors
    /// The bundle lacks the component or part.
    pub fn graph(&self, component: &Component, part: Part) -> Result<&GraphEntry, Error> {
        self.graph_on(self.placement.device_of(component), component, part)
    }

    /// As [`Self::graph`], on one of the devices of a component.
    ///
    /// # Errors
    /// The bundle lacks the component or part.
    pub fn graph_on(&self, device: Device, component: &Component, part: Part) -> Result<&GraphEntry, Error> {
        let entry = self.manifest().component(component)?;
        let target = self.sessions.backend().target(device)?;
        let precision = self.manifest().precision_of(entry, self.variant.precision);
        let variant = Variant { target, precision, ..self.variant };
        if entry.variant(variant).is_some() {
            known_faults::refuse(device.provider(), component, precision, entry.weight_type)?;
        }
        Ok(entry.graph(part, variant)?)
    }

    /// Checks that the bundle has every graph of a clip, so that a missing decoder is an error before denoising.
    /// `tiled` is true if frames are decoded in more than one tile.
    ///
    /// # Errors
    /// The first component or part that is missing for this variant.
    pub fn check_parts(&self, tiled: bool) -> Result<(), Error> {
        let experts = self.manifest().routing.routes().iter();
        let experts = experts.map(|route| (Component::Expert(route.expert.clone()), Part::Whole));
        let decoder = [Part::First, Part::Next].map(|part| (Component::Decoder, part));
        let whole = std::iter::once((Component::TextEncoder, Part::Whole)).chain(experts).chain(decoder);
        for (component, part) in whole {
            for device in self.placement.devices_of(&component) {
                self.graph_on(device, &component, part)?;
            }
        }
        let parts = [Part::TrunkFirst, Part::UpsamplerFirst, Part::TrunkNext, Part::UpsamplerNext];
        if tiled && parts.iter().any(|part| self.graph(&Component::Decoder, *part).is_err()) {
            let rule =
                format!("the {} variant of the decoder decodes whole frames only", self.variant.precision);
            let fix = "decode whole frames with `tile` off, or use the `precision` of an exported variant";
            return Err(bundle::Error::value(Field::Tile, "used", rule, fix).into());
        }
        Ok(())
    }

    /// What memory predictions need to know about the sessions of a component.
    ///
    /// # Errors
    /// No graphs can run on the device of the component.
    pub fn session_settings(&self, component: &Component) -> Result<SessionSettings, Error> {
        self.session_settings_on(self.placement.device_of(component))
    }

    /// As [`Self::session_settings`], on a device.
    ///
    /// # Errors
    /// No graphs can run on the device.
    pub fn session_settings_on(&self, device: Device) -> Result<SessionSettings, Error> {
        let OpenOptions { threads, weights, .. } = self.engine_options;
        let target = self.sessions.backend().target(device)?;
        let (provider, variant) = (device.provider(), Some(Variant { target, ..self.variant }));
        Ok(SessionSettings { provider, variant, weights, threads })
    }

    /// Borrows the session of a graph, which is opened if necessary.
    ///
    /// # Errors
    /// The bundle lacks the graph, the graph cannot be opened or does not fit the memory, or the run is cancelled.
    pub fn lend(&self, graph: &GraphUse<'_>, cancel: &Cancel) -> Result<Lease, Error> {
        let device = self.placement.device_of(graph.component);
        let lease = self.lend_on(device, graph, cancel)?;
        self.add_opening(lease.opening().unwrap_or_default());
        Ok(lease)
    }

    /// As [`Self::lend`], on one of the devices of a component, without adding to [`Self::time_opening`].
    pub(crate) fn lend_on(
        &self,
        device: Device,
        graph: &GraphUse<'_>,
        cancel: &Cancel,
    ) -> Result<Lease, Error> {
        let GraphUse { component, part, contract, need, shape } = *graph;
        let entry = self.manifest().component(component)?;
        let graph = self.graph_on(device, component, part)?;
        let key = SessionKey {
            bundle: Arc::clone(&self.folder),
            digest: Arc::clone(&self.digest),
            component: component.clone(),
            part,
            variant: graph.variant,
            options: self.open_options(device, entry, graph, shape),
            purpose: self.purpose,
        };
        if !self.sessions.is_open(&key) {
            self.check_weight_files(component)?;
        }
        let path = self.bundle.path(&graph.file);
        let stage = self.stage(component, part);
        let request = SessionRequest { key, graph: &path, contract, need, stage };
        let lease = self.sessions.lend(&request, cancel);
        let lease = lease.map_err(|error| self.with_command(error, device, shape))?;
        if let Some(nodes) = lease.nodes() {
            let mut placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
            let is_it = |graph: &PlacedGraph| {
                (&graph.component, graph.part, graph.device) == (component, part, device)
            };
            if !placed.iter().any(is_it) {
                placed.push(PlacedGraph { component: component.clone(), part, device, nodes: nodes.clone() });
            }
        }
        Ok(lease)
    }

    /// An error with the command that builds the engine, if that is what is missing on a device.
    pub(crate) fn with_command(
        &self,
        error: engines::Error,
        device: Device,
        shape: Option<EngineShape>,
    ) -> Error {
        if !matches!(error, engines::Error::Provider(ProviderError::NoEngine { .. })) {
            return error.into();
        }
        let chosen = self.manifest().precisions(device.target(), KernelLibrary::Rushes);
        let command = EngineCommand {
            bundle: &self.folder,
            device,
            precision: Some(self.variant.precision).filter(|own| chosen.first() != Some(own)),
            shape: shape.filter(|_| device.provider().compilation() == Compilation::FixedShape),
            stride: self.manifest().vae.stride(),
        };
        Error::NoEngine { command: command.text(), source: Box::new(error) }
    }

    /// Closes the sessions of a component on a device, unless they are lent. Returns how many were closed.
    pub fn close_idle(&self, component: &Component, device: Device) -> usize {
        self.sessions.close_idle_where(|key| self.is_of(key, component, device))
    }

    /// The measured memory of the sessions of a component on a device, all together; `None` if there are none, or one
    /// of them was not measured.
    pub fn measured_memory(&self, component: &Component, device: Device) -> Option<ByteCount> {
        let usage = self.sessions.usage();
        let on_device = usage.iter().filter(|usage| usage.device == device.memory());
        let own = on_device.flat_map(|usage| &usage.sessions);
        let own = own.filter(|session| self.is_of(&session.key, component, device));
        let bytes: Vec<ByteCount> = own.map(|session| session.measured.held()).collect();
        let is_measured = !bytes.is_empty() && bytes.iter().all(|bytes| bytes.0 > 0);
        is_measured.then(|| bytes.into_iter().sum())
    }

    /// Returns true if this model lends the session for a component on a device.
    fn is_of(&self, key: &SessionKey, component: &Component, device: Device) -> bool {
        let OpenOptions { threads, weights, .. } = self.engine_options;
        let variant = || self.graph_on(device, component, key.part).map(|graph| graph.variant);
        let (options, own) = (&key.options, (device, threads, weights));
        (&*key.bundle, &*key.digest, &key.component, key.purpose)
            == (&*self.folder, &*self.digest, component, self.purpose)
            && (options.device, options.threads, options.weights) == own
            && variant().is_ok_and(|variant| variant == key.variant)
    }

    /// Opens one graph outside the sessions, for tools that measure a graph alone. Its memory is not counted.
    ///
    /// # Errors
    /// The bundle lacks the graph, or it cannot be opened.
    pub fn open_alone(
        &self,
        component: &Component,
        part: Part,
        contract: &Signature,
    ) -> Result<Engine, Error> {
        self.open_alone_for(component, part, contract, None)
    }

    /// As [`Self::open_alone`], for clips of a shape, which devices need whose engines run one shape.
    ///
    /// # Errors
    /// The bundle lacks the graph, or it cannot be opened.
    pub fn open_alone_for(
        &self,
        component: &Component,
        part: Part,
        contract: &Signature,
        shape: Option<EngineShape>,
    ) -> Result<Engine, Error> {
        let graph = self.graph(component, part)?;
        let path = self.bundle.path(&graph.file);
        self.check_weight_files(component)?;
        let source = GraphSource::File(&path);
        let device = self.placement.device_of(component);
        let mut options = self.open_options(device, self.manifest().component(component)?, graph, shape);
        if device.provider().compilation() == Compilation::FixedShape {
            options.first_use = FirstUse::InMemory;
        }
        let open = || Engine::open(self.sessions.backend(), source, contract, &options);
        Ok(self.measure_opening(open)?)
    }

    /// Checks that the weights have the length that they were written with. ONNX Runtime maps them, and reading beyond
    /// the end of a mapped file kills the process (SIGBUS).
    fn check_weight_files(&self, component: &Component) -> Result<(), Error> {
        for file in self.manifest().component(component)?.weight_files() {
            self.bundle.check_length(&file.file)?;
        }
        Ok(())
    }

    /// The place of a graph in the order in which a clip uses its graphs.
    fn stage(&self, component: &Component, part: Part) -> u32 {
        let routes = self.manifest().routing.routes();
        let experts = routes.len();
        let expert =
            |name: &ExpertName| routes.iter().position(|route| route.expert == *name).unwrap_or(experts);
        let is_first = matches!(part, Part::First | Part::TrunkFirst | Part::UpsamplerFirst);
        let stage = match (self.purpose, component) {
            // Previews are used between the steps of every expert.
            (Purpose::Preview, _) => 2,
            (Purpose::Clip, Component::TextEncoder) => 0,
            (Purpose::Clip, Component::ImageEncoder) => 1,
            (Purpose::Clip, Component::Expert(name)) => 2 + expert(name),
            (Purpose::Clip, Component::Decoder | Component::Preview) => 3 + experts + usize::from(!is_first),
        };
        u32::try_from(stage).unwrap_or(u32::MAX)
    }

    /// Runs `work` and adds its duration to [`Self::time_opening`].
    pub fn measure_opening<T>(&self, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let done = work();
        self.add_opening(began.elapsed());
        done
    }

    /// Adds to [`Self::time_opening`].
    pub(crate) fn add_opening(&self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.opening.fetch_add(took, Ordering::Relaxed);
    }
}

/// Graphs with fewer bytes of weights are compiled when they are first opened, on devices whose engines run every shape.
const FIRST_USE_WEIGHTS: ByteCount = ByteCount(1_000_000_000);

/// On which providers the nodes of a graph run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedGraph {
    /// The component.
    pub component: Component,
    /// The graph of the component.
    pub part: Part,
    /// The device.
    pub device: Device,
    /// Where its nodes run.
    pub nodes: NodePlacement,
}

/// The signature of a step's graph for these kernels.
pub fn step_contract(manifest: &Manifest, kernels: KernelLibrary) -> Signature {
    match kernels {
        KernelLibrary::OnnxRuntime => Signature::of_step(&manifest.denoiser),
        KernelLibrary::Rushes => Signature::of_step_with_key_bias(&manifest.denoiser),
    }
}

/// Copies the f32 output `name`, with a known number of axes, out of ONNX Runtime's memory.
///
/// # Errors
/// The output is missing, is not f32, or has another number of axes.
pub fn take_array<D: Dimension>(outputs: &mut Outputs, name: &str) -> Result<Array<f32, D>, Error> {
    let array = outputs.take(name)?.to_f32()?;
    let found = array.ndim();
    let Ok(array) = array.into_dimensionality() else {
        return Err(Error::Rank { tensor: name.to_owned(), expected: D::NDIM.unwrap_or(found), found });
    };
    Ok(array)
}

/// Checks the shape of an output whose signature leaves extents open.
///
/// # Errors
/// The shape is not the expected one.
pub(crate) fn check_shape(output: &str, found: &[usize], expected: &[usize]) -> Result<(), Error> {
    if found == expected {
        return Ok(());
    }
    Err(Error::OutputShape { output: output.to_owned(), expected: expected.to_vec(), found: found.to_vec() })
}
