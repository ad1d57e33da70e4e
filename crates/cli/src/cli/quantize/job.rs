//! One run of `rushes quantize` for graphs that share their numbers.

use crate::Error;
use crate::cli::args::QuantizeArgs;
use crate::cli::threads::Threads;
use bundle::layout::component_folder;
use bundle::manifest::{Bundle, Component};
use bundle::quantization::{ComponentKind, Scheme};
use bundle::variant::{KernelLibrary, Precision, Target, Variant};
use calibration::numerics::plan::groups;
use engines::residency::Residency;
use engines::sessions::Sessions;
use engines::{Cancel, MemoryBudgets, OnnxRuntime};
use quality::judge;
use quality::judge::prompts::ScoredPrompt;
use quality::judge::score::Tally;
use quality::judge::{Judge, embedded, scoring};
use quality::quantize::Quantizer;
use quality::quantize::assess::{Assessor, by_noise, component_quality};
use quality::quantize::clips::{ClipDistance, decode, frames_error};
use quality::quantize::report::{JudgeScores, Quality, Sensitivity};
use quality::quantize::variant::UnquantizedLayers;
use runtime::model::{Model, ModelOptions};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the seeds of the judge's clips are apart from one round of its prompts to the next.
const SEEDS_OF_A_ROUND: u64 = 10_000;

/// One run of the command.
pub(super) struct Job<'a> {
    pub(super) quantizer: Quantizer,
    /// The exported model, with LoRAs if they are merged into the variant.
    exported: &'a Bundle,
    onnx: &'a OnnxRuntime,
    budgets: &'a MemoryBudgets,
    pub(super) args: &'a QuantizeArgs,
    pub(super) cancel: &'a Cancel,
    /// The error that quantising each layer alone adds to its output, by component.
    errors: BTreeMap<String, BTreeMap<String, f64>>,
    /// Layers that stay in high precision because of the limit of their component, by component.
    pub(super) kept: BTreeMap<String, UnquantizedLayers>,
    /// Notes on components.
    pub(super) notes: BTreeMap<String, String>,
}

/// Layers that are quantised together or not at all, with the error that they add.
pub(super) struct Sensitive {
    pub(super) component: Component,
    pub(super) layers: Vec<String>,
    /// A ratio of mean squares.
    pub(super) error: f64,
}

impl<'a> Job<'a> {
    pub(super) fn new(
        quantizer: Quantizer,
        exported: &'a Bundle,
        (onnx, budgets): (&'a OnnxRuntime, &'a MemoryBudgets),
        args: &'a QuantizeArgs,
        cancel: &'a Cancel,
    ) -> Self {
        let (errors, kept, notes) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { quantizer, exported, onnx, budgets, args, cancel, errors, kept, notes }
    }

    /// The variant that is measured, in the bundle of [`Quantizer::measured`].
    pub(super) fn variant(&self) -> Variant {
        Variant::cpu(self.precision(), self.kernels())
    }

    pub(super) fn precision(&self) -> Precision {
        self.args.scheme.precision()
    }

    /// The kernels that the variant is measured with: the first of `--kernels`, if the scheme has a choice.
    fn kernels(&self) -> KernelLibrary {
        match self.args.scheme {
            Scheme::Int8 if !self.quantizer.options().is_plain() => {
                self.args.kernels.first().copied().unwrap_or_default()
            }
            Scheme::Bf16 => KernelLibrary::Rushes,
            Scheme::Int8 | Scheme::Fp8 | Scheme::Int8Weights => KernelLibrary::OnnxRuntime,
        }
    }

    /// The kernels that the linear layers of a component are quantised for: only steps have Rushes kernels.
    fn kernels_of(&self, component: &Component) -> KernelLibrary {
        match component {
            Component::Expert(_) => self.kernels(),
            Component::TextEncoder | Component::ImageEncoder | Component::Decoder | Component::Preview => {
                KernelLibrary::OnnxRuntime
            }
        }
    }

