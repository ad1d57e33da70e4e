//! Where the video goes, checked before any other work starts.

use super::Error;
use super::encoder::H264Encoder;
use super::part_file::PartFile;
use super::plugins::survey;
use std::path::Path;
use std::sync::Arc;

/// A file that can be written, on a machine that can write it. While it lives no other run can take the same output.
#[derive(Debug, Clone)]
pub struct OutputTarget {
    pub(super) file: Arc<PartFile>,
    pub(super) encoder: H264Encoder,
}

impl OutputTarget {
    /// The file as it will be called.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The file as it is called until it is whole.
    pub fn part(&self) -> &Path {
        self.file.part()
    }

    /// The encoder that will be used.
    pub fn encoder(&self) -> H264Encoder {
        self.encoder
    }
}

/// Checks that `path` can be written as video, and takes it: its part file is there from now on.
///
/// # Errors
/// An extension other than `.mp4`; GStreamer, an element or every H.264 encoder missing, with the Debian package; a
/// folder that is not there or cannot be written; another run that is writing the same file.
pub fn check_output(path: &Path) -> Result<OutputTarget, Error> {
    if !path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("mp4")) {
        return Err(Error::Extension { path: path.to_owned() });
    }
    let encoder = survey()?.ready()?;
    Ok(OutputTarget { file: Arc::new(PartFile::create(path)?), encoder })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::{Diagnose, ErrorClass};

    #[test]
    fn only_mp4_is_written_whatever_its_case() {
        let folder = tempfile::tempdir().unwrap();
        let target = check_output(&folder.path().join("clip.MP4")).unwrap();
        assert_eq!(target.part(), folder.path().join("clip.part.MP4"));
        for name in ["clip.avi", "clip", "-", "", "mp4", ".mp4"] {
            let report = check_output(name.as_ref()).unwrap_err().report();
            assert_eq!(report.class, ErrorClass::BadInput, "{name}");
            assert_eq!(report.why, "the name does not end in .mp4", "{name}");
        }
    }
}
