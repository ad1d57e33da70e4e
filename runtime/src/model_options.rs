//! Options for running a bundle, and the variant that they choose.

use crate::Error;
use bundle::Field;
use bundle::manifest::Manifest;
use bundle::variant::{KernelLibrary, Precision, Target, Variant};
use engines::{CpuNodes, Device, DeviceChoice, WeightMemory};
use kernels::CpuPath;
use std::num::NonZeroUsize;

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
    /// Kernels on the CPU; `None` selects Rushes kernels if the bundle has graphs for them, they are fast on this
    /// processor and `precision` is given. The exported variant runs on ONNX Runtime kernels.
    pub kernels: Option<KernelLibrary>,
    /// The device.
    pub device: DeviceChoice,
    /// Threads of one graph; `None` uses every core.
    pub threads: Option<NonZeroUsize>,
    /// The location of weights: copied into memory, which makes steps faster, or mapped from the file.
    pub weights: WeightMemory,
    /// Nodes that may run on the CPU beside an accelerator.
    pub cpu_nodes: CpuNodes,
}

impl Default for ModelOptions {
    /// The bundle's first variant on the CPU, with every core and weights in memory.
    fn default() -> Self {
        Self {
            precision: None,
            kernels: None,
            device: DeviceChoice::Auto,
            threads: None,
            weights: WeightMemory::Prepacked,
            cpu_nodes: CpuNodes::Integers,
        }
    }
}

impl ModelOptions {
    /// The default options for `variant` on the CPU; `None` selects the bundle's first precision.
    pub fn of_variant(variant: Option<Variant>) -> Self {
        Self {
            precision: variant.map(|variant| variant.precision),
            kernels: variant.map(|variant| variant.kernels),
            device: DeviceChoice::On(Device::CPU),
            ..Self::default()
        }
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
    // A bundle of bf16 weights can have bf16 graphs for Rushes kernels too, which round activations.
    let is_exported = options.precision.is_none()
        && pick(KernelLibrary::OnnxRuntime) == Some(manifest.exported_precision());
    let wanted = match options.kernels {
        Some(asked) => asked,
        None if is_exported => KernelLibrary::OnnxRuntime,
        None if is_fast || pick(KernelLibrary::OnnxRuntime).is_none() => KernelLibrary::Rushes,
        None => KernelLibrary::OnnxRuntime,
    };
    let Some(precision) = pick(wanted) else {
        let asked = options.precision.map_or(target.to_string(), |asked| format!("{target} {asked}"));
        let runs_on = |target: Target| {
            let precisions = manifest.precisions(target, KernelLibrary::Rushes).into_iter();
            precisions.map(move |precision| format!("{target} {precision}"))
        };
        return Err(Error::Contract(bundle::Error::NoGraph {
            component: "the whole model".into(),
            asked: if wanted == KernelLibrary::OnnxRuntime {
                format!("{asked} in ONNX Runtime kernels")
            } else {
                asked
            },
            available: Target::ALL.into_iter().flat_map(runs_on).collect(),
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
