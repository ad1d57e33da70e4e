//! What will be made: a request with every default filled in and every value checked, before anything is loaded.

use crate::Error;
use crate::sampler::Schedule;
use bundle::geometry::{FrameCount, LatentShape, PixelSize};
use bundle::manifest::Manifest;
use bundle::routing::ExpertName;
use bundle::settings::{ScheduleKind, SolverKind, check_steps, per_expert};
use bundle::units::{FrameRate, GuidanceScale, Seed, Shift};
use std::fmt;

/// How long a clip is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Length {
    /// Exactly so many frames.
    Frames(usize),
    /// So many seconds at the rate at which the clip is played.
    Seconds(f64),
}

/// What a user asks for; what is `None` is taken from the bundle's defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// What the clip shows.
    pub prompt: String,
    /// What it should not show.
    pub negative: Option<String>,
    /// Size of the picture.
    pub size: Option<PixelSize>,
    /// Length of the clip.
    pub length: Option<Length>,
    /// Rate at which the frames are played.
    pub fps: Option<FrameRate>,
    /// Denoising steps.
    pub steps: Option<usize>,
    /// Guidance scale of each expert from the noisiest down, or one for all.
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
    /// A request that leaves everything but prompt and seed to the bundle.
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

/// What will be made.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationPlan {
    /// What the clip shows.
    pub prompt: String,
    /// What it should not show.
    pub negative: String,
    /// Size of the picture.
    pub size: PixelSize,
    /// Frames of the clip.
    pub frames: FrameCount,
    /// Frames that the model makes; the rest is trimmed.
    pub frames_made: usize,
    /// Rate at which the frames are played.
    pub rate: FrameRate,
    /// Shape of the latent.
    pub latent: LatentShape,
    /// Tokens of one step.
    pub tokens: usize,
    /// Noise levels.
    pub schedule: Schedule,
    /// Name of the sigma grid.
    pub schedule_kind: ScheduleKind,
    /// Solver.
    pub solver: SolverKind,
    /// Shift of the sigma grid.
    pub shift: Shift,
    /// Guidance scale of each expert, from the noisiest down.
    pub guidance: Vec<GuidanceScale>,
    /// How many steps each expert does, from the noisiest down.
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
    /// The first value that is out of range, by the name of its flag.
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
                "--noise-scale",
                request.noise_scale,
                "it is a finite factor above 0",
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
    /// Whether any step needs the unconditional pass.
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
                    "--seconds",
                    seconds,
                    format!("at {rate} frames per second it is no clip of 1 to {} frames", FrameCount::MAX),
                    "give a longer or shorter time, or --frames",
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
