//! The way from what a client asks for to what the queue takes. Everything is checked before anything is stored.

use super::request::ClipRequest;
use crate::app::App;
use crate::config::Limits;
use crate::fault::{Fault, parameter_of};
use crate::models::ServedModel;
use crate::post::Post;
use crate::screening::FinalTexts;
use crate::{ids, latents};
use bundle::units::{GuidanceScale, Seed};
use bundle::{Diagnose, Field};
use jobs::request::{REQUEST_VERSION, Request};
use media::post_process::PostProcessSpec;
use media::{FileFormat, OutputSpec};
use runtime::job::KeepSteps;
use runtime::plan::{GenerateRequest, GenerationPlan, Length};
use runtime::scheduler::Seconds;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// An output is given up when it makes no progress for this long, in seconds.
const OUTPUT_TIMEOUT: f64 = 60.0;

/// The steps after which a clip can be remixed: a quarter of them. Composition is settled by then, and content is not.
pub(crate) fn remix_step(steps: usize) -> usize {
    (steps / 4).max(1)
}

/// The request of a job, without its outputs, which have the name of the clip.
///
/// # Errors
/// There is no such model, a value is out of range, or the texts are refused.
pub(crate) fn checked(app: &App, request: &ClipRequest) -> Result<Request, Fault> {
    let model = app.models.find(request.model.as_deref())?;
    let refused = |error: prompt::Error, name| Fault::of_report(&error.report()).about(name);
    prompt::check(&request.prompt).map_err(|error| refused(error, "prompt"))?;
    if let Some(negative) = &request.negative {
        prompt::check_negative(negative).map_err(|error| refused(error, "negative_prompt"))?;
    }
    let plan = GenerationPlan::new(&model.manifest, &generate_request(request, model)?)?;
    check_limits(&plan, &app.config.limits)?;
    check_boundary(request.boundary, model)?;
    let captions = request.post.as_ref().map(Post::texts).unwrap_or_default();
    screen(app, &plan.prompt, &plan.negative, &plan.guidance, &captions)?;
    let noise = match &request.latents {
        Some(name) => {
            Some(latents::noise(&latents::find(app.config.latents.as_deref(), name)?, name, &plan)?)
        }
        None => None,
    };
    let steps = plan.schedule.steps();
    let keep = remix_step(steps);
    Ok(Request {
        version: REQUEST_VERSION,
        bundle: model.folder.clone(),
        model: model.manifest.model.clone(),
        precision: None,
        kernels: None,
        clip: plan.request(),
        noise,
        priority: request.priority,
        deadline: request.deadline,
        stop_after: None,
        keep_steps: if keep < steps { KeepSteps::Some(vec![keep]) } else { KeepSteps::None },
        outputs: Vec::new(),
        post_process: PostProcessSpec::default(),
        extras: BTreeMap::new(),
        metadata: true,
        mark: true,
        sign: None,
        output_timeout: Seconds::try_new(OUTPUT_TIMEOUT)?,
        origin: None,
        take: None,
    })
}

/// Hands texts to the screen as the model gets them.
///
/// # Errors
/// They are refused.
pub(crate) fn screen(
    app: &App,
    prompt: &str,
    negative: &str,
    guidance: &[GuidanceScale],
    captions: &[String],
) -> Result<(), Fault> {
    let texts = FinalTexts {
        prompt: &prompt::clean(prompt),
        negative: &prompt::clean(negative),
        // velocity = scale * that of the prompt + (1 - scale) * that of the negative prompt.
        shows_negative: guidance.iter().any(|scale| scale.0 < 1.0),
        captions,
    };
    app.config.screen.check(&texts).map_err(|refusal| {
        app.metrics.refused(&refusal);
        refusal.into()
    })
}

/// The output of a clip: a file in the folder of the clips.
pub(crate) fn output(clips: &Path, id: &str, format: FileFormat) -> OutputSpec {
    let path: PathBuf = clips.join(format!("{id}.{}", format.extension()));
    OutputSpec::File { path, format }
}

fn generate_request(request: &ClipRequest, model: &ServedModel) -> Result<GenerateRequest, Fault> {
    let seed = request.seed.unwrap_or_else(|| u64::from(u32::from_le_bytes(ids::random::<4>())));
    Ok(GenerateRequest {
        negative: request.negative.clone(),
        size: request.size,
        length: request.length,
        fps: request.fps,
        steps: request.steps,
        guidance: guidance(request, model)?,
        shift: request.shift,
        sampler: request.sampler,
        schedule: request.schedule,
        noise_scale: request.noise_scale.unwrap_or(1.0),
        ..GenerateRequest::new(request.prompt.clone(), Seed(seed))
    })
}

