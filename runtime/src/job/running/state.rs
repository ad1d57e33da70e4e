//! What a job tells about itself.

use super::super::conditions::RunConditions;
use super::super::record::ClipRecord;
use super::super::report::{DeviceMemory, JobReport, NodesOfGraph, PreviewSummary};
use super::super::snapshot_writer::Storing;
use super::super::spec::JobSpec;
use super::super::storage::Storage;
use super::super::stored_snapshot::{SnapshotIdentity, StoredSnapshot};
use super::Job;
use crate::denoise::Denoising;
use crate::plan::GenerationPlan;
use crate::preview::PreviewReport;
use bundle::Cancel;
use std::path::Path;
use std::time::Instant;

impl Job {
    /// What determines the clip.
    pub fn spec(&self) -> &JobSpec {
        &self.spec
    }

    /// The plan.
    pub fn plan(&self) -> &GenerationPlan {
        &self.plan
    }

    /// The state of the latent.
    pub fn denoising(&self) -> &Denoising {
        &self.denoising
    }

    /// The conditions of the run.
    pub fn conditions(&self) -> &RunConditions {
        &self.conditions
    }

    /// The request that ends the job within its current unit of work. It can be made from another thread.
    pub fn canceller(&self) -> &Cancel {
        &self.cancel
    }

    /// How the clip is made, to be stored in it. Complete once all steps are done.
    pub fn record(&self) -> ClipRecord {
        ClipRecord {
            spec: self.spec.clone(),
            conditions: self.conditions.clone(),
            earlier: self.earlier.clone(),
            latents: self.latents.clone(),
        }
    }

    /// A snapshot, once the text is encoded.
    pub fn snapshot(&self) -> Option<StoredSnapshot> {
        let identity = SnapshotIdentity {
            bundle: self.identity.clone(),
            text: self.text_digest.clone()?,
            settings: self.spec.digest(),
        };
        Some(StoredSnapshot {
            snapshot: self.denoising.snapshot(),
            identity,
            conditions: self.conditions.clone(),
            earlier: self.earlier.clone(),
            latents: self.latents.clone(),
            forks_applied: self.next_fork,
        })
    }

    /// The folder that it is stored in. `None` also once the job has ended.
    pub fn folder(&self) -> Option<&Path> {
        self.storage.as_ref().map(Storage::path)
    }

    /// Whether snapshots are stored. [`Storing::Ok`] for a job without a folder. It is known once a snapshot was written,
    /// which is while the next step runs.
    pub fn storing(&self) -> Storing {
        self.storage.as_ref().map_or(Storing::Ok, Storage::storing)
    }

    /// The previews of a job that has ended.
    pub fn previews(&self) -> Option<&PreviewReport> {
        self.previews.as_ref()
    }

    /// The name of the phase that the job is in, or ended in: `text`, `denoise` or `decode`.
    pub fn phase(&self) -> &'static str {
        self.clock.phase().unwrap_or("text")
    }

    /// The report of a job that has ended. `first_encoded` is when an encoder had produced the first frame.
    pub fn report(&self, first_encoded: Option<Instant>) -> JobReport {
        let first_preview = self.previews.as_ref().and_then(|previews| previews.first);
        JobReport {
            model: self.spec.model.name.clone(),
            variant: self.spec.variant,
            conditions: self.conditions.clone(),
            seed: self.spec.seed,
            steps: self.denoising.steps(),
            steps_done: self.denoising.steps_done(),
            steps_run: self.steps_run,
            skipped_passes: self.skipped_passes,
            reused_steps: self.denoising.reused_steps().iter().map(|step| step + 1).collect(),
            latents: self.latents.clone(),
            seconds: self.clock.phases(),
            timing: self.clock.times(first_preview, first_encoded),
            preview: self.previews.as_ref().map(PreviewSummary::new),
            memory: DeviceMemory::of(self.clock.model().sessions()),
            nodes: NodesOfGraph::of(self.clock.model()),
            outputs: Vec::new(),
        }
    }
}
