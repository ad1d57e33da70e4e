//! The arguments of every command, parsed into types.

use super::devices::{BudgetArgs, DeviceArgs, MemoryArgs};
use super::global::GlobalArgs;
use super::gpu::GpuChoice;
use super::lora::LoraArgs;
use super::os_text;
use super::post_process::PostProcessArgs;
use super::preview::{FitArgs, PreviewArgs};
use super::progress::ProgressKind;
use super::sampling::SamplingArgs;
use super::seed::{SeedChoice, first_seed};
use super::threads::Threads;
use bundle::dtype::WeightType;
use bundle::geometry::PixelSize;
use bundle::preview::PreviewKind;
use bundle::quantization::{AttentionFormat, ComponentKind, Scheme};
use bundle::settings::{ScheduleKind, SolverKind};
use bundle::units::FrameRate;
use bundle::variant::{KernelLibrary, Precision, Target};
use calibration::numerics::range::RangeMethod;
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use media::{OutputSpec, Token};
use quality::quantize::report::Sensitivity;
use runtime::decode::Tiles;
use runtime::job::{KeepSteps, ResumeFrom};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Text-to-video with Wan2.1 and Wan2.2 models on one machine, without Python at run time
#[derive(Debug, Parser)]
#[command(name = "rushes", bin_name = "rushes", version, max_term_width = 100)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
    #[command(flatten)]
    pub(super) global: GlobalArgs,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Generate a clip from a prompt
    Generate(Box<GenerateArgs>),
    /// Make the first steps of several seeds, and show them on a contact sheet
    Audition(Box<AuditionArgs>),
    /// Print how a clip would be made and how much memory it needs on each device, without making it
    Plan(Box<PlanArgs>),
    /// Make a clip again, and compare it step by step
    Verify(VerifyArgs),
    /// Export a checkpoint to a bundle
    Export(ExportArgs),
    /// Make a bundle from graphs without weights and a checkpoint that has their weights
    Attach(super::attach::AttachArgs),
    /// Record clips and write the ranges of the layers' inputs, or fit the linear map of previews
    Calibrate(CalibrateArgs),
    /// Add a quantised variant to a calibrated bundle, and report its loss of quality
    Quantize(QuantizeArgs),
    /// Print the contents of a bundle
    Inspect(InspectArgs),
    /// Print what a LoRA file contains, or remove what runs with LoRAs have kept
    Lora(super::lora::LoraCommandArgs),
    /// Compile the graphs of a bundle for a device that needs it: openvino, tensorrt or tensorrt-rtx
    Build(Box<super::build::BuildArgs>),
    /// List and remove compiled engines
    Engines(super::engines::EnginesArgs),
    /// Keep clips in a queue that survives its processes, and make them in waves of experts
    Jobs(Box<super::jobs::JobsArgs>),
    /// Serve public video APIs over HTTP, and make the clips that clients ask for
    Serve(Box<super::serve::ServeArgs>),
    /// Run the scheduler on paper: jobs and costs in, a table and a picture of the devices out
    Simulate(super::simulate::SimulateArgs),
    /// Measure a model or this machine
    Bench(super::bench::BenchArgs),
    /// Print what this machine can run, and what it lacks
    Doctor,
}

impl Command {
    /// The value of `--threads`, for the commands that have it.
    pub(super) fn threads(&self) -> Option<Threads> {
        match self {
            Self::Generate(args) => args.run.compute.threads,
            Self::Audition(args) => args.run.compute.threads,
            Self::Plan(args) => args.compute.threads,
            Self::Verify(args) => args.threads,
            Self::Calibrate(args) => args.threads,
            Self::Quantize(args) => args.threads,
            Self::Bench(args) => args.threads(),
            Self::Jobs(args) => args.threads(),
            Self::Serve(args) => args.threads(),
            Self::Build(args) => args.threads,
            Self::Attach(_)
            | Self::Engines(_)
            | Self::Export(_)
            | Self::Inspect(_)
            | Self::Lora(_)
            | Self::Simulate(_)
            | Self::Doctor => None,
        }
    }
}

