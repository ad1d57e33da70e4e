//! `rushes jobs fork`: queues a job that goes on from a step of another one, with other settings.

use super::outputs::{OutputArgs, check, default_output};
use super::store::StoreArgs;
use super::submit::{QueueArgs, check_stop, report};
use super::values;
use crate::Error;
use crate::cli::generate::{Changes, fork};
use crate::cli::global::GlobalArgs;
use crate::cli::render;
use crate::cli::sampling::SamplingArgs;
use crate::cli::seed::SeedChoice;
use ::jobs::fork::{Forked, changed};
use ::jobs::request::{Origin, Request};
use ::jobs::store::{JobRow, ORIGIN, check_free};
use bundle::Field;
use bundle::manifest::Bundle;
use bundle::settings::{ScheduleKind, SolverKind};
use clap::Args;
use media::OutputSpec;
use runtime::job::{ForkSpec, JobFolder, JobSpec};
use runtime::scheduler::JobId;
use std::process::ExitCode;

/// The arguments of `rushes jobs fork`.
#[derive(Debug, Args)]
pub(super) struct ForkArgs {
    /// Number of the job. It may be running, and stays as it is
    #[arg(value_name = "ID", value_parser = values::job_id)]
    job: JobId,
    /// Another description of the clip [default: that of the job]
    prompt: Option<String>,
    /// Go on after this many steps; `rushes jobs show ID` lists those whose snapshots were kept
    #[arg(long, value_name = "K")]
    from_step: usize,
    #[command(flatten)]
    output: OutputArgs,
    /// Another description of what the clip should not show
    #[arg(long, value_name = "TEXT")]
    negative: Option<String>,
    /// Another grid: number of steps of the whole of it, of which those below the noise of the snapshot are made
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Another guidance scale: one for all experts, or one per expert from high to low noise
    #[arg(long, allow_negative_numbers = true, value_name = "HIGH[,LOW]")]
    guidance: Option<String>,
    /// Another grid: shift towards high noise
    #[arg(long, allow_negative_numbers = true, value_name = "F")]
    shift: Option<f64>,
    /// Another sampler: unipc, dpmpp, euler or renoise
    #[arg(long, value_name = "NAME")]
    sampler: Option<SolverKind>,
    /// Another grid: official or diffusers
    #[arg(long, value_name = "NAME")]
    schedule: Option<ScheduleKind>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Share of fresh noise from 0 to 1 that is mixed into the latent
    #[arg(long, allow_negative_numbers = true, value_name = "V")]
    variation: Option<f64>,
    /// Seed of the fresh noise of --variation; -1 is a new seed each time [default: -1]
    #[arg(long, value_name = "N", requires = "variation")]
    seed: Option<SeedChoice>,
    #[command(flatten)]
    queue: QueueArgs,
}

impl ForkArgs {
    fn changes(&self) -> Changes<'_> {
        Changes {
            prompt: self.prompt.as_deref(),
            negative: self.negative.as_deref(),
            guidance: self.guidance.as_deref(),
            steps: self.steps,
            shift: self.shift,
            sampler: self.sampler,
            schedule: self.schedule,
            sampling: &self.sampling,
            variation: self.variation,
            seed: self.seed,
        }
    }
}

/// Runs the command.
pub(super) fn run(args: &ForkArgs, store: &StoreArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    let cancel = global.interrupts.cancel();
    let mut queue = store.open_for(args.job)?;
    let parent = queue.job(args.job)?;
    let manifest = Bundle::open(&parent.request.bundle)?.manifest;
    let outputs = args.output.absolute()?;
    // The store does it again, when no other process can add a job.
    let rows = queue.list()?;
    check_free(&outputs, &rows, None)?;
    let run = queue.run_folder(parent.id);
    check_kept(args.from_step, &parent, &JobFolder::kept_steps_in(&run))?;
    let request = Request {
        priority: args.queue.priority,
        deadline: args.queue.deadline,
        // Known to be in range when the grid of the fork is.
        stop_after: None,
        outputs,
        origin: None,
        take: None,
        ..parent.request.clone()
    };
    let mut notes = Vec::new();
    let ids = queue.submit(vec![request], &mut |id, request, folder| {
        let origin = folder.join(ORIGIN);
        JobFolder::make_origin(&run, args.from_step, &origin)?;
        let change = |spec: &JobSpec, applied| fork(&args.changes(), spec, applied, &manifest);
        let Forked { fork, clip, steps } = changed(&origin, args.from_step, &change)?;
        check_stop(args.queue.stop_after, args.from_step, steps)?;
        request.stop_after = args.queue.stop_after;
        request.keep_steps = args.queue.keep_steps(steps)?;
        request.clip = clip;
        if request.outputs.is_empty() {
            request.outputs = vec![default_output(id)?];
            check_free(&request.outputs, &rows, None)?;
        }
        request.origin = Some(Origin { job: parent.id, step: args.from_step, steps, fork });
        notes = check(request, &cancel)?;
        Ok(())
    })?;
    notes.iter().for_each(|note| render::note(note));
    let rows = ids.iter().map(|id| queue.job(*id)).collect::<Result<Vec<_>, _>>()?;
    report("submitted", &rows, &text(&rows), &queue, store, global)
}

