//! `rushes quantize`: adds a quantised variant to a calibrated bundle, and writes a report of its quality.

use super::args::QuantizeArgs;
use super::global::GlobalArgs;
use super::memory::plan_measured;
use super::render;
use super::threads::Threads;
use crate::Error;
use bundle::layout::component_folder;
use bundle::manifest::{Bundle, Component};
use bundle::quantization::{ComponentNumerics, Scheme};
use bundle::units::Seed;
use bundle::variant::{KernelLibrary, Precision, Target, Variant};
use calibration::numerics::plan::groups;
use calibration::observe::table;
use engines::residency::Residency;
use engines::sessions::Sessions;
use engines::{Cancel, MemoryBudgets, OnnxRuntime};
use quality::judge;
use quality::judge::{Judge, embedded, scoring};
use quality::quantize::assess::{Assessor, by_noise, component_quality};
use quality::quantize::clips::{Clip, ClipDistance, decode, frames_error, token_cosine};
use quality::quantize::report::{self, JudgeScores, Quality, Sensitivity};
use quality::quantize::variant::UnquantizedLayers;
use quality::quantize::{QuantizeOptions, Quantizer};
use runtime::model::{Model, ModelOptions, choose_variant};
use runtime::plan::{GenerateRequest, GenerationPlan};
use runtime::text_encoder::TextEncoder;
use serde_json::json;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

/// The least cosine between the text states of the quantised and the original encoder.
const TEXT_COSINE: f64 = 0.999;
/// The seed of the first clip of the report, far from the usual seeds of a calibration.
const FIRST_SEED: u64 = 1000;
/// The prompts of the report if there is no calibration.
const PROMPTS: [&str; 2] =
    ["a red ball bounces on the beach by day", "a white cat walks through a snowy field at night"];

/// Runs the command.
pub(super) fn run(args: &QuantizeArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    let started = Instant::now();
    let path = args.calibration.clone().unwrap_or_else(|| args.bundle.join(table::FILE));
    if args.attention && args.scheme != Scheme::Fp8 {
        let (rule, fix) =
            ("only fp8 quantises the products of attention", "add --scheme fp8, or leave it out");
        return Err(Error::argument("--attention", args.scheme, rule, fix));
    }
    let options = QuantizeOptions {
        scheme: args.scheme,
        kernels: args.kernels.clone(),
        attention: args.attention,
        ranges: args.ranges,
    };
    let cancel = global.interrupts.cancel();
    let quantizer = Quantizer::open(&args.bundle, &path, options)?.stopped_by(cancel.stop());
    let onnx = global.onnx_runtime()?;
    let mut prompts = quantizer.prompts();
    if prompts.is_empty() {
        prompts.extend(PROMPTS.map(str::to_owned));
    }
    let plan = |(index, prompt): (usize, &String)| {
        let request = GenerateRequest::new(prompt.clone(), Seed(FIRST_SEED + index as u64));
        GenerationPlan::new(&quantizer.bundle().manifest, &request)
    };
    let plans = prompts.iter().cycle().take(args.clips.max(1)).enumerate().map(plan);
    let plans = plans.collect::<Result<Vec<_>, _>>()?;
    // All clips have the same size. The exported variant needs the most memory.
    if let Some(plan) = plans.first() {
        let manifest = &quantizer.bundle().manifest;
        let options = ModelOptions::of_variant(None);
        let variant = choose_variant(manifest, Target::Cpu, onnx.kernels().path(), &options)?;
        plan_measured(&args.budget, manifest, plan, variant)?;
    }
    let budgets = args.budget.budgets_of_cpu()?;
    let threads = args.threads.map(Threads::used);
    let assessor = Assessor::new(quantizer.bundle(), &onnx, &budgets, threads, plans, &cancel)?;
    let errors = BTreeMap::new();
    let mut job = Job { quantizer, onnx: &onnx, budgets: &budgets, args, cancel: &cancel, errors };
    job.quantize_all(&assessor)?;
    let assessed = job.within_budget(&assessor)?;
    let distances: Vec<ClipDistance> = assessed.iter().map(|(distance, _)| distance.clone()).collect();
    let quality = job.quality(&assessor, distances)?;
    // The rest is short and is not interrupted.
    cancel.stop().check()?;
    job.quantizer.commit()?;
    job.quantizer.write_numerics()?;
    report::write(job.quantizer.bundle(), &quality, &assessor.pairs(assessed))?;
    let seconds = started.elapsed().as_secs_f64();
    let value = json!({
        "event": "quantized",
        "scheme": args.scheme,
        "psnr": quality.psnr,
        "ssim": quality.ssim,
        "clips": quality.clips,
        "judge": quality.judge,
        "report": render::path(&args.bundle.join(report::HTML)),
        "seconds": seconds,
    });
    render::result(global.json, &value, &describe(&quality, args, seconds))?;
    Ok(ExitCode::SUCCESS)
}

