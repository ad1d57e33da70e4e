//! Where the clips of jobs are written: absolute paths that nothing else writes, checked when a job is queued.

use crate::cli::os_text;
use ::jobs::Error;
use ::jobs::request::Request;
use bundle::Field;
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use engines::Cancel;
use media::post_process::PostProcessSpec;
use media::{ClipFormat, ClipSettings, ClipWriter, OutputSpec, SigningKey, Tags};
use runtime::plan::{GenerateRequest, Length};
use runtime::scheduler::JobId;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The outputs of a job.
#[derive(Debug, Args)]
pub(super) struct OutputArgs {
    /// Write the clip to a file ending in .mp4, .webm, .mkv, .gif, .webp or .y4m; to a folder of PNGs, such as
    /// frames/; or to hls:DIR or rtmp://HOST/APP/KEY. May be given more than once [default: clip-ID.mp4, with the
    /// number of the job]
    #[arg(
        short,
        long,
        value_name = "WHERE",
        value_parser = OsStringValueParser::new().try_map(os_text::output),
        help_heading = "Outputs"
    )]
    output: Vec<OutputSpec>,
}

impl OutputArgs {
    /// The outputs with absolute paths.
    ///
    /// # Errors
    /// See [`absolute`].
    pub(super) fn absolute(&self) -> Result<Vec<OutputSpec>, bundle::Error> {
        self.output.iter().cloned().map(absolute_output).collect()
    }
}

/// The absolute form of a path. Links stay as they are.
///
/// # Errors
/// The path is empty, or the current folder is unknown.
pub(super) fn absolute(field: Field, path: &Path) -> Result<PathBuf, bundle::Error> {
    std::path::absolute(path).map_err(|error| {
        let given = format!("`{}`", path.display());
        bundle::Error::value(field, given, error.to_string(), "give an absolute path")
    })
}

/// An output with an absolute path. Other outputs stay as they are.
///
/// # Errors
/// See [`absolute`].
fn absolute_output(output: OutputSpec) -> Result<OutputSpec, bundle::Error> {
    let absolute = |path: &Path| absolute(Field::Output, path);
    Ok(match output {
        OutputSpec::File { path, format } => OutputSpec::File { path: absolute(&path)?, format },
        OutputSpec::Frames { folder } => OutputSpec::Frames { folder: absolute(&folder)? },
        OutputSpec::Hls { folder } => OutputSpec::Hls { folder: absolute(&folder)? },
        other => other,
    })
}

/// Post-processing with absolute paths.
///
/// # Errors
/// See [`absolute`].
pub(super) fn absolute_post_process(spec: PostProcessSpec) -> Result<PostProcessSpec, bundle::Error> {
    let PostProcessSpec { captions, logo, key, audio, rate } = spec;
    let logo = match logo {
        Some((path, corner)) => Some((absolute(Field::Logo, &path)?, corner)),
        None => None,
    };
    let key = match key {
        Some((colour, path)) => Some((colour, absolute(Field::Background, &path)?)),
        None => None,
    };
    let audio = match audio {
        Some(source) => Some(source.with_path(absolute(Field::Audio, source.path())?)),
        None => None,
    };
    Ok(PostProcessSpec { captions, logo, key, audio, rate })
}

/// A signing key with absolute paths.
///
/// # Errors
/// See [`absolute`].
pub(super) fn absolute_key(key: &SigningKey) -> Result<SigningKey, bundle::Error> {
    let absolute = |path: &Path| absolute(Field::Sign, path);
    Ok(SigningKey { certificate: absolute(&key.certificate)?, key: absolute(&key.key)? })
}

/// The output of a job that was given none: `clip-ID.mp4` in the current folder.
///
/// # Errors
/// The current folder is unknown.
pub(super) fn default_output(id: JobId) -> Result<OutputSpec, bundle::Error> {
    absolute_output(format!("clip-{}.mp4", id.0).parse()?)
}

/// Checks that this machine can write the outputs of a job with its post-processing, as its owner will. Nothing is
/// written. Returns notes for the user.
///
/// # Errors
/// An output or a file cannot be used, or an output does not suit a queue.
pub(super) fn check(request: &Request, cancel: &Cancel) -> Result<Vec<String>, Error> {
    request.check()?;
    let format = format_of(&request.clip)?;
    if request.outputs.is_empty() {
        request.post_process.open(format)?;
        if let Some(key) = &request.sign {
            key.check()?;
        }
        return Ok(Vec::new());
    }
    let settings = ClipSettings {
        outputs: request.outputs.clone(),
        post_process: request.post_process.clone(),
        sign: request.sign.clone(),
        output_timeout: Duration::from_secs_f64(request.output_timeout.get()),
    };
    let tags = Tags {
        mark: request.mark,
        metadata: request.metadata,
        ..Tags::new(request.clip.prompt.clone(), &request.model, request.clip.seed)
    };
    Ok(ClipWriter::claim(&settings, format, tags, cancel)?.notes())
}

/// The frames of a clip whose settings are resolved.
fn format_of(clip: &GenerateRequest) -> Result<ClipFormat, Error> {
    let resolved = match (clip.size, clip.fps, clip.length) {
        (Some(size), Some(rate), Some(Length::Frames(frames))) => {
            Some(ClipFormat { size, rate, frames: Some(frames) })
        }
        _ => None,
    };
    resolved.ok_or_else(|| Error::Request { why: "size, frame rate or frames are missing".to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_absolute_and_stay_readable() {
        let here = std::env::current_dir().unwrap();
        let shown = |text: &str| absolute_output(text.parse().unwrap()).unwrap().to_string();
        let at = |name: &str| here.join(name).display().to_string();
        assert_eq!(shown("a.mp4"), at("a.mp4"));
        assert_eq!(shown("./frames/"), at("frames/"));
        assert_eq!(shown("hls:live"), format!("hls:{}", at("live")));
        assert_eq!(shown("/b/../a.gif"), "/b/../a.gif");
        assert_eq!(shown("rtmp://host/app/key"), "rtmp://host/app/key");
        for text in ["a.mp4", "frames/", "hls:live", "rtmp://host/app/key"] {
            // As it is stored and read again.
            let output = absolute_output(text.parse().unwrap()).unwrap();
            assert_eq!(output.to_string().parse::<OutputSpec>().unwrap(), output);
        }
        assert_eq!(default_output(JobId(7)).unwrap().to_string(), at("clip-7.mp4"));
        assert!(
            absolute(Field::Bundle, Path::new(""))
                .unwrap_err()
                .to_string()
                .starts_with("bundle cannot be ``")
        );
    }
}