/// Refuses a step whose snapshot was not kept.
fn check_kept(step: usize, parent: &JobRow, kept: &[usize]) -> Result<(), bundle::Error> {
    if kept.contains(&step) {
        return Ok(());
    }
    let (rule, fix) = if !kept.is_empty() {
        let kept: Vec<String> = kept.iter().map(usize::to_string).collect();
        let rule = format!("{} has no snapshot after that step", parent.id);
        let fix = "submit it again, and keep this step with `keep_steps`";
        (rule, format!("use one of {}, or {fix}", kept.join(", ")))
    } else if parent.state.has_ended() {
        let fix = "submit it again; the snapshots of jobs that have ended are removed when the store is larger than \
                   its budget";
        (format!("{} has no snapshots", parent.id), fix.to_owned())
    } else {
        (format!("{} has no snapshots", parent.id), "wait until it has made a step".to_owned())
    };
    Err(bundle::Error::value(Field::FromStep, step, rule, fix))
}

fn text(rows: &[JobRow]) -> String {
    let Some((row, origin)) = rows.first().and_then(|row| Some((row, row.request.origin.as_ref()?))) else {
        return String::new();
    };
    let outputs: Vec<String> = row.request.outputs.iter().map(OutputSpec::to_string).collect();
    format!("{}: goes on from {}, {}; to {}", row.id, origin.job, changes(origin), outputs.join(", "))
}

/// What changes in a fork, as "after step 9: guidance 5, 5".
pub(super) fn changes(origin: &Origin) -> String {
    if origin.fork.is_empty() {
        return format!("after step {}: nothing changes", origin.step);
    }
    ForkSpec { after: origin.step, ..origin.fork.clone() }.to_string()
}

#[cfg(test)]
mod tests {
    use super::super::rows::tests::row;
    use super::*;
    use crate::cli::render;
    use ::jobs::store::State;
    use bundle::units::GuidanceScale;

    #[test]
    fn a_step_that_was_not_kept_is_refused_with_those_that_were() {
        let refused = |state, kept: &[usize]| {
            render::report(&check_kept(5, &row(7, state), kept).unwrap_err()).to_string()
        };
        check_kept(5, &row(7, State::Done), &[4, 5]).unwrap();
        insta::assert_snapshot!(refused(State::Done, &[4, 8]), @"--from-step cannot be 5: job 7 has no snapshot after that step (use one of 4, 8, or submit it again, and keep this step with --keep-steps)");
        insta::assert_snapshot!(refused(State::Done, &[]), @"--from-step cannot be 5: job 7 has no snapshots (submit it again; the snapshots of jobs that have ended are removed when the store is larger than its budget)");
        insta::assert_snapshot!(refused(State::Queued, &[]), @"--from-step cannot be 5: job 7 has no snapshots (wait until it has made a step)");
    }

    #[test]
    fn changes_are_named() {
        let fork = ForkSpec { guidance: Some(vec![GuidanceScale(5.0)]), ..ForkSpec::default() };
        let of = |fork| changes(&Origin { job: JobId(3), step: 4, steps: 8, fork });
        assert_eq!(of(fork), "after step 4: guidance 5");
        assert_eq!(of(ForkSpec::default()), "after step 4: nothing changes");
    }
}