fn describe(quality: &Quality, args: &QuantizeArgs, seconds: f64) -> String {
    let mut lines = Vec::new();
    for component in &quality.components {
        let share = component.share.as_ref().map_or(String::new(), |share| {
            format!(", {:.1} % of its work in integers", 100.0 * share.ratio())
        });
        let note = component.note.as_ref().map_or(String::new(), |note| format!(" ({note})"));
        lines.push(format!("{}: {} layers{share}{note}", component.component, component.layers.len()));
    }
    lines.push(format!(
        "worst of {} clips: {:.1} dB, SSIM {:.4}; see {}, {seconds:.1} s",
        quality.clips.len(),
        quality.psnr,
        quality.ssim,
        args.bundle.join(report::HTML).display()
    ));
    if let Some(budget) = args.budget_psnr.filter(|budget| quality.psnr < *budget) {
        lines.push(format!("warning: {budget} dB is not reached, even with every layer in high precision"));
    }
    lines.join("\n")
}

/// One run of the command.
struct Job<'a> {
    quantizer: Quantizer,
    onnx: &'a OnnxRuntime,
    budgets: &'a MemoryBudgets,
    args: &'a QuantizeArgs,
    cancel: &'a Cancel,
    /// The error that quantising each layer alone adds to its output, by component.
    errors: BTreeMap<String, BTreeMap<String, f64>>,
}