    pub(super) fn quantize_all(&mut self, assessor: &Assessor<'_>) -> Result<(), Error> {
        let components = self.quantizer.bundle().manifest.components.clone();
        for entry in components.into_iter().filter(|entry| entry.component.is_quantizable()) {
            if entry.component == Component::Decoder && self.args.sensitivity == Sensitivity::Measured {
                self.measure_decoder(assessor)?;
            }
            self.requantize(&entry.component, &UnquantizedLayers::new())?;
            self.within_limit(&entry.component, assessor)?;
        }
        Ok(())
    }

    /// Plans and writes a component, with the layers of `keep` in high precision, and those of its limit.
    pub(super) fn requantize(
        &mut self,
        component: &Component,
        keep: &UnquantizedLayers,
    ) -> Result<(), Error> {
        let entry = self.quantizer.bundle().manifest.component(component)?.clone();
        let mut keep = keep.clone();
        for (layer, reason) in self.kept.get(&component_folder(component)).into_iter().flatten() {
            keep.entry(layer.clone()).or_insert_with(|| reason.clone());
        }
        let plan = self.quantizer.plan(&entry, &keep)?;
        let kernels = self.kernels_of(component);
        // Errors of earlier plans, which quantised more layers, and measured errors are kept.
        let known = self.errors.entry(component_folder(component)).or_default();
        let is_first = known.is_empty();
        for (layer, error) in plan.errors {
            known.entry(layer).or_insert(error);
        }
        if is_first && self.args.sensitivity == Sensitivity::Measured {
            known.extend(self.quantizer.measure(&plan.numerics, kernels)?);
        }
        let note = self.notes.get(&component_folder(component)).cloned();
        Ok(self.quantizer.write(plan.numerics, note)?)
    }

    /// Measures the error of the frames of a clip when each convolution alone is quantised.
    fn measure_decoder(&mut self, assessor: &Assessor<'_>) -> Result<(), Error> {
        let layers: Vec<String> = groups(&self.quantizer.bundle().manifest, &Component::Decoder)
            .into_iter()
            .flat_map(|group| group.layers)
            .collect();
        let is_quantized = self.quantizer.options().components.contains(&ComponentKind::Decoder)
            && matches!(self.args.scheme, Scheme::Int8 | Scheme::Fp8);
        let (true, Some(latent)) = (is_quantized, assessor.first_frames()) else { return Ok(()) };
        let decoder_only = |bundle: &Bundle| {
            let mut bundle = bundle.clone();
            bundle.manifest.components.retain(|entry| entry.component == Component::Decoder);
            bundle
        };
        let expected =
            decode(&self.open(&decoder_only(self.quantizer.bundle()), None)?, &latent, self.cancel)?;
        let entry = self.quantizer.bundle().manifest.component(&Component::Decoder)?.clone();
        for layer in &layers {
            let others = layers.iter().filter(|other| *other != layer);
            let keep = others.map(|other| (other.clone(), "another layer is measured".into())).collect();
            self.quantizer.write(self.quantizer.plan(&entry, &keep)?.numerics, None)?;
            let model = self.open(&decoder_only(&self.quantizer.measured()), Some(self.variant()))?;
            let error = frames_error(&model, &latent, &expected, self.cancel)?;
            self.errors
                .entry(component_folder(&Component::Decoder))
                .or_default()
                .insert(layer.clone(), error);
        }
        Ok(())
    }

    pub(super) fn open(&self, bundle: &Bundle, variant: Option<Variant>) -> Result<Model, Error> {
        let threads = self.args.threads.map(Threads::used);
        let options = ModelOptions { threads, ..ModelOptions::of_variant(variant) };
        let sessions = Sessions::new(Arc::new(self.onnx.clone()), self.budgets.clone(), Residency::Auto);
        Ok(Model::with_sessions(bundle.clone(), &sessions, options)?)
    }

