//! Generation requests and plans. A plan is a request with all defaults filled in and all values checked, before
//! anything is loaded.

use crate::Error;
use crate::denoise::{DenoiseSettings, Denoising, StepPolicy};
use crate::sampler::Schedule;
use crate::steps::{ChosenSteps, StepChoice};
use bundle::Field;
use bundle::geometry::{FrameCount, LatentShape, PixelSize};
use bundle::manifest::Manifest;
use bundle::routing::ExpertName;
use bundle::settings::{ScheduleKind, SolverKind, per_expert};
use bundle::timesteps::{GuidanceUntil, Start, TimestepChoice, TimestepList};
use bundle::units::{FrameRate, GuidanceScale, Seed, Shift, Sigma};
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
    /// A list of timesteps, which replaces steps, shift and schedule, or the grid in place of the bundle's list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timesteps: Option<TimestepChoice>,
    /// The latent that sampling begins with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Start>,
    /// The end of guidance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance_until: Option<GuidanceUntil>,
    /// What steps compute. `None` computes everything: bundles have no default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_cache: Option<StepPolicy>,
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
            timesteps: None,
            start: None,
            guidance_until: None,
            step_cache: None,
            seed,
            noise_scale: 1.0,
        }
    }

    fn step_choice(&self) -> StepChoice<'_> {
        StepChoice {
            steps: self.steps,
            shift: self.shift,
            sampler: self.sampler,
            schedule: self.schedule,
            timesteps: self.timesteps.as_ref(),
            start: self.start,
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
    /// Name of the sigma grid. With a list of timesteps, of the grid that a fork can go over to.
    pub schedule_kind: ScheduleKind,
    /// Solver.
    pub solver: SolverKind,
    /// Shift of the sigma grid. With a list of timesteps, of the grid that a fork can go over to.
    pub shift: Shift,
    /// The list of timesteps that the schedule is made from, in place of a grid.
    pub timesteps: Option<TimestepList>,
    /// The latent that sampling begins with.
    pub start: Start,
    /// Guidance scale of each expert, starting with the one for the highest noise.
    pub guidance: Vec<GuidanceScale>,
    /// The lowest noise level that is guided; 0 for all.
    pub guidance_until: Sigma,
    /// What steps compute.
    pub step_cache: StepPolicy,
    /// Number of steps of each expert, starting with the one for the highest noise.
    pub expert_steps: Vec<(ExpertName, usize)>,
    /// Number of guided steps of each expert.
    pub guided_steps: Vec<usize>,
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
        let ChosenSteps { schedule, solver, schedule_kind, shift, timesteps, start } =
            ChosenSteps::new(defaults, &request.step_choice())?;
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
        let guidance_until =
            request.guidance_until.or(defaults.guidance_until.as_ref().map(|found| found.value));
        let guidance_until =
            guidance_until.unwrap_or(GuidanceUntil::ALL_STEPS).check()?.sigma(schedule.sigmas()[0]);
        let step_cache = request.step_cache.unwrap_or_default();
        step_cache.check(schedule.steps(), solver)?;
        let mut expert_steps: Vec<_> =
            routing.routes().iter().map(|route| (route.expert.clone(), 0)).collect();
        let mut guided_steps = vec![0; experts];
        for (timestep, sigma) in schedule.timesteps().iter().zip(schedule.sigmas()) {
            let expert = routing.expert_at(*timestep).0;
            expert_steps[expert].1 += 1;
            guided_steps[expert] += usize::from(guidance[expert].applies() && *sigma >= guidance_until);
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
            timesteps,
            start,
            guidance,
            guidance_until,
            step_cache,
            expert_steps,
            guided_steps,
            seed: request.seed,
            noise_scale: request.noise_scale,
        })
    }
}

impl GenerationPlan {
    /// The request that leads to this plan, with every setting filled in.
    pub fn request(&self) -> GenerateRequest {
        GenerateRequest {
            prompt: self.prompt.clone(),
            negative: Some(self.negative.clone()),
            size: Some(self.size),
            length: Some(Length::Frames(self.frames.get())),
            fps: Some(self.rate),
            steps: Some(self.schedule.steps()),
            guidance: Some(self.guidance.clone()),
            shift: self.timesteps.is_none().then_some(self.shift.0),
            sampler: Some(self.solver),
            schedule: self.timesteps.is_none().then_some(self.schedule_kind),
            timesteps: Some(self.timesteps.clone().map_or(TimestepChoice::Grid, TimestepChoice::List)),
            start: Some(self.start),
            guidance_until: Some(GuidanceUntil::Sigma(self.guidance_until)),
            step_cache: Some(self.step_cache),
            seed: self.seed,
            noise_scale: self.noise_scale,
        }
    }

    /// The state before the first step, from `noise [C,T,h,w]`, which is scaled as [`Self::start`] says.
    ///
    /// # Errors
    /// The plan was made for a model with another number of experts.
    pub fn denoising(&self, manifest: &Manifest, mut noise: Array4<f32>) -> Result<Denoising, Error> {
        let factor = self.start_factor();
        if factor != 1.0 {
            noise *= factor;
        }
        let settings = DenoiseSettings {
            routing: manifest.routing.clone(),
            guidance: self.guidance.clone(),
            guidance_until: self.guidance_until,
            schedule: self.schedule.clone(),
            solver: self.solver,
            policy: self.step_cache,
        };
        Ok(Denoising::new(settings, noise, self.seed)?)
    }

    /// Returns true if any step needs the unconditional pass.
    pub fn is_guided(&self) -> bool {
        self.guided_steps.iter().any(|steps| *steps > 0)
    }

    /// The steps of each expert with its guidance, as "high_noise 3 steps at guidance 4".
    pub fn experts_as_text(&self) -> Vec<String> {
        let experts = self.expert_steps.iter().zip(self.guidance.iter().zip(&self.guided_steps));
        experts
            .map(|((expert, steps), (scale, guided))| {
                let guided_on = if scale.applies() && guided < steps {
                    format!(" on {guided} of them")
                } else {
                    String::new()
                };
                format!("{expert} {steps} steps at guidance {}{guided_on}", scale.0)
            })
            .collect()
    }

    /// The factor on the noise of the latent that sampling begins with.
    pub fn start_factor(&self) -> f32 {
        self.start.factor(self.schedule.sigmas()[0])
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
        let steps = self.schedule.steps();
        write!(f, "{size}, {} frames at {rate} fps", frames.get())?;
        if self.frames_made != frames.get() {
            write!(f, " (the model makes {}, the rest is trimmed)", self.frames_made)?;
        }
        match &self.timesteps {
            Some(list) => write!(f, "; {steps} steps of {solver} (timesteps {list})")?,
            None => write!(f, "; {steps} steps of {solver} ({schedule_kind}, shift {})", shift.0)?,
        }
        if !self.start.is_noise() {
            write!(f, " from {}", self.start)?;
        }
        write!(f, ": {}", self.experts_as_text().join(", "))?;
        if !self.step_cache.is_compute_all() {
            write!(f, "; step cache {}", self.step_cache)?;
        }
        write!(f, "; seed {}", seed.0)
    }
}
