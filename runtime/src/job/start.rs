//! The state that a job begins with: fresh, or from a snapshot of a job folder.

use super::conditions::RunConditions;
use super::folder::JobFolder;
use super::fork_spec::ForkSpec;
use super::record::LatentDigest;
use super::spec::{JobSpec, ModelIdentity};
use super::stored_snapshot::StoredSnapshot;
use crate::Error;
use crate::decode::TileSide;
use crate::denoise::{Denoising, ForkError, TextConditioning};
use crate::pipeline::Pipeline;
use crate::plan::GenerationPlan;
use ndarray::Array4;

/// The state that a job begins with.
#[derive(Debug)]
pub struct JobStart {
    /// What determines the clip.
    pub spec: JobSpec,
    /// The plan of the spec.
    pub plan: GenerationPlan,
    /// The state of the latent.
    pub denoising: Denoising,
    /// The digest of the latent after each step that is done.
    pub latents: Vec<LatentDigest>,
    /// The text states, if they are known.
    pub text: Option<TextConditioning>,
    /// The digest that text states must have, if they are not known and the run must be bit-equal.
    pub expected_text: Option<String>,
    /// How many forks of the spec are in the state of the latent.
    pub forks_applied: usize,
    /// The other conditions under which steps were made, in order.
    pub earlier: Vec<RunConditions>,
}

/// A job that was made from a snapshot.
#[derive(Debug)]
pub struct Resumed {
    /// The state that it begins with.
    pub start: JobStart,
    /// What differs from the conditions of the runs before. If there is anything, the clip is not bit-equal to that of
    /// an uninterrupted run.
    pub differences: Vec<String>,
}

impl JobStart {
    /// A job from `noise [C,T,h,w]`.
    ///
    /// # Errors
    /// The bundle lacks a component, or does not belong to the plan.
    pub fn new(pipeline: &Pipeline, plan: GenerationPlan, noise: Array4<f32>) -> Result<Self, Error> {
        let model = pipeline.model();
        let spec = JobSpec::new(&plan, model)?;
        let denoising = plan.denoising(model.manifest(), noise)?;
        let (latents, earlier, text, expected_text) = (Vec::new(), Vec::new(), None, None);
        Ok(Self { spec, plan, denoising, latents, text, expected_text, forks_applied: 0, earlier })
    }

    /// Begins a job again whose run ended before its first step, from `noise [C,T,h,w]`.
    ///
    /// # Errors
    /// The job belongs to another bundle, or a value is out of range.
    pub fn again(pipeline: &Pipeline, folder: &JobFolder, noise: Array4<f32>) -> Result<Self, Error> {
        let spec = folder.spec().clone();
        let plan = spec.plan(pipeline.model().manifest())?;
        let start = Self::new(pipeline, plan, noise)?;
        let (stored, found) = (&spec.model.digest, &start.spec.model.digest);
        if stored != found {
            return Err(Error::OtherSnapshot { what: "bundle", stored: short(stored), found: short(found) });
        }
        Ok(Self { spec, ..start })
    }

    /// Goes on from a snapshot of a job folder, see [`JobFolder::snapshot`]. `fork` are changes after the steps that are
    /// done; an empty one changes nothing.
    ///
    /// # Errors
    /// The snapshot is missing or damaged, or belongs to another bundle or to other settings.
    pub fn resume(
        pipeline: &Pipeline,
        folder: &JobFolder,
        found: StoredSnapshot,
        fork: Option<ForkSpec>,
    ) -> Result<Resumed, Error> {
        let model = pipeline.model();
        let mut spec = folder.spec().clone();
        let plan = spec.plan(model.manifest())?;
        let StoredSnapshot { snapshot, identity, conditions, mut earlier, latents, forks_applied } = found;
        let own = ModelIdentity::of(model)?;
        let other = |what: &'static str, stored: &str, found: &str| Error::OtherSnapshot {
            what,
            stored: short(stored),
            found: short(found),
        };
        if identity.bundle != own.digest {
            return Err(other("bundle", &identity.bundle, &own.digest));
        }
        if identity.settings != spec.digest() {
            return Err(other("settings", &identity.settings, &spec.digest()));
        }
        if forks_applied > spec.forks.len() {
            let why = format!("it has {forks_applied} changes, and the job has {}", spec.forks.len());
            return Err(Error::Snapshot { why });
        }
        let here = RunConditions::new(model, &plan, pipeline.tile().map(TileSide::get));
        if here != conditions && snapshot.state().steps_done() > 0 {
            earlier.push(conditions);
        }
        let differences = here.all_differences(&earlier, true);
        let text = folder.text(&identity.text);
        let must_match = text.is_none() && differences.is_empty();
        let expected_text = must_match.then_some(identity.text);
        if let Some(fork) = fork.filter(|fork| !fork.is_empty()) {
            let steps = snapshot.state().steps();
            if snapshot.state().steps_done() >= steps {
                return Err(ForkError::Finished { steps }.into());
            }
            // Changes that cannot be made are refused before any work.
            Denoising::fork(snapshot.clone(), fork.changes(1.0))?;
            spec.forks.truncate(forks_applied);
            spec.forks.push(ForkSpec { after: snapshot.state().steps_done(), ..fork });
        }
        let denoising = Denoising::resume(snapshot);
        let start = Self { spec, plan, denoising, latents, text, expected_text, forks_applied, earlier };
        Ok(Resumed { start, differences })
    }

    /// The number of steps that are done.
    pub fn steps_done(&self) -> usize {
        self.denoising.steps_done()
    }
}

/// The first digits of a digest, for messages.
fn short(digest: &str) -> String {
    digest.get(..12).unwrap_or(digest).to_owned()
}
