//! Jobs: clips that are generated one unit of work at a time, can be paused, stored, resumed and forked.
//!
//! In reading order: [`JobSpec`] (what determines a clip), [`Job`] (its progress), [`JobEvent`] (what it reports),
//! [`JobFolder`] and [`StoredSnapshot`] (how it survives), [`ClipRecord`] (what is stored in the clip), [`JobReport`].

mod conditions;
mod event;
mod folder;
mod record;
mod report;
mod running;
mod snapshot_writer;
mod spec;
mod start;
mod stored_snapshot;
mod stored_text;
mod timing;

pub use conditions::RunConditions;
pub use event::JobEvent;
pub use folder::{FoundSnapshot, JobFolder, ResumeFrom};
pub use record::{ClipRecord, LatentDigest, RECORD_MAX, StoredRecord};
pub use report::{JobReport, OutputSummary, PreviewSummary};
pub use running::{Job, JobState, generate};
pub use spec::{Extra, ForkSpec, GridSpec, InputFile, JobSpec, ModelIdentity, SPEC_VERSION, VariationSpec};
pub use start::{JobStart, Resumed};
pub use stored_snapshot::{SNAPSHOT_VERSION, SnapshotIdentity, StoredSnapshot};
pub use timing::JobTimes;
