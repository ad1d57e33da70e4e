//! The options of `generate` for overlays and audio: captions, logo, sound, chroma key, frame rate, mark.

use super::generate::Given;
use super::logo::Logo;
use super::os_text;
use crate::Error;
use bundle::Error as Refusal;
use bundle::Field;
use bundle::units::FrameRate;
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use media::SigningKey;
use media::post_process::{AudioSource, Caption, Interpolation, KeyColour, PostProcessSpec, SrtError};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// The options for overlays and audio.
#[derive(Debug, Args)]
pub(super) struct PostProcessArgs {
    /// Draw a text at the bottom of each frame, or the captions of a SubRip file ending in .srt
    #[arg(long, value_name = "TEXT|FILE", help_heading = "Overlays and audio")]
    caption: Option<OsString>,
    /// Draw a picture in a corner: FILE@top-left, @top-right, @bottom-left or @bottom-right
    #[arg(
        long,
        value_name = "FILE@CORNER",
        value_parser = OsStringValueParser::new().try_map(os_text::logo),
        help_heading = "Overlays and audio"
    )]
    logo: Option<Logo>,
    /// Add sound from a file, repeated or cut to the clip's length and faded
    #[arg(long, value_name = "FILE", help_heading = "Overlays and audio")]
    audio: Option<PathBuf>,
    /// Replace a screen of this colour with --background: green or blue
    #[arg(long, value_name = "COLOUR", requires = "background", help_heading = "Overlays and audio")]
    key: Option<KeyColour>,
    /// Picture or video to show in place of the --key colour
    #[arg(long, value_name = "FILE", requires = "key", help_heading = "Overlays and audio")]
    background: Option<PathBuf>,
    /// Convert the outputs to this frame rate in frames per second, written like --fps
    #[arg(long, value_name = "RATE", value_parser = output_rate, help_heading = "Overlays and audio")]
    output_fps: Option<FrameRate>,
    /// Method of --output-fps: blend or repeat frames
    #[arg(
        long,
        value_name = "NAME",
        default_value = "blend",
        requires = "output_fps",
        help_heading = "Overlays and audio"
    )]
    output_fps_by: Interpolation,
    /// Do not mark the outputs as AI-generated
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
    /// The requested post-processing, with the captions read.
    ///
    /// # Errors
    /// Returns an error if the SubRip file cannot be read.
    pub(super) fn spec(&self) -> Result<PostProcessSpec, Error> {
        Ok(PostProcessSpec {
            captions: self.caption.as_deref().map(captions).transpose()?.unwrap_or_default(),
            logo: self.logo.clone().map(|logo| (logo.path, logo.corner)),
            key: self.key.zip(self.background.clone()),
            audio: self.audio.clone().map(AudioSource::File),
            rate: self.output_fps.map(|rate| (rate, self.output_fps_by)),
        })
    }

    /// The arguments that were given, by the name of their flag.
    pub(super) fn given(&self) -> Vec<(&'static str, Given<'_>)> {
        let mut given = Vec::new();
        if let Some(caption) = &self.caption {
            given.push(match caption.to_str() {
                Some(text) if !is_srt(Path::new(text)) => ("caption", Given::Text(text.to_owned())),
                _ => ("caption", Given::File(Path::new(caption), String::new())),
            });
        }
        if let Some(Logo { path, corner }) = &self.logo {
            given.push(("logo", Given::File(path, corner.to_string())));
        }
        if let Some(audio) = &self.audio {
            given.push(("audio", Given::File(audio, String::new())));
        }
        if let (Some(key), Some(background)) = (self.key, &self.background) {
            given.push(("key", Given::Text(key.to_string())));
            given.push(("background", Given::File(background, String::new())));
        }
        if let Some(rate) = self.output_fps {
            given.push(("output-fps", Given::Text(rate.to_string())));
            given.push(("output-fps-by", Given::Text(self.output_fps_by.to_string())));
        }
        if self.no_mark {
            given.push(("no-mark", Given::Text(String::new())));
        }
        given
    }

    /// The key that outputs are signed with.
    pub(super) fn signing_key(&self) -> Option<&SigningKey> {
        self.sign.as_ref()
    }

    /// Returns true if the outputs are marked as AI-generated.
    pub(super) fn mark(&self) -> bool {
        !self.no_mark
    }
}

fn output_rate(text: &str) -> Result<FrameRate, Refusal> {
    FrameRate::parse(Field::OutputFrameRate, text)
}

/// Returns true if captions are read from this file.
fn is_srt(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("srt"))
}

fn captions(value: &OsStr) -> Result<Vec<Caption>, Refusal> {
    let path = Path::new(value);
    let refused = |why: String, fix: &str| Refusal::value(Field::Caption, path.display(), why, fix);
    let extension = path.extension().map(|extension| extension.to_ascii_lowercase());
    match extension.as_deref().and_then(OsStr::to_str) {
        Some("srt") => {}
        Some(other @ ("vtt" | "ass" | "ssa" | "sub" | "sbv" | "ttml")) if path.is_file() => {
            let why = format!("caption files must be SubRip, and .{other} is another format");
            return Err(refused(why, "convert it, for example with `ffmpeg -i FILE captions.srt`"));
        }
        _ => {
            let Some(text) = value.to_str() else {
                let (rule, fix) =
                    ("a text must be UTF-8", "write it in UTF-8, or give a SubRip file ending in .srt");
                return Err(Refusal::value(Field::Caption, format!("`{}`", value.display()), rule, fix));
            };
            return Ok(vec![Caption::always(text)]);
        }
    }
    let bytes = std::fs::read(path).map_err(Refusal::file("read", path))?;
    Caption::read_srt(&bytes).map_err(|error| {
        let fix = match error {
            SrtError::Encoding => {
                "convert it, for example with `iconv -f WINDOWS-1252 -t UTF-8 FILE > captions.srt`"
            }
            _ => "correct the file, or give a text instead",
        };
        refused(error.to_string(), fix)
    })
}
