//! Generation requests and plans. A plan is a request with all defaults filled in and all values checked, before
//! anything is loaded.

use crate::Error;
use crate::denoise::{DenoiseSettings, Denoising, StepPolicy};
use crate::sampler::Schedule;
use bundle::Field;
use bundle::geometry::{FrameCount, LatentShape, PixelSize};
use bundle::manifest::Manifest;
use bundle::routing::ExpertName;
use bundle::settings::{ScheduleKind, SolverKind, check_steps, per_expert};
use bundle::units::{FrameRate, GuidanceScale, Seed, Shift};
use ndarray::Array4;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The length of a clip.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Length {
    /// Number of frames.
    Frames(usize),
    /// Seconds at the clip's frame rate.
    Seconds(f64),
}

/// A request for a clip. `None` takes the bundle's default.
///
/// # Examples
/// ```
/// use bundle::geometry::PixelSize;
/// use bundle::units::Seed;
/// use runtime::plan::{GenerateRequest, Length};
///
/// let request = GenerateRequest {
///     size: Some(PixelSize { width: 832, height: 480 }),
///     length: Some(Length::Seconds(5.0)),
///     ..GenerateRequest::new("a red ball bounces on the beach", Seed(42))
/// };
/// assert_eq!(request.steps, None);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerateRequest {
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
    /// Guidance scales of the experts, starting with the one for the highest noise, or one scale for all.
    pub guidance: Option<Vec<GuidanceScale>>,
    /// Shift of the sigma grid.
    pub shift: Option<f64>,
    /// Solver.
    pub sampler: Option<SolverKind>,
    /// Sigma grid.
    pub schedule: Option<ScheduleKind>,
    /// Seed of the noise.
    pub seed: Seed,
    /// Factor on the initial noise, above 0; below 1 makes calmer clips.
    pub noise_scale: f32,
}

impl GenerateRequest {
    /// Creates a request with the bundle's defaults for everything but the prompt and seed.
    pub fn new(prompt: impl Into<String>, seed: Seed) -> Self {
        Self {
            prompt: prompt.into(),
            negative: None,
            size: None,
            length: None,
            fps: None,
            steps: None,
            guidance: None,
            shift: None,
            sampler: None,
            schedule: None,
            seed,
            noise_scale: 1.0,
        }
    }
}

/// The resolved and checked settings of a clip.
///
/// # Examples
/// ```no_run
/// use bundle::manifest::Bundle;
/// use bundle::units::Seed;
/// use runtime::plan::{GenerateRequest, GenerationPlan};
/// use std::path::Path;
///
/// # fn main() -> Result<(), runtime::Error> {
/// let bundle = Bundle::open(Path::new("bundle"))?;
/// let request = GenerateRequest::new("a red ball bounces on the beach", Seed(42));
/// let plan = GenerationPlan::new(&bundle.manifest, &request)?;
/// println!("{plan}");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct GenerationPlan {
    /// The prompt.
    pub prompt: String,
    /// The negative prompt.
    pub negative: String,
    /// Size of a frame.
    pub size: PixelSize,
    /// Frames of the clip.
    pub frames: FrameCount,
    /// Frames that the model generates; the surplus is trimmed.
    pub frames_made: usize,
    /// Frame rate.
    pub rate: FrameRate,
    /// Shape of the latent.
    pub latent: LatentShape,
    /// Tokens of one step.
    pub tokens: usize,
    /// The sigma grid.
    pub schedule: Schedule,
    /// Name of the sigma grid.
    pub schedule_kind: ScheduleKind,
    /// Solver.
    pub solver: SolverKind,
    /// Shift of the sigma grid.
    pub shift: Shift,
    /// Guidance scale of each expert, starting with the one for the highest noise.
    pub guidance: Vec<GuidanceScale>,
    /// Number of steps of each expert, starting with the one for the highest noise.
    pub expert_steps: Vec<(ExpertName, usize)>,
    /// Seed of the noise.
    pub seed: Seed,
    /// Factor on the initial noise.
    pub noise_scale: f32,
}

