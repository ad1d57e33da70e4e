//! The beginning of a job: fresh, from its newest snapshot, or from the job that it is a fork of.

use super::clip::Clip;
use crate::request::{Origin, Request};
use crate::store::{ORIGIN, RUN};
use bundle::manifest::Manifest;
use bundle::{Cancel, Diagnose, Report};
use ndarray::Array4;
use runtime::Error;
use runtime::job::{
    ForkSpec, FoundSnapshot, Job, JobEvent, JobFolder, JobStart, ResumeFrom, Resumed, StoredSnapshot,
};
use runtime::pipeline::{Pipeline, scaled_noise, seeded_noise};
use runtime::plan::GenerationPlan;
use runtime::trace::read_noise;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;

/// Everything that makes a job.
#[derive(Debug, Clone)]
pub(super) struct Starting {
    pub(super) request: Request,
    pub(super) plan: GenerationPlan,
    /// The folder of the job in the store.
    pub(super) folder: PathBuf,
    pub(super) clip: Clip,
    pub(super) cancel: Cancel,
}

/// How far a job is that has not begun in this process.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Position {
    /// Steps that are done.
    pub(super) steps_done: usize,
    /// True if the text states of the next step are stored.
    pub(super) has_text: bool,
    /// The changes of the clip on its way, those that are done among them.
    pub(super) forks: Vec<ForkSpec>,
    /// The plan of the clip before its forks, whose schedule has the first step; `None` if it is that of the request.
    pub(super) plan: Option<GenerationPlan>,
}

impl Starting {
    fn run(&self) -> PathBuf {
        self.folder.join(RUN)
    }

    fn origin(&self) -> PathBuf {
        self.folder.join(ORIGIN)
    }

    /// How far the job is. A snapshot that cannot be read counts as none; making the job says why.
    pub(super) fn position(&self, manifest: &Manifest) -> Position {
        let of = |folder: &Path, fork: Option<&Origin>| {
            let folder = JobFolder::open(folder).ok()?;
            let snapshot = newest_whole(&folder).ok()?.snapshot;
            let prompts_change =
                fork.is_some_and(|origin| origin.fork.prompt.is_some() || origin.fork.negative.is_some());
            let has_text = !prompts_change && folder.text(&snapshot.identity.text).is_some();
            let steps_done = snapshot.snapshot.state().steps_done();
            let mut forks = folder.spec().forks.clone();
            if let Some(Origin { fork, .. }) = fork {
                forks.truncate(snapshot.forks_applied);
                forks.push(ForkSpec { after: steps_done, ..fork.clone() });
            }
            // The request of a fork holds the settings that apply from its change on.
            let plan = folder.spec().plan(manifest).ok();
            Some(Position { steps_done, has_text, forks, plan })
        };
        let of_run = of(&self.run(), None);
        let of_origin = || self.request.origin.as_ref().and_then(|fork| of(&self.origin(), Some(fork)));
        of_run.or_else(of_origin).unwrap_or_default()
    }

    /// Makes the job. Called when its first unit is about to run.
    ///
    /// # Errors
    /// An output cannot be used, or the stored state belongs to another bundle or is in use.
    pub(super) fn make(self, pipeline: &Pipeline) -> Result<(Job, Receiver<JobEvent>), Report> {
        let clip = self.clip.clone();
        if let Err(error) = clip.begin(&self.request, &self.plan, &self.cancel) {
            // The disk is that of an output, and not that of the store.
            let error = crate::Error::from(error);
            if error.is_disk_full() {
                self.request.outputs.iter().for_each(|output| clip.output_full(output));
            }
            return Err(error.report());
        }
        self.job(pipeline).map_err(|error| clip.refused(error.into()))
    }

