//! Jobs: clips that are generated one unit of work at a time, can be paused, stored, resumed and forked.
//!
//! In reading order: [`JobSpec`] (what determines a clip), [`Job`] (its progress), [`JobEvent`] (what it reports),
//! [`JobFolder`] and [`StoredSnapshot`] (how it survives), [`ClipRecord`] (what is stored in the clip), [`JobReport`].

mod conditions;
mod disk;
mod event;
#[cfg(test)]
mod fake_disk;
mod folder;
mod fork_spec;
mod keep_steps;
mod origin;
#[cfg(test)]
mod power_cut_tests;
mod record;
mod report;
mod resume_from;
mod running;
mod snapshot_files;
mod snapshot_writer;
mod spec;
mod start;
mod storage;
mod stored_snapshot;
mod stored_text;
mod timing;
mod work;

pub use conditions::{AcceleratorConditions, RunConditions};
pub use event::JobEvent;
pub use folder::{FoundSnapshot, JobFolder};
pub use fork_spec::{ForkSpec, GridChanges, GridSpec, VariationSpec};
pub use keep_steps::KeepSteps;
pub use record::{ClipRecord, LatentDigest, RECORD_MAX, StoredRecord};
pub use report::{DeviceMemory, JobReport, NodesOfGraph, OutputSummary, PreviewSummary, SessionMemory};
pub use resume_from::ResumeFrom;
pub use running::{Job, JobState, generate};
pub use snapshot_writer::Storing;
pub use spec::{Extra, InputFile, JobSpec, LoraSpec, ModelIdentity, SPEC_VERSION};
pub use start::{JobStart, Resumed};
pub use stored_snapshot::{SNAPSHOT_VERSION, SnapshotIdentity, StoredSnapshot};
pub use timing::JobTimes;
pub use work::{NextUnit, experts_left};
