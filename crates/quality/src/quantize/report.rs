//! The quality report of a quantised variant: `quality.json` for programs, `quality.html` for people.

use super::clips::{Clip, ClipDistance};
use super::metrics::difference;
use super::picture::data_uri;
use crate::Error;
use bundle::Field;
use bundle::manifest::Bundle;
use bundle::quantization::Scheme;
use bundle::variant::Target;
use calibration::integer_share::Share;
use ndarray::{Array3, Axis};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// File name of the numbers.
pub const JSON: &str = "quality.json";
/// File name of the page.
pub const HTML: &str = "quality.html";
/// File name of the page about plain graphs alone.
pub const PLAIN_HTML: &str = "quality.plain.html";

/// The method that determines the error of quantising a single layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sensitivity {
    /// Linear layers are run on sampled rows in both forms. For convolutions, frames are decoded with only this one
    /// quantised.
    Measured,
    /// Estimated from moments, assuming independent channels. For models whose weights take long to read.
    #[default]
    Estimated,
}

bundle::named!(Sensitivity, Field::Sensitivity, "sensitivity", "measured" => Measured, "estimated" => Estimated);

/// A layer of a variant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerQuality {
    /// Name of the layer.
    pub layer: String,
    /// Signal-to-noise ratio of its output, or of the frames for a convolution, if only this layer is quantised, in
    /// decibels. See [`Sensitivity`].
    pub signal_to_noise: f64,
    /// Exponent of its smoothing.
    pub alpha: Option<f32>,
}

/// A component of a variant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComponentQuality {
    /// Name of the component.
    pub component: String,
    /// Size of its weights, in bytes.
    pub bytes: u64,
    /// Size of its exported weights, in bytes.
    pub exported_bytes: u64,
    /// The share that runs in integers, from ONNX Runtime's optimised graph; `None` if nothing is quantised.
    pub share: Option<Share>,
    /// Quantised layers, worst first.
    pub layers: Vec<LayerQuality>,
    /// Layers that are not quantised, with the reason.
    pub kept: BTreeMap<String, String>,
    /// A remark for the user.
    pub note: Option<String>,
}

/// The latents of one expert and noise bin, over all clips.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NoiseQuality {
    /// The expert.
    pub expert: String,
    /// The third of its noise levels, 0 for the lowest noise.
    pub bin: usize,
    /// Number of compared steps.
    pub steps: usize,
    /// Smallest cosine.
    pub cosine: f64,
    /// Largest relative error.
    pub relative_error: f64,
}

/// Scores of mini's judge: how well clips follow their prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JudgeScores {
    /// Number of judged clips per variant.
    pub clips: usize,
    /// Share of the attributes that the judge recognises in the reference's clips.
    pub reference: f64,
    /// The same share for the variant's clips.
    pub variant: f64,
    /// The mean over clips of what the variant's share is above the reference's; 0 in reports of earlier versions.
    #[serde(default)]
    pub difference: f64,
    /// Half of its interval with 95 % confidence, from the differences of the pairs of clips.
    #[serde(default)]
    pub interval: f64,
}

impl JudgeScores {
    /// Compares clips of the same prompts and seeds, each by the share of its attributes that the judge recognises.
    pub fn paired(clips: usize, [reference, variant]: [f64; 2], pairs: &[[f64; 2]]) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a few hundred clips")]
        let count = pairs.len().max(1) as f64;
        let differences = || pairs.iter().map(|[reference, variant]| variant - reference);
        let mean = differences().sum::<f64>() / count;
        let spread = differences().map(|found| (found - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
        // 1.96 standard errors.
        Self { clips, reference, variant, difference: mean, interval: 1.96 * (spread / count).sqrt() }
    }
}

/// The quality of a variant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Version of the program.
    pub rushes: String,
    /// The quantisation scheme.
    pub scheme: Scheme,
    /// The targets of its graphs; empty in reports of earlier versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<Target>,
    /// Lowest PSNR over all clips, in decibels.
    pub psnr: f64,
    /// Lowest SSIM over all clips.
    pub ssim: f64,
    /// The required PSNR, if one was given.
    pub budget_psnr: Option<f64>,
    /// The method that determined the layers' signal-to-noise ratios.
    #[serde(default)]
    pub sensitivity: Sensitivity,
    /// Quality per component.
    pub components: Vec<ComponentQuality>,
    /// Quality per expert and noise bin.
    pub noise: Vec<NoiseQuality>,
    /// Quality per clip.
    pub clips: Vec<ClipDistance>,
    /// The judge's scores, if it was used.
    pub judge: Option<JudgeScores>,
}

