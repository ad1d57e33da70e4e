//! The options of previews, and the fit of the linear map.

use super::devices::BudgetArgs;
use super::global::GlobalArgs;
use super::preview_sinks::{Live, Pictures};
use super::{os_text, render};
use crate::Error;
use bundle::geometry::{LatentShape, PixelSize};
use bundle::layout;
use bundle::manifest::Bundle;
use bundle::preview::PreviewKind;
use bundle::staging::WriteLock;
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use engines::Cancel;
use engines::residency::Residency;
use engines::sessions::Sessions;
use media::live::LiveSink;
use media::preview_files::PreviewFiles;
use media::{OutputSpec, OutputTarget, Token};
use quality::fit_preview_map::{PROMPTS, fit_preview_map};
use runtime::model::{Model, ModelOptions};
use runtime::preview::budget::PreviewLength;
use runtime::preview::{PreviewRenderer, PreviewRenderers, PreviewReport, PreviewSettings, Previewer, Sink};
use serde_json::json;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

/// The file of previews without `--preview-out`.
const DEFAULT_PICTURE: &str = "preview.png";

/// The options of `rushes generate` for previews.
#[derive(Debug, Clone, Args)]
pub(super) struct PreviewArgs {
    /// Show a preview after each step: off, rgb (a linear map), tiny (a tiny decoder) or full (the decoder, one frame)
    /// [default: off; with --live or --preview-out: tiny, else rgb, else full, as the bundle has them]
    #[arg(long, value_name = "NAME", help_heading = "Previews")]
    preview: Option<PreviewKind>,
    /// Show a preview after every N steps
    #[arg(long, value_name = "N", default_value = "1", help_heading = "Previews")]
    preview_every: NonZeroUsize,
    /// Publish the noise, then previews, then the clip in a loop until Ctrl-C, at one address: hls:DIR,
    /// rtsp://HOST:PORT/NAME or whip:https://HOST/PATH
    #[arg(
        long,
        value_name = "WHERE",
        value_parser = OsStringValueParser::new().try_map(os_text::output),
        help_heading = "Previews"
    )]
    live: Option<OutputSpec>,
    /// Write the newest preview to a .png, or one .png per step to a folder [default: preview.png]
    #[arg(long, value_name = "FILE|DIR", help_heading = "Previews")]
    preview_out: Option<PathBuf>,
}

impl PreviewArgs {
    /// The kind of preview. An output without a kind selects the tiny decoder, else the map, else the decoder.
    ///
    /// # Errors
    /// Returns an error if the linear map is damaged.
    pub(super) fn kind(&self, bundle: &Bundle) -> Result<PreviewKind, Error> {
        Ok(match self.preview {
            Some(kind) => kind,
            None if self.preview_out.is_none() && self.live.is_none() => PreviewKind::Off,
            None if bundle.manifest.tiny_decoder.is_some() => PreviewKind::Tiny,
            None if bundle.preview_map()?.is_some() => PreviewKind::Rgb,
            None => PreviewKind::Full,
        })
    }

    /// Claims the live address, if there is one, in addition to the outputs of the clip.
    ///
    /// # Errors
    /// Returns an error if the address is not live, is an output of the clip, or cannot be claimed.
    pub(super) fn claim_live(
        &self,
        outputs: &[OutputSpec],
        token: Option<&Token>,
    ) -> Result<Option<OutputTarget>, Error> {
        let Some(live) = self.live.clone().map(|live| live.with_token(token)) else { return Ok(None) };
        let refused = |rule: &str| {
            let fix = "use hls:DIR or rtsp://127.0.0.1:8554/clip, and -o for the clip itself";
            Err(Error::argument("--live", &live, rule, fix))
        };
        if !live.is_live() {
            return refused("it cannot be watched while it is written");
        }
        if outputs.iter().any(|output| output.is_same_destination(&live)) {
            return refused("the clip is written there already");
        }
        Ok(Some(OutputTarget::claim(&live)?))
    }