    fn job(self, pipeline: &Pipeline) -> Result<(Job, Receiver<JobEvent>), Error> {
        let (mut start, folder) = self.start(pipeline)?;
        start.spec.extras.clone_from(&self.request.extras);
        let folder = match folder {
            Some(folder) => folder,
            None => {
                remove_unfinished(&self.run())?;
                JobFolder::create(&self.run(), &start.spec)?
            }
        };
        let (job, events) = Job::new(pipeline, start);
        let job = job
            .with_cancel(&self.cancel)
            .stop_after(self.request.stop_after)
            .keep_steps(self.request.keep_steps.clone())
            .with_folder(folder);
        Ok((job, events))
    }

    /// The state that the job begins with, and its folder if it has one already.
    fn start(&self, pipeline: &Pipeline) -> Result<(JobStart, Option<JobFolder>), Error> {
        let run = self.run();
        if !JobFolder::exists(&run) {
            return Ok((self.first(pipeline)?, None));
        }
        let folder = JobFolder::open(&run)?;
        if folder.has_snapshot() {
            match newest_whole(&folder) {
                Ok(found) => {
                    if let Some(problem) = found.instead_of {
                        self.clip.warn(format!("an older snapshot is used: {problem}"));
                    }
                    let start = self.resumed(pipeline, &folder, found.snapshot)?;
                    return Ok((start, Some(folder)));
                }
                Err(error @ (Error::Snapshot { .. } | Error::NoSnapshot { .. })) => {
                    self.clip.warn(format!("the job begins again: {error}"));
                }
                // It may be readable later.
                Err(error) => return Err(error),
            }
        }
        let start = match &self.request.origin {
            Some(_) => JobStart { spec: folder.spec().clone(), ..self.first(pipeline)? },
            None => JobStart::again(pipeline, &folder, self.noise()?)?,
        };
        Ok((start, Some(folder)))
    }

    fn resumed(
        &self,
        pipeline: &Pipeline,
        folder: &JobFolder,
        snapshot: StoredSnapshot,
    ) -> Result<JobStart, Error> {
        let Resumed { start, differences } = JobStart::resume(pipeline, folder, snapshot, None)?;
        self.warn_of(&differences);
        Ok(start)
    }

    /// The state of a job that has not run.
    fn first(&self, pipeline: &Pipeline) -> Result<JobStart, Error> {
        let mut start = match &self.request.origin {
            None => JobStart::new(pipeline, self.plan.clone(), self.noise()?)?,
            Some(Origin { fork, .. }) => {
                let origin = JobFolder::open(&self.origin())?;
                let found = newest_whole(&origin)?;
                let Resumed { start, differences } =
                    JobStart::resume(pipeline, &origin, found.snapshot, Some(fork.clone()))?;
                self.warn_of(&differences);
                start
            }
        };
        start.spec.noise = self.request.noise.as_ref().map(|noise| noise.file.clone()).or(start.spec.noise);
        start.spec.stop_after = None;
        Ok(start)
    }

    fn warn_of(&self, differences: &[String]) {
        if !differences.is_empty() {
            let differences = differences.join(", ");
            self.clip
                .warn(format!("the clip may not be bit-equal to one without interruption: {differences}"));
        }
    }

    /// The initial noise `[C,T,h,w]`.
    fn noise(&self) -> Result<Array4<f32>, Error> {
        let Some(noise) = &self.request.noise else { return Ok(seeded_noise(&self.plan)) };
        noise.check()?;
        Ok(scaled_noise(read_noise(&noise.path, self.plan.latent)?, &self.plan))
    }
}

/// The newest snapshot of a folder that is whole.
///
/// # Errors
/// There is none; the error is that of the newest one.
fn newest_whole(folder: &JobFolder) -> Result<FoundSnapshot, Error> {
    folder.snapshot(ResumeFrom::Newest).or_else(|error| {
        let mut older = folder.kept_steps().into_iter().rev();
        let found = older.find_map(|steps| folder.snapshot(ResumeFrom::Step(steps)).ok());
        let instead_of = Some(error.to_string());
        found.map_or(Err(error), |found| Ok(FoundSnapshot { instead_of, ..found }))
    })
}

