//! What each bundle of the server can do, so that a client need not try.

use crate::access::Caller;
use crate::app::App;
use crate::clips::checked::boundary_of;
use crate::config::Limits;
use crate::fault::ErrorBody;
use crate::models::ServedModel;
use crate::{auditions, loras, post};
use axum::Json;
use axum::extract::State;
use bundle::settings::{ScheduleKind, SolverKind};
use jobs::audition::{MAX_TAKES, TAKE_STEPS};
use media::wav::{HIGHEST_RATE, LOWEST_RATE, MOST_CHANNELS};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The route.
pub(crate) fn router() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(get_capabilities))
}

/// What the server can do.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Capabilities {
    /// The version of the program.
    pub version: String,
    /// The models. The first is used if a request names none.
    pub models: Vec<Model>,
    /// Other names of models, as patterns.
    pub aliases: Vec<String>,
    /// Bounds of a clip.
    pub limits: ClipLimits,
    /// Auditions, which every model can do.
    pub auditions: AuditionLimits,
    /// Formats of files.
    pub formats: Vec<&'static str>,
    /// Those of them that carry sound.
    pub sound_formats: Vec<&'static str>,
    /// What can be uploaded.
    pub uploads: UploadLimits,
    /// Samplers.
    pub samplers: Vec<&'static str>,
    /// Schedules.
    pub schedules: Vec<&'static str>,
    /// LoRAs that requests may name. Which model one is for is found when it is used.
    pub loras: Vec<String>,
}

/// A model, with its defaults.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Model {
    /// Its name.
    pub name: String,
    /// What it makes clips from: `text`.
    pub inputs: Vec<&'static str>,
    /// Size of a frame.
    pub size: String,
    /// Number of frames.
    pub frames: usize,
    /// Frames per second.
    pub fps: f64,
    /// Denoising steps.
    pub steps: usize,
    /// Guidance scale of each expert, from high to low noise.
    pub guidance: Vec<f32>,
    /// Shift of the sigma grid.
    pub shift: f64,
    /// Sampler.
    pub sampler: &'static str,
    /// The boundary between two experts, as a share of the timesteps.
    pub boundary_ratio: Option<f64>,
    /// Width and height of a frame are multiples of this.
    pub size_step: usize,
}

/// Bounds of a clip.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ClipLimits {
    /// The longest side in pixels.
    pub side: usize,
    /// Frames.
    pub frames: usize,
    /// Steps.
    pub steps: usize,
    /// Jobs that may wait or run.
    pub queue: usize,
}

/// What can be uploaded.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct UploadLimits {
    /// Formats of pictures.
    pub pictures: Vec<&'static str>,
    /// The longest side of a picture in pixels.
    pub picture_side: u32,
    /// Formats of sounds.
    pub sounds: Vec<&'static str>,
    /// The longest time of a sound in seconds.
    pub sound_seconds: u64,
    /// The least and the most samples per second of a sound.
    pub sound_rates: [u32; 2],
    /// The most channels of a sound.
    pub sound_channels: u16,
    /// Bytes of a file.
    pub bytes: usize,
}

impl UploadLimits {
    fn of(limits: &Limits) -> Self {
        Self {
            pictures: vec!["png", "jpeg", "webp"],
            picture_side: limits.upload_side,
            sounds: vec!["wav"],
            sound_seconds: limits.upload_sound.as_secs(),
            sound_rates: [LOWEST_RATE, HIGHEST_RATE],
            sound_channels: MOST_CHANNELS,
            bytes: limits.upload,
        }
    }
}

/// How many takes auditions have.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AuditionLimits {
    /// Takes, unless asked for otherwise.
    pub takes: usize,
    /// The most takes.
    pub most_takes: usize,
    /// Steps of a take, unless asked for otherwise. They are fewer if the first expert makes fewer.
    pub steps_of: usize,
}

impl Model {
    fn of(model: &ServedModel) -> Self {
        let defaults = &model.manifest.defaults;
        let stride = model.manifest.vae.stride();
        Self {
            name: model.name.clone(),
            inputs: vec!["text"],
            size: defaults.size.value.to_string(),
            frames: defaults.frames.value,
            fps: defaults.fps.value.per_second(),
            steps: defaults.steps.value,
            guidance: defaults.guidance.value.iter().map(|scale| scale.0).collect(),
            shift: defaults.shift.value.0,
            sampler: defaults.sampler.value.name(),
            boundary_ratio: boundary_of(model),
            size_step: stride.space * model.manifest.denoiser.patch.width,
        }
    }
}

/// Show what the models can do
#[utoipa::path(
    get, path = "/v1/capabilities", tag = "Rushes",
    responses(
        (status = 200, description = "The models, their defaults and the bounds of a clip", body = Capabilities),
        (status = "4XX", description = "The request is refused", body = ErrorBody),
    ),
)]
async fn get_capabilities(State(app): State<Arc<App>>, _caller: Caller) -> Json<Capabilities> {
    let limits = &app.config.limits;
    Json(Capabilities {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        models: app.models.all().iter().map(|model| Model::of(model)).collect(),
        aliases: app.config.aliases.iter().map(ToString::to_string).collect(),
        limits: ClipLimits {
            side: limits.side,
            frames: limits.frames,
            steps: limits.steps,
            queue: limits.queue,
        },
        auditions: AuditionLimits {
            takes: auditions::TAKES,
            most_takes: MAX_TAKES.min(limits.queue),
            steps_of: TAKE_STEPS,
        },
        formats: vec!["mp4", "webm", "mkv", "gif", "webp"],
        sound_formats: post::formats_with_sound(),
        uploads: UploadLimits::of(limits),
        samplers: SolverKind::ALL.map(SolverKind::name).to_vec(),
        schedules: ScheduleKind::ALL.map(ScheduleKind::name).to_vec(),
        loras: app.config.loras.as_ref().map(|served| loras::names(&served.folder)).unwrap_or_default(),
    })
}