/// The arguments of `rushes generate`.
#[derive(Debug, Args)]
pub(super) struct GenerateArgs {
    /// Description of the clip
    #[arg(required_unless_present_any = ["like", "resume"])]
    pub(super) prompt: Option<String>,
    /// Use this bundle [default: the embedded model, mini]
    #[arg(long, value_name = "DIR")]
    pub(super) bundle: Option<PathBuf>,
    /// Write the clip to a file ending in .mp4, .webm, .mkv, .gif, .webp or .y4m; to a folder of PNGs, such as
    /// frames/; to standard output as y4m (-); to hls:DIR, rtmp://HOST/APP/KEY, rtsp://HOST:PORT/NAME or
    /// whip:https://HOST/PATH; or to a window (window). May be given more than once
    #[arg(
        short,
        long,
        value_name = "WHERE",
        default_value = "out.mp4",
        value_parser = OsStringValueParser::new().try_map(os_text::output),
        help_heading = "Outputs"
    )]
    pub(super) output: Vec<OutputSpec>,
    /// Bearer token for a whip: output whose address has none
    #[arg(long, value_name = "TOKEN", help_heading = "Outputs")]
    pub(super) whip_token: Option<Token>,
    #[command(flatten)]
    pub(super) writing: WritingArgs,
    #[command(flatten)]
    pub(super) settings: ClipArgs,
    #[command(flatten)]
    pub(super) noise: NoiseArgs,
    #[command(flatten)]
    pub(super) lora: LoraArgs,
    /// Write text states, the latent after each step and the frames to a safetensors file
    #[arg(long, value_name = "FILE")]
    pub(super) trace: Option<PathBuf>,
    #[command(flatten)]
    pub(super) run: RunArgs,
    #[command(flatten)]
    pub(super) preview: PreviewArgs,
    #[command(flatten)]
    pub(super) job: JobArgs,
}

/// How outputs are written.
#[derive(Debug, Args)]
pub(super) struct WritingArgs {
    /// Give up an output that makes no progress for this long, in seconds from 0.1 to 86400
    #[arg(long, value_name = "S", default_value = "30", help_heading = "Outputs")]
    pub(super) output_timeout: OutputTimeout,
    /// Do not store the settings of the clip, its title and its seed in the outputs; the AI mark stays
    #[arg(long, help_heading = "Outputs")]
    pub(super) no_metadata: bool,
    #[command(flatten)]
    pub(super) post_process: PostProcessArgs,
}

/// The noise that a clip begins with.
#[derive(Debug, Clone, Args)]
pub(super) struct NoiseArgs {
    /// Seed of the noise, a whole number; the same seed gives the same clip, and -1 a new seed each time [default: -1]
    #[arg(long, value_name = "N")]
    pub(super) seed: Option<SeedChoice>,
    /// Read the initial noise from the tensor `noise` [C,T,h,w] of a safetensors file, instead of using --seed
    #[arg(id = "noise", long = "noise", value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
}

/// The settings of a clip, besides prompt and seed.
#[derive(Debug, Clone, Args)]
pub(super) struct ClipArgs {
    /// Description of what the clip should not show [default: the model's]
    #[arg(long, value_name = "TEXT")]
    pub(super) negative: Option<String>,
    /// Width and height of the clip in pixels [default: the model's]
    #[arg(long, value_name = "WxH")]
    pub(super) size: Option<PixelSize>,
    /// Number of frames [default: the model's]
    #[arg(long, value_name = "N", conflicts_with = "seconds")]
    pub(super) frames: Option<usize>,
    /// Length of the clip in seconds, instead of --frames
    #[arg(long, allow_negative_numbers = true, value_name = "S")]
    pub(super) seconds: Option<f64>,
    /// Frame rate in frames per second, such as 24, 23.976 or 24000/1001 [default: the model's]
    #[arg(long, value_name = "RATE")]
    pub(super) fps: Option<FrameRate>,
    /// Number of denoising steps [default: the model's]
    #[arg(long, value_name = "N")]
    pub(super) steps: Option<usize>,
    /// Guidance scale: one for all experts, or one per expert from high to low noise [default: the model's]
    #[arg(long, allow_negative_numbers = true, value_name = "HIGH[,LOW]")]
    pub(super) guidance: Option<String>,
    /// Shift of the sigma schedule towards high noise [default: the model's]
    #[arg(long, allow_negative_numbers = true, value_name = "F")]
    pub(super) shift: Option<f64>,
    /// Sampler: unipc, dpmpp, euler or renoise [default: the model's]
    #[arg(long, value_name = "NAME")]
    pub(super) sampler: Option<SolverKind>,
    /// Sigma schedule: that of the official code (official) or of diffusers (diffusers) [default: the model's]
    #[arg(long, value_name = "NAME")]
    pub(super) schedule: Option<ScheduleKind>,
    #[command(flatten)]
    pub(super) sampling: SamplingArgs,
    /// Factor on the initial noise; 0.85 gives calmer clips [default: 1]
    #[arg(long, allow_negative_numbers = true, value_name = "F")]
    pub(super) noise_scale: Option<f32>,
}

