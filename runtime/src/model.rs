//! A bundle and how to run it.

use crate::Error;
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

/// How graphs are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelOptions {
    /// Which variant of the graphs; none takes the first that the bundle has.
    pub precision: Option<Precision>,
    /// Which kernels on the CPU; none takes our own where the bundle has graphs of them and the processor is fast with
    /// them.
    pub kernels: Option<KernelLibrary>,
    /// Where they run.
    pub provider: Provider,
    /// Threads of one graph; none takes every core.
    pub threads: Option<NonZeroUsize>,
    /// Whether weights are copied into memory, which makes steps faster, or used from the file.
    pub weights: WeightMemory,
}

impl Default for ModelOptions {
    /// The bundle's first variant on the CPU with every core, weights in memory.
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
    /// The defaults with a variant for the CPU, or with the fastest that the bundle has.
    pub fn of_variant(variant: Option<Variant>) -> Self {
        Self {
            precision: variant.map(|variant| variant.precision),
            kernels: variant.map(|variant| variant.kernels),
            ..Self::default()
        }
    }
}

/// A bundle, an ONNX Runtime and how to run the one on the other. Cheap to clone; opens nothing by itself.
#[derive(Debug, Clone)]
pub struct Model {
    bundle: Arc<Bundle>,
    onnx: OnnxRuntime,
    variant: Variant,
    engine_options: OpenOptions,
    opening: Arc<AtomicU64>,
    /// Nothing of the bundle is removed meanwhile.
    _read_lock: Arc<ReadLock>,
}

impl Model {
    /// A model over an opened bundle.
    ///
    /// # Errors
    /// A provider or precision that the bundle has no graphs for.
    pub fn new(bundle: Bundle, onnx: OnnxRuntime, options: ModelOptions) -> Result<Self, Error> {
        let target = options.provider.target()?;
        let variant = choose_variant(&bundle.manifest, target, &onnx, &options)?;
        let engine_options = OpenOptions { threads: options.threads, weights: options.weights };
        let (opening, read_lock) = (Arc::default(), Arc::new(ReadLock::acquire(&bundle.folder)));
        let bundle = Arc::new(bundle);
        Ok(Self { bundle, onnx, variant, engine_options, opening, _read_lock: read_lock })
    }

    /// Opens the bundle in `folder` and finds ONNX Runtime in the usual places.
    ///
    /// # Errors
    /// No bundle, no library, or no graphs for what was asked.
    pub fn open(folder: &Path, options: ModelOptions) -> Result<Self, Error> {
        let bundle = Bundle::open(folder)?;
        Self::new(bundle, OnnxRuntime::load(None)?, options)
    }

    /// What the bundle holds.
    pub fn manifest(&self) -> &Manifest {
        &self.bundle.manifest
    }

    /// The bundle itself.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// The same model, whose graphs run on so many threads and whose [`Self::time_opening`] counts anew.
    pub fn with_threads(&self, threads: NonZeroUsize) -> Self {
        let engine_options = OpenOptions { threads: Some(threads), ..self.engine_options };
        Self { engine_options, opening: Arc::default(), ..self.clone() }
    }

    /// Time that opening what the bundle holds took so far, by this model and its clones.
    pub fn time_opening(&self) -> Duration {
        Duration::from_nanos(self.opening.load(Ordering::Relaxed))
    }

    /// The variant that runs. Parts without graphs for its kernels run on those of ONNX Runtime.
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// The graph of a part that runs.
    ///
    /// # Errors
    /// A component or part that the bundle lacks.
    pub fn graph(&self, component: &Component, part: Part) -> Result<&GraphEntry, Error> {
        let entry = self.manifest().component(component)?;
        // Previews are made in the precision of the export, whatever the variant.
        let exported = match component {
            Component::Preview => {
                entry.graphs.iter().find(|graph| graph.variant.target == self.variant.target)
            }
            _ => None,
        };
        let precision = exported.map_or(self.variant.precision, |graph| graph.variant.precision);
        Ok(entry.graph(part, Variant { precision, ..self.variant })?)
    }

    /// Makes sure that the bundle has every graph that a clip needs, so that none is missed after the steps; `tiled` says
    /// whether pictures are decoded in several tiles.
    ///
    /// # Errors
    /// The first component or part that the bundle lacks in the variant that runs.
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
                format!("the {} variant of the decoder decodes pictures whole", self.variant.precision);
            let fix = "use --tile off, or --precision of a variant that was exported";
            return Err(bundle::Error::value("--tile", "used", rule, fix).into());
        }
        Ok(())
    }

    /// Opens one graph and checks it against its contract.
    pub fn engine(&self, component: &Component, part: Part, contract: &Signature) -> Result<Engine, Error> {
        let graph = self.graph(component, part)?;
        // ONNX Runtime maps the weights, and the end of a map beyond the end of its file ends the process.
        let entry = self.manifest().component(component)?;
        for file in entry.weight_files() {
            self.bundle.check_length(&file.file)?;
        }
        let opened =
            self.loading(|| self.onnx.open(&self.bundle.path(&graph.file), contract, &self.engine_options));
        Ok(opened?)
    }

    /// Does work that counts as [`Self::time_opening`].
    pub fn loading<T>(&self, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let done = work();
        let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.opening.fetch_add(took, Ordering::Relaxed);
        done
    }
}

/// The contract of a step in these operators.
pub fn step_contract(manifest: &Manifest, kernels: KernelLibrary) -> Signature {
    match kernels {
        KernelLibrary::OnnxRuntime => Signature::of_step(&manifest.denoiser),
        KernelLibrary::Rushes => Signature::of_step_with_key_bias(&manifest.denoiser),
    }
}

fn choose_variant(
    manifest: &Manifest,
    target: Target,
    onnx: &OnnxRuntime,
    options: &ModelOptions,
) -> Result<Variant, Error> {
    let pick = |kernels| {
        let available = manifest.precisions(target, kernels);
        match options.precision {
            Some(asked) => available.into_iter().find(|precision| *precision == asked),
            None => available.first().copied(),
        }
    };
    // Plain arithmetic on bytes is slower than ONNX Runtime's vectors.
    let is_fast = onnx.kernels().path() != CpuPath::Scalar;
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
            "--kernels",
            "rushes",
            format!("the bundle has {precision} graphs in ONNX Runtime kernels alone"),
            "run `rushes quantize` with --scheme int8 or bf16, or leave the flag out",
        )));
    }
    Ok(Variant { target, precision, kernels: wanted })
}

/// Takes an f32 output of a known number of axes out of ONNX Runtime's memory.
pub fn take_array<D: Dimension>(outputs: &mut Outputs, name: &str) -> Result<Array<f32, D>, Error> {
    let array = outputs.take(name)?.to_f32()?;
    let found = array.ndim();
    let Ok(array) = array.into_dimensionality() else {
        return Err(Error::Rank { tensor: name.to_owned(), expected: D::NDIM.unwrap_or(found), found });
    };
    Ok(array)
}
