//! `rushes jobs submit`: queues a clip, or several takes of it. Everything is checked before anything is stored.

use super::list::owner;
use super::outputs::{OutputArgs, absolute, absolute_key, absolute_post_process, check, default_output};
use super::rows::{as_json, owner_as_json};
use super::store::StoreArgs;
use super::values;
use crate::Error;
use crate::cli::args::{ClipArgs, NoiseArgs, VariantArgs, WritingArgs};
use crate::cli::generate::{
    check_noise, extras_of, forks_left, input_file, missing_extras, record_of, request_like, variant_like,
};
use crate::cli::global::GlobalArgs;
use crate::cli::lora::{self, LoraArgs};
use crate::cli::render;
use crate::mini::MiniForm;
use ::jobs::audition::{MAX_TAKES, consecutive, steps_of};
use ::jobs::request::{NoiseFile, REQUEST_VERSION, Request};
use ::jobs::store::{JobRow, Store, check_free};
use bundle::Field;
use bundle::manifest::Manifest;
use bundle::variant::Target;
use clap::Args;
use engines::{Cancel, Device, Placement};
use media::OutputSpec;
use runtime::job::{JobSpec, KeepSteps};
use runtime::memory_plan::{MemoryPlan, MemoryRequest};
use runtime::model::{ModelOptions, choose_variant};
use runtime::plan::GenerationPlan;
use runtime::scheduler::{Priority, Seconds};
use runtime::trace::read_noise;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

/// The arguments of `rushes jobs submit`.
#[derive(Debug, Args)]
pub(super) struct SubmitArgs {
    /// Description of the clip
    #[arg(required_unless_present = "like")]
    prompt: Option<String>,
    /// Use this bundle [default: the embedded model, mini]
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Repeat a clip from the settings that are stored in it: a file that `rushes generate` wrote, or a folder of
    /// PNGs. Other arguments override its settings
    #[arg(long, value_name = "CLIP")]
    like: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    writing: WritingArgs,
    #[command(flatten)]
    settings: ClipArgs,
    #[command(flatten)]
    noise: NoiseArgs,
    #[command(flatten)]
    lora: LoraArgs,
    #[command(flatten)]
    variant: VariantArgs,
    #[command(flatten)]
    queue: QueueArgs,
    /// Queue this many takes instead, with --seed and the seeds after it: each makes the first steps and a picture,
    /// until `rushes jobs keep` makes its whole clip. When all are made, they are shown on a contact sheet
    #[arg(
        long,
        value_name = "N",
        conflicts_with_all = ["output", "stop_after", "noise"],
        help_heading = "Queue"
    )]
    takes: Option<usize>,
    /// With --takes, steps that each take makes [default: 8, or fewer if the first expert makes fewer]
    #[arg(long, value_name = "K", requires = "takes", help_heading = "Queue")]
    steps_of: Option<usize>,
}

/// How a job is queued.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Queue")]
pub(super) struct QueueArgs {
    /// How soon the clip is wanted: preview (at the next step), normal, or batch (after all others)
    #[arg(long, value_name = "NAME", default_value = "normal", value_parser = values::priority)]
    pub(super) priority: Priority,
    /// Put the job before all others this many seconds after it was queued [default: that of the priority]
    #[arg(long, allow_negative_numbers = true, value_name = "SECONDS", value_parser = values::deadline)]
    pub(super) deadline: Option<Seconds>,
    /// Make only this many of the steps, and decode the clean latent that the last of them predicted; `rushes jobs
    /// resume` makes the others
    #[arg(long, value_name = "K")]
    pub(super) stop_after: Option<usize>,
    /// Keep the snapshots after these steps, so that `rushes jobs fork` can go on from them: all, or numbers such as
    /// 10,20 [default: the newest, and the one before the last expert]
    #[arg(long, value_name = "K,...")]
    pub(super) keep_steps: Option<KeepSteps>,
}

impl QueueArgs {
    /// The steps whose snapshots are kept of a clip of `steps` steps.
    ///
    /// # Errors
    /// Names the first number that is out of range.
    pub(super) fn keep_steps(&self, steps: usize) -> Result<KeepSteps, bundle::Error> {
        let kept = self.keep_steps.clone().unwrap_or_default();
        kept.check(steps).map(|()| kept)
    }
}

