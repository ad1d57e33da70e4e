//! Errors of video output.

use super::clip::Remainder;
use super::encoder::H264Encoder;
use super::plugins::MissingElement;
use bundle::geometry::PixelSize;
use bundle::part_file;
use bundle::{Diagnose, ErrorClass, Field, Report};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Errors of video output.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two outputs of one run would be the same file, folder or stream.
    DuplicateOutput {
        /// The output.
        output: String,
    },
    /// A file for overlays and audio cannot be used.
    PostProcess {
        /// The setting.
        field: Field,
        /// Its value.
        value: String,
        /// The reason.
        why: String,
    },
    /// A caption cannot be shown.
    Caption {
        /// The start of its text, and its time.
        caption: String,
        /// The reason.
        why: String,
    },
    /// No decoder is installed for a file for overlays and audio.
    MissingDecoder {
        /// The setting.
        field: Field,
        /// Its value.
        value: String,
        /// The format that has no decoder.
        name: String,
        /// The Debian package of a decoder.
        package: &'static str,
    },
    /// No installed font has a character of a caption.
    NoFont {
        /// The character.
        character: char,
        /// The Debian package of a font that has it.
        package: &'static str,
    },
    /// The record of the clip cannot be written.
    Record {
        /// The reason.
        why: String,
    },
    /// No output can carry the audio.
    NoSound,
    /// No output can be signed.
    NothingToSign,
    /// The output cannot be written or renamed.
    File(#[from] part_file::Error),
    /// A value is invalid.
    Contract(#[from] bundle::Error),
    /// Raw frames would be written to a terminal.
    Terminal,
    /// A preview cannot be written.
    PreviewFile {
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// GStreamer cannot be initialized.
    NoGStreamer {
        /// The message.
        why: String,
    },
    /// Elements of the pipeline are not installed.
    MissingElements {
        /// The output.
        output: String,
        /// The elements, with their Debian packages.
        elements: Vec<MissingElement>,
    },
    /// This build does not support a feature.
    NotBuilt {
        /// The output or feature.
        what: String,
        /// The cargo feature that enables it.
        feature: &'static str,
    },
    /// A clip cannot be signed.
    Signing {
        /// The certificate.
        certificate: PathBuf,
        /// The reason.
        why: String,
    },
    /// None of the known H.264 encoders is installed.
    NoEncoder {
        /// The output.
        output: String,
    },
    /// A side of the clip is odd, which 4:2:0 video does not allow.
    OddSize {
        /// The size.
        size: PixelSize,
    },
    /// A frame has another shape than the clip.
    Shape {
        /// `[3,H,W]` of the clip.
        expected: [usize; 3],
        /// The shape of the frame.
        found: [usize; 3],
    },
    /// The clip was finished before all frames were written.
    FramesMissing {
        /// The length of the clip.
        expected: usize,
        /// Frames that were encoded.
        found: usize,
    },
    /// The disk of an output is full.
    DiskFull {
        /// The output.
        output: String,
    },
    /// An element of the pipeline failed.
    Pipeline {
        /// The output.
        output: String,
        /// The element.
        element: String,
        /// The message.
        why: String,
    },
    /// The pipeline had work and made no progress.
    Stalled {
        /// The output.
        output: String,
        /// The time without progress.
        limit: Duration,
    },
    /// One or more outputs failed.
    OutputsFailed {
        /// The error of the first failed output.
        first: Arc<Self>,
        /// The remainder of that output.
        remainder: Remainder,
        /// The names of the complete outputs.
        complete: Option<String>,
    },
    /// The run was cancelled while frames were queued.
    Cancelled,
}

impl Diagnose for Error {
    fn report(&self) -> Report {
        match self {
            Self::DuplicateOutput { .. }
            | Self::PostProcess { .. }
            | Self::Caption { .. }
            | Self::Record { .. }
            | Self::NoSound
            | Self::Terminal
            | Self::PreviewFile { .. }
            | Self::Signing { .. }
            | Self::NothingToSign
            | Self::OddSize { .. } => self.report_of_input(),
            Self::NoGStreamer { .. }
            | Self::MissingElements { .. }
            | Self::MissingDecoder { .. }
            | Self::NotBuilt { .. }
            | Self::NoEncoder { .. }
            | Self::NoFont { .. } => self.report_of_machine(),
            Self::File(error) => error.report(),
            Self::Contract(error) => error.report(),
            Self::Shape { expected, found } => Report::bug(
                "the decoder's frames do not match the clip",
                format!("expected {expected:?} per frame, found {found:?}"),
            ),
            Self::FramesMissing { expected, found } => Report::failed(
                "the clip is incomplete",
                format!("expected {expected} frames, {found} were encoded"),
                "run it again; the frames so far are in the part file",
            ),
            Self::DiskFull { output } => Report::failed(
                format!("cannot continue writing {output}"),
                "its disk is full",
                "free some space or choose an `output` in another folder; the frames so far can be played",
            ),
            Self::Pipeline { output, element, why } => Report::failed(
                format!("cannot continue writing {output}"),
                format!("{element} failed: {why}"),
                if output.starts_with("whip:") {
                    "check that the server is running, and that it accepts the `whip_token`"
                } else {
                    "check this machine's encoders with `rushes doctor`, and check that the receiver is running"
                },
            ),
            Self::Stalled { output, limit } => Report::failed(
                format!("{output} is stalled"),
                format!("its pipeline made no progress for {limit:?}"),
                "check that its disk or reader responds, allow more time with `output_timeout`, or choose another `output`",
            ),
            Self::OutputsFailed { first, remainder, complete } => {
                let report = first.report();
                let complete =
                    complete.as_ref().map_or(String::new(), |names| format!("; complete: {names}"));
                Report { why: format!("{}; {remainder}{complete}", report.why), ..report }
            }
            Self::Cancelled => Report::new(
                ErrorClass::Interrupted,
                "stopped while frames were waiting to be written",
                "the run was interrupted",
                "run it again",
            ),
        }
    }
}

impl Error {
    /// The error of an output that cannot be created at `path`.
    pub(crate) fn unwritable(path: impl Into<PathBuf>, why: impl Into<String>) -> Self {
        part_file::Error::Unwritable { path: path.into(), why: why.into() }.into()
    }

    /// The error of an output that another run is writing, which has locked `part`.
    pub(crate) fn busy(path: impl Into<PathBuf>, part: impl Into<PathBuf>) -> Self {
        part_file::Error::Busy { path: path.into(), part: part.into() }.into()
    }

    fn report_of_machine(&self) -> Report {
        match self {
            Self::NoGStreamer { why } => Report::missing(
                "GStreamer cannot start",
                why.clone(),
                "install it with `make setup` or `sudo apt-get install gstreamer1.0-plugins-base gstreamer1.0-plugins-good \
                 gstreamer1.0-plugins-ugly`",
            ),
            Self::MissingElements { output, elements } => {
                let names: Vec<_> = elements.iter().map(|missing| missing.element).collect();
                let mut packages: Vec<_> = elements.iter().map(|missing| missing.package).collect();
                packages.dedup();
                Report::missing(
                    format!("{output} cannot be written on this machine"),
                    format!("GStreamer has no {}", names.join(", ")),
                    format!("install it with `sudo apt-get install {}`", packages.join(" ")),
                )
            }
            Self::MissingDecoder { field, value, name, package } => Report::missing(
                format!("{field} cannot be {value} on this machine"),
                format!("GStreamer has no {name}"),
                format!("install it with `sudo apt-get install {package}`, or give a file of another format"),
            )
            .about(*field),
            Self::NotBuilt { what, feature } => Report::missing(
                format!("{what} is not supported by this build"),
                format!("it was built without the feature `{feature}`"),
                format!(
                    "build it with `cargo build --release -p rushes --features embed-mini,{feature}`, or with `full`"
                ),
            ),
            Self::NoEncoder { output } => {
                let known: Vec<_> = H264Encoder::ALL.iter().map(|encoder| encoder.element()).collect();
                Report::missing(
                    format!("{output} cannot be written on this machine"),
                    format!("GStreamer has no H.264 encoder, none of {}", known.join(", ")),
                    format!("install one with `sudo apt-get install {}`", H264Encoder::X264.package()),
                )
            }
            Self::NoFont { character, package } => Report::missing(
                "the caption cannot be drawn",
                format!("no font on this machine has `{character}`"),
                format!("install one with `sudo apt-get install {package}`"),
            ),
            _ => self.report_of_input(),
        }
    }

    fn report_of_input(&self) -> Report {
        match self {
            Self::PreviewFile { path, why } => Report::bad_input(
                format!("previews cannot be written to {}", path.display()),
                why.clone(),
                "give another `preview_output`: a folder, or a file that ends in .png, where you may write",
            )
            .about(Field::PreviewOutput),
            Self::OddSize { size } => Report::bad_input(
                format!("a clip cannot be {size}"),
                "4:2:0 video requires an even width and height",
                "choose an even `size`",
            )
            .about(Field::Size),
            Self::DuplicateOutput { output } => Report::bad_input(
                format!("cannot write {output} twice"),
                "two outputs of one run are the same file, folder or stream",
                "give each `output` a different name",
            )
            .about(Field::Output),
            Self::PostProcess { field, value, why } => Report::bad_input(
                format!("{field} cannot be {value}"),
                why.clone(),
                "give a complete file of a supported format; `ffmpeg -v error -i FILE -f null -` reports damage",
            )
            .about(*field),
            Self::Caption { caption, why } => Report::bad_input(
                format!("the caption {caption} cannot be shown"),
                why.clone(),
                "make it shorter, show fewer captions at a time, or choose a larger `size`",
            )
            .about(Field::Caption),
            Self::Signing { certificate, why } => Report::bad_input(
                format!("the clip cannot be signed with {}", certificate.display()),
                why.clone(),
                "give a PEM chain and its private key, made for signing content: `sign` chain.pem,key.pem",
            )
            .about(Field::Sign),
            Self::NothingToSign => Report::bad_input(
                "no output can be signed",
                "only .mp4 carries content credentials",
                "add one as `output`, or leave `sign` out",
            )
            .about(Field::Sign),
            Self::Record { why } => Report::bad_input(
                "the record that repeats the clip cannot be written",
                why.clone(),
                "shorten the prompt, or write the clip without metadata",
            ),
            Self::NoSound => Report::bad_input(
                "no output can carry the audio",
                "only .mp4, .webm and .mkv carry audio",
                "add one of these as `output`, or leave `audio` out",
            )
            .about(Field::Audio),
            _ => Report::bad_input(
                "standard output is a terminal",
                "the output `-` is a stream of binary frames",
                "redirect it to a file or a program, such as `ffplay -`",
            ),
        }
    }
}

bundle::display_as_report!(Error);
