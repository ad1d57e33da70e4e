//! What an export is asked for, and what it tells.

use crate::lora::resolved::LoraProof;
use crate::weights::merge::Merge;
use bundle::dtype::WeightType;
use bundle::lora::LoraUse;
use bundle::manifest::{Component, Manifest};
use bundle::stop::Stop;
use bundle::units::ByteCount;
use bundle::variant::Target;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// A request to export a checkpoint.
///
/// ```no_run
/// use bundle::variant::Target;
/// use export::{ExportRequest, export};
///
/// let mut request = ExportRequest::new("Wan2.2-T2V-A14B-Diffusers".as_ref(), "wan.bundle".as_ref());
/// request.targets = vec![Target::Cpu, Target::Plain];
/// let report = export(&request, &mut |event| println!("{event:?}"))?;
/// println!("{} of weights are linked, {} are written", report.linked, report.written);
/// # Ok::<(), export::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ExportRequest {
    /// A folder in the diffusers or the official layout.
    pub checkpoint: PathBuf,
    /// The folder to create; it must not exist or be empty. An existing folder is filled in place: it may be a link, a
    /// mount point or the working directory.
    pub out: PathBuf,
    /// The targets to write graphs for.
    pub targets: Vec<Target>,
    /// The number format that all weights are converted to. If it is none, weights for the CPU keep the format of the
    /// checkpoint, for each component of its own, so that they can be linked; if a target is an accelerator, all are
    /// bf16.
    ///
    /// A component that is stored in several formats is converted to f32, and so is one with [merges](Self::merges) or
    /// [LoRAs](Self::loras).
    pub weights: Option<WeightType>,
    /// True to read every weight, for its digest and to find values that are not finite.
    pub verify: bool,
    /// A tiny decoder to use in place of the checkpoint's.
    pub tiny_decoder: Option<PathBuf>,
    /// Changes that are added to weights, each with the component of its weight. The weights of such a component are
    /// written, not linked, and its digest and the names of its graphs depend on the changes.
    pub merges: Vec<(Component, Merge)>,
    /// Keeps only so many layers of the text encoder and blocks of each expert: the first ones. For tests of a model's
    /// width in little time; clips of such a model show nothing. Its settings are those of the whole model, its name and
    /// digests are others.
    pub layers: Option<NonZeroUsize>,
    /// LoRA files that are merged into the experts, in order, after [merges](Self::merges).
    pub loras: Vec<LoraUse>,
    /// True to leave out keys of LoRA files that cannot be applied.
    pub lora_lenient: bool,
    /// True to copy weights even if they can be linked, without a size limit.
    pub copy: bool,
    /// True to write a [graph set](bundle::graph_set) instead of a bundle: graphs without weights, which
    /// [`attach`](crate::attach()) binds to any checkpoint with the same weights. Weights that would have to be
    /// converted or merged are refused, and all are read.
    pub graphs_only: bool,
    /// Stops the export.
    pub stop: Stop,
}

impl ExportRequest {
    /// Creates a request for a verified export for the CPU.
    pub fn new(checkpoint: &Path, out: &Path) -> Self {
        Self {
            checkpoint: checkpoint.to_owned(),
            out: out.to_owned(),
            targets: vec![Target::Cpu],
            weights: None,
            verify: true,
            tiny_decoder: None,
            merges: Vec::new(),
            layers: None,
            loras: Vec::new(),
            lora_lenient: false,
            copy: false,
            graphs_only: false,
            stop: Stop::new(),
        }
    }
}

/// A progress event of an export.
#[derive(Debug, Clone, PartialEq)]
pub enum ExportEvent {
    /// Samples of the weights of a component are being compared.
    Sampling {
        /// The component.
        component: Component,
        /// The size of the weights.
        bytes: ByteCount,
    },
    /// The weights of a component are being read.
    Reading {
        /// The component.
        component: Component,
        /// The size of the weights.
        bytes: ByteCount,
        /// True if they are converted as they are read.
        converts: bool,
    },
    /// The weights of a component are stored in several number formats and are converted to one that holds all values.
    MixedFormats {
        /// The component.
        component: Component,
        /// The formats in the checkpoint.
        stored: Vec<WeightType>,
        /// The format in the bundle.
        weights: WeightType,
    },
    /// A LoRA is merged.
    Lora(LoraProof),
    /// The checkpoint's preview map was fitted for another decoder and is omitted.
    ForeignPreviewMap,
    /// The graphs of a component are being written.
    Writing {
        /// The component.
        component: Component,
    },
}

/// The result of an export.
#[derive(Debug, Clone, PartialEq)]
pub struct ExportReport {
    /// The bundle.
    pub folder: PathBuf,
    /// Its `bundle.json`.
    pub manifest: Manifest,
    /// Size of the weights that are hard-linked to the checkpoint.
    pub linked: ByteCount,
    /// Size of the weights that were copied, converted or merged.
    pub written: ByteCount,
}