    /// Claims the file or folder that previews of `size` are written to, if there is one.
    ///
    /// # Errors
    /// Returns an error if it cannot be written, or if another run has claimed it.
    pub(super) fn claim_pictures(
        &self,
        bundle: &Bundle,
        size: PixelSize,
    ) -> Result<Option<PreviewFiles>, Error> {
        if self.kind(bundle)? == PreviewKind::Off {
            return Ok(None);
        }
        match &self.preview_out {
            Some(path) => Ok(Some(PreviewFiles::create(path, size)?)),
            None if self.live.is_some() => Ok(None),
            None => Ok(Some(PreviewFiles::create_default(Path::new(DEFAULT_PICTURE), size)?)),
        }
    }

    /// Checks and prepares the previews of a clip, before the run. Returns `None` if there are none.
    pub(super) fn prepare(
        &self,
        model: &Model,
        pictures: Option<PreviewFiles>,
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

/// Previews that are ready to start.
pub(super) struct PreparedPreviews {
    renderers: PreviewRenderers,
    settings: PreviewSettings,
    sinks: Vec<Box<dyn Sink>>,
}

impl PreparedPreviews {
    /// Opens the graphs for previews of latents of `shape`, and starts.
    pub(super) fn start(self, shape: LatentShape, cancel: &Cancel) -> Previewer {
        Previewer::start(self.renderers, shape, self.settings, self.sinks, cancel)
    }
}

/// The result of the previews for the text output, if any were skipped or failed.
pub(super) fn note(report: &PreviewReport) -> Option<String> {
    if let Some(error) = &report.failed {
        return Some(format!("warning: previews ended early: {}", render::report(error)));
    }
    (report.skipped > 0).then(|| {
        let instead = match report.fallbacks {
            0 => String::new(),
            fallbacks => format!("; the linear map showed {fallbacks} of them"),
        };
        format!(
            "previews: {} shown, {} skipped to keep up with denoising{instead}",
            report.shown, report.skipped
        )
    })
}

/// The options of `rushes calibrate` for previews.
#[derive(Debug, Clone, Args)]
pub(super) struct FitArgs {
    /// Fit the linear map from latents to colours that rgb previews use, instead of calibrating
    #[arg(long, conflicts_with = "prompts")]
    pub(super) preview: bool,
    /// With --preview, number of clips to fit the map on
    #[arg(long, value_name = "N", default_value_t = PROMPTS.len())]
    clips: usize,
}

/// Fits the map on clips of `size` and writes it to the bundle.
pub(super) fn fit(
    folder: &Path,
    args: &FitArgs,
    size: Option<PixelSize>,
    budget: &BudgetArgs,
    global: &GlobalArgs,
) -> Result<ExitCode, Error> {
    let started = Instant::now();
    let budgets = budget.budgets_of_cpu()?;
    let bundle = Bundle::open(folder)?;
    let cancel = global.interrupts.cancel();
    let _lock = WriteLock::acquire(&bundle.folder)?;
    let onnx = global.onnx_runtime()?;
    let path = bundle.path(layout::PREVIEW_MAP);
    let sessions = Sessions::new(Arc::new(onnx), budgets.clone(), Residency::One);
    let model = Model::with_sessions(bundle, &sessions, ModelOptions::of_variant(None))?;
    let mut on_clip = |clip: usize, prompt: &str| {
        if !global.json {
            render::note(&format!("clip {clip} of {}: {prompt}", args.clips));
        }
    };
    let map = fit_preview_map(&model, &budgets, args.clips, size, &cancel, &mut on_clip)?;
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
        "{}: fitted on {} latent positions, PSNR {decibels:.1} dB to the decoder's colours",
        path.display(),
        map.positions
    );
    render::result(global.json, &value, &text)?;
    Ok(ExitCode::SUCCESS)
}