impl Job<'_> {
    /// The variant that is measured.
    fn variant(&self) -> Variant {
        Variant::cpu(self.precision(), self.kernels())
    }

    fn precision(&self) -> Precision {
        self.args.scheme.precision()
    }

    /// The kernels that the variant is measured with: the first of `--kernels`, if the scheme has a choice.
    fn kernels(&self) -> KernelLibrary {
        match self.args.scheme {
            Scheme::Int8 => self.args.kernels.first().copied().unwrap_or_default(),
            Scheme::Bf16 => KernelLibrary::Rushes,
            Scheme::Fp8 | Scheme::Int8Weights => KernelLibrary::OnnxRuntime,
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

    fn quantize_all(&mut self, assessor: &Assessor<'_>) -> Result<(), Error> {
        let components = self.quantizer.bundle().manifest.components.clone();
        for entry in components.into_iter().filter(|entry| entry.component.is_quantizable()) {
            if entry.component == Component::Decoder && self.args.sensitivity == Sensitivity::Measured {
                self.measure_decoder(assessor)?;
            }
            self.requantize(&entry.component, &UnquantizedLayers::new())?;
            if entry.component == Component::TextEncoder {
                self.check_text_encoder()?;
            }
        }
        Ok(())
    }

    /// Plans and writes a component, with the layers of `keep` in high precision.
    fn requantize(&mut self, component: &Component, keep: &UnquantizedLayers) -> Result<(), Error> {
        let entry = self.quantizer.bundle().manifest.component(component)?.clone();
        let plan = self.quantizer.plan(&entry, keep)?;
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
        Ok(self.quantizer.write(plan.numerics, None)?)
    }

    /// Measures the error of the frames of a clip when each convolution alone is quantised.
    fn measure_decoder(&mut self, assessor: &Assessor<'_>) -> Result<(), Error> {
        let layers: Vec<String> = groups(&self.quantizer.bundle().manifest, &Component::Decoder)
            .into_iter()
            .flat_map(|group| group.layers)
            .collect();
        let (Scheme::Int8, Some(latent)) = (self.args.scheme, assessor.first_frames()) else { return Ok(()) };
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
            let model = self.open(&decoder_only(self.quantizer.bundle()), Some(self.variant()))?;
            let error = frames_error(&model, &latent, &expected, self.cancel)?;
            self.errors
                .entry(component_folder(&Component::Decoder))
                .or_default()
                .insert(layer.clone(), error);
        }
        Ok(())
    }

    fn open(&self, bundle: &Bundle, variant: Option<Variant>) -> Result<Model, Error> {
        let threads = self.args.threads.map(Threads::used);
        let options = ModelOptions { threads, ..ModelOptions::of_variant(variant) };
        let sessions = Sessions::new(Arc::new(self.onnx.clone()), self.budgets.clone(), Residency::Auto);
        Ok(Model::with_sessions(bundle.clone(), &sessions, options)?)
    }

    /// Keeps the original text encoder in the variant if the quantised one is too far from it.
    fn check_text_encoder(&mut self) -> Result<(), Error> {
        let bundle = self.quantizer.bundle().clone();
        let entry = bundle.manifest.component(&Component::TextEncoder)?;
        if entry.variant(self.precision(), KernelLibrary::OnnxRuntime).is_none() {
            return Ok(());
        }
        // The other components are not quantised yet, so only this one can be opened.
        let mut encoder_only = bundle.clone();
        encoder_only.manifest.components.retain(|entry| entry.component == Component::TextEncoder);
        let reference = TextEncoder::open(&self.open(&encoder_only, None)?)?;
        let quantized = TextEncoder::open(
            &self.open(&encoder_only, Some(Variant::cpu(self.precision(), KernelLibrary::OnnxRuntime)))?,
        )?;
        let mut worst = 1.0_f64;
        for prompt in self.quantizer.prompts() {
            let states = quantized.encode(&prompt, self.cancel)?;
            worst = worst.min(token_cosine(&states, &reference.encode(&prompt, self.cancel)?));
        }
        let mut numerics = self.quantizer.numerics()[&component_folder(&Component::TextEncoder)].clone();
        let figure = format!("token cosine {worst:.5}");
        if worst >= TEXT_COSINE {
            return Ok(self.quantizer.write(numerics, Some(figure))?);
        }
        let reason = format!("{figure}, under {TEXT_COSINE}");
        numerics = ComponentNumerics::empty(Component::TextEncoder, entry.digest.clone());
        let layers =
            groups(&bundle.manifest, &Component::TextEncoder).into_iter().flat_map(|group| group.layers);
        numerics.kept.extend(layers.map(|layer| (layer, reason.clone())));
        let note = format!("kept as exported: quantised it has {reason}");
        Ok(self.quantizer.write(numerics, Some(note))?)
    }

    /// Measures the variant, and keeps the worst groups of layers in high precision until every clip is within the
    /// budget. Each attempt keeps twice as many groups.
    fn within_budget(&mut self, assessor: &Assessor<'_>) -> Result<Vec<(ClipDistance, Clip)>, Error> {
        let order = self.sensitivity();
        let mut kept = 0;
        loop {
            let assessed = assessor.assess(self.quantizer.bundle(), self.variant(), self.cancel)?;
            let psnr = assessed.iter().map(|(distance, _)| distance.psnr).fold(f64::INFINITY, f64::min);
            let enough = self.args.budget_psnr.is_none_or(|budget| psnr >= budget);
            if enough || kept == order.len() {
                return Ok(assessed);
            }
            kept = (2 * kept).clamp(1, order.len());
            let mut keep: BTreeMap<String, (Component, UnquantizedLayers)> = BTreeMap::new();
            for (component, layers, error) in &order[..kept] {
                let reason = format!("kept for the budget: alone it adds {:.1} dB", 10.0 * error.log10());
                let kept_layers = keep
                    .entry(component_folder(component))
                    .or_insert_with(|| (component.clone(), UnquantizedLayers::new()));
                kept_layers.1.extend(layers.iter().map(|layer| (layer.clone(), reason.clone())));
            }
            for (component, keep) in keep.into_values() {
                self.requantize(&component, &keep)?;
            }
        }
    }

    /// The groups of layers of the experts and the decoder, by the error that quantising each alone adds; worst first.
    fn sensitivity(&self) -> Vec<(Component, Vec<String>, f64)> {
        let manifest = &self.quantizer.bundle().manifest;
        let mut order = Vec::new();
        for entry in manifest.components.iter().filter(|entry| entry.component != Component::TextEncoder) {
            let errors = self.errors.get(&component_folder(&entry.component));
            for group in groups(manifest, &entry.component) {
                let of_layers = group.layers.iter().filter_map(|layer| errors?.get(layer).copied());
                let worst = of_layers.fold(0.0, f64::max);
                if worst > 0.0 {
                    order.push((entry.component.clone(), group.layers, worst));
                }
            }
        }
        order.sort_by(|a, b| b.2.total_cmp(&a.2));
        order
    }

    fn quality(&self, assessor: &Assessor<'_>, clips: Vec<ClipDistance>) -> Result<Quality, Error> {
        let (bundle, variant) = (self.quantizer.bundle(), self.variant());
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
        let bundle = self.quantizer.bundle();
        let score = |variant| -> Result<f64, Error> {
            let model = self.open(bundle, variant)?;
            let mut judge = Judge::open(self.onnx, &files, self.args.threads.map(Threads::used))?;
            let request = scoring::QualityRequest::default();
            let plans = scoring::plans(model.manifest(), &prompts, judge.clip_shape(), &request)?;
            let clips = (prompts.as_slice(), plans.as_slice());
            let card = scoring::score(&model, &mut judge, clips, self.cancel, &mut |_| Ok(()))?;
            Ok(card.means().all.unwrap_or_default())
        };
        Ok(JudgeScores {
            clips: prompts.len(),
            reference: score(None)?,
            variant: score(Some(self.variant()))?,
        })
    }
}
