//! A bundle with its run options.

use crate::Error;
use bundle::Field;
use bundle::lock::ReadLock;
use bundle::manifest::{Bundle, Component, GraphEntry, Manifest, Part};
use bundle::signature::Signature;
use bundle::variant::{KernelLibrary, Precision, Target, Variant};
use engines::{Engine, OnnxRuntime, OpenOptions, Outputs, Provider, WeightMemory};
use kernels::CpuPath;
use ndarray::{Array, Dimension};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Options for running the graphs of a bundle.
///
/// # Examples
/// ```
/// use bundle::variant::{KernelLibrary, Precision};
/// use engines::WeightMemory;
/// use runtime::model::ModelOptions;
/// use std::num::NonZeroUsize;
///
/// let options = ModelOptions {
///     precision: Some(Precision::Int8),
///     kernels: Some(KernelLibrary::Rushes),
///     threads: NonZeroUsize::new(4),
///     weights: WeightMemory::Mapped,
///     ..ModelOptions::default()
/// };
/// # assert_ne!(options, ModelOptions::default());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelOptions {
    /// Precision of the variant; `None` selects the first of [`Precision::ALL`] that the bundle has, the exported one.
    pub precision: Option<Precision>,
    /// Kernels on the CPU; `None` selects Rushes kernels if the bundle has graphs for them and they are fast on this
    /// processor.
    pub kernels: Option<KernelLibrary>,
    /// Execution provider.
    pub provider: Provider,
    /// Threads of one graph; `None` uses every core.
    pub threads: Option<NonZeroUsize>,
    /// The location of weights: copied into memory, which makes steps faster, or mapped from the file.
    pub weights: WeightMemory,
}

impl Default for ModelOptions {
    /// The bundle's first variant on the CPU, with every core and weights in memory.
    fn default() -> Self {
        Self {
            precision: None,
            kernels: None,
            provider: Provider::Auto,
            threads: None,
            weights: WeightMemory::Prepacked,
        }
    }
}

impl ModelOptions {
    /// The default options for `variant` on the CPU; `None` selects the bundle's first precision.
    pub fn of_variant(variant: Option<Variant>) -> Self {
        Self {
            precision: variant.map(|variant| variant.precision),
            kernels: variant.map(|variant| variant.kernels),
            ..Self::default()
        }
    }
}

/// A bundle, an ONNX Runtime and the run options. Cheap to clone. Graphs are opened by the parts of the pipeline.
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
    onnx: OnnxRuntime,
    variant: Variant,
    engine_options: OpenOptions,
    opening: Arc<AtomicU64>,
    /// Keeps other processes from removing files of the bundle.
    _read_lock: Arc<ReadLock>,
}

impl Model {
    /// Creates a model from an open bundle.
    ///
    /// # Errors
    /// The bundle has no graphs for the provider, precision or kernels.
    pub fn new(bundle: Bundle, onnx: OnnxRuntime, options: ModelOptions) -> Result<Self, Error> {
        let target = options.provider.target()?;
        let variant = choose_variant(&bundle.manifest, target, onnx.kernels().path(), &options)?;
        let engine_options = OpenOptions { threads: options.threads, weights: options.weights };
        let (opening, read_lock) = (Arc::default(), Arc::new(ReadLock::acquire(&bundle.folder)));
        let bundle = Arc::new(bundle);
        Ok(Self { bundle, onnx, variant, engine_options, opening, _read_lock: read_lock })
    }

    /// Opens the bundle in `folder` and loads ONNX Runtime from its default locations.
    ///
    /// # Errors
    /// The bundle or the library is missing, or the bundle has no graphs for the options.
    pub fn open(folder: &Path, options: ModelOptions) -> Result<Self, Error> {
        let bundle = Bundle::open(folder)?;
        Self::new(bundle, OnnxRuntime::load(None)?, options)
    }

    /// The content of `bundle.json`.
    pub fn manifest(&self) -> &Manifest {
        &self.bundle.manifest
    }

    /// The bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Returns the same model with another number of threads and a [`Self::time_opening`] of its own.
    pub fn with_threads(&self, threads: NonZeroUsize) -> Self {
        let engine_options = OpenOptions { threads: Some(threads), ..self.engine_options };
        Self { engine_options, opening: Arc::default(), ..self.clone() }
    }

    /// The ONNX Runtime that runs the graphs.
    pub fn onnx_runtime(&self) -> &OnnxRuntime {
        &self.onnx
    }