    /// The groups of layers of components, by the error that quantising each alone adds; worst first.
    pub(super) fn sensitivity(&self, fits: impl Fn(&Component) -> bool) -> Vec<Sensitive> {
        let manifest = &self.quantizer.bundle().manifest;
        let mut order = Vec::new();
        for entry in manifest.components.iter().filter(|entry| fits(&entry.component)) {
            let errors = self.errors.get(&component_folder(&entry.component));
            for group in groups(manifest, &entry.component) {
                let of_layers = group.layers.iter().filter_map(|layer| errors?.get(layer).copied());
                let error = of_layers.fold(0.0, f64::max);
                if error > 0.0 {
                    order.push(Sensitive { component: entry.component.clone(), layers: group.layers, error });
                }
            }
        }
        order.sort_by(|a, b| b.error.total_cmp(&a.error));
        order
    }

    pub(super) fn quality(
        &self,
        assessor: &Assessor<'_>,
        clips: Vec<ClipDistance>,
    ) -> Result<Quality, Error> {
        let options = self.quantizer.options();
        let mut variant = self.variant();
        if options.targets.contains(&Target::Plain) {
            variant.target = Target::Plain;
        }
        let bundle = self.quantizer.bundle();
        let no_errors = BTreeMap::new();
        let mut components = Vec::new();
        for entry in &bundle.manifest.components {
            let folder = component_folder(&entry.component);
            let Some(numerics) = self.quantizer.numerics().get(&folder) else { continue };
            let share = assessor.share(bundle, entry, variant);
            let errors = self.errors.get(&folder).unwrap_or(&no_errors);
            components.push(component_quality(entry, variant, numerics, errors, share));
        }
        Ok(Quality {
            rushes: env!("CARGO_PKG_VERSION").into(),
            scheme: self.args.scheme,
            targets: options.targets.clone(),
            psnr: clips.iter().map(|clip| clip.psnr).fold(f64::INFINITY, f64::min),
            ssim: clips.iter().map(|clip| clip.ssim).fold(1.0, f64::min),
            budget_psnr: self.args.budget_psnr,
            sensitivity: self.args.sensitivity,
            components,
            noise: by_noise(bundle, &clips),
            clips,
            judge: self.args.judge.then(|| self.judge()).transpose()?,
        })
    }

    /// Scores clips of both variants with mini's judge.
    fn judge(&self) -> Result<JudgeScores, Error> {
        let (prompts, files) = (embedded::prompts()?, embedded::judge()?);
        judge::prompts::check(&prompts, &files.attributes, "the program")?;
        let count = self.args.judge_clips.get();
        let in_round = |(index, prompt): (usize, &ScoredPrompt)| {
            let round = (index / prompts.len()) as u64;
            ScoredPrompt { seed: prompt.seed + SEEDS_OF_A_ROUND * round, ..prompt.clone() }
        };
        let clips: Vec<ScoredPrompt> = prompts.iter().cycle().take(count).enumerate().map(in_round).collect();
        let score = |bundle: &Bundle, variant| -> Result<(f64, Vec<f64>), Error> {
            let model = self.open(bundle, variant)?;
            let mut judge = Judge::open(self.onnx, &files, self.args.threads.map(Threads::used))?;
            let request = scoring::QualityRequest::default();
            let plans = scoring::plans(model.manifest(), &clips, judge.clip_shape(), &request)?;
            let mut shares = Vec::new();
            let card = scoring::score(&model, &mut judge, (&clips, &plans), self.cancel, &mut |clip| {
                shares.push(Tally::share(clip.right).unwrap_or_default());
                Ok(())
            })?;
            Ok((card.means().all.unwrap_or_default(), shares))
        };
        let (reference, expected) = score(self.exported, None)?;
        let (variant, found) = score(&self.quantizer.measured(), Some(self.variant()))?;
        let pairs: Vec<[f64; 2]> = expected.into_iter().zip(found).map(<[f64; 2]>::from).collect();
        Ok(JudgeScores::paired(count, [reference, variant], &pairs))
    }
}
