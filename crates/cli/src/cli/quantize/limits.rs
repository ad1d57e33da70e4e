//! Layers that stay in high precision: for the limit of their component, and for `--budget-psnr`.

use super::job::{Job, Sensitive};
use crate::Error;
use bundle::layout::component_folder;
use bundle::manifest::{Bundle, Component};
use bundle::quantization::{ComponentNumerics, Scheme};
use bundle::variant::{KernelLibrary, Target, Variant};
use calibration::numerics::plan::groups;
use quality::quantize::assess::Assessor;
use quality::quantize::clips::{Clip, ClipDistance, token_cosine};
use quality::quantize::variant::UnquantizedLayers;
use runtime::text_encoder::TextEncoder;
use std::collections::BTreeMap;

/// The least cosine between the text states of the quantised and the original encoder.
const TEXT_COSINE: f64 = 0.999;
/// The least PSNR of the frames of a quantised decoder to those of the original one, in decibels.
const DECODER_PSNR: f64 = 35.0;

/// How close a quantised component is to the original one.
struct Closeness {
    figure: f64,
    text: String,
    limit: f64,
    limit_text: String,
}

impl Job<'_> {
    /// Keeps layers of a component in high precision until it is close enough to the exported one. For the CPU, the text
    /// encoder is kept whole, and the decoder has no limit.
    pub(super) fn within_limit(
        &mut self,
        component: &Component,
        assessor: &Assessor<'_>,
    ) -> Result<(), Error> {
        let is_for_accelerators =
            self.quantizer.options().targets.contains(&Target::Plain) || self.args.scheme == Scheme::Fp8;
        if !is_for_accelerators {
            return if *component == Component::TextEncoder { self.check_text_encoder() } else { Ok(()) };
        }
        let order = self.sensitivity(|other| other == component);
        let folder = component_folder(component);
        let mut kept = 0;
        loop {
            let Some(closeness) = self.closeness(component, assessor)? else { return Ok(()) };
            let Closeness { figure, text, limit, limit_text } = closeness;
            if figure >= limit || kept == order.len() {
                let layers = self.kept.get(&folder).map_or(0, BTreeMap::len);
                let kept = if layers > 0 { format!(", {layers} layers kept for it") } else { String::new() };
                let note = format!("{text}{kept}");
                self.notes.insert(folder.clone(), note.clone());
                return Ok(self.quantizer.write(self.quantizer.numerics()[&folder].clone(), Some(note))?);
            }
            kept = (2 * kept).clamp(1, order.len());
            let reason = format!("kept for the limit: with it in 8 bits {text}, under {limit_text}");
            let layers = order[..kept].iter().flat_map(|group| &group.layers);
            self.kept.insert(folder.clone(), layers.map(|layer| (layer.clone(), reason.clone())).collect());
            self.requantize(component, &UnquantizedLayers::new())?;
        }
    }

    /// How close the variant of a component is; none if the component has no limit, or nothing of it is quantised.
    fn closeness(&self, component: &Component, assessor: &Assessor<'_>) -> Result<Option<Closeness>, Error> {
        if self.quantizer.numerics()[&component_folder(component)].layers.is_empty() {
            return Ok(None);
        }
        Ok(match component {
            Component::TextEncoder => {
                let figure = self.token_cosine()?;
                let (text, limit_text) = (format!("token cosine {figure:.5}"), TEXT_COSINE.to_string());
                Some(Closeness { figure, text, limit: TEXT_COSINE, limit_text })
            }
            Component::Decoder => {
                let figure =
                    assessor.decoder_psnr(&self.quantizer.measured(), self.variant(), self.cancel)?;
                let text = format!("its frames have {figure:.1} dB to the exported decoder's");
                let limit_text = format!("{DECODER_PSNR} dB");
                Some(Closeness { figure, text, limit: DECODER_PSNR, limit_text })
            }
            Component::Expert(_) | Component::ImageEncoder | Component::Preview => None,
        })
    }

    /// The smallest cosine between the states of a token, over the prompts of the calibration.
    fn token_cosine(&self) -> Result<f64, Error> {
        // The other components may not be quantised yet, so only this one can be opened.
        let encoder_only = |mut bundle: Bundle| {
            bundle.manifest.components.retain(|entry| entry.component == Component::TextEncoder);
            bundle
        };
        let variant = Variant::cpu(self.precision(), KernelLibrary::OnnxRuntime);
        let reference = TextEncoder::open(&self.open(&encoder_only(self.quantizer.bundle().clone()), None)?)?;
        let quantized =
            TextEncoder::open(&self.open(&encoder_only(self.quantizer.measured()), Some(variant))?)?;
        let mut worst = 1.0_f64;
        for prompt in self.quantizer.prompts() {
            let states = quantized.encode(&prompt, self.cancel)?;
            worst = worst.min(token_cosine(&states, &reference.encode(&prompt, self.cancel)?));
        }
        Ok(worst)
    }

    /// Keeps the original text encoder in the variant if the quantised one is too far from it.
    fn check_text_encoder(&mut self) -> Result<(), Error> {
        let bundle = self.quantizer.bundle().clone();
        let entry = bundle.manifest.component(&Component::TextEncoder)?;
        if entry.variant(Variant::cpu(self.precision(), KernelLibrary::OnnxRuntime)).is_none() {
            return Ok(());
        }
        let worst = self.token_cosine()?;
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
    pub(super) fn within_budget(
        &mut self,
        assessor: &Assessor<'_>,
    ) -> Result<Vec<(ClipDistance, Clip)>, Error> {
        let order = self.sensitivity(|component| *component != Component::TextEncoder);
        let mut kept = 0;
        loop {
            let assessed = assessor.assess(&self.quantizer.measured(), self.variant(), self.cancel)?;
            let psnr = assessed.iter().map(|(distance, _)| distance.psnr).fold(f64::INFINITY, f64::min);
            let enough = self.args.budget_psnr.is_none_or(|budget| psnr >= budget);
            if enough || kept == order.len() {
                return Ok(assessed);
            }
            kept = (2 * kept).clamp(1, order.len());
            let mut keep: BTreeMap<String, (Component, UnquantizedLayers)> = BTreeMap::new();
            for Sensitive { component, layers, error } in &order[..kept] {
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
}
