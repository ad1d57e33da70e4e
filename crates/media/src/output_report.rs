//! The results of outputs as data, as `generate --json` prints them.

use super::{FailedOutput, OutputSpec, WrittenClip};
use serde::{Deserialize, Serialize};

/// A complete output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputReport {
    /// The path of a file or folder, or the address; `-` is standard output.
    pub output: String,
    /// Frames in the output.
    pub frames: usize,
    /// Bytes of the file or folder.
    pub bytes: Option<u64>,
}

impl From<&WrittenClip> for OutputReport {
    fn from(clip: &WrittenClip) -> Self {
        Self { output: name(&clip.output), frames: clip.frames, bytes: clip.bytes }
    }
}

/// An output that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedOutputReport {
    /// The output, as in [`OutputReport::output`].
    pub output: String,
    /// The error: what, why and what to do.
    pub error: String,
    /// The frames that were kept, and where.
    pub kept: String,
}

impl From<&FailedOutput> for FailedOutputReport {
    fn from(failed: &FailedOutput) -> Self {
        Self {
            output: name(&failed.output),
            error: failed.error.to_string(),
            kept: failed.remainder.to_string(),
        }
    }
}

/// The result of one output. As JSON it is the report alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OutputResult {
    /// The output is complete.
    Written(OutputReport),
    /// The output failed.
    Failed(FailedOutputReport),
}

/// The name of an output in JSON. It never contains a token.
fn name(output: &OutputSpec) -> String {
    match output {
        OutputSpec::Stdout => "-".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Error, Remainder};
    use std::sync::Arc;

    #[test]
    fn results_are_plain_objects_and_read_back() {
        let written = |output: &str, bytes| WrittenClip { output: output.parse().unwrap(), frames: 5, bytes };
        let failed = FailedOutput {
            output: "whip:https://s3cret@host/clip".parse().unwrap(),
            error: Arc::new(Error::DiskFull { output: "it".into() }),
            remainder: Remainder::Nothing,
        };
        let results = [
            OutputResult::Written((&written("a/clip.mp4", Some(7))).into()),
            OutputResult::Written((&written("-", None)).into()),
            OutputResult::Failed((&failed).into()),
        ];
        let text = serde_json::to_string(&results).unwrap();
        insta::assert_snapshot!(text, @r#"[{"output":"a/clip.mp4","frames":5,"bytes":7},{"output":"-","frames":5,"bytes":null},{"output":"whip:https://host/clip","error":"cannot continue writing it: its disk is full (free some space or choose an `output` in another folder; the frames so far can be played)","kept":"no frame was written, nothing was kept"}]"#);
        assert_eq!(serde_json::from_str::<Vec<OutputResult>>(&text).unwrap(), results);
    }
}
