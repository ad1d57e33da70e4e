//! The flags of previews, and the fitting of their map.

use super::global::GlobalArgs;
use super::preview_sinks::{Live, Pictures};
use super::{os_text, render};
use crate::Error;
use bundle::geometry::{LatentShape, PixelSize};
use bundle::layout;
use bundle::manifest::Bundle;
use bundle::preview::PreviewKind;
use bundle::staging::Writing;
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use engines::{Cancel, residency};
use media::live::LiveSink;
use media::preview_files::PictureFiles;
use media::{OutputSpec, OutputTarget, Token};
use quality::fit_preview_map::{PROMPTS, fit_preview_map};
use runtime::model::{Model, ModelOptions};
use runtime::preview::budget::PreviewLength;
use runtime::preview::{PreviewRenderer, PreviewRenderers, PreviewReport, PreviewSettings, Previewer, Sink};
use serde_json::json;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Where a preview goes when nobody says.
const DEFAULT_PICTURE: &str = "preview.png";

/// The flags of `rushes generate` that are about previews.
#[derive(Debug, Clone, Args)]
pub(super) struct PreviewArgs {
    /// Show the clip after each step: off, rgb (a linear map), tiny (a tiny decoder) or full (the decoder, one frame)
    #[arg(long, value_name = "NAME", help_heading = "Previews")]
    preview: Option<PreviewKind>,
    /// Show it after every N steps
    #[arg(long, value_name = "N", default_value = "1", help_heading = "Previews")]
    preview_every: NonZeroUsize,
    /// One address that sharpens: noise, previews, then the clip again and again until Ctrl-C; hls:DIR,
    /// rtsp://HOST:PORT/NAME or whip:https://HOST/PATH
    #[arg(
        long,
        value_name = "WHERE",
        value_parser = OsStringValueParser::new().try_map(os_text::output),
        help_heading = "Previews"
    )]
    live: Option<OutputSpec>,
    /// A .png that always holds the newest, or a folder that gets one for each step [default: preview.png]
    #[arg(long, value_name = "FILE|DIR", help_heading = "Previews")]
    preview_out: Option<PathBuf>,
}

impl PreviewArgs {
    /// What was asked for; a place alone asks for the tiny decoder, or for what else the bundle can do.
    ///
    /// # Errors
    /// A map that is damaged.
    pub(super) fn kind(&self, bundle: &Bundle) -> Result<PreviewKind, Error> {
        Ok(match self.preview {
            Some(kind) => kind,
            None if self.preview_out.is_none() && self.live.is_none() => PreviewKind::Off,
            None if bundle.manifest.tiny_decoder.is_some() => PreviewKind::Tiny,
            None if bundle.preview_map()?.is_some() => PreviewKind::Rgb,
            None => PreviewKind::Full,
        })
    }

    /// Takes the address that is live, if there is one, beside the places where the clip goes.
    ///
    /// # Errors
    /// An output that nobody watches while it is made, one that is a place of the clip already, or one that cannot be taken.
    pub(super) fn claim_live(
        &self,
        outputs: &[OutputSpec],
        token: Option<&Token>,
    ) -> Result<Option<OutputTarget>, Error> {
        let Some(live) = self.live.clone().map(|live| live.with_token(token)) else { return Ok(None) };
        let refused = |rule: &str| {
            let fix = "use hls:DIR or rtsp://127.0.0.1:8554/clip, and -o for the clip itself";
            Err(bundle::Error::value("--live", &live, rule, fix).into())
        };
        if !live.is_live() {
            return refused("nobody can watch it while it is made");
        }
        if outputs.iter().any(|output| output.is_same_place(&live)) {
            return refused("the clip goes there already");
        }
        Ok(Some(OutputTarget::claim(&live)?))
    }

    /// Takes the file or folder that previews of `size` go to, if they do.
    ///
    /// # Errors
    /// A place that cannot be written or that another run has.
    pub(super) fn claim_pictures(
        &self,
        bundle: &Bundle,
        size: PixelSize,
    ) -> Result<Option<PictureFiles>, Error> {
        if self.kind(bundle)? == PreviewKind::Off {
            return Ok(None);
        }
        match &self.preview_out {
            Some(place) => Ok(Some(PictureFiles::create(place, size)?)),
            None if self.live.is_some() => Ok(None),
            None => Ok(Some(PictureFiles::create_unasked(Path::new(DEFAULT_PICTURE), size)?)),
        }
    }

