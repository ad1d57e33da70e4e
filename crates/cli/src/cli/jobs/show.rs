//! `rushes jobs show`: everything about a job, and what can be done with it.

use super::fork::changes;
use super::list::owner;
use super::rows::{as_json, next, owner_as_json, steps, steps_done};
use super::store::StoreArgs;
use super::{table, times, values};
use crate::Error;
use crate::cli::global::GlobalArgs;
use crate::cli::render;
use ::jobs::request::Request;
use ::jobs::store::{JobRow, State, now};
use bundle::manifest::Bundle;
use bundle::timesteps::{GuidanceUntil, TimestepChoice};
use clap::Args;
use media::post_process::PostProcessSpec;
use media::{FailedOutputReport, OutputReport, OutputResult};
use runtime::job::JobFolder;
use runtime::plan::{GenerationPlan, Length};
use runtime::scheduler::JobId;
use serde_json::json;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// The arguments of `rushes jobs show`.
#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// Number of the job
    #[arg(value_name = "ID", value_parser = values::job_id)]
    job: JobId,
}

/// What is known of a job besides its row.
struct Around {
    /// The folder of the job.
    folder: PathBuf,
    /// The steps that a fork can go on from.
    kept: Vec<usize>,
    /// The picture of a take, and the contact sheet of its audition, if they are made, with their names.
    pictures: Vec<(&'static str, PathBuf)>,
    /// The steps of each expert with its guidance, if the bundle can be read.
    experts: Vec<String>,
    /// Seconds since 1970.
    now: f64,
}

/// Runs the command.
pub(super) fn run(args: &ShowArgs, store: &StoreArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    let found = store.open_for(args.job)?;
    let row = found.job(args.job)?;
    let lease = found.lease()?;
    let folder = found.job_folder(row.id);
    let take = row.request.take.map(|take| {
        let sheet = found.contact_sheet(take.audition);
        [("take picture", found.take_picture(row.id)), ("contact sheet", sheet)]
    });
    let around = Around {
        kept: JobFolder::kept_steps_in(&found.run_folder(row.id)),
        pictures: take.into_iter().flatten().filter(|(_, path)| path.exists()).collect(),
        folder,
        experts: experts(&row.request).unwrap_or_default(),
        now: now(),
    };
    let mut job = as_json(&row, &found);
    job["kept_steps"] = json!(around.kept);
    job["pictures"] = json!(around.pictures.iter().map(|(_, path)| render::path(path)).collect::<Vec<_>>());
    let value = json!({"event": "job", "owner": owner_as_json(lease.as_ref()), "job": job});
    let mut text = as_text(&row, &around, store);
    if !row.state.has_ended() {
        text.push_str(&owner(store, lease.as_ref()));
    }
    render::result(global.json, &value, &text)?;
    Ok(ExitCode::SUCCESS)
}

fn as_text(row: &JobRow, around: &Around, store: &StoreArgs) -> String {
    let mut text = format!("{}: {}\n", row.id, state(row));
    // Writing into a String cannot fail.
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "  {name:<13} {}", value.replace('\n', "\n                "));
    };
    let request = &row.request;
    line("prompt", &request.clip.prompt);
    if let Some(negative) = request.clip.negative.as_deref().filter(|negative| !negative.is_empty()) {
        line("negative", negative);
    }
    line("model", &model(request));
    line("clip", &clip(request, &around.experts));
    for (name, value) in post_processing(request) {
        line(name, &value);
    }
    if let Some(origin) = &request.origin {
        line("fork", &format!("of {}, {}", origin.job, changes(origin)));
    }
    if let Some(take) = &request.take {
        let (number, of, audition) = (take.number, take.of, take.audition.0);
        line("take", &format!("{number} of {of} of the audition that began with job {audition}"));
    }
    let deadline = request
        .deadline
        .map_or(String::new(), |deadline| format!(", deadline {} s after it was queued", deadline.get()));
    line("priority", &format!("{}{deadline}", request.priority));
    line("times", &moments(row, around.now));
    for output in outputs(row) {
        line("output", &output);
    }
    for (name, picture) in &around.pictures {
        line(name, &picture.display().to_string());
    }
    if !around.kept.is_empty() {
        let kept: Vec<String> = around.kept.iter().map(usize::to_string).collect();
        line("snapshots", &format!("after step {}", kept.join(", ")));
    }
    line("folder", &around.folder.display().to_string());
    let outcome = row.outcome.as_ref().filter(|_| row.state.has_ended());
    if let Some(error) = outcome.and_then(|outcome| outcome.error.clone()) {
        let error = render::named(error);
        line("error", &format!("{}\nwhy: {}\nfix: {}", error.what, error.why, error.fix));
    }
    for warning in outcome.map_or(&[][..], |outcome| &outcome.warnings) {
        line("warning", warning);
    }
    for command in commands(row, &around.kept) {
        line("next", &format!("`{}`", store.command(&command)));
    }
    text
}