impl GenerationPlan {
    /// Fills in the bundle's defaults and checks every value.
    ///
    /// # Errors
    /// The first value that is out of range, by name.
    pub fn new(manifest: &Manifest, request: &GenerateRequest) -> Result<Self, Error> {
        prompt::check(&request.prompt)?;
        let defaults = &manifest.defaults;
        let negative = request.negative.clone().unwrap_or_else(|| defaults.negative.value.clone());
        prompt::check_negative(&negative)?;
        let rate = request.fps.unwrap_or(defaults.fps.value);
        let frames = frame_count(request.length.unwrap_or(Length::Frames(defaults.frames.value)), rate)?;
        let size = request.size.unwrap_or(defaults.size.value);
        let (vae, denoiser, routing) = (&manifest.vae, &manifest.denoiser, &manifest.routing);
        let latent = LatentShape::of_clip(size, frames, vae.latent_channels, vae.stride(), denoiser.patch)?;
        let steps = check_steps(request.steps.unwrap_or(defaults.steps.value))?;
        let shift = request.shift.map_or(Ok(defaults.shift.value), Shift::try_new)?;
        let solver = request.sampler.unwrap_or(defaults.sampler.value);
        let schedule_kind = request.schedule.unwrap_or(defaults.schedule.value);
        let experts = routing.routes().len();
        let guidance = match &request.guidance {
            Some(scales) => per_expert(scales, experts)?,
            None => defaults.guidance.value.clone(),
        };
        if !(request.noise_scale.is_finite() && request.noise_scale > 0.0) {
            return Err(bundle::Error::value(
                Field::NoiseScale,
                request.noise_scale,
                "the factor must be finite and above 0",
                "use 1, or something like 0.85 for a calmer clip",
            )
            .into());
        }
        let schedule = Schedule::new(solver, schedule_kind, steps, shift);
        let mut expert_steps: Vec<_> =
            routing.routes().iter().map(|route| (route.expert.clone(), 0)).collect();
        for timestep in schedule.timesteps() {
            expert_steps[routing.expert_at(*timestep).0].1 += 1;
        }
        Ok(Self {
            prompt: request.prompt.clone(),
            negative,
            size,
            frames,
            frames_made: frames.generated(vae.stride()),
            rate,
            latent,
            tokens: latent.tokens(denoiser.patch),
            schedule,
            schedule_kind,
            solver,
            shift,
            guidance,
            expert_steps,
            seed: request.seed,
            noise_scale: request.noise_scale,
        })
    }
}

impl GenerationPlan {
    /// The state before the first step, from `noise [C,T,h,w]`.
    ///
    /// # Errors
    /// The plan was made for a model with another number of experts.
    pub fn denoising(&self, manifest: &Manifest, noise: Array4<f32>) -> Result<Denoising, Error> {
        let settings = DenoiseSettings {
            routing: manifest.routing.clone(),
            guidance: self.guidance.clone(),
            schedule: self.schedule.clone(),
            solver: self.solver,
            policy: StepPolicy::ComputeAll,
        };
        Ok(Denoising::new(settings, noise, self.seed)?)
    }

    /// Returns true if any step needs the unconditional pass.
    pub fn is_guided(&self) -> bool {
        self.guidance.iter().zip(&self.expert_steps).any(|(scale, (_, steps))| *steps > 0 && scale.applies())
    }
}

fn frame_count(length: Length, rate: FrameRate) -> Result<FrameCount, Error> {
    let frames = match length {
        Length::Frames(frames) => frames,
        Length::Seconds(seconds) => {
            let frames = (seconds * rate.per_second()).round();
            #[expect(clippy::cast_precision_loss, reason = "a limit far below 2^52")]
            let most = FrameCount::MAX as f64;
            if !(1.0..=most).contains(&frames) {
                return Err(bundle::Error::value(
                    Field::Seconds,
                    seconds,
                    format!(
                        "at {rate} frames per second the clip does not have 1 to {} frames",
                        FrameCount::MAX
                    ),
                    "give a longer or shorter time, or a number of `frames`",
                )
                .into());
            }
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked just above")]
            let frames = frames as usize;
            frames
        }
    };
    Ok(FrameCount::try_new(frames)?)
}

impl fmt::Display for GenerationPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size, frames, rate, solver, schedule_kind, shift, seed, .. } = self;
        write!(f, "{size}, {} frames at {rate} fps", frames.get())?;
        if self.frames_made != frames.get() {
            write!(f, " (the model makes {}, the rest is trimmed)", self.frames_made)?;
        }
        write!(f, "; {} steps of {solver} ({schedule_kind}, shift {})", self.schedule.steps(), shift.0)?;
        let experts: Vec<String> = self
            .expert_steps
            .iter()
            .zip(&self.guidance)
            .map(|((expert, steps), scale)| format!("{expert} {steps} steps at guidance {}", scale.0))
            .collect();
        write!(f, ": {}; seed {}", experts.join(", "), seed.0)
    }
}
