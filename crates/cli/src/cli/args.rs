//! The command line as it is typed; values are parsed into types right here.

use super::global::GlobalArgs;
use super::os_text;
use super::post_process::PostProcessArgs;
use super::preview::{FitArgs, PreviewArgs};
use super::seed::{SeedChoice, first_seed};
use super::threads::Threads;
use super::progress::ProgressKind;
use bundle::dtype::WeightType;
use bundle::geometry::PixelSize;
use bundle::quantization::Scheme;
use bundle::settings::{ScheduleKind, SolverKind};
use bundle::units::{ByteCount, FrameRate};
use bundle::variant::{KernelLibrary, Precision, Target};
use calibration::numerics::range::RangeMethod;
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use engines::Provider;
use engines::residency::Residency;
use media::{OutputSpec, Token};
use quality::quantize::report::Sensitivity;
use runtime::decode::Tiles;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Wan2.2 text-to-video on one machine, without Python.
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
    /// Make a clip from a prompt
    Generate(Box<GenerateArgs>),
    /// Turn a checkpoint into a bundle
    Export(ExportArgs),
    /// Record clips and write down what the layers of the model see in them, or fit what previews need
    Calibrate(CalibrateArgs),
    /// Give a calibrated bundle a quantised variant, and report what that costs
    Quantize(QuantizeArgs),
    /// Show what a bundle holds
    Inspect(InspectArgs),
    /// Measure a model or this machine
    Bench(super::bench::BenchArgs),
    /// Show what this machine can run, and what it lacks
    Doctor,
}

impl Command {
    /// What was asked for with `--threads`.
    pub(super) fn threads(&self) -> Option<Threads> {
        match self {
            Self::Generate(args) => args.threads,
            Self::Calibrate(args) => args.threads,
            Self::Quantize(args) => args.threads,
            Self::Bench(args) => args.threads(),
            Self::Export(_) | Self::Inspect(_) | Self::Doctor => None,
        }
    }
}