fn state(row: &JobRow) -> String {
    let done = format!("{} of {} steps", steps_done(row), steps(row));
    let mut text = format!("{}, {done}", row.state);
    if row.state == State::Running {
        let _ = write!(text, ", {}", table::at(&row.progress));
        if let Some(left) = row.progress.seconds_left {
            let _ = write!(text, ", {} left", times::clock(left));
        }
    }
    if let Some(held) = row.progress.held.as_deref().filter(|_| !row.state.has_ended()) {
        let _ = write!(text, "; held: {held}");
    }
    text
}

fn model(request: &Request) -> String {
    let precision = request.precision.map_or(String::new(), |precision| format!(", {precision}"));
    let kernels = request.kernels.map_or(String::new(), |kernels| format!(", {kernels} kernels"));
    format!("{}{precision}{kernels}, {}", request.model, request.bundle.display())
}

/// The steps of each expert with its guidance. `None` if the bundle cannot be read, or if the settings change on the way.
fn experts(request: &Request) -> Option<Vec<String>> {
    if request.origin.is_some() {
        return None;
    }
    let bundle = Bundle::open(&request.bundle).ok()?;
    let plan = GenerationPlan::new(&bundle.manifest, &request.clip).ok()?;
    Some(plan.experts_as_text())
}

/// The settings of post-processing that were given, with their names.
fn post_processing(request: &Request) -> Vec<(&'static str, String)> {
    let PostProcessSpec { captions, logo, key, audio, rate } = &request.post_process;
    let mut lines = Vec::new();
    match captions.as_slice() {
        [] => {}
        [caption] => lines.push(("caption", caption.text.clone())),
        [first, others @ ..] => {
            lines.push(("caption", format!("{}\nand {} more", first.text, others.len())));
        }
    }
    lines.extend(logo.iter().map(|(path, corner)| ("logo", format!("{}, {corner}", path.display()))));
    lines.extend(audio.iter().map(|source| ("audio", source.path().display().to_string())));
    lines.extend(
        key.iter().map(|(colour, path)| ("key", format!("{colour}, replaced by {}", path.display()))),
    );
    lines.extend(rate.iter().map(|(rate, by)| ("output fps", format!("{rate}, by {}", by.description()))));
    lines.extend(request.sign.iter().map(|key| ("sign", format!("with {}", key.certificate.display()))));
    if !request.mark {
        lines.push(("no mark", "the outputs do not say that they are AI-generated".to_owned()));
    }
    if !request.metadata {
        lines.push(("no metadata", "settings, title and seed are not stored in the outputs".to_owned()));
    }
    lines
}

