//! The record of one machine: the times of the parts of a clip, and the times of whole clips computed from them.
//!
//! Every layer of a denoiser costs the same, and so does every latent frame after the first: a record holds the times of
//! graphs of a few layers and of two latent frames, and extrapolates.

use super::shape::{Shape, TokenGrid};
use bundle::variant::{KernelLibrary, Precision, Variant};
use serde::Serialize;
use serde_json::Value;
use std::time::Duration;

/// The version of the fields of a record.
pub const FORMAT: u32 = 1;
/// Layers of the two graphs whose difference is the time of one layer.
pub const LAYERS: [usize; 2] = [1, 2];
/// Layers of umT5-XXL.
pub const TEXT_LAYERS: usize = 24;
/// Height and width of the latent whose decoding is timed: a quarter of 832x480, where the f32 graph needs 7 GB.
pub const DECODED: [usize; 2] = [30, 52];
/// The numbers of steps of the clips in a record, and whether they are guided. Models of few steps are distilled and
/// need no guidance, which costs a second evaluation of the denoiser.
pub const CLIP_STEPS: [(usize, bool); 4] = [(3, false), (4, false), (20, true), (50, true)];

/// The clips of a record: 832x480 pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClipLength {
    /// 17 frames.
    Short,
    /// 81 frames.
    Long,
}

impl ClipLength {
    /// Both lengths.
    pub const ALL: [Self; 2] = [Self::Short, Self::Long];

    /// The name: height and frames.
    pub fn name(self) -> &'static str {
        match self {
            Self::Short => "480p17",
            Self::Long => "480p81",
        }
    }

    /// Latent frames: one for the first frame, and one for every four after it.
    pub fn latent_frames(self) -> usize {
        match self {
            Self::Short => 5,
            Self::Long => 21,
        }
    }

    /// Tokens of a step of a denoiser of this shape.
    pub fn tokens(self, shape: Shape) -> TokenGrid {
        let [rows, columns] = if shape.has_wide_pixels() { [15, 26] } else { [30, 52] };
        TokenGrid([self.latent_frames(), rows, columns])
    }
}

/// Everything that was measured of a machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Record {
    /// [`FORMAT`].
    pub format: u32,
    /// The version that measured it.
    pub rushes: String,
    /// The processor and its peaks, as `rushes bench peaks --json` prints them.
    pub machine: Value,
    /// Steps of denoisers.
    pub steps: Vec<StepRecord>,
    /// The decoder of the Wan2.1 VAE.
    pub decoder: Vec<DecoderRecord>,
    /// The umT5-XXL encoder.
    pub text: Vec<LayersRecord>,
    /// Times of whole clips, computed from the parts above.
    pub clips: Vec<ClipRecord>,
    /// What was not measured, with the reason.
    pub not_measured: Vec<String>,
}

/// Times of graphs with [`LAYERS`] layers, and the extrapolated time of all layers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayersRecord {
    /// The precision of the graphs.
    pub precision: Precision,
    /// The kernels of the graphs.
    pub kernels: KernelLibrary,
    /// Layers of the whole model.
    pub layers: usize,
    /// Seconds of every run of the graph with fewer layers.
    pub seconds_of_one: Vec<f64>,
    /// Seconds of every run of the graph with more layers.
    pub seconds_of_two: Vec<f64>,
    /// Seconds of a layer: the difference of the shortest runs.
    pub layer_s: f64,
    /// Seconds of the whole, extrapolated.
    pub whole_s: f64,
}

impl LayersRecord {
    /// Extrapolates from the runs of both graphs to `layers` layers. Returns `None` if the graph with more layers was not
    /// slower, which happens on a busy machine.
    pub fn new(variant: Variant, layers: usize, runs: [&[Duration]; 2]) -> Option<Self> {
        let [one, two] = runs.map(|runs| runs.iter().map(Duration::as_secs_f64).collect::<Vec<f64>>());
        let [few, more] = [shortest(&one)?, shortest(&two)?];
        let layer_s = (more - few) / count(LAYERS[1] - LAYERS[0]);
        let whole_s = few + count(layers.checked_sub(LAYERS[0])?) * layer_s;
        (layer_s > 0.0).then_some(Self {
            precision: variant.precision,
            kernels: variant.kernels,
            layers,
            seconds_of_one: one,
            seconds_of_two: two,
            layer_s,
            whole_s,
        })
    }
}

/// One step of a denoiser.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepRecord {
    /// Name of the denoiser's shape.
    pub shape: String,
    /// Name of the clip.
    pub clip: String,
    /// Tokens of the step.
    pub tokens: usize,
    /// Operations of the whole step, in units of 10⁹.
    pub gflop: f64,
    /// Operations per second by the extrapolated step, as a share of the peak of its number format.
    pub share_of_peak: f64,
    /// The times.
    #[serde(flatten)]
    pub times: LayersRecord,
}

/// The decoder, on two latent frames of [`DECODED`] positions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DecoderRecord {
    /// The precision of the graphs.
    pub precision: Precision,
    /// The kernels of the graphs.
    pub kernels: KernelLibrary,
    /// Seconds of every run until the first latent frame was decoded.
    pub seconds_of_first: Vec<f64>,
    /// Seconds of every run for the second latent frame.
    pub seconds_of_next: Vec<f64>,
    /// Seconds of the first latent frame of a clip of 832x480, by its operations.
    pub first_s: f64,
    /// Seconds of every later one.
    pub next_s: f64,
}