/// Reads `quality.json`. Returns an empty map if there is none or it has another version.
pub fn read(bundle: &Path) -> BTreeMap<String, Quality> {
    let text = std::fs::read(bundle.join(JSON)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Adds a variant to `quality.json` and writes the page with its pictures.
///
/// # Errors
/// I/O errors.
pub fn write(bundle: &Bundle, quality: &Quality, clips: &[(Clip, Clip)]) -> Result<(), Error> {
    let mut all = read(&bundle.folder);
    if quality.targets.contains(&Target::Plain) {
        // Replaced, also if the numbers are now for more targets.
        all.remove(&quality.scheme.name_for(&[Target::Plain]));
    }
    all.insert(quality.name(), quality.clone());
    let path = bundle.folder.join(JSON);
    let wrong =
        |error: serde_json::Error| bundle::Error::Manifest { path: path.clone(), why: error.to_string() };
    let text = serde_json::to_vec_pretty(&all).map_err(wrong)?;
    bundle::atomic::write_atomic(&path, &text)?;
    let page = page(&bundle.manifest.model, quality, clips);
    Ok(bundle::atomic::write_atomic(&bundle.folder.join(quality.page()), page.as_bytes())?)
}

impl Quality {
    /// Its name in `quality.json`.
    pub fn name(&self) -> String {
        self.scheme.name_for(&self.targets)
    }

    /// The file name of its page.
    pub fn page(&self) -> &'static str {
        if self.targets == [Target::Plain] { PLAIN_HTML } else { HTML }
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// An HTML table with a row of headings.
fn table(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let cells = |tag: &str, cells: &[String]| -> String {
        cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell))).collect()
    };
    let headings: Vec<String> = headings.iter().map(|heading| (*heading).to_owned()).collect();
    let rows: String = rows.into_iter().map(|row| format!("<tr>{}</tr>\n", cells("td", &row))).collect();
    format!("<table><tr>{}</tr>\n{rows}</table>\n", cells("th", &headings))
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em}\
table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #ccc}\
td{font-variant-numeric:tabular-nums}img{image-rendering:pixelated;width:16em;display:block}\
.sheet{display:grid;grid-template-columns:repeat(3,max-content);gap:.4em}";

/// The self-contained page.
fn page(model: &str, quality: &Quality, clips: &[(Clip, Clip)]) -> String {
    let title = escaped(&format!("{model} in {}", quality.name()));
    let mut body = format!(
        "<h1>{title}</h1>\n<p>Worst clip: {:.1} dB, SSIM {:.4}, against the exported model from the same noise.</p>\n",
        quality.psnr, quality.ssim
    );
    let mut section = |heading: &str, content: String| {
        // Writing into a String cannot fail.
        let _ = write!(body, "<h2>{heading}</h2>\n{content}");
    };
    if let Some(JudgeScores { clips, reference, variant, difference, interval }) = quality.judge {
        let text = format!(
            "<p>Attributes of {clips} clips that the judge recognises: {:.1} % in the exported model's, {:.1} % in these. \
            Difference of the pairs: {:+.2} ± {:.2} points (95 %).</p>\n",
            100.0 * reference,
            100.0 * variant,
            100.0 * difference,
            100.0 * interval
        );
        section("The judge", text);
    }
    section("Components", components(quality));
    section("Noise levels", noise(quality));
    section("Clips", clip_table(quality));
    let sheets: String =
        quality.clips.iter().zip(clips).map(|(distance, pair)| sheet(distance, pair)).collect();
    section("Pictures: exported, quantised, eight times their difference", sheets);
    section(&format!("Layers, each quantised alone ({})", quality.sensitivity), layers(quality));
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style>\n{body}</html>\n"
    )
}

fn components(quality: &Quality) -> String {
    let rows = quality.components.iter().map(|component| {
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let size = component.bytes as f64 / component.exported_bytes.max(1) as f64;
        let share =
            component.share.as_ref().map_or("-".into(), |share| format!("{:.1} %", 100.0 * share.ratio()));
        let worst =
            component.layers.first().map_or("-".into(), |layer| format!("{:.1} dB", layer.signal_to_noise));
        let note = component.note.clone().unwrap_or_default();
        let counts =
            format!("{} of {}", component.layers.len(), component.layers.len() + component.kept.len());
        vec![component.component.clone(), counts, share, format!("{size:.2}x"), worst, note]
    });
    table(&["component", "layers quantised", "in integers", "size", "worst layer", ""], rows)
}