    /// What previews of a clip need, checked before the run; none when there are none.
    pub(super) fn prepare(
        &self,
        model: &Model,
        pictures: Option<PictureFiles>,
        live: Option<LiveSink>,
    ) -> Result<Option<PreparedPreviews>, Error> {
        let kind = self.kind(model.bundle())?;
        let Some(chosen) = PreviewRenderer::new(model, kind)? else { return Ok(None) };
        let has_map = kind != PreviewKind::Rgb && model.bundle().preview_map()?.is_some();
        let fallback = if has_map { PreviewRenderer::new(model, PreviewKind::Rgb)? } else { None };
        let length = if live.is_some() { PreviewLength::AllFrames } else { PreviewLength::FirstFrame };
        let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
        if let Some(pictures) = pictures {
            sinks.push(Box::new(Pictures(pictures)));
        }
        if let Some(live) = live {
            sinks.push(Box::new(Live(live)));
        }
        let settings = PreviewSettings { every: self.preview_every, length };
        Ok(Some(PreparedPreviews { renderers: PreviewRenderers { chosen, fallback }, settings, sinks }))
    }
}

/// Previews that are ready to be made.
pub(super) struct PreparedPreviews {
    renderers: PreviewRenderers,
    settings: PreviewSettings,
    sinks: Vec<Box<dyn Sink>>,
}

impl PreparedPreviews {
    /// Opens what previews of latents of `shape` need.
    pub(super) fn start(self, shape: LatentShape, cancel: &Cancel) -> Previewer {
        Previewer::start(self.renderers, shape, self.settings, self.sinks, cancel)
    }
}

/// What became of the previews, for people: only what they did not ask for.
pub(super) fn note(report: &PreviewReport) -> Option<String> {
    if let Some(error) = &report.failed {
        return Some(format!("warning: previews ended early: {error}"));
    }
    (report.skipped > 0).then(|| {
        let instead = match report.fallbacks {
            0 => String::new(),
            fallbacks => format!("; the linear map showed {fallbacks} of these"),
        };
        format!(
            "previews: {} shown, {} skipped so that denoising is not held up{instead}",
            report.shown, report.skipped
        )
    })
}

/// What became of the previews, for programs.
pub(super) fn value(report: &PreviewReport) -> serde_json::Value {
    json!({
        "kind": report.kind,
        "shown": report.shown,
        "skipped": report.skipped,
        "shown_by_map": report.fallbacks,
        "busy_seconds": report.busy.as_secs_f64(),
        "failed": report.failed.as_ref().map(ToString::to_string),
    })
}

/// The flags of `rushes calibrate` that are about previews.
#[derive(Debug, Clone, Args)]
pub(super) struct FitArgs {
    /// Fit the linear map that shows latents as colours
    #[arg(long, conflicts_with = "prompts")]
    pub(super) preview: bool,
    /// Clips that the map is fitted on
    #[arg(long, value_name = "N", default_value_t = PROMPTS.len())]
    clips: usize,
}

/// Fits the map on clips of `size` and keeps it in the bundle.
pub(super) fn fit(
    folder: &Path,
    args: &FitArgs,
    size: Option<PixelSize>,
    global: &GlobalArgs,
) -> Result<ExitCode, Error> {
    let started = Instant::now();
    let bundle = Bundle::open(folder)?;
    let cancel = global.interrupts.cancel();
    let _writing = Writing::of(&bundle.folder)?;
    let onnx = global.onnx_runtime()?;
    let path = bundle.path(layout::PREVIEW_MAP);
    let model = Model::new(bundle, onnx, ModelOptions::default())?;
    let mut on_clip = |clip: usize, prompt: &str| {
        if !global.json {
            render::note(&format!("clip {clip} of {}: {prompt}", args.clips));
        }
    };
    let mode = residency::Mode::OneAtATime;
    let map = fit_preview_map(&model, mode, args.clips, size, &cancel, &mut on_clip)?;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(bundle::Error::file("create", parent))?;
    }
    map.write(&path)?;
    // The range of a colour is 2.
    let decibels = -20.0 * (map.error / 2.0).log10();
    let value = json!({
        "event": "calibrated",
        "preview_map": render::path(&path),
        "positions": map.positions,
        "error": map.error,
        "psnr": decibels,
        "seconds": started.elapsed().as_secs_f64(),
    });
    let text = format!(
        "{}: fitted on {} latent positions, {decibels:.1} dB from the decoder's colours",
        path.display(),
        map.positions
    );
    render::result(global.json, &value, &text)?;
    Ok(ExitCode::SUCCESS)
}
