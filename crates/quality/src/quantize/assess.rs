//! Measures a variant: its clips compared with the exported model's, and the share of its graphs that runs in integers.

use super::clips::{Clip, ClipDistance, compare, decode, make};
use super::metrics::{PSNR_MAX, psnr};
use super::report::{ComponentQuality, LayerQuality, NoiseQuality};
use crate::Error;
use bundle::manifest::{Bundle, Component, ComponentEntry, Part};
use bundle::quantization::ComponentNumerics;
use bundle::spec::TEXT_ROWS;
use bundle::units::Timestep;
use bundle::variant::{KernelLibrary, Target, Variant};
use calibration::integer_share::{self, Share, StepRows};
use calibration::observe::replay::noise_bin;
use engines::residency::Residency;
use engines::sessions::Sessions;
use engines::{Cancel, MemoryBudgets, OnnxRuntime};
use ndarray::{Array4, Axis, Slice};
use prompt::PromptTokenizer;
use runtime::model::{Model, ModelOptions};
use runtime::plan::GenerationPlan;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Measures variants on a fixed set of clips.
#[derive(Debug)]
pub struct Assessor<'a> {
    onnx: &'a OnnxRuntime,
    budgets: &'a MemoryBudgets,
    threads: Option<NonZeroUsize>,
    plans: Vec<GenerationPlan>,
    reference: Vec<Clip>,
    /// Text rows of the longest prompt when equal rows are merged.
    text_rows: usize,
}

impl<'a> Assessor<'a> {
    /// Generates the reference clips with the exported model, with the memory of `budgets`.
    ///
    /// # Errors
    /// The pipeline fails.
    pub fn new(
        bundle: &Bundle,
        onnx: &'a OnnxRuntime,
        budgets: &'a MemoryBudgets,
        threads: Option<NonZeroUsize>,
        plans: Vec<GenerationPlan>,
        cancel: &Cancel,
    ) -> Result<Self, Error> {
        let model = open(bundle, (onnx, budgets), threads, None)?;
        let reference = plans.iter().map(|plan| make(&model, plan, cancel)).collect::<Result<_, _>>()?;
        let tokenizer = PromptTokenizer::open(&bundle.tokenizer())?;
        let mut text_rows = 1;
        for plan in &plans {
            text_rows = text_rows.max(tokenizer.encode(&prompt::clean(&plan.prompt))?.ids.len() + 1);
        }
        Ok(Self { onnx, budgets, threads, plans, reference, text_rows: text_rows.min(TEXT_ROWS) })
    }

    /// Generates the same clips with a variant and compares them with the reference.
    ///
    /// # Errors
    /// The pipeline fails.
    pub fn assess(
        &self,
        bundle: &Bundle,
        variant: Variant,
        cancel: &Cancel,
    ) -> Result<Vec<(ClipDistance, Clip)>, Error> {
        let model = open(bundle, (self.onnx, self.budgets), self.threads, Some(variant))?;
        let mut all = Vec::new();
        for (plan, reference) in self.plans.iter().zip(&self.reference) {
            let clip = make(&model, plan, cancel)?;
            let decoded = match reference.steps.last() {
                Some((_, _, latent)) => decode(&model, latent, cancel)?,
                None => clip.frames.clone(),
            };
            all.push((compare(plan, reference, &clip, &decoded), clip));
        }
        Ok(all)
    }

    /// Decodes the reference latents with the decoder of a variant. Returns the lowest PSNR of the frames of a clip to the
    /// reference, in decibels.
    ///
    /// # Errors
    /// The decoder fails.
    pub fn decoder_psnr(&self, bundle: &Bundle, variant: Variant, cancel: &Cancel) -> Result<f64, Error> {
        let mut bundle = bundle.clone();
        bundle.manifest.components.retain(|entry| entry.component == Component::Decoder);
        let model = open(&bundle, (self.onnx, self.budgets), self.threads, Some(variant))?;
        let mut worst = PSNR_MAX;
        for clip in &self.reference {
            let Some((_, _, latent)) = clip.steps.last() else { continue };
            worst = worst.min(psnr(decode(&model, latent, cancel)?.view(), clip.frames.view()));
        }
        Ok(worst)
    }

    /// Pairs the reference clips with those of a variant.
    pub fn pairs(&self, assessed: Vec<(ClipDistance, Clip)>) -> Vec<(Clip, Clip)> {
        self.reference.iter().cloned().zip(assessed.into_iter().map(|(_, clip)| clip)).collect()
    }

