//! Where a clip goes, checked and taken before any other work starts.

use super::collect::{Delays, HlsFolder};
use super::encoder::H264Encoder;
use super::part_folder::PartFolder;
use super::pipe_lock::PipeLock;
use super::plugins::{sound_encoder, survey};
use super::{ClipFormat, Error, FileFormat, OutputSpec, SigningKey};
use bundle::part_file::PartFile;
use gstreamer as gst;
use gstreamer::prelude::*;
use std::io::{self, IsTerminal};
use std::net::{SocketAddr, TcpListener};
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
    Pipe { _lock: Arc<PipeLock> },
    /// A folder with a playlist that is there from the first segment on.
    Playlist(Arc<HlsFolder>),
    /// A port of this machine.
    Listener(Arc<TcpListener>),
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
        if matches!(spec, OutputSpec::Whip { .. }) && !cfg!(feature = "whip") {
            return Err(Error::NotBuilt { what: spec.to_string(), feature: "whip" });
        }
        let encoder = survey()?.ready(spec)?;
        let place = match spec {
            OutputSpec::File { path, format: FileFormat::Y4m } if is_pipe(path) => {
                Place::Pipe { _lock: Arc::new(PipeLock::take(path)?) }
            }
            OutputSpec::File { path, format } => {
                Place::File(Arc::new(PartFile::create(path, |head| format.may_begin(head))?))
            }
            OutputSpec::Frames { folder } => Place::Folder(Arc::new(PartFolder::create(folder)?)),
            OutputSpec::Stdout if io::stdout().is_terminal() => return Err(Error::Terminal),
            OutputSpec::Hls { folder } => Place::Playlist(Arc::new(HlsFolder::create(folder)?)),
            OutputSpec::Rtsp { address, .. } => Place::Listener(Arc::new(
                TcpListener::bind(address).map_err(|error| unwritable(spec, &error))?,
            )),
            OutputSpec::Window => open_screen(spec).map(|()| Place::Elsewhere)?,
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
            if specs[..index].iter().any(|other| other.is_same_place(spec)) {
                return Err(Error::Twice { output: spec.to_string() });
            }
        }
        if let Some(second) = specs.iter().filter(|spec| spec.is_standard_output()).nth(1) {
            return Err(Error::Twice { output: second.to_string() });
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
            Place::Playlist(folder) => Some(folder.path()),
            Place::Pipe { .. } | Place::Listener(_) | Place::Elsewhere => None,
        }
    }

    /// The address that an RTSP output listens at, with its real port if 0 was asked for.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.place {
            Place::Listener(listener) => listener.local_addr().ok(),
            _ => None,
        }
    }
}

/// Checks that a clip's sound can be heard somewhere.
///
/// # Errors
/// No output carries sound, or the encoder for it is missing.
pub fn check_sound(targets: &[OutputTarget]) -> Result<(), Error> {
    let found = targets.iter().map(|target| sound_encoder(&target.spec)).collect::<Result<Vec<_>, _>>()?;
    if found.iter().any(Option::is_some) { Ok(()) } else { Err(Error::NoSound) }
}

/// What the user should know of how outputs play a clip.
pub fn notes(targets: &[OutputTarget], format: ClipFormat) -> Vec<String> {
    let note = |target: &OutputTarget| {
        let delays = Delays::of_output(&target.spec, format).filter(|delays| delays.is_too_fast())?;
        let frames = format.frames?;
        Some(format!(
            "{} shows {} of the {frames} frames, evenly: players show pictures of less than {} ms for a tenth of a second",
            target.spec,
            delays.shown(frames),
            delays.least_milliseconds(),
        ))
    };
    targets.iter().filter_map(note).collect()
}

/// Checks that a clip can be signed, and with these keys.
///
/// # Errors
/// No mp4 among the outputs, or keys that are of no use.
pub fn check_signing(targets: &[OutputTarget], keys: &SigningKey) -> Result<(), Error> {
    keys.check()?;
    let is_mp4 =
        |target: &OutputTarget| matches!(target.spec, OutputSpec::File { format: FileFormat::Mp4, .. });
    if targets.iter().any(is_mp4) { Ok(()) } else { Err(Error::NothingToSign) }
}

fn unwritable(spec: &OutputSpec, error: &io::Error) -> Error {
    Error::unwritable(spec.to_string(), error.to_string())
}

/// Finds out whether there is a screen. GStreamer's choice of a sink would go on to others, of which some crash.
fn open_screen(spec: &OutputSpec) -> Result<(), Error> {
    let window = gst::ElementFactory::make("ximagesink").build();
    let opens = window.is_ok_and(|window| {
        let opens = window.set_state(gst::State::Ready).is_ok();
        opens & window.set_state(gst::State::Null).is_ok()
    });
    let why = "no X display answers; set DISPLAY, or allow this user to open windows";
    if opens { Ok(()) } else { Err(unwritable(spec, &io::Error::other(why))) }
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
        // However it is spelled.
        std::fs::create_dir(folder.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", folder.path().join("link")).unwrap();
        for (one, other) in
            [("a.gif", "real/../a.gif"), ("real/a.gif", "link/a.gif"), ("real/", "hls:link"), ("hls:b", "b/")]
        {
            let at = |name: &str| -> OutputSpec {
                let path = |name: &str| folder.path().join(name).display().to_string();
                let name = name
                    .strip_prefix("hls:")
                    .map_or_else(|| path(name), |name| format!("hls:{}", path(name)));
                name.parse().unwrap()
            };
            let error = OutputTarget::claim_all(&[at(one), at(other)]).unwrap_err();
            assert!(matches!(error, Error::Twice { .. }), "{one} {other}: {error}");
        }
        let target = OutputTarget::claim(&spec).unwrap();
        assert_eq!(target.part(), Some(&*folder.path().join("a.part.gif")));
        assert!(matches!(
            OutputTarget::claim(&spec),
            Err(Error::File(bundle::part_file::Error::Busy { .. }))
        ));
    }
}