/// How a clip is computed, and how its progress is shown.
#[derive(Debug, Clone, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    pub(super) compute: ComputeArgs,
    /// Progress on standard error: auto (a bar on a terminal), bar, json or none
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub(super) progress: ProgressKind,
}

/// How a clip is computed.
#[derive(Debug, Clone, Args)]
pub(super) struct ComputeArgs {
    #[command(flatten)]
    pub(super) variant: VariantArgs,
    #[command(flatten)]
    pub(super) devices: DeviceArgs,
    #[command(flatten)]
    pub(super) memory: MemoryArgs,
    /// Decode in tiles: only if memory is short (auto), off, or the side of a tile in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = Tiles::Auto)]
    pub(super) tile: Tiles,
    /// Number of threads, at most one per core that this process may use [default: one per core]
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    pub(super) threads: Option<Threads>,
}

/// The graphs that run.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct VariantArgs {
    /// Precision of the graphs: f32, f16, bf16, int8, fp8 or int8-weights [default: the first in this order that the
    /// bundle has, which is that of the export]
    #[arg(long, value_name = "NAME")]
    pub(super) precision: Option<Precision>,
    /// Kernels on the CPU: rushes or onnxruntime [default: rushes where the variant has them]
    #[arg(long, value_name = "NAME")]
    pub(super) kernels: Option<KernelLibrary>,
}

/// Jobs that are repeated, kept, or go on.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Jobs")]
pub(super) struct JobArgs {
    /// Repeat a clip from the settings that are stored in it: a file that `rushes generate` wrote, or a folder of
    /// PNGs. Other arguments override its settings
    #[arg(long, value_name = "CLIP", conflicts_with = "resume")]
    pub(super) like: Option<PathBuf>,
    /// Keep the job in this folder, which is created: after every step the run can go on from there
    #[arg(long, value_name = "DIR")]
    pub(super) job_dir: Option<PathBuf>,
    /// Go on with the job in this folder. Another PROMPT, --negative, --guidance, --guidance-until, --steps, --shift,
    /// --sampler, --schedule, --timesteps, --preset or --step-cache changes the steps that are left
    #[arg(long, value_name = "DIR")]
    pub(super) resume: Option<PathBuf>,
    /// Keep the snapshots after these steps, such as 10,20, or all; the newest one and the one before the first step of
    /// the last expert are always kept. Needs --job-dir or --resume
    #[arg(long, value_name = "STEPS")]
    pub(super) keep_steps: Option<KeepSteps>,
    /// Snapshot that --resume goes on from: newest, boundary (before the first step of the last expert), or a number of
    /// steps (see --keep-steps)
    #[arg(long, value_name = "NAME", default_value = "newest", requires = "resume")]
    pub(super) from: ResumeFrom,
    /// Make only this many of the steps, and decode the clean latent that the last of them predicted; needs --job-dir
    /// or --resume, so that the other steps can be made later
    #[arg(long, value_name = "K")]
    pub(super) stop_after: Option<usize>,
    /// With --resume, share of fresh noise from 0 to 1 that is mixed into the latent; --seed is its seed
    #[arg(long, allow_negative_numbers = true, value_name = "V", requires = "resume")]
    pub(super) variation: Option<f64>,
}

/// The arguments of `rushes audition`.
#[derive(Debug, Args)]
pub(super) struct AuditionArgs {
    /// Description of the clip
    pub(super) prompt: String,
    /// Use this bundle [default: the embedded model, mini]
    #[arg(long, value_name = "DIR")]
    pub(super) bundle: Option<PathBuf>,
    /// Number of takes, each with a seed of its own
    #[arg(long, value_name = "N", default_value = "9")]
    pub(super) seeds: usize,
    /// Seed of the first take; the others use the numbers after it [default: -1, a new seed each time]
    #[arg(long, value_name = "N")]
    pub(super) seed: Option<SeedChoice>,
    /// Steps that each take makes [default: 8, or fewer if the first expert makes fewer]
    #[arg(long, value_name = "K")]
    pub(super) steps_of: Option<usize>,
    /// Folder of the takes and of the contact sheet, sheet.png
    #[arg(long, value_name = "DIR", default_value = "audition")]
    pub(super) out: PathBuf,
    #[command(flatten)]
    pub(super) lora: LoraArgs,
    #[command(flatten)]
    pub(super) settings: ClipArgs,
    #[command(flatten)]
    pub(super) run: RunArgs,
}

