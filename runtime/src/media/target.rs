//! Where a clip goes, checked and taken before any other work starts.

use super::encoder::H264Encoder;
use super::part_file::PartFile;
use super::part_folder::PartFolder;
use super::plugins::survey;
use super::{Error, FileFormat, OutputSpec};
use std::io::IsTerminal;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

/// An output that can be written, on a machine that can write it. While it lives no other run can take the same file or
/// folder.
#[derive(Debug, Clone)]
pub struct OutputTarget {
    pub(super) spec: OutputSpec,
    pub(super) place: Place,
    /// The encoder, if the output has H.264 in it.
    pub(super) encoder: Option<H264Encoder>,
}

/// What a target holds on to.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// A file under its part's name.
    File(Arc<PartFile>),
    /// A folder under its part's name.
    Folder(Arc<PartFolder>),
    /// A named pipe, whose reader gets the frames.
    Pipe,
    /// Nothing on a disk of this machine.
    Elsewhere,
}

impl OutputTarget {
    /// Checks that an output can be written, and takes it: its part is there from now on.
    ///
    /// # Errors
    /// GStreamer, an element or every H.264 encoder missing, with the Debian package; a folder that is not there or
    /// cannot be written; another run that is writing the same file; standard output that is a terminal.
    pub fn claim(spec: &OutputSpec) -> Result<Self, Error> {
        let encoder = survey()?.ready(spec)?;
        let place = match spec {
            OutputSpec::File { path, format: FileFormat::Y4m } if is_pipe(path) => Place::Pipe,
            OutputSpec::File { path, .. } => Place::File(Arc::new(PartFile::create(path)?)),
            OutputSpec::Frames { folder } => Place::Folder(Arc::new(PartFolder::create(folder)?)),
            OutputSpec::Stdout if std::io::stdout().is_terminal() => return Err(Error::Terminal),
            _ => Place::Elsewhere,
        };
        Ok(Self { spec: spec.clone(), place, encoder })
    }

    /// Claims each of several outputs.
    ///
    /// # Errors
    /// Those of [`Self::claim`], and an output that is named twice.
    pub fn claim_all(specs: &[OutputSpec]) -> Result<Vec<Self>, Error> {
        for (index, spec) in specs.iter().enumerate() {
            if specs[..index].contains(spec) {
                return Err(Error::Twice { output: spec.to_string() });
            }
        }
        specs.iter().map(Self::claim).collect()
    }

    /// The output as it was asked for.
    pub fn spec(&self) -> &OutputSpec {
        &self.spec
    }

    /// The file or folder as it is called until it is whole.
    pub fn part(&self) -> Option<&Path> {
        match &self.place {
            Place::File(file) => Some(file.part()),
            Place::Folder(folder) => Some(folder.part()),
            Place::Pipe | Place::Elsewhere => None,
        }
    }
}

fn is_pipe(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_cannot_be_named_twice() {
        let folder = tempfile::tempdir().unwrap();
        let spec = OutputSpec::File { path: folder.path().join("a.gif"), format: FileFormat::Gif };
        let error = OutputTarget::claim_all(&[spec.clone(), spec.clone()]).unwrap_err();
        assert!(matches!(error, Error::Twice { .. }), "{error}");
        let target = OutputTarget::claim(&spec).unwrap();
        assert_eq!(target.part(), Some(&*folder.path().join("a.part.gif")));
        assert!(matches!(OutputTarget::claim(&spec), Err(Error::Busy { .. })));
    }
}