/// `rushes generate`.
#[derive(Debug, Args)]
pub(super) struct GenerateArgs {
    /// What the clip shows
    pub(super) prompt: String,
    /// The bundle to use [default: the embedded model, mini]
    #[arg(long, value_name = "DIR")]
    pub(super) bundle: Option<PathBuf>,
    /// Where the clip goes; may be given more than once: a file ending in .mp4, .webm, .mkv, .gif, .webp or .y4m, a
    /// folder for PNGs like frames/, - for y4m on standard output, hls:DIR, rtmp://HOST/APP/KEY, rtsp://HOST:PORT/NAME,
    /// whip:https://HOST/PATH or window
    #[arg(
        short,
        long,
        value_name = "WHERE",
        default_value = "out.mp4",
        value_parser = OsStringValueParser::new().try_map(os_text::output),
        help_heading = "Outputs"
    )]
    pub(super) output: Vec<OutputSpec>,
    /// The bearer token for a whip: output whose address has none
    #[arg(long, value_name = "TOKEN", help_heading = "Outputs")]
    pub(super) whip_token: Option<Token>,
    /// Seconds after which an output that does not go on is given up
    #[arg(long, value_name = "S", default_value = "30", help_heading = "Outputs")]
    pub(super) output_timeout: OutputTimeout,
    #[command(flatten)]
    pub(super) post_process: PostProcessArgs,
    /// What the clip should not show [default: the model's]
    #[arg(long, value_name = "TEXT")]
    pub(super) negative: Option<String>,
    /// Width and height in pixels [default: the model's]
    #[arg(long, value_name = "WxH")]
    pub(super) size: Option<PixelSize>,
    /// Frames of the clip [default: the model's]
    #[arg(long, value_name = "N", conflicts_with = "seconds")]
    pub(super) frames: Option<usize>,
    /// Length of the clip
    #[arg(long, allow_negative_numbers = true, value_name = "S")]
    pub(super) seconds: Option<f64>,
    /// Frames per second at which the clip is played, like 24, 23.976 or 24000/1001 [default: the model's]
    #[arg(long, value_name = "RATE")]
    pub(super) fps: Option<FrameRate>,
    /// Denoising steps [default: the model's]
    #[arg(long, value_name = "N")]
    pub(super) steps: Option<usize>,
    /// Guidance scale, one for all experts or one for each from the noisiest down [default: the model's]
    #[arg(long, allow_negative_numbers = true, value_name = "HIGH[,LOW]")]
    pub(super) guidance: Option<String>,
    /// Shift of the noise levels towards high noise [default: the model's]
    #[arg(long, allow_negative_numbers = true, value_name = "F")]
    pub(super) shift: Option<f64>,
    /// Solver: unipc, dpmpp or euler [default: the model's]
    #[arg(long, value_name = "NAME")]
    pub(super) sampler: Option<SolverKind>,
    /// Noise levels of which code base: official or diffusers [default: the model's]
    #[arg(long, value_name = "NAME")]
    pub(super) schedule: Option<ScheduleKind>,
    /// Seed of the noise; the same seed makes the same clip; -1 is another one each time [default: -1]
    #[arg(long, value_name = "N")]
    pub(super) seed: Option<SeedChoice>,
    /// A safetensors file whose tensor `noise` [C,T,h,w] replaces the seeded noise
    #[arg(long, value_name = "FILE")]
    pub(super) noise: Option<PathBuf>,
    /// Write text states, the latent after each step and the frames to a safetensors file
    #[arg(long, value_name = "FILE")]
    pub(super) trace: Option<PathBuf>,
    /// Which variant of the graphs: f32, f16, bf16, int8, fp8 or int8-weights [default: the best that the bundle has]
    #[arg(long, value_name = "NAME")]
    pub(super) precision: Option<Precision>,
    /// Which kernels on the CPU: own or stock [default: our own where the variant has them]
    #[arg(long, value_name = "NAME")]
    pub(super) kernels: Option<KernelLibrary>,
    /// Execution provider: auto, cpu, cuda or tensorrt
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub(super) ep: Provider,
    /// What stays in memory: auto, all or one
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub(super) residency: Residency,
    /// Memory that may be used, like 8GB [default: what is free]
    #[arg(long, value_name = "BYTES")]
    pub(super) memory_budget: Option<ByteCount>,
    /// Decode in tiles: auto where memory is short, off, or their side in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = Tiles::Auto)]
    pub(super) tile: Tiles,
    /// Threads, at most one for each core that this process may use [default: as many]
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    pub(super) threads: Option<Threads>,
    /// Factor on the initial noise; 0.85 makes calmer clips
    #[arg(long, allow_negative_numbers = true, value_name = "F", default_value_t = 1.0)]
    pub(super) noise_scale: f32,
    /// Progress: auto, bar, json or none
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub(super) progress: ProgressKind,
    #[command(flatten)]
    pub(super) preview: PreviewArgs,
}

/// How long an output may stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OutputTimeout(pub(super) Duration);

impl FromStr for OutputTimeout {
    type Err = bundle::Error;

    fn from_str(text: &str) -> Result<Self, bundle::Error> {
        let seconds = text.parse::<f64>().ok().filter(|seconds| (0.1..=86400.0).contains(seconds));
        seconds.map(|seconds| Self(Duration::from_secs_f64(seconds))).ok_or_else(|| {
            bundle::Error::value(
                "--output-timeout",
                format!("`{text}`"),
                "it is a number of seconds from 0.1 to 86400",
                "use 30, or more for a slow network disk",
            )
        })
    }
}