fn clip(request: &Request, experts: &[String]) -> String {
    let clip = &request.clip;
    let mut parts = Vec::new();
    parts.extend(clip.size.map(|size| size.to_string()));
    if let (Some(Length::Frames(frames)), Some(rate)) = (clip.length, clip.fps) {
        parts.push(format!("{frames} frames at {rate} fps"));
    }
    let split = if experts.is_empty() { String::new() } else { format!(": {}", experts.join(", ")) };
    match (&clip.timesteps, request.steps(), clip.sampler) {
        (Some(TimestepChoice::List(list)), Some(steps), Some(sampler)) => {
            parts.push(format!("{steps} steps of {sampler} (timesteps {list}){split}"));
        }
        (_, Some(steps), Some(sampler)) => {
            if let (Some(schedule), Some(shift)) = (clip.schedule, clip.shift) {
                parts.push(format!("{steps} steps of {sampler} ({schedule}, shift {shift}){split}"));
            }
        }
        _ => {}
    }
    parts.extend(clip.start.filter(|start| !start.is_noise()).map(|start| format!("begins with {start}")));
    let ends = clip.guidance_until.filter(|until| *until != GuidanceUntil::ALL_STEPS);
    parts.extend(ends.map(|until| format!("guidance until sigma {until}")));
    let cache = clip.step_cache.filter(|policy| !policy.is_compute_all());
    parts.extend(cache.map(|policy| format!("step cache {policy}")));
    if let Some(scales) = clip.guidance.as_ref().filter(|_| experts.is_empty()) {
        let scales: Vec<String> = scales.iter().map(|scale| scale.0.to_string()).collect();
        parts.push(format!("guidance {}", scales.join(", ")));
    }
    match &request.noise {
        Some(noise) => parts.push(format!("noise of {}", noise.path.display())),
        None => parts.push(format!("seed {}", clip.seed.0)),
    }
    parts.extend(request.stop_after.map(|stop| format!("stops after step {stop}")));
    parts.join("; ")
}

fn moments(row: &JobRow, now: f64) -> String {
    let mut parts = vec![format!("submitted {}", times::ago(row.submitted, now))];
    parts.extend(row.started.map(|started| format!("began {}", times::ago(started, now))));
    parts.extend(
        row.ended.filter(|_| row.state.has_ended()).map(|ended| format!("ended {}", times::ago(ended, now))),
    );
    parts.join(", ")
}

/// The outputs: what became of them once the job has ended, else where they will be.
fn outputs(row: &JobRow) -> Vec<String> {
    let results = row.outcome.as_ref().filter(|_| row.state.has_ended()).map(|outcome| &outcome.outputs);
    match results.filter(|results| !results.is_empty()) {
        None => row.request.outputs.iter().map(ToString::to_string).collect(),
        Some(results) => results
            .iter()
            .map(|result| match result {
                OutputResult::Written(OutputReport { output, frames, .. }) => {
                    format!("{output}: {frames} frames")
                }
                OutputResult::Failed(FailedOutputReport { output, error, kept }) => {
                    format!("{output}: {error}; {kept}")
                }
            })
            .collect(),
    }
}

/// The commands that make sense next, as they follow `rushes jobs`.
fn commands(row: &JobRow, kept: &[usize]) -> Vec<String> {
    let id = row.id.0;
    let mut commands: Vec<String> = next(row).iter().map(|order| format!("{order} {id}")).collect();
    if let Some(step) = kept.iter().copied().rfind(|step| row.request.steps().is_none_or(|all| *step < all)) {
        commands.push(format!("fork {id} --from-step {step}"));
    }
    commands
}

#[cfg(test)]
mod tests {
    use super::super::rows::tests::{outcome, refusal, row};
    use super::*;
    use ::jobs::request::{Origin, Take};
    use ::jobs::store::Progress;
    use bundle::settings::{ScheduleKind, SolverKind};
    use bundle::units::GuidanceScale;
    use media::SigningKey;
    use media::post_process::{AudioSource, Caption, Corner, Interpolation, KeyColour};
    use runtime::job::ForkSpec;
    use runtime::scheduler::{Priority, Seconds};

    fn around(kept: &[usize]) -> Around {
        Around {
            folder: "/home/me/queue/jobs/7".into(),
            kept: kept.to_vec(),
            pictures: Vec::new(),
            experts: Vec::new(),
            now: 1300.0,
        }
    }