/// Checks the number of steps after which a clip of `steps` steps ends, of which `done` are made.
///
/// # Errors
/// It is out of range.
pub(super) fn check_stop(stop: Option<usize>, done: usize, steps: usize) -> Result<(), bundle::Error> {
    let first = done.max(1);
    match stop.filter(|stop| !(first..=steps).contains(stop)) {
        None => Ok(()),
        Some(stop) => {
            let rule = format!("this clip can end after {first} to {steps} of its {steps} steps");
            Err(bundle::Error::value(Field::StopAfter, stop, rule, "give a number in that range"))
        }
    }
}

/// Runs the command.
pub(super) fn run(args: &SubmitArgs, store: &StoreArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    let cancel = global.interrupts.cancel();
    let mut notes = Vec::new();
    let (request, plan) = request(args, global, &cancel, &mut notes)?;
    let requests = match args.takes {
        None => vec![request],
        Some(count) => takes(&request, count, args.steps_of, &plan)?,
    };
    let first = &requests[0];
    // The default output is known when the job has its number.
    if first.take.is_some() || !first.outputs.is_empty() {
        notes.extend(check(first, &cancel)?);
    }
    let seeds = requests.iter().map(|request| request.clip.seed.0).collect::<Vec<_>>();
    let mut queue = store.open()?;
    // The store does it again, when no other process can add a job.
    let rows = queue.list()?;
    check_free(&first.outputs, &rows, None)?;
    let mut audition = None;
    let ids = queue.submit(requests, &mut |id, request, _folder| {
        if let Some(take) = &mut request.take {
            take.audition = *audition.get_or_insert(id);
        } else if request.outputs.is_empty() {
            request.outputs = vec![default_output(id)?];
            check_free(&request.outputs, &rows, None)?;
            notes.extend(check(request, &cancel)?);
        }
        Ok(())
    })?;
    notes.iter().for_each(|note| render::note(note));
    let rows = ids.iter().map(|id| queue.job(*id)).collect::<Result<Vec<_>, _>>()?;
    report("submitted", &rows, &text(&rows, &plan, &seeds), &queue, store, global)
}

/// Prints jobs that were queued.
pub(super) fn report(
    event: &str,
    rows: &[JobRow],
    text: &str,
    queue: &Store,
    store: &StoreArgs,
    global: &GlobalArgs,
) -> Result<ExitCode, Error> {
    let lease = queue.lease()?;
    let value = json!({
        "event": event,
        "store": render::path(queue.folder()),
        "owner": owner_as_json(lease.as_ref()),
        "jobs": rows.iter().map(|row| as_json(row, queue)).collect::<Vec<_>>(),
    });
    render::result(global.json, &value, text)?;
    if lease.is_none() && !global.json {
        render::note(&owner(store, None));
    }
    Ok(ExitCode::SUCCESS)
}

fn text(rows: &[JobRow], plan: &GenerationPlan, seeds: &[u64]) -> String {
    let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return String::new() };
    if let Some(take) = first.request.take {
        let plan = plan.to_string();
        let clip = plan.rsplit_once("; seed").map_or(&*plan, |(clip, _)| clip);
        let steps = first.request.stop_after.unwrap_or_default();
        let last_seed = seeds.last().copied().unwrap_or_default();
        let (from, to) = (first.id.0, last.id.0);
        return format!(
            "jobs {from} to {to}: {} takes of {steps} steps of {clip}; seeds {} to {last_seed}",
            take.of, seeds[0]
        );
    }
    let outputs: Vec<String> = first.request.outputs.iter().map(OutputSpec::to_string).collect();
    let stop = first.request.stop_after.map_or(String::new(), |stop| format!("; stops after step {stop}"));
    format!("{}: {plan}{stop}; to {}", first.id, outputs.join(", "))
}

