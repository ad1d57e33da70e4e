//! What can go wrong between a frame and a file.

use super::Remainder;
use super::encoder::H264Encoder;
use super::plugins::MissingElement;
use bundle::geometry::PixelSize;
use bundle::part_file;
use bundle::{Diagnose, Report};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Errors of video out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two outputs of one run would be the same file, folder or stream.
    Twice {
        /// Which.
        output: String,
    },
    /// A file or text that the clip is dressed with cannot be used.
    PostProcess {
        /// The flag that it came from.
        flag: &'static str,
        /// What was given.
        given: String,
        /// What is wrong with it.
        why: String,
    },
    /// A caption cannot be shown.
    Caption {
        /// How it begins, and when.
        caption: String,
        /// What is wrong with it.
        why: String,
    },
    /// Nothing on this machine decodes a file that the clip is dressed with.
    MissingDecoder {
        /// The flag that it came from.
        flag: &'static str,
        /// What was given.
        given: String,
        /// What is in it.
        name: String,
        /// The Debian package that has a decoder for it.
        package: &'static str,
    },
    /// No font on this machine has a character of a caption.
    NoFont {
        /// The character.
        character: char,
        /// A Debian package that has it.
        package: &'static str,
    },
    /// There is sound, and no output that could carry it.
    NoSound,
    /// There is a key to sign with, and no output that could be signed.
    NothingToSign,
    /// The output cannot be written where it was asked for, or cannot get its name.
    File(#[from] part_file::Error),
    /// A value breaks the contract.
    Contract(#[from] bundle::Error),
    /// Raw frames would be written to a terminal.
    Terminal,
    /// A preview cannot be written.
    PreviewFile {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// GStreamer cannot start at all.
    NoGStreamer {
        /// What it said.
        why: String,
    },
    /// GStreamer lacks elements that the pipeline is made of.
    MissingElements {
        /// The output that was asked for.
        output: String,
        /// Which, and where Debian has them.
        elements: Vec<MissingElement>,
    },
    /// Something that this build of the program leaves out.
    NotBuilt {
        /// What was asked for.
        what: String,
        /// The cargo feature that has it.
        feature: &'static str,
    },
    /// A clip cannot be signed.
    Signing {
        /// The certificate that was given.
        certificate: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// None of the known H.264 encoders is installed.
    NoEncoder {
        /// The output that was asked for.
        output: String,
    },
    /// A picture that 4:2:0 video cannot hold.
    OddSize {
        /// Its size.
        size: PixelSize,
    },
    /// Frames of another shape than the clip's.
    Shape {
        /// `[3,H,W]` of the clip.
        expected: [usize; 3],
        /// What came.
        found: [usize; 3],
    },
    /// The clip was finished before all its frames were there.
    FramesMissing {
        /// Frames that were announced.
        expected: usize,
        /// Frames that came through the encoder.
        found: usize,
    },
    /// No room left for an output.
    DiskFull {
        /// The output that was asked for.
        output: String,
    },
    /// An element of the pipeline failed.
    Pipeline {
        /// The output that was asked for.
        output: String,
        /// Its name.
        element: String,
        /// What it said.
        why: String,
    },
    /// Frames waited, and nothing moved in the pipeline.
    Stalled {
        /// The output that was asked for.
        output: String,
        /// For how long nothing moved.
        limit: Duration,
    },
    /// Outputs failed.
    Partly {
        /// What the first that failed met.
        first: Arc<Self>,
        /// What is left of it.
        kept: Remainder,
        /// Those that are whole.
        whole: Option<String>,
    },
    /// The run was stopped while frames waited.
    Cancelled,
}

impl Diagnose for Error {
    fn report(&self) -> Report {
        match self {
            Self::Twice { .. }
            | Self::PostProcess { .. }
            | Self::Caption { .. }
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
            Self::Shape { expected, found } => Report::failed(
                "the decoder's frames do not fit the clip",
                format!("expected {expected:?} per frame, found {found:?}"),
                "export the checkpoint again with this version of rushes",
            ),
            Self::FramesMissing { expected, found } => Report::failed(
                "the clip is not whole",
                format!("{expected} frames were announced, {found} were encoded"),
                "run it again; what there is lies in the part file",
            ),
            Self::DiskFull { output } => Report::failed(
                format!("cannot go on writing {output}"),
                "there is no room left on its disk",
                "free some room or choose another folder with -o; what was written so far can be played",
            ),
            Self::Pipeline { output, element, why } => Report::failed(
                format!("cannot go on writing {output}"),
                format!("{element} failed: {why}"),
                "see what `rushes doctor` says about this machine's encoders, and check that the other end is there",
            ),
            Self::Stalled { output, limit } => Report::failed(
                format!("{output} does not go on"),
                format!("nothing has moved in its pipeline for {limit:?}"),
                "check that its disk or its reader answers, allow more with --output-timeout, or choose another -o",
            ),
            Self::Partly { first, kept, whole } => {
                let Report { class, what, why, fix } = first.report();
                let whole = whole.as_ref().map_or(String::new(), |whole| format!("; whole: {whole}"));
                Report { class, what, why: format!("{why}; {kept}{whole}"), fix }
            }
            Self::Cancelled => Report::new(
                bundle::ErrorClass::Interrupted,
                "stopped while frames waited to be written",
                "the run was interrupted",
                "run it again",
            ),
        }
    }
}

impl Error {
    /// An output that cannot be created at `path`.
    pub(crate) fn unwritable(path: impl Into<PathBuf>, why: impl Into<String>) -> Self {
        part_file::Error::Unwritable { path: path.into(), why: why.into() }.into()
    }

    /// An output that another run is writing, which has locked `part`.
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
            Self::MissingDecoder { flag, given, name, package } => Report::missing(
                format!("{flag} cannot be {given} on this machine"),
                format!("GStreamer has no {name}"),
                format!("install it with `sudo apt-get install {package}`, or give a file of another format"),
            ),
            Self::NotBuilt { what, feature } => Report::missing(
                format!("{what} is not for this build of the program"),
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
                    format!("install one with `sudo apt-get install {}`", H264Encoder::ALL[0].package()),
                )
            }
            Self::NoFont { character, package } => Report::missing(
                "the caption cannot be shown as it is",
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
                "name a folder, or a file that ends in .png, where you may write",
            ),
            Self::OddSize { size } => Report::bad_input(
                format!("a clip cannot be {size}"),
                "4:2:0 video takes an even width and height",
                "choose an even --size",
            ),
            Self::Twice { output } => Report::bad_input(
                format!("cannot write {output} twice"),
                "two outputs of one run have the same name",
                "give each -o a name of its own",
            ),
            Self::PostProcess { flag, given, why } => Report::bad_input(
                format!("{flag} cannot be {given}"),
                why.clone(),
                "give a whole file of the right kind; `ffmpeg -v error -i FILE -f null -` says more about one",
            ),
            Self::Caption { caption, why } => Report::bad_input(
                format!("the caption {caption} cannot be shown"),
                why.clone(),
                "make it shorter, show fewer captions at a time, or choose a larger --size",
            ),
            Self::Signing { certificate, why } => Report::bad_input(
                format!("the clip cannot be signed with {}", certificate.display()),
                why.clone(),
                "give a PEM chain and its private key, made for signing content: --sign chain.pem,key.pem",
            ),
            Self::NothingToSign => Report::bad_input(
                "there is no output that can be signed",
                "only .mp4 carries content credentials",
                "add one with -o, or leave --sign out",
            ),
            Self::NoSound => Report::bad_input(
                "there is sound and no output for it",
                "only .mp4, .webm and .mkv carry sound",
                "add one of these with -o, or leave --audio out",
            ),
            _ => Report::bad_input(
                "standard output is a terminal",
                "the frames of `-o -` are no text",
                "send them to a file or a program, like `rushes generate … -o - | ffplay -`",
            ),
        }
    }
}

bundle::display_as_report!(Error);
