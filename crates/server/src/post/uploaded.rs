//! Uploads that a clip is made with: its logo and its sound.

use crate::access::Caller;
use crate::app::App;
use crate::body::Fields;
use crate::fault::Fault;
use bundle::Diagnose;
use bundle::digest::Digest;
use jobs::request::Request;
use media::plugins::{SoundEncoder, sound_encoder};
use media::post_process::{AudioSource, Corner};
use media::{FileFormat, OutputSpec};
use runtime::job::{Extra, InputFile};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use utoipa::ToSchema;

/// The copies of a logo and of a sound in the folder of their job.
const LOGO: &str = "logo.webp";
const SOUND: &str = "sound.wav";

/// A picture in a corner.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes what `Body` reads")]
pub(super) struct LogoField {
    /// The name of an uploaded picture, not larger than the clip.
    upload: String,
    /// `top-left`, `top-right`, `bottom-left` or `bottom-right`, which is the default.
    corner: Option<String>,
}

/// A sound, repeated or cut to the length of the clip, and faded at both ends.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes what `Body` reads")]
pub(super) struct SoundField {
    /// The name of an uploaded sound.
    upload: String,
}

/// Takes `logo`: the name of an upload, and its corner.
///
/// # Errors
/// Names what is wrong or unknown.
pub(super) fn logo(post: &mut Fields) -> Result<Option<(String, Corner)>, Fault> {
    let Some(mut logo) = post.object("logo")? else { return Ok(None) };
    let upload = logo.text("upload")?;
    let corner = match logo.text("corner")? {
        Some(corner) => {
            let known = Corner::ALL.into_iter().find(|known| known.name() == corner);
            known.ok_or_else(|| {
                let names = Corner::ALL.map(Corner::name).join(", ");
                Fault::parameter("post.logo", format!("`post.logo.corner` is one of {names}"))
            })?
        }
        None => Corner::BottomRight,
    };
    logo.finish()?;
    Ok(Some((named("logo", upload)?, corner)))
}

/// Takes `sound`: the name of an upload.
///
/// # Errors
/// Names what is wrong or unknown.
pub(super) fn sound(post: &mut Fields) -> Result<Option<String>, Fault> {
    let Some(mut sound) = post.object("sound")? else { return Ok(None) };
    let upload = sound.text("upload")?;
    sound.finish()?;
    named("sound", upload).map(Some)
}

fn named(field: &str, upload: Option<String>) -> Result<String, Fault> {
    upload.ok_or_else(|| {
        let message = format!("`post.{field}.upload` is missing: name an upload");
        Fault::parameter(format!("post.{field}"), message)
    })
}

/// Puts a logo into the request of a job.
///
/// # Errors
/// The caller has no such picture.
pub(super) fn add_logo(
    (app, caller): (&App, &Caller),
    job: &mut Request,
    name: &str,
    corner: Corner,
) -> Result<(), Fault> {
    let (path, file) = found(app, caller, ("logo", "picture"), name)?;
    job.extras.insert("logo".into(), Extra::File { file, with: corner.to_string() });
    job.post_process.logo = Some((path, corner));
    Ok(())
}

/// Puts a sound into the request of a job whose clip has this format.
///
/// # Errors
/// The caller has no such sound, or the format has none.
pub(super) fn add_sound(
    (app, caller): (&App, &Caller),
    job: &mut Request,
    name: &str,
    format: FileFormat,
) -> Result<(), Fault> {
    check_carries_sound(format)?;
    let (path, file) = found(app, caller, ("sound", "sound"), name)?;
    // As the command line names it in the record of a clip.
    job.extras.insert("audio".into(), Extra::File { file, with: String::new() });
    job.post_process.audio = Some(AudioSource::CanonicalWav { canonical_wav: path });
    Ok(())
}

/// The file of an upload of the caller, and what the record of a clip says of it.
fn found(
    app: &App,
    caller: &Caller,
    (field, kind): (&str, &str),
    name: &str,
) -> Result<(PathBuf, InputFile), Fault> {
    let refused = |why: String| Fault::parameter(format!("post.{field}"), format!("`post.{field}`: {why}"));
    let upload = app.uploads.find(caller, name, app.now());
    let upload = upload.map_err(|_unknown| refused("there is no such upload".to_owned()))?;
    let found = upload.content.kind();
    if found != kind {
        return Err(refused(format!("the upload is a {found}: name a {kind}")));
    }
    let path = app.uploads.file(&upload);
    let digest = Digest::of_file(&path).map_err(Fault::internal)?.blake3;
    Ok((path, InputFile { name: upload.name, digest }))
}

/// Checks that files of a format have sound.
///
/// # Errors
/// They have none, or no encoder is installed.
fn check_carries_sound(format: FileFormat) -> Result<(), Fault> {
    match encoder(format) {
        Ok(Some(_)) => Ok(()),
        Ok(None) => {
            let message = format!(
                "`post.sound` cannot be used: {} clips carry no sound, ask for {}",
                format.extension(),
                formats_with_sound().join(", ")
            );
            Err(Fault::unsupported("post.sound", message))
        }
        Err(error) => Err(Fault::of_report(&error.report()).about("post.sound")),
    }
}

/// What encodes the sound of files of a format.
fn encoder(format: FileFormat) -> Result<Option<SoundEncoder>, media::Error> {
    sound_encoder(&OutputSpec::File { path: PathBuf::new(), format })
}

/// The formats of clips that carry sound, and whose encoder of it is installed.
pub(crate) fn formats_with_sound() -> Vec<&'static str> {
    let known = [FileFormat::Mp4, FileFormat::WebM, FileFormat::Mkv].into_iter();
    known.filter(|format| matches!(encoder(*format), Ok(Some(_)))).map(FileFormat::extension).collect()
}

/// Copies the logo and the sound of a request into the folder of its job, which is still under another name, so that the
/// job does not depend on an upload or on another job.
///
/// # Errors
/// A file cannot be copied.
pub(crate) fn keep(request: &mut Request, being_made: &Path, folder: &Path) -> Result<(), jobs::Error> {
    let copied = |path: &Path, name: &str| -> Result<PathBuf, jobs::Error> {
        std::fs::copy(path, being_made.join(name)).map_err(bundle::Error::file("copy", path))?;
        Ok(folder.join(name))
    };
    if let Some((path, _)) = &mut request.post_process.logo {
        *path = copied(path, LOGO)?;
    }
    if let Some(source) = &mut request.post_process.audio {
        *source = source.with_path(copied(source.path(), SOUND)?);
    }
    Ok(())
}