/// The request that the arguments lead to, without what depends on the number of the job, and its plan.
fn request(
    args: &SubmitArgs,
    global: &GlobalArgs,
    cancel: &Cancel,
    notes: &mut Vec<String>,
) -> Result<(Request, GenerationPlan), Error> {
    let record = args.like.as_deref().map(record_of).transpose()?;
    let spec = record.as_ref().map(|record| &record.spec);
    let clip = request_like(spec, args.prompt.as_deref(), args.noise.seed, &args.settings)?;
    let folder = global.bundle_or_mini(args.bundle.as_deref(), || Ok(MiniForm::cpu()), cancel.stop())?;
    let variant = variant_like(args.variant, spec);
    let bundle = lora::open(&folder, &args.lora, (global, cancel.stop()))?;
    if let Some(spec) = spec {
        lora::check(spec, &bundle, true)?;
    }
    let folder = absolute(Field::Bundle, &bundle.folder)?;
    let manifest = bundle.manifest;
    let plan = GenerationPlan::new(&manifest, &clip)?;
    if let Some(spec) = spec {
        check_like(args, spec, &manifest, notes)?;
    }
    let steps = plan.schedule.steps();
    let stop_after = args.queue.stop_after.or(spec.and_then(|spec| spec.stop_after));
    check_stop(stop_after, 0, steps)?;
    check_variant(&manifest, variant, &plan, global, notes)?;
    let noise = match (&args.noise.file, spec) {
        (None, Some(spec)) => check_noise(spec, None).map(|_none| None)?,
        (None, None) => None,
        (Some(path), _) => {
            read_noise(path, plan.latent)?;
            let file = input_file(path)?;
            Some(NoiseFile { path: absolute(Field::Noise, path)?, file })
        }
    };
    let writing = &args.writing;
    let has_record = !writing.no_metadata || spec.is_some();
    let extras = if has_record { extras_of(&writing.post_process)? } else { BTreeMap::new() };
    notes.extend(missing_extras(&extras, spec));
    let outputs = args.output.absolute()?;
    let request = Request {
        version: REQUEST_VERSION,
        bundle: folder,
        model: manifest.model.clone(),
        precision: variant.precision,
        kernels: variant.kernels,
        clip: plan.request(),
        noise,
        priority: args.queue.priority,
        deadline: args.queue.deadline,
        stop_after,
        keep_steps: args.queue.keep_steps(steps)?,
        outputs,
        post_process: absolute_post_process(writing.post_process.spec()?)?,
        extras,
        metadata: !writing.no_metadata,
        mark: writing.post_process.mark(),
        sign: writing.post_process.signing_key().map(absolute_key).transpose()?,
        output_timeout: Seconds::try_new(writing.output_timeout.0.as_secs_f64())?,
        origin: None,
        take: None,
    };
    Ok((request, plan))
}

/// Refuses to repeat a clip that was changed on its way, which a request cannot say.
fn check_like(
    args: &SubmitArgs,
    spec: &JobSpec,
    manifest: &Manifest,
    notes: &mut Vec<String>,
) -> Result<(), Error> {
    let left = forks_left(&spec.forks, args.prompt.is_some(), &args.settings, notes);
    if let (Some(fork), Some(clip)) = (left.first(), &args.like) {
        let rule = format!("the clip was changed on its way, {fork}; a queued job cannot repeat that");
        let fix = "repeat it with `rushes generate --like`, or replace the change with arguments";
        return Err(bundle::Error::value(Field::Like, format!("`{}`", clip.display()), rule, fix).into());
    }
    if spec.model.name != manifest.model {
        notes.push(format!(
            "warning: the clip was made with the model {}, and this one is {}; it will differ",
            spec.model.name, manifest.model
        ));
    }
    Ok(())
}

/// Checks that the bundle has graphs for the options on some target. Warns of a clip that does not fit in the memory of
/// this machine: the owner may run with another budget, or later.
fn check_variant(
    manifest: &Manifest,
    variant: VariantArgs,
    plan: &GenerationPlan,
    global: &GlobalArgs,
    notes: &mut Vec<String>,
) -> Result<(), Error> {
    let VariantArgs { precision, kernels } = variant;
    let options = ModelOptions { precision, kernels, ..ModelOptions::default() };
    let path = global.kernels()?.path();
    let on_cpu = match MemoryRequest::placed(manifest, Placement::on(Device::CPU), path, &options) {
        Ok(request) => request,
        Err(error) => {
            let runs = |target| choose_variant(manifest, target, path, &options).is_ok();
            return if Target::ALL.into_iter().any(runs) { Ok(()) } else { Err(error.into()) };
        }
    };
    match MemoryPlan::new(manifest, plan, &on_cpu) {
        Err(error @ runtime::Error::Engine(engines::Error::DoesNotFit { .. })) => {
            notes.push(format!(
                "warning: on the CPU, and with the memory that is free here now, {}",
                render::report(&error)
            ));
            Ok(())
        }
        planned => Ok(planned.map(drop)?),
    }
}

/// The takes of an audition: the request with consecutive seeds. They have no outputs until they are kept.
fn takes(
    request: &Request,
    count: usize,
    steps: Option<usize>,
    plan: &GenerationPlan,
) -> Result<Vec<Request>, Error> {
    if !(1..=MAX_TAKES).contains(&count) {
        let rule = format!("an audition has 1 to {MAX_TAKES} takes");
        return Err(Error::argument("--takes", count, rule, "use 9"));
    }
    let steps = steps_of(steps, plan)?;
    let seeds = consecutive(request.clip.seed, count);
    Ok(::jobs::audition::takes(request, &seeds, steps))
}