impl DecoderRecord {
    /// Extrapolates from runs at [`DECODED`] to 832x480, where the first and the later latent frames have `scale` times as
    /// many operations.
    pub fn new(variant: Variant, first: &[Duration], next: &[Duration], scale: [f64; 2]) -> Option<Self> {
        let [first, next] =
            [first, next].map(|runs| runs.iter().map(Duration::as_secs_f64).collect::<Vec<f64>>());
        Some(Self {
            precision: variant.precision,
            kernels: variant.kernels,
            first_s: shortest(&first)? * scale[0],
            next_s: shortest(&next)? * scale[1],
            seconds_of_first: first,
            seconds_of_next: next,
        })
    }

    fn seconds(&self, clip: ClipLength) -> f64 {
        self.first_s + count(clip.latent_frames() - 1) * self.next_s
    }
}

/// The time of a whole clip: text, steps and decoding, without opening files and without encoding the video.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClipRecord {
    /// Name of the denoiser's shape.
    pub shape: String,
    /// Name of the clip.
    pub clip: String,
    /// The precision of the denoiser. Text and decoding have the same precision if it was measured, else f32.
    pub precision: Precision,
    /// Denoising steps.
    pub steps: usize,
    /// Whether each step evaluates the denoiser twice, and the encoder reads a negative prompt.
    pub guided: bool,
    /// Seconds of the whole.
    pub seconds: f64,
}

/// Returns the clips that the measured parts determine: those of shapes whose latents the decoder accepts.
pub fn clips(steps: &[StepRecord], decoder: &[DecoderRecord], text: &[LayersRecord]) -> Vec<ClipRecord> {
    let of = |step: &StepRecord| {
        let shape: Shape = step.shape.parse().ok()?;
        let clip = ClipLength::ALL.into_iter().find(|clip| clip.name() == step.clip)?;
        let precision = step.times.precision;
        let decoder = in_precision(decoder, precision, |record| record.precision)?;
        let text = in_precision(text, precision, |record| record.precision)?;
        if shape.has_wide_pixels() {
            return None;
        }
        Some(CLIP_STEPS.map(|(steps, guided)| {
            let times = if guided { 2.0 } else { 1.0 };
            let seconds =
                times * text.whole_s + times * count(steps) * step.times.whole_s + decoder.seconds(clip);
            ClipRecord {
                shape: step.shape.clone(),
                clip: step.clip.clone(),
                precision,
                steps,
                guided,
                seconds,
            }
        }))
    };
    steps.iter().filter_map(of).flatten().collect()
}

/// The record of a precision, or that of f32 if there is none.
fn in_precision<T>(records: &[T], precision: Precision, of: impl Fn(&T) -> Precision) -> Option<&T> {
    let find = |wanted| records.iter().find(|record| of(record) == wanted);
    find(precision).or_else(|| find(Precision::F32))
}

fn shortest(seconds: &[f64]) -> Option<f64> {
    seconds.iter().copied().reduce(f64::min)
}

fn count(number: usize) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let number = number as f64;
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    const INT8: Variant = Variant::cpu(Precision::Int8, KernelLibrary::Rushes);
    const F32: Variant = Variant::cpu(Precision::F32, KernelLibrary::OnnxRuntime);

    fn milliseconds(runs: &[u64]) -> Vec<Duration> {
        runs.iter().copied().map(Duration::from_millis).collect()
    }

    fn layers(variant: Variant, layers: usize, one: u64, two: u64) -> LayersRecord {
        let [one, two] = [milliseconds(&[one + 500, one]), milliseconds(&[two, two + 900])];
        LayersRecord::new(variant, layers, [&one, &two]).unwrap()
    }

    #[test]
    fn a_whole_is_its_ends_and_as_many_layers_as_it_has() {
        let found = layers(INT8, 30, 1250, 2250);
        assert_eq!((found.layer_s, found.whole_s), (1.0, 30.25));
        assert_eq!(found.seconds_of_one, [1.75, 1.25]);
    }

    #[test]
    fn a_layer_that_takes_no_time_is_no_measurement() {
        let [one, two] = [milliseconds(&[300]), milliseconds(&[290])];
        assert_eq!(LayersRecord::new(INT8, 30, [&one, &two]), None);
        assert_eq!(LayersRecord::new(INT8, 30, [&one, &[]]), None);
    }

    #[test]
    fn clips_are_text_steps_and_decoding_and_guidance_doubles_the_first_two() {
        let step = |shape: &str, clip: ClipLength| StepRecord {
            shape: shape.into(),
            clip: clip.name().into(),
            tokens: 1,
            gflop: 1.0,
            share_of_peak: 0.5,
            times: layers(INT8, 3, 1000, 2000),
        };
        let text = [layers(F32, 2, 500, 1000)];
        let decoder =
            DecoderRecord::new(INT8, &milliseconds(&[125]), &milliseconds(&[250]), [4.0, 4.0]).unwrap();
        let found =
            clips(&[step("1.3b", ClipLength::Short), step("5b", ClipLength::Short)], &[decoder], &text);
        let seconds: Vec<_> = found.iter().map(|clip| (clip.steps, clip.guided, clip.seconds)).collect();
        // 1 s of text, 3 s a step, 0.5 s and four times 1 s of decoding; nothing decodes latents of 5b.
        assert_eq!(seconds, [(3, false, 14.5), (4, false, 17.5), (20, true, 126.5), (50, true, 306.5)]);
    }

    #[test]
    fn tokens_are_those_of_832x480() {
        let tokens = |shape: &str, clip: ClipLength| clip.tokens(shape.parse().unwrap()).tokens();
        assert_eq!(ClipLength::ALL.map(|clip| tokens("1.3b", clip)), [7800, 32_760]);
        assert_eq!(ClipLength::ALL.map(|clip| tokens("5b", clip)), [1950, 8190]);
    }
}