/// The arguments of `rushes plan`.
#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// Description of the clip, or the folder of a bundle, which is then used
    #[arg(value_name = "PROMPT|BUNDLE")]
    pub(super) prompt: Option<String>,
    /// Use this bundle [default: the embedded model, mini]
    #[arg(long, value_name = "DIR")]
    pub(super) bundle: Option<PathBuf>,
    /// Predict the time for this GPU, such as h200 or cuda:1=l40s, which need not be in this machine. May be given more
    /// than once [default: the GPUs of this machine]
    #[arg(long, value_name = "[DEVICE=]NAME")]
    pub(super) gpu: Vec<GpuChoice>,
    /// Plan a clip with the settings that are stored in another one: a file that `rushes generate` wrote, or a folder
    /// of PNGs. Other arguments override its settings
    #[arg(long, value_name = "CLIP")]
    pub(super) like: Option<PathBuf>,
    /// Kind of previews to count the memory of: off, rgb, tiny or full
    #[arg(long, value_name = "NAME", default_value_t = PreviewKind::Off)]
    pub(super) preview: PreviewKind,
    #[command(flatten)]
    pub(super) lora: LoraArgs,
    #[command(flatten)]
    pub(super) settings: ClipArgs,
    #[command(flatten)]
    pub(super) compute: ComputeArgs,
}

/// The arguments of `rushes verify`.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Clip that `rushes generate` wrote: a file, or a folder of PNGs
    pub(super) clip: PathBuf,
    /// Use this bundle [default: the embedded model, mini]
    #[arg(long, value_name = "DIR")]
    pub(super) bundle: Option<PathBuf>,
    /// The file of the initial noise, if the clip was made from one
    #[arg(long, value_name = "FILE")]
    pub(super) noise: Option<PathBuf>,
    #[command(flatten)]
    pub(super) lora: LoraArgs,
    #[command(flatten)]
    pub(super) memory: MemoryArgs,
    /// Number of threads, at most one per core that this process may use [default: as many as made the clip]
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    pub(super) threads: Option<Threads>,
    /// Progress on standard error: auto (a bar on a terminal), bar, json or none
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub(super) progress: ProgressKind,
}

/// The longest time without progress that an output is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OutputTimeout(pub(super) Duration);

impl FromStr for OutputTimeout {
    type Err = bundle::Error;

    fn from_str(text: &str) -> Result<Self, bundle::Error> {
        let seconds = text.parse::<f64>().ok().filter(|seconds| (0.1..=86400.0).contains(seconds));
        seconds.map(|seconds| Self(Duration::from_secs_f64(seconds))).ok_or_else(|| {
            bundle::Error::value(
                bundle::Field::OutputTimeout,
                format!("`{text}`"),
                "expected a number of seconds from 0.1 to 86400",
                "use 30, or more for a slow network disk",
            )
        })
    }
}

/// The arguments of `rushes export`.
#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// Checkpoint: a folder in the layout of diffusers or of the official code
    pub(super) checkpoint: PathBuf,
    /// Write the bundle to this folder
    #[arg(long, value_name = "DIR")]
    pub(super) out: PathBuf,
    /// Target of the graphs: cpu, cuda, plain (standard ONNX operators only) or tensorrt (another name for plain); may
    /// be given more than once
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    pub(super) target: Vec<Target>,
    /// Convert all weights to f32, f16 or bf16 [default: each component keeps the format of the checkpoint if cpu is
    /// the only target; else bf16]
    #[arg(long, value_name = "NAME")]
    pub(super) weights: Option<WeightType>,
    /// Tiny decoder for previews, in the layout of taew2_1 or taew2_2 [default: the checkpoint's, if it has one]
    #[arg(long, value_name = "FILE")]
    pub(super) tiny: Option<PathBuf>,
    #[command(flatten)]
    pub(super) lora: LoraArgs,
    /// Do not read every weight: no digests over all bytes, and no check for NaN and infinity
    #[arg(long)]
    pub(super) no_verify: bool,
    /// Copy weights instead of hard-linking them, so that the bundle does not change with the checkpoint; without
    /// this flag, up to 1 GB is copied if the file system refuses links
    #[arg(long)]
    pub(super) copy: bool,
    /// Write graphs without weights, for `rushes attach`; only for weights that need no conversion
    #[arg(long, conflicts_with_all = ["no_verify", "copy"])]
    pub(super) graphs_only: bool,
}

