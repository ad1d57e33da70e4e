//! What an API was asked for, in words that all of them share.

use crate::loras::request::ClipLora;
use crate::post::Post;
use crate::webhooks::Callback;
use bundle::geometry::PixelSize;
use bundle::settings::{ScheduleKind, SolverKind};
use bundle::units::FrameRate;
use media::FileFormat;
use runtime::plan::Length;
use runtime::scheduler::{Priority, Seconds};

/// A clip as a client asks for it. What is absent is the default of the bundle.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ClipRequest {
    /// The model, by its name or an alias.
    pub model: Option<String>,
    /// The prompt.
    pub prompt: String,
    /// The negative prompt.
    pub negative: Option<String>,
    /// Size of a frame.
    pub size: Option<PixelSize>,
    /// Length of the clip.
    pub length: Option<Length>,
    /// Frame rate.
    pub fps: Option<FrameRate>,
    /// Denoising steps.
    pub steps: Option<usize>,
    /// Guidance scale of the expert for high noise, and of the others too unless `guidance_low` is given.
    pub guidance_high: Option<f32>,
    /// Guidance scale of the expert for low noise.
    pub guidance_low: Option<f32>,
    /// The boundary between the experts as a share of the timesteps, which a bundle has fixed.
    pub boundary: Option<f64>,
    /// Shift of the sigma grid.
    pub shift: Option<f64>,
    /// Solver.
    pub sampler: Option<SolverKind>,
    /// Sigma grid.
    pub schedule: Option<ScheduleKind>,
    /// Seed of the noise; a random one if absent.
    pub seed: Option<u64>,
    /// Factor on the noise.
    pub noise_scale: Option<f32>,
    /// The name of a file with the initial noise, instead of the seed.
    pub latents: Option<String>,
    /// LoRAs, which change the model.
    pub loras: Vec<ClipLora>,
    /// Whom to tell when the clip has ended.
    pub(crate) callback: Option<Callback>,
    /// What is drawn on its frames, and its sound.
    pub(crate) post: Option<Post>,
    /// Format of the file.
    pub format: FileFormat,
    /// How soon it is wanted.
    pub priority: Priority,
    /// When it is past its deadline.
    pub deadline: Option<Seconds>,
}

impl ClipRequest {
    /// A clip with a prompt, and everything else as the bundle has it.
    pub(crate) fn new(prompt: impl Into<String>) -> Self {
        Self {
            model: None,
            prompt: prompt.into(),
            negative: None,
            size: None,
            length: None,
            fps: None,
            steps: None,
            guidance_high: None,
            guidance_low: None,
            boundary: None,
            shift: None,
            sampler: None,
            schedule: None,
            seed: None,
            noise_scale: None,
            latents: None,
            loras: Vec::new(),
            callback: None,
            post: None,
            format: FileFormat::Mp4,
            priority: Priority::Normal,
            deadline: None,
        }
    }
}