/// `rushes export`.
#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// A folder in the diffusers layout
    pub(super) checkpoint: PathBuf,
    /// The folder to make
    #[arg(long, value_name = "DIR")]
    pub(super) out: PathBuf,
    /// What the graphs are for, cpu, cuda or tensorrt; may be given more than once
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    pub(super) target: Vec<Target>,
    /// How weights are stored: f32, f16 or bf16 [default: f32 for cpu alone, bf16 with cuda]
    #[arg(long, value_name = "NAME")]
    pub(super) weights: Option<WeightType>,
    /// A tiny decoder for previews, in the layout of taew2_1 or taew2_2 [default: the checkpoint's, if it has one]
    #[arg(long, value_name = "FILE")]
    pub(super) tiny: Option<PathBuf>,
    /// Do not read every weight for its digest and for broken values
    #[arg(long)]
    pub(super) no_verify: bool,
    /// Copy weights in place of hard-linking them, so that the bundle does not change with the checkpoint; without it, up
    /// to 1 GB is copied where the file system refuses links
    #[arg(long)]
    pub(super) copy: bool,
}

/// `rushes calibrate`.
#[derive(Debug, Args)]
pub(super) struct CalibrateArgs {
    /// The bundle
    pub(super) bundle: PathBuf,
    #[command(flatten)]
    pub(super) preview: FitArgs,
    /// A text file with one prompt a line
    #[arg(long, value_name = "FILE", required_unless_present = "preview")]
    pub(super) prompts: Option<PathBuf>,
    /// How many clips are recorded; prompts are taken in turn [default: one for each prompt]
    #[arg(long, value_name = "N")]
    pub(super) samples: Option<usize>,
    /// Width and height in pixels [default: the model's]
    #[arg(long, value_name = "WxH")]
    pub(super) size: Option<PixelSize>,
    /// Frames of each clip [default: the model's]
    #[arg(long, value_name = "N")]
    pub(super) frames: Option<usize>,
    /// Denoising steps [default: the model's]
    #[arg(long, value_name = "N")]
    pub(super) steps: Option<usize>,
    /// Seed of the first clip; each later one takes the next
    #[arg(long, value_name = "N", default_value = "0", value_parser = first_seed)]
    pub(super) seed: u64,
    /// Threads, at most one for each core that this process may use [default: as many]
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    pub(super) threads: Option<Threads>,
    /// Keep the recorded clips in the bundle's folder `calibration`
    #[arg(long)]
    pub(super) keep: bool,
    /// Progress: auto, bar, json or none
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub(super) progress: ProgressKind,
}

/// `rushes quantize`.
#[derive(Debug, Args)]
pub(super) struct QuantizeArgs {
    /// The bundle
    pub(super) bundle: PathBuf,
    /// What is quantised: int8 (weights and activations), fp8, int8-weights (weights alone) or bf16 (steps, on our own
    /// operators, without a calibration)
    #[arg(long, value_name = "NAME", default_value = "int8")]
    pub(super) scheme: Scheme,
    /// In which kernels int8 steps are written down: own, stock, or own,stock for both, which takes twice the room
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "rushes")]
    pub(super) kernels: Vec<KernelLibrary>,
    /// With fp8: E4M3 in the products of attention too
    #[arg(long)]
    pub(super) attention: bool,
    /// What `rushes calibrate` wrote [default: calibration.json of the bundle]
    #[arg(long, value_name = "FILE")]
    pub(super) calibration: Option<PathBuf>,
    /// How static ranges of activations are chosen: mse, percentile, entropy or extremes
    #[arg(long, value_name = "NAME", default_value_t)]
    pub(super) ranges: RangeMethod,
    /// How many clips are made in both precisions for the report
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(super) clips: usize,
    /// How it is found what quantising each layer alone costs: measured, which reads all weights once more, or estimated
    #[arg(long, value_name = "NAME", default_value = "measured")]
    pub(super) sensitivity: Sensitivity,
    /// Keep the worst layers in high precision until every clip is this close to the exported model's, in decibels
    #[arg(long, value_name = "DB")]
    pub(super) budget_psnr: Option<f64>,
    /// Have mini's judge read clips of both variants; takes minutes
    #[arg(long)]
    pub(super) judge: bool,
    /// Threads, at most one for each core that this process may use [default: as many]
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    pub(super) threads: Option<Threads>,
}

/// `rushes inspect`.
#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// The bundle
    pub(super) bundle: PathBuf,
    /// Read every byte of the bundle and name each file that is not as it was written
    #[arg(long)]
    pub(super) verify: bool,
}
