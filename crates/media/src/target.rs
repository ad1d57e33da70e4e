//! Outputs that are checked and claimed before any other work starts.

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

/// A claimed output. This machine can write it, and until it is dropped no other run can claim the same file or folder.
#[derive(Debug, Clone)]
pub struct OutputTarget {
    pub(super) spec: OutputSpec,
    pub(super) destination: Destination,
    /// The encoders that can be used, best first, if the output has H.264 in it.
    pub(super) encoders: Vec<H264Encoder>,
}

/// The resource that a target holds.
#[derive(Debug, Clone)]
pub(super) enum Destination {
    /// A part file.
    File(Arc<PartFile>),
    /// A part folder.
    Folder(Arc<PartFolder>),
    /// A named pipe.
    Pipe { _lock: Arc<PipeLock> },
    /// An HLS folder. Its playlist exists from the first segment on.
    Playlist(Arc<HlsFolder>),
    /// A listening port.
    Listener(Arc<TcpListener>),
    /// Nothing on this machine.
    Remote,
}

impl OutputTarget {
    /// Checks that an output can be written, and claims it: its part is created and locked.
    ///
    /// # Errors
    /// Returns an error if GStreamer, an element or every H.264 encoder is missing (with the Debian package), if the
    /// folder does not exist or cannot be written, if another run writes the same output, or if standard output is a
    /// terminal.
    pub fn claim(spec: &OutputSpec) -> Result<Self, Error> {
        if matches!(spec, OutputSpec::Whip { .. }) && !cfg!(feature = "whip") {
            return Err(Error::NotBuilt { what: spec.to_string(), feature: "whip" });
        }
        let encoders = survey()?.ready(spec)?;
        let destination = match spec {
            OutputSpec::File { path, format: FileFormat::Y4m } if is_pipe(path) => {
                Destination::Pipe { _lock: Arc::new(PipeLock::lock(path)?) }
            }
            OutputSpec::File { path, format } => {
                Destination::File(Arc::new(PartFile::create(path, |head| format.matches_head(head))?))
            }
            OutputSpec::Frames { folder } => Destination::Folder(Arc::new(PartFolder::create(folder)?)),
            OutputSpec::Stdout if io::stdout().is_terminal() => return Err(Error::Terminal),
            OutputSpec::Hls { folder } => Destination::Playlist(Arc::new(HlsFolder::create(folder)?)),
            OutputSpec::Rtsp { address, .. } => Destination::Listener(Arc::new(
                TcpListener::bind(address).map_err(|error| unwritable(spec, &error))?,
            )),
            OutputSpec::Window => open_screen(spec).map(|()| Destination::Remote)?,
            _ => Destination::Remote,
        };
        Ok(Self { spec: spec.clone(), destination, encoders })
    }

    /// Claims each of several outputs.
    ///
    /// # Errors
    /// The errors of [`Self::claim`]. Returns an error if an output is given twice.
    pub fn claim_all(specs: &[OutputSpec]) -> Result<Vec<Self>, Error> {
        for (index, spec) in specs.iter().enumerate() {
            if specs[..index].iter().any(|other| other.is_same_destination(spec)) {
                return Err(Error::DuplicateOutput { output: spec.to_string() });
            }
        }
        if let Some(second) = specs.iter().filter(|spec| spec.is_standard_output()).nth(1) {
            return Err(Error::DuplicateOutput { output: second.to_string() });
        }
        specs.iter().map(Self::claim).collect()
    }

    /// The output as the user named it.
    pub fn spec(&self) -> &OutputSpec {
        &self.spec
    }

    /// The part file or folder, which is written until the output is complete.
    pub fn part(&self) -> Option<&Path> {
        match &self.destination {
            Destination::File(file) => Some(file.part()),
            Destination::Folder(folder) => Some(folder.part()),
            Destination::Playlist(folder) => Some(folder.path()),
            Destination::Pipe { .. } | Destination::Listener(_) | Destination::Remote => None,
        }
    }

    /// The address that an RTSP output listens on. Port 0 is resolved to the actual port.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.destination {
            Destination::Listener(listener) => listener.local_addr().ok(),
            _ => None,
        }
    }
}

/// Checks that at least one output carries audio.
///
/// # Errors
/// Returns an error if no output carries audio, or if an audio encoder is missing.
pub fn check_sound(targets: &[OutputTarget]) -> Result<(), Error> {
    let found = targets.iter().map(|target| sound_encoder(&target.spec)).collect::<Result<Vec<_>, _>>()?;
    if found.iter().any(Option::is_some) { Ok(()) } else { Err(Error::NoSound) }
}

/// Notes for the user about differences between outputs and the clip.
pub fn notes(targets: &[OutputTarget], format: ClipFormat) -> Vec<String> {
    let note = |target: &OutputTarget| {
        let delays = Delays::for_output(&target.spec, format).filter(|delays| delays.is_too_fast())?;
        let frames = format.frames?;
        Some(format!(
            "{} shows {} of the {frames} frames, evenly spaced: players do not honour delays below {} ms",
            target.spec,
            delays.shown(frames),
            delays.shortest_milliseconds(),
        ))
    };
    targets.iter().filter_map(note).collect()
}

/// Checks that the clip can be signed with a key.
///
/// # Errors
/// Returns an error if no output is an mp4, or if the key cannot be used.
pub fn check_signing(targets: &[OutputTarget], keys: &SigningKey) -> Result<(), Error> {
    keys.check()?;
    let is_mp4 =
        |target: &OutputTarget| matches!(target.spec, OutputSpec::File { format: FileFormat::Mp4, .. });
    if targets.iter().any(is_mp4) { Ok(()) } else { Err(Error::NothingToSign) }
}

fn unwritable(spec: &OutputSpec, error: &io::Error) -> Error {
    Error::unwritable(spec.to_string(), error.to_string())
}

/// Checks that an X display is available. `autovideosink` would try other sinks, some of which crash.
fn open_screen(spec: &OutputSpec) -> Result<(), Error> {
    let window = gst::ElementFactory::make("ximagesink").build();
    let opens = window.is_ok_and(|window| {
        let opens = window.set_state(gst::State::Ready).is_ok();
        opens & window.set_state(gst::State::Null).is_ok()
    });
    let why = "no X display is available; set DISPLAY, or allow this user to open windows";
    if opens { Ok(()) } else { Err(unwritable(spec, &io::Error::other(why))) }
}

fn is_pipe(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_cannot_be_given_twice() {
        let folder = tempfile::tempdir().unwrap();
        let spec = OutputSpec::File { path: folder.path().join("a.gif"), format: FileFormat::Gif };
        let error = OutputTarget::claim_all(&[spec.clone(), spec.clone()]).unwrap_err();
        assert!(matches!(error, Error::DuplicateOutput { .. }), "{error}");
        // Also if the paths are spelled differently.
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
            assert!(matches!(error, Error::DuplicateOutput { .. }), "{one} {other}: {error}");
        }
        let target = OutputTarget::claim(&spec).unwrap();
        assert_eq!(target.part(), Some(&*folder.path().join("a.part.gif")));
        assert!(matches!(
            OutputTarget::claim(&spec),
            Err(Error::File(bundle::part_file::Error::Busy { .. }))
        ));
    }
}