    /// The options that graphs are opened with.
    pub fn engine_options(&self) -> OpenOptions {
        self.engine_options
    }

    /// The variant that runs for a component.
    ///
    /// # Errors
    /// The bundle lacks the component or its graphs.
    pub fn variant_of(&self, component: &Component) -> Result<Variant, Error> {
        let part = if *component == Component::Decoder { Part::First } else { Part::Whole };
        Ok(self.graph(component, part)?.variant)
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

    /// Returns the graph that runs for a part.
    ///
    /// # Errors
    /// The bundle lacks the component or part.
    pub fn graph(&self, component: &Component, part: Part) -> Result<&GraphEntry, Error> {
        let entry = self.manifest().component(component)?;
        let exported = match component {
            // Their graphs exist only in the exported precision.
            Component::ImageEncoder | Component::Preview => {
                entry.graphs.iter().find(|graph| graph.variant.target == self.variant.target)
            }
            Component::TextEncoder | Component::Expert(_) | Component::Decoder => None,
        };
        let precision = exported.map_or(self.variant.precision, |graph| graph.variant.precision);
        Ok(entry.graph(part, Variant { precision, ..self.variant })?)
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
            self.graph(&component, part)?;
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

    /// Opens one graph and checks it against its signature.
    pub fn engine(&self, component: &Component, part: Part, contract: &Signature) -> Result<Engine, Error> {
        let graph = self.graph(component, part)?;
        // ONNX Runtime maps the weights; reading beyond the end of a mapped file kills the process (SIGBUS).
        let entry = self.manifest().component(component)?;
        for file in entry.weight_files() {
            self.bundle.check_length(&file.file)?;
        }
        let opened = self.measure_opening(|| {
            self.onnx.open(&self.bundle.path(&graph.file), contract, &self.engine_options)
        });
        Ok(opened?)
    }

    /// Runs `work` and adds its duration to [`Self::time_opening`].
    pub fn measure_opening<T>(&self, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let done = work();
        let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.opening.fetch_add(took, Ordering::Relaxed);
        done
    }
}

/// The signature of a step's graph for these kernels.
pub fn step_contract(manifest: &Manifest, kernels: KernelLibrary) -> Signature {
    match kernels {
        KernelLibrary::OnnxRuntime => Signature::of_step(&manifest.denoiser),
        KernelLibrary::Rushes => Signature::of_step_with_key_bias(&manifest.denoiser),
    }
}

/// The variant of a bundle that runs with these options and the Rushes kernels of `path`, without opening anything.
///
/// # Errors
/// The bundle has no graphs for the options.
pub fn choose_variant(
    manifest: &Manifest,
    target: Target,
    path: CpuPath,
    options: &ModelOptions,
) -> Result<Variant, Error> {
    let pick = |kernels| {
        let available = manifest.precisions(target, kernels);
        match options.precision {
            Some(asked) => available.into_iter().find(|precision| *precision == asked),
            None => available.first().copied(),
        }
    };
    // The scalar path of Rushes kernels is slower than ONNX Runtime's vector kernels.
    let is_fast = path != CpuPath::Scalar;
    let wanted = match options.kernels {
        Some(asked) => asked,
        None if is_fast || pick(KernelLibrary::OnnxRuntime).is_none() => KernelLibrary::Rushes,
        None => KernelLibrary::OnnxRuntime,
    };
    let Some(precision) = pick(wanted) else {
        let asked = options.precision.map_or(target.to_string(), |asked| format!("{target} {asked}"));
        let available = manifest.precisions(target, KernelLibrary::Rushes);
        return Err(Error::Contract(bundle::Error::NoGraph {
            component: "the whole model".into(),
            asked: if wanted == KernelLibrary::OnnxRuntime {
                format!("{asked} in ONNX Runtime kernels")
            } else {
                asked
            },
            available: available.iter().map(|precision| format!("{target} {precision}")).collect(),
        }));
    };
    if options.kernels == Some(KernelLibrary::Rushes) && !manifest.has_rushes_kernels(precision) {
        return Err(Error::Contract(bundle::Error::value(
            Field::Kernels,
            "rushes",
            format!("the bundle has {precision} graphs for ONNX Runtime kernels only"),
            "run `rushes quantize` with `scheme` int8 or bf16, or leave `kernels` out",
        )));
    }
    Ok(Variant { target, precision, kernels: wanted })
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