/// The scales of the experts, as in diffusers: the first is that for high noise, and the other is equal unless given.
fn guidance(request: &ClipRequest, model: &ServedModel) -> Result<Option<Vec<GuidanceScale>>, Fault> {
    let experts = model.manifest.routing.routes().len();
    let finite = |scale: f32, name: &str| {
        if scale.is_finite() {
            Ok(GuidanceScale(scale))
        } else {
            Err(Fault::parameter(name, "a guidance scale is a finite number"))
        }
    };
    if request.guidance_low.is_some() && experts < 2 {
        let message = format!("{} has one expert, and so one guidance scale", model.name);
        return Err(Fault::unsupported("guidance_scale_2", message));
    }
    let defaults = &model.manifest.defaults.guidance.value;
    let high = match request.guidance_high {
        Some(high) => finite(high, "guidance_scale")?,
        None if request.guidance_low.is_none() => return Ok(None),
        None => defaults.first().copied().unwrap_or(GuidanceScale(1.0)),
    };
    let low = request.guidance_low.map(|low| finite(low, "guidance_scale_2")).transpose()?.unwrap_or(high);
    Ok(Some((0..experts).map(|expert| if expert == 0 { high } else { low }).collect()))
}

fn check_limits(plan: &GenerationPlan, limits: &Limits) -> Result<(), Fault> {
    let above = |field: Field, given: String, most: String| {
        let name = parameter_of(field);
        Err(Fault::parameter(name, format!("{name} cannot be {given}: this server makes at most {most}")))
    };
    if plan.size.width.max(plan.size.height) > limits.side {
        return above(Field::Size, plan.size.to_string(), format!("{} pixels a side", limits.side));
    }
    if plan.frames.get() > limits.frames {
        return above(Field::Frames, plan.frames.get().to_string(), format!("{} frames", limits.frames));
    }
    if plan.schedule.steps() > limits.steps {
        return above(Field::Steps, plan.schedule.steps().to_string(), format!("{} steps", limits.steps));
    }
    Ok(())
}

/// Refuses a boundary that is not that of the bundle. Moving it would run an expert on noise it was not trained for.
fn check_boundary(boundary: Option<f64>, model: &ServedModel) -> Result<(), Fault> {
    let Some(asked) = boundary else { return Ok(()) };
    let own = boundary_of(model);
    if own.is_some_and(|own| (own - asked).abs() < 1e-6) {
        return Ok(());
    }
    let own = own.map_or("no boundary".to_owned(), |own| format!("the boundary {own}"));
    Err(Fault::unsupported("boundary_ratio", format!("{} has {own}, which cannot be changed", model.name)))
}

/// The boundary between two experts of a model, as a share of the timesteps.
pub(crate) fn boundary_of(model: &ServedModel) -> Option<f64> {
    match model.manifest.routing.routes() {
        [first, _] => {
            let share = f64::from(first.from_timestep) / 1000.0;
            // As it was written, without the digits that a 32-bit number adds.
            Some((share * 1e6).round() / 1e6)
        }
        _ => None,
    }
}

/// The size of the frames of a stored request.
pub(crate) fn size_of(request: &Request) -> String {
    request.clip.size.map_or_else(String::new, |size| size.to_string())
}

/// The length of a stored clip in seconds.
pub(crate) fn seconds_of(request: &Request) -> f64 {
    match (request.clip.length, request.clip.fps) {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        (Some(Length::Frames(frames)), Some(fps)) => frames as f64 / fps.per_second(),
        (Some(Length::Seconds(seconds)), _) => seconds,
        _ => 0.0,
    }
}

/// The noise levels of a stored clip, of which the number k is that after k steps. `None` if it changes its grid on the
/// way, or its model is another one by now.
pub(crate) fn sigmas(request: &Request, model: &ServedModel) -> Option<Vec<f32>> {
    if request.origin.as_ref().is_some_and(|origin| origin.fork.grid.is_some()) {
        return None;
    }
    let plan = GenerationPlan::new(&model.manifest, &request.clip).ok()?;
    Some(plan.schedule.sigmas().iter().map(|sigma| sigma.0).collect())
}