    /// Returns up to two latent frames of the first clip, `[C,T,h,w]`, which use both of the decoder's graphs.
    pub fn first_frames(&self) -> Option<Array4<f32>> {
        let (_, _, latent) = self.reference.first()?.steps.last()?;
        let frames = latent.len_of(Axis(1)).min(2);
        Some(latent.slice_axis(Axis(1), Slice::from(..frames)).to_owned())
    }

    /// Returns the share of a component's variant that runs in integers, or `None` if it cannot be determined. Plain graphs
    /// are not optimised for it, and E4M3 counts too.
    pub fn share(&self, bundle: &Bundle, entry: &ComponentEntry, variant: Variant) -> Option<Share> {
        let part =
            if entry.graphs.iter().any(|graph| graph.part == Part::Next) { Part::Next } else { Part::Whole };
        let graph = entry.graph(part, variant).ok()?;
        let kernels = graph.variant.kernels;
        let graph = bundle.path(&graph.file);
        let optimized = graph.with_extension("optimized");
        let tokens = self.plans.first().map_or(1, |plan| plan.tokens);
        let text = match kernels {
            KernelLibrary::OnnxRuntime => TEXT_ROWS,
            KernelLibrary::Rushes => self.text_rows,
        };
        let rows = StepRows { tokens, text };
        let positions = integer_share::positions(&bundle.manifest, &entry.component, rows);
        if variant.target == Target::Plain {
            return integer_share::read(&graph, &positions).ok();
        }
        let share = self
            .onnx
            .write_optimized(&graph, &optimized)
            .map_err(Error::from)
            .and_then(|()| Ok(integer_share::read(&optimized, &positions)?));
        // A leftover file is harmless and recognisable by its name.
        let _ = std::fs::remove_file(&optimized);
        share.inspect_err(|error| tracing::warn!(%error, "the share that runs in integers is unknown")).ok()
    }
}

fn open(
    bundle: &Bundle,
    (onnx, budgets): (&OnnxRuntime, &MemoryBudgets),
    threads: Option<NonZeroUsize>,
    variant: Option<Variant>,
) -> Result<Model, Error> {
    let options = ModelOptions { threads, ..ModelOptions::of_variant(variant) };
    let sessions = Sessions::new(Arc::new(onnx.clone()), budgets.clone(), Residency::One);
    Ok(Model::with_sessions(bundle.clone(), &sessions, options)?)
}

/// Summarises the steps of all clips by expert and noise bin, from high to low noise.
pub fn by_noise(bundle: &Bundle, clips: &[ClipDistance]) -> Vec<NoiseQuality> {
    let routing = &bundle.manifest.routing;
    let mut bins: BTreeMap<(usize, usize), NoiseQuality> = BTreeMap::new();
    for step in clips.iter().flat_map(|clip| &clip.steps) {
        let timestep = Timestep(step.timestep);
        let (expert, bin) = (routing.expert_at(timestep), noise_bin(routing, timestep));
        let quality = bins.entry((expert.0, usize::MAX - bin)).or_insert_with(|| NoiseQuality {
            expert: step.expert.clone(),
            bin,
            steps: 0,
            cosine: 1.0,
            relative_error: 0.0,
        });
        quality.steps += 1;
        quality.cosine = quality.cosine.min(step.cosine);
        quality.relative_error = quality.relative_error.max(step.relative_error);
    }
    bins.into_values().collect()
}

/// Summarises a component's variant from its parameters and the errors of its layers.
pub fn component_quality(
    entry: &ComponentEntry,
    variant: Variant,
    numerics: &ComponentNumerics,
    errors: &BTreeMap<String, f64>,
    share: Option<Share>,
) -> ComponentQuality {
    let shared = || {
        let mut found = entry.variants.iter().filter(|found| found.precision == variant.precision);
        found.find(|found| found.is_for(variant.target))
    };
    let variant = entry.variant(variant).or_else(shared);
    let mut layers: Vec<LayerQuality> = numerics
        .layers
        .iter()
        .map(|(layer, numbers)| LayerQuality {
            layer: layer.clone(),
            signal_to_noise: -10.0 * errors.get(layer).copied().unwrap_or(0.0).max(1e-12).log10(),
            alpha: numbers.smoothing.as_ref().map(|smoothing| smoothing.alpha),
        })
        .collect();
    layers.sort_by(|a, b| a.signal_to_noise.total_cmp(&b.signal_to_noise));
    let own = variant.map(|variant| variant.weight_bytes().0).filter(|bytes| *bytes > 0);
    ComponentQuality {
        component: entry.component.to_string(),
        bytes: own.unwrap_or(entry.weight_bytes().0),
        exported_bytes: entry.weight_bytes().0,
        share: share.filter(|_| !numerics.layers.is_empty()),
        layers,
        kept: numerics.kept.clone(),
        note: variant.and_then(|variant| variant.note.clone()),
    }
}