/// The arguments of `rushes calibrate`.
#[derive(Debug, Args)]
pub(super) struct CalibrateArgs {
    /// Folder of the bundle
    pub(super) bundle: PathBuf,
    #[command(flatten)]
    pub(super) preview: FitArgs,
    /// Measure how much velocities change from step to step, which decides what --step-cache reuses, instead of
    /// calibrating; written to step-cache.json of the bundle
    #[arg(long, conflicts_with = "preview")]
    pub(super) step_cache: bool,
    /// Text file with one prompt per line; lines that begin with # are ignored; required without --preview
    #[arg(long, value_name = "FILE", required_unless_present = "preview")]
    pub(super) prompts: Option<PathBuf>,
    /// Number of clips to record, repeating the prompts in order [default: one per prompt]
    #[arg(long, value_name = "N")]
    pub(super) samples: Option<usize>,
    /// Width and height of the clip in pixels [default: the model's]
    #[arg(long, value_name = "WxH")]
    pub(super) size: Option<PixelSize>,
    /// Number of frames of each clip [default: the model's]
    #[arg(long, value_name = "N")]
    pub(super) frames: Option<usize>,
    /// Number of denoising steps [default: the model's]
    #[arg(long, value_name = "N")]
    pub(super) steps: Option<usize>,
    /// Seed of the first clip; each later clip uses the next number
    #[arg(long, value_name = "N", default_value = "0", value_parser = first_seed)]
    pub(super) seed: u64,
    #[command(flatten)]
    pub(super) budget: BudgetArgs,
    /// Number of threads, at most one per core that this process may use [default: one per core]
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    pub(super) threads: Option<Threads>,
    /// Keep the recorded clips, in the folder `calibration` of the bundle
    #[arg(long)]
    pub(super) keep: bool,
    /// Progress on standard error: auto (a bar on a terminal), bar, json or none
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub(super) progress: ProgressKind,
}

/// The arguments of `rushes quantize`.
#[derive(Debug, Args)]
pub(super) struct QuantizeArgs {
    /// Folder of the bundle
    pub(super) bundle: PathBuf,
    /// Quantisation scheme: int8 (weights and activations), fp8, int8-weights (weights only) or bf16 (denoising
    /// steps on Rushes kernels, without a calibration)
    #[arg(long, value_name = "NAME", default_value = "int8")]
    pub(super) scheme: Scheme,
    /// Targets of the graphs: cpu, or plain (for TensorRT and OpenVINO; tensorrt is another name), for which the bundle
    /// must have been exported; or cpu,plain. int8 has other numbers for plain graphs, which are signed, and so a report
    /// of its own [default: cpu; with --scheme fp8 also plain, if the bundle has plain graphs]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(super) target: Vec<Target>,
    /// Components to quantise: text_encoder, experts, decoder; the others stay as they were exported [default: all; with
    /// --scheme fp8 experts]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(super) components: Vec<ComponentKind>,
    /// Kernels that int8 graphs for the CPU are written for: rushes, onnxruntime, or rushes,onnxruntime for both, which takes
    /// twice the disk space
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "rushes")]
    pub(super) kernels: Vec<KernelLibrary>,
    /// With --scheme fp8, use E4M3 in the products of attention too: fp8, which may be left out at the end of the line
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "fp8")]
    pub(super) attention: Option<AttentionFormat>,
    #[command(flatten)]
    pub(super) lora: LoraArgs,
    /// Calibration file that `rushes calibrate` wrote [default: calibration.json of the bundle]
    #[arg(long, value_name = "FILE")]
    pub(super) calibration: Option<PathBuf>,
    /// Method that selects static ranges of activations: mse, percentile, entropy or extremes
    #[arg(long, value_name = "NAME", default_value_t)]
    pub(super) ranges: RangeMethod,
    /// Number of clips to compare with the exported model for the report
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(super) clips: usize,
    /// Source of the error of each layer: measured, which reads all weights again, or estimated
    #[arg(long, value_name = "NAME", default_value = "measured")]
    pub(super) sensitivity: Sensitivity,
    /// Keep the worst layers in high precision until every clip has this PSNR to the exported model's, in dB
    #[arg(long, value_name = "DB")]
    pub(super) budget_psnr: Option<f64>,
    /// Score clips of both variants with mini's judge; takes minutes
    #[arg(long)]
    pub(super) judge: bool,
    /// With --judge, number of clips of each variant: the prompts of mini in turn, each time with other seeds
    #[arg(long, value_name = "N", default_value = "64", requires = "judge")]
    pub(super) judge_clips: NonZeroUsize,
    #[command(flatten)]
    pub(super) budget: BudgetArgs,
    /// Number of threads, at most one per core that this process may use [default: one per core]
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    pub(super) threads: Option<Threads>,
}

/// The arguments of `rushes inspect`.
#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// Folder of the bundle
    pub(super) bundle: PathBuf,
    /// Read every byte of the bundle, and print each file that changed since it was written
    #[arg(long)]
    pub(super) verify: bool,
}