    #[test]
    fn a_running_fork_is_shown() {
        let mut running = row(7, State::Running);
        running.progress = Progress {
            phase: "denoise".into(),
            expert: Some("low_noise".into()),
            steps_done: 5,
            steps: 8,
            seconds_left: Some(61.0),
            ..Progress::default()
        };
        running.started = Some(1240.0);
        let clip = &mut running.request.clip;
        clip.prompt = "a blue ball\nbounces".into();
        clip.negative = Some("blurry".into());
        clip.sampler = Some(SolverKind::UniPc);
        clip.schedule = Some(ScheduleKind::Official);
        clip.shift = Some(3.0);
        clip.guidance = Some(vec![GuidanceScale(4.0), GuidanceScale(3.0)]);
        running.request.priority = Priority::Batch;
        running.request.deadline = Some(Seconds::try_new(600.0).unwrap());
        let fork = ForkSpec { prompt: Some(clip.prompt.clone()), ..ForkSpec::default() };
        running.request.origin = Some(Origin { job: JobId(3), step: 4, steps: 8, fork });
        insta::assert_snapshot!(as_text(&running, &around(&[4, 5]), &StoreArgs::default()));
    }

    #[test]
    fn post_processing_and_the_split_of_the_steps_are_shown() {
        let mut request = row(7, State::Queued).request;
        assert_eq!(post_processing(&request), []);
        request.post_process = PostProcessSpec {
            captions: vec![Caption::always("a fox"), Caption::always("runs"), Caption::always("on")],
            logo: Some(("/logo.png".into(), Corner::TopLeft)),
            key: Some((KeyColour::Green, "/beach.mp4".into())),
            audio: Some(AudioSource::File("/song.ogg".into())),
            rate: Some(("24".parse().unwrap(), Interpolation::Blend)),
        };
        (request.mark, request.metadata) = (false, false);
        request.sign = Some(SigningKey { certificate: "/chain.pem".into(), key: "/key.pem".into() });
        let lines: Vec<String> =
            post_processing(&request).into_iter().map(|(name, value)| format!("{name}: {value}")).collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        caption: a fox
        and 2 more
        logo: /logo.png, top-left
        audio: /song.ogg
        key: green, replaced by /beach.mp4
        output fps: 24, by blending
        sign: with /chain.pem
        no mark: the outputs do not say that they are AI-generated
        no metadata: settings, title and seed are not stored in the outputs
        ");
        (request.clip.sampler, request.clip.schedule) =
            (Some(SolverKind::UniPc), Some(ScheduleKind::Official));
        (request.clip.shift, request.clip.guidance) = (Some(3.0), Some(vec![GuidanceScale(4.0)]));
        let experts =
            ["high_noise 3 steps at guidance 4".to_owned(), "low_noise 5 steps at guidance 3".to_owned()];
        insta::assert_snapshot!(clip(&request, &experts), @"112x64; 17 frames at 16 fps; 8 steps of unipc (official, shift 3): high_noise 3 steps at guidance 4, low_noise 5 steps at guidance 3; seed 42");
        assert_eq!(super::experts(&request), None, "there is no such bundle");
    }

    #[test]
    fn jobs_that_have_ended_are_shown_with_their_results() {
        let mut failed = row(7, State::Failed);
        failed.ended = Some(1100.0);
        let mut result = outcome(State::Failed, Some(refusal()));
        result.outputs = vec![
            OutputResult::Written(OutputReport { output: "/a.gif".into(), frames: 17, bytes: Some(9) }),
            OutputResult::Failed(FailedOutputReport {
                output: "/b.mp4".into(),
                error: "its disk is full".into(),
                kept: "no frame was written, nothing was kept".into(),
            }),
        ];
        result.warnings = vec!["the prompt is long".into()];
        failed.outcome = Some(result);
        insta::assert_snapshot!(as_text(&failed, &around(&[]), &StoreArgs::default()));

        let mut take = row(7, State::Stopped);
        take.request.take = Some(Take { audition: JobId(5), number: 3, of: 9 });
        take.request.outputs.clear();
        take.request.stop_after = Some(4);
        take.progress.steps_done = 4;
        let pictures = vec![
            ("take picture", "/home/me/queue/jobs/7/take.png".into()),
            ("contact sheet", "/home/me/queue/auditions/5.png".into()),
        ];
        let around = Around { pictures, ..around(&[4]) };
        insta::assert_snapshot!(as_text(&take, &around, &StoreArgs::default()));
    }
}
