//! Flags of `generate` that dress the clip: captions, logo, sound, key, rate, mark.

use super::logo::Logo;
use super::os_text;
use crate::Error;
use bundle::Error as Refusal;
use bundle::units::FrameRate;
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use media::SigningKey;
use media::post_process::{Between, Caption, KeyColour, PostProcessSpec, SrtError};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// How the clip is dressed.
#[derive(Debug, Args)]
pub(super) struct PostProcessArgs {
    /// A text at the bottom of the frame, or a SubRip file ending in .srt
    #[arg(long, value_name = "TEXT|FILE", help_heading = "Overlays and audio")]
    caption: Option<OsString>,
    /// A picture in a corner: FILE@top-left, @top-right, @bottom-left or @bottom-right
    #[arg(
        long,
        value_name = "FILE@CORNER",
        value_parser = OsStringValueParser::new().try_map(os_text::logo),
        help_heading = "Overlays and audio"
    )]
    logo: Option<Logo>,
    /// Sound from a file, repeated or cut to the clip's length and faded
    #[arg(long, value_name = "FILE", help_heading = "Overlays and audio")]
    audio: Option<PathBuf>,
    /// The colour of a screen, green or blue, that --background replaces
    #[arg(long, value_name = "COLOUR", requires = "background", help_heading = "Overlays and audio")]
    key: Option<KeyColour>,
    /// A picture or film to be seen where --key is
    #[arg(long, value_name = "FILE", requires = "key", help_heading = "Overlays and audio")]
    background: Option<PathBuf>,
    /// Frames per second of the outputs, made of those of the clip; like --fps
    #[arg(long, value_name = "RATE", value_parser = output_rate, help_heading = "Overlays and audio")]
    output_fps: Option<FrameRate>,
    /// Where the frames of --output-fps come from: blend or repeat
    #[arg(
        long,
        value_name = "NAME",
        default_value = "blend",
        requires = "output_fps",
        help_heading = "Overlays and audio"
    )]
    output_fps_by: Between,
    /// Do not mark the outputs as made by a model
    #[arg(long, help_heading = "Overlays and audio")]
    no_mark: bool,
    /// Sign .mp4 outputs with C2PA content credentials: a PEM certificate chain and its private key
    #[arg(
        long,
        value_name = "CERT,KEY",
        conflicts_with = "no_mark",
        value_parser = OsStringValueParser::new().try_map(os_text::signing_key),
        help_heading = "Overlays and audio"
    )]
    sign: Option<SigningKey>,
}

impl PostProcessArgs {
    /// What was asked for, with the captions read.
    ///
    /// # Errors
    /// A SubRip file that cannot be read.
    pub(super) fn spec(&self) -> Result<PostProcessSpec, Error> {
        Ok(PostProcessSpec {
            captions: self.caption.as_deref().map(captions).transpose()?.unwrap_or_default(),
            logo: self.logo.clone().map(|logo| (logo.path, logo.corner)),
            key: self.key.zip(self.background.clone()),
            audio: self.audio.clone(),
            rate: self.output_fps.map(|rate| (rate, self.output_fps_by)),
        })
    }

    /// What the outputs are signed with.
    pub(super) fn signing_key(&self) -> Option<&SigningKey> {
        self.sign.as_ref()
    }

    /// Whether the outputs are marked as made by a model.
    pub(super) fn mark(&self) -> bool {
        !self.no_mark
    }
}

fn output_rate(text: &str) -> Result<FrameRate, Refusal> {
    FrameRate::parse("--output-fps", text)
}

fn captions(given: &OsStr) -> Result<Vec<Caption>, Refusal> {
    let path = Path::new(given);
    let refused = |why: String, fix: &str| Refusal::value("--caption", path.display(), why, fix);
    let extension = path.extension().map(|extension| extension.to_ascii_lowercase());
    match extension.as_deref().and_then(OsStr::to_str) {
        Some("srt") => {}
        Some(other @ ("vtt" | "ass" | "ssa" | "sub" | "sbv" | "ttml")) if path.is_file() => {
            let why = format!("captions in files are read as SubRip, and .{other} is another format");
            return Err(refused(why, "convert it, like `ffmpeg -i FILE captions.srt`"));
        }
        _ => {
            let Some(text) = given.to_str() else {
                let (rule, fix) =
                    ("a text is UTF-8", "write it in UTF-8, or name a SubRip file ending in .srt");
                return Err(Refusal::value("--caption", format!("`{}`", given.display()), rule, fix));
            };
            return Ok(vec![Caption::always(text)]);
        }
    }
    let bytes = std::fs::read(path).map_err(Refusal::file("read", path))?;
    Caption::read_srt(&bytes).map_err(|error| {
        let fix = match error {
            SrtError::Encoding => "convert it, like `iconv -f WINDOWS-1252 -t UTF-8 FILE > captions.srt`",
            _ => "put the file right, or give a text instead",
        };
        refused(error.to_string(), fix)
    })
}