fn noise(quality: &Quality) -> String {
    let rows = quality.noise.iter().map(|noise| {
        vec![
            noise.expert.clone(),
            ["least noise", "middle", "most noise"]
                .get(noise.bin)
                .map_or(String::new(), |text| (*text).into()),
            noise.steps.to_string(),
            format!("{:.6}", noise.cosine),
            format!("{:.2} %", 100.0 * noise.relative_error),
        ]
    });
    table(&["expert", "noise", "steps", "worst cosine", "worst relative error"], rows)
}

/// A table of the clips with the first and last step and those around expert boundaries.
fn clip_table(quality: &Quality) -> String {
    let rows = quality.clips.iter().flat_map(|clip| {
        let steps = &clip.steps;
        let shown = steps.iter().enumerate().filter(|(index, step)| {
            let before = index.checked_sub(1).and_then(|before| steps.get(before));
            let after = steps.get(index + 1);
            before.is_none_or(|before| before.expert != step.expert)
                || after.is_none_or(|after| after.expert != step.expert)
        });
        let head = vec![
            clip.prompt.clone(),
            clip.seed.to_string(),
            format!("{:.1} dB", clip.psnr),
            format!("{:.4}", clip.ssim),
            format!("{:.1} dB", clip.decoder_psnr),
            format!("{:.5}", clip.text_cosine),
        ];
        let lines = shown.map(|(_, step)| {
            vec![
                format!("step {} ({}, t={:.0})", step.step, step.expert, step.timestep),
                String::new(),
                format!("cosine {:.6}", step.cosine),
                format!("error {:.2} %", 100.0 * step.relative_error),
            ]
        });
        std::iter::once(head).chain(lines).collect::<Vec<_>>()
    });
    table(&["prompt", "seed", "PSNR", "SSIM", "decoder alone", "text cosine"], rows)
}

/// Four frames of a clip: exported, quantised and their difference.
fn sheet(distance: &ClipDistance, (reference, clip): &(Clip, Clip)) -> String {
    let frames = reference.frames.len_of(Axis(0)).min(clip.frames.len_of(Axis(0)));
    let mut shown: Vec<usize> = [0, frames / 3, 2 * frames / 3, frames.saturating_sub(1)].into();
    shown.dedup();
    let mut cells = String::new();
    for frame in shown {
        let (a, b) = (reference.frames.index_axis(Axis(0), frame), clip.frames.index_axis(Axis(0), frame));
        let apart: Array3<f32> = difference(b, a);
        for (picture, what) in [(a, "exported"), (b, "quantised"), (apart.view(), "difference")] {
            // Writing into a String cannot fail.
            let _ = writeln!(cells, "<img alt=\"{what}, frame {frame}\" src=\"{}\">", data_uri(picture));
        }
    }
    format!("<h3>{}</h3>\n<div class=\"sheet\">\n{cells}</div>\n", escaped(&distance.prompt))
}

fn layers(quality: &Quality) -> String {
    let rows = quality.components.iter().flat_map(|component| {
        let quantized = component.layers.iter().map(|layer| {
            let alpha = layer.alpha.map_or(String::new(), |alpha| format!("smoothed, exponent {alpha:.2}"));
            vec![
                component.component.clone(),
                layer.layer.clone(),
                format!("{:.1} dB", layer.signal_to_noise),
                alpha,
            ]
        });
        let kept = component.kept.iter().map(|(layer, reason)| {
            vec![component.component.clone(), layer.clone(), "high precision".into(), reason.clone()]
        });
        quantized.chain(kept)
    });
    table(&["component", "layer", "signal to noise", ""], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_paired_clips_is_that_of_their_differences() {
        let equal = JudgeScores::paired(3, [0.9, 0.9], &[[1.0, 1.0], [0.5, 0.5], [0.75, 0.75]]);
        assert_eq!((equal.difference, equal.interval), (0.0, 0.0));
        let pairs = [[1.0, 0.5], [0.5, 1.0], [1.0, 1.0], [1.0, 0.5]];
        let scores = JudgeScores::paired(4, [0.875, 0.75], &pairs);
        assert!((scores.difference + 0.125).abs() < 1e-12);
        // Deviations of -0.375, 0.625, 0.125 and -0.375.
        let variance: f64 = (0.140_625 * 2.0 + 0.390_625 + 0.015_625) / 3.0;
        assert!((scores.interval - 1.96 * (variance / 4.0).sqrt()).abs() < 1e-12);
    }
}