/// Removes what a process left that was killed while it created the folder.
fn remove_unfinished(folder: &Path) -> Result<(), bundle::Error> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(bundle::Error::file("remove", folder)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::tests;
    use crate::store::Progress;
    use bundle::catalog::{umt5_xxl, wan_denoiser, wan21_vae};
    use bundle::manifest::FORMAT;
    use bundle::routing::Routing;
    use bundle::settings::Defaults;
    use bundle::spec::DenoiserSpec;
    use bundle::units::{Seed, Shift, Timestep};
    use bundle::variant::{KernelLibrary, Precision, Variant};
    use runtime::denoise::{Denoising, ForkChanges, GuidanceForm, StepOutputs};
    use runtime::driver::{JobSpan, work_of};
    use runtime::job::{
        GridSpec, JobSpec, LatentDigest, ModelIdentity, RunConditions, SPEC_VERSION, SnapshotIdentity,
    };
    use runtime::plan::{GenerateRequest, Length};
    use runtime::scheduler::JobId;
    use std::collections::BTreeMap;

    fn manifest() -> Manifest {
        Manifest {
            format: FORMAT,
            rushes: "0.0.0".into(),
            model: "two experts".into(),
            text_encoder: umt5_xxl(),
            denoiser: DenoiserSpec { text_width: 4, ..wan_denoiser(1, 1, 8) },
            vae: wan21_vae(),
            tiny_decoder: None,
            routing: Routing::pair(Timestep(875.0)).unwrap(),
            defaults: Defaults::resolve(&[], 2).unwrap(),
            components: Vec::new(),
            digests: BTreeMap::new(),
        }
    }

    fn settings(steps: usize) -> GenerateRequest {
        GenerateRequest {
            size: Some("64x64".parse().unwrap()),
            length: Some(Length::Frames(5)),
            steps: Some(steps),
            shift: Some(5.0),
            ..GenerateRequest::new("a boat", Seed(7))
        }
    }

    fn plan(steps: usize) -> GenerationPlan {
        GenerationPlan::new(&manifest(), &settings(steps)).unwrap()
    }

    fn spec(plan: &GenerationPlan, forks: Vec<ForkSpec>) -> JobSpec {
        JobSpec {
            version: SPEC_VERSION,
            model: ModelIdentity { name: "two experts".into(), digest: "0".repeat(64) },
            variant: Variant::cpu(Precision::F32, KernelLibrary::OnnxRuntime),
            prompt: plan.prompt.clone(),
            negative: plan.negative.clone(),
            size: plan.size,
            frames: plan.frames.get(),
            fps: plan.rate,
            steps: plan.schedule.steps(),
            sampler: plan.solver,
            schedule: plan.schedule_kind,
            shift: plan.shift,
            timesteps: plan.timesteps.clone(),
            start: plan.start,
            guidance: plan.guidance.clone(),
            guidance_until: plan.guidance_until,
            step_cache: plan.step_cache,
            seed: plan.seed,
            noise_scale: plan.noise_scale,
            loras: Vec::new(),
            noise: None,
            forks,
            stop_after: None,
            extras: BTreeMap::new(),
        }
    }

    /// Writes the folder of a job with its newest snapshot.
    fn write(folder: &Path, spec: &JobSpec, denoising: &Denoising, forks_applied: usize) {
        drop(JobFolder::create(folder, spec).unwrap());
        let conditions = RunConditions {
            program: "0.0.0".into(),
            devices: "cpu".into(),
            onnx_runtime: "1".into(),
            accelerators: Vec::new(),
            processor: "a processor".into(),
            cpu_path: "scalar".into(),
            threads: 1,
            mapped_weights: false,
            guidance: GuidanceForm::OneCall,
            tile: None,
        };
        let digest = || "0".repeat(64);
        let snapshot = StoredSnapshot {
            snapshot: denoising.snapshot(),
            identity: SnapshotIdentity { bundle: digest(), text: digest(), settings: spec.digest() },
            conditions,
            earlier: Vec::new(),
            latents: vec![LatentDigest::of(denoising.latent()); denoising.steps_done()],
            forks_applied,
        };
        std::fs::write(folder.join("newest.safetensors"), snapshot.to_bytes()).unwrap();
    }

    fn advance(denoising: &mut Denoising, steps: usize) {
        for _ in 0..steps {
            let velocity = (**denoising.latent()).clone();
            let unconditional = denoising.needs_unconditional().then(|| velocity.clone());
            denoising.advance(StepOutputs { conditional: velocity, unconditional }).unwrap();
        }
    }

    fn starting(folder: &Path, request: Request) -> Starting {
        let plan = GenerationPlan::new(&manifest(), &request.clip).unwrap();
        let clip = Clip::new(&request, folder, Progress::default(), None, None);
        Starting { request, plan, folder: folder.to_owned(), clip, cancel: Cancel::new() }
    }

    fn request(steps: usize, origin: Option<Origin>) -> Request {
        Request { clip: settings(steps), origin, ..tests::request() }
    }

    /// The experts of the steps that a denoising still makes, and their numbers.
    fn made(denoising: &Denoising) -> Vec<(usize, usize)> {
        let routing = manifest().routing;
        let mut made: Vec<(usize, usize)> = Vec::new();
        for timestep in &denoising.schedule().timesteps()[denoising.steps_done()..] {
            let expert = routing.expert_at(*timestep).0;
            match made.last_mut() {
                Some((last, steps)) if *last == expert => *steps += 1,
                _ => made.push((expert, 1)),
            }
        }
        made
    }

    fn announced(starting: &Starting) -> Vec<(usize, usize)> {
        let manifest = manifest();
        let Position { steps_done, forks, plan, .. } = starting.position(&manifest);
        let plan = plan.as_ref().unwrap_or(&starting.plan);
        let span = JobSpan { steps_done, forks: &forks, ..JobSpan::default() };
        let work = work_of(plan, &manifest.routing, &span);
        work.steps.iter().map(|part| (part.expert.0, part.steps as usize)).collect()
    }

    /// A fork with 20 steps instead of 8, after the third one.
    #[test]
    fn a_fork_with_another_grid_is_announced_with_the_steps_that_it_makes() {
        let scratch = tempfile::tempdir().unwrap();
        let (origin, run) = (scratch.path().join("origin"), scratch.path().join("run"));
        let base = plan(8);
        let grid = GridSpec {
            sampler: base.solver,
            schedule: base.schedule_kind,
            steps: 20,
            shift: Shift(5.0),
            timesteps: None,
        };
        let fork = ForkSpec { after: 3, grid: Some(grid.clone()), ..ForkSpec::default() };
        let mut denoising = base.denoising(&manifest(), seeded_noise(&base)).unwrap();
        advance(&mut denoising, 3);
        write(&origin, &spec(&base, Vec::new()), &denoising, 0);
        let changes = ForkChanges { grid: Some(grid.change()), ..ForkChanges::default() };
        let mut denoising = Denoising::fork(denoising.snapshot(), changes).unwrap();
        let steps = denoising.steps();
        assert!(steps != 8 && steps != 20, "{steps}");
        let starting = starting(
            scratch.path(),
            request(20, Some(Origin { job: JobId(1), step: 3, steps, fork: fork.clone() })),
        );
        assert_eq!(starting.position(&manifest()).plan, Some(base.clone()));
        assert_eq!(announced(&starting), made(&denoising));
        // After some steps of its own.
        advance(&mut denoising, 4);
        write(&run, &spec(&base, vec![fork]), &denoising, 1);
        assert_eq!(starting.position(&manifest()).steps_done, 7);
        assert_eq!(announced(&starting), made(&denoising));
    }

    #[test]
    fn a_job_without_a_folder_has_the_plan_of_its_request() {
        let scratch = tempfile::tempdir().unwrap();
        let starting = starting(scratch.path(), request(8, None));
        assert_eq!(starting.position(&manifest()), Position::default());
        let base = plan(8);
        assert_eq!(announced(&starting), made(&base.denoising(&manifest(), seeded_noise(&base)).unwrap()));
    }
}
