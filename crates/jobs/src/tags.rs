//! The tags of a clip that has made its steps.

use media::Tags;
use runtime::job::{Job, StoredRecord};

/// The tags of the outputs with the record of the job, which is complete once all steps are done. Also returns what was
/// left out because the record is too long.
pub fn with_record(tags: &Tags, job: &Job) -> (Tags, Option<&'static str>) {
    let StoredRecord { json, left_out } = job.record().stored();
    // A fork may have another prompt.
    let title = Some(job.spec().prompts_after(usize::MAX).0.to_owned());
    (Tags { title, record: json, ..tags.clone() }, left_out)
}
