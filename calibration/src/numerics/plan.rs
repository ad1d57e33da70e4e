//! Plans the quantisation parameters of all layers of a component.

use super::activations::ActivationFormat;
use super::fp8;
use super::measured::output_error;
use super::range::{RangeMethod, Ranges};
use super::smoothing::{SmoothedInput, search};
use super::weights::{
    Matrix, WeightSource, bias_shift, block_error, block_scales, nearest, relative_error, row_scales,
};
use crate::Error;
use crate::observe::statistics::Statistics;
use crate::observe::table::Table;
use bundle::dtype::WeightType;
use bundle::manifest::{Component, ComponentEntry, Manifest};
use bundle::quantization::layers::{self, LayerGroup, LayerInput};
use bundle::quantization::{
    AttentionNumerics, ComponentKind, ComponentNumerics, Fold, LayerNumerics, Scheme, Smoothing, WeightScales,
};
use bundle::variant::KernelLibrary;
use std::collections::BTreeMap;

/// Number of inputs that share a scale in weight-only quantisation.
pub const BLOCK: usize = 128;
/// Smoothing that needs an additional multiplication is used if it leaves at most this share of the error.
const PRODUCT_GAIN: f64 = 0.8;

/// Options of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanOptions {
    /// The quantisation scheme.
    pub scheme: Scheme,
    /// The method for choosing ranges.
    pub method: RangeMethod,
    /// Whether the numbers are for plain graphs alone, whose integers are signed around 0.
    pub is_plain: bool,
    /// Layers that are not quantised, each with the reason. Layers with the same input are not quantised either.
    pub keep: BTreeMap<String, String>,
    /// Whether the products of attention are quantised to E4M3 too.
    pub attention: bool,
}

/// The inputs of a plan.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// The model.
    pub manifest: &'a Manifest,
    /// Activation statistics.
    pub table: &'a Table,
    /// Its weights.
    pub weights: &'a dyn WeightSource,
}

impl std::fmt::Debug for dyn WeightSource + '_ {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WeightSource")
    }
}

/// Returns the groups of layers that can be quantised. Each convolution of the decoder is a group; components that
/// are not quantised have none.
pub fn groups(manifest: &Manifest, component: &Component) -> Vec<LayerGroup> {
    match component {
        Component::TextEncoder => layers::text_encoder(&manifest.text_encoder),
        Component::Expert(_) => layers::denoiser(&manifest.denoiser),
        Component::Decoder => {
            let alone = |name| LayerGroup { layers: vec![name], input: LayerInput::Activation, block: None };
            layers::decoder(&manifest.vae).into_iter().map(alone).collect()
        }
        Component::ImageEncoder | Component::Preview => Vec::new(),
    }
}

/// A planned component.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The quantisation parameters.
    pub numerics: ComponentNumerics,
    /// The relative error of each layer's output if only that layer is quantised, as a ratio of mean squares. Estimated
    /// from the statistics, assuming independent channels.
    pub errors: BTreeMap<String, f64>,
}

/// Plans a component.
///
/// # Errors
/// A layer was not observed, or weights cannot be read or are not finite.
pub fn plan(sources: Sources<'_>, entry: &ComponentEntry, options: &PlanOptions) -> Result<Plan, Error> {
    let component = &entry.component;
    let mut errors = BTreeMap::new();
    let mut numerics = ComponentNumerics::empty(component.clone(), entry.digest.clone());
    let groups = groups(sources.manifest, component);
    let blocks = blocks_of(&groups);
    for group in &groups {
        let reason = group.layers.iter().find_map(|layer| options.keep.get(layer)).cloned();
        let reason = reason.or_else(|| scheme_keep_reason(options.scheme, component, group, blocks));
        if let Some(reason) = reason {
            numerics.kept.extend(group.layers.iter().map(|layer| (layer.clone(), reason.clone())));
            continue;
        }
        let planner = Planner { sources, entry, component, options };
        match (options.scheme, component) {
            (Scheme::Int8, Component::Decoder) => {
                planner.convolution(&mut numerics, &mut errors, &group.layers[0])?;
            }
            (Scheme::Int8, _) => planner.linear(&mut numerics, &mut errors, group)?,
            (Scheme::Int8Weights, _) => planner.weights_only(&mut numerics, &mut errors, group)?,
            (Scheme::Fp8, Component::Decoder) => {
                planner.fp8_convolution(&mut numerics, &mut errors, &group.layers[0])?;
            }
            (Scheme::Fp8, _) => planner.fp8(&mut numerics, &mut errors, group)?,
            // Rounding to bf16 needs no parameters.
            (Scheme::Bf16, _) => {}
        }
    }
    if options.scheme == Scheme::Fp8 && options.attention && matches!(component, Component::Expert(_)) {
        Planner { sources, entry, component, options }.attention(&mut numerics)?;
    }
    Ok(Plan { numerics, errors })
}

fn blocks_of(groups: &[LayerGroup]) -> usize {
    groups.iter().filter_map(|group| group.block).max().map_or(0, |last| last + 1)
}

/// The reason why a scheme does not quantise a group, if it does not.
fn scheme_keep_reason(
    scheme: Scheme,
    component: &Component,
    group: &LayerGroup,
    blocks: usize,
) -> Option<String> {
    match scheme {
        Scheme::Fp8 => fp8::keep_reason(component, group, blocks),
        Scheme::Int8Weights if *component == Component::Decoder => {
            Some("convolutions are quantised whole or not at all".into())
        }
        _ => None,
    }
}

/// Checks that every layer of these components that a scheme quantises from statistics was observed.
///
/// # Errors
/// [`Error::NotObserved`] for the first layer that no recorded clip used.
pub fn check_observed(
    manifest: &Manifest,
    table: &Table,
    scheme: Scheme,
    components: &[ComponentKind],
) -> Result<(), Error> {
    if !matches!(scheme, Scheme::Int8 | Scheme::Fp8) {
        return Ok(());
    }
    let is_quantized =
        |component: &Component| ComponentKind::of(component).is_some_and(|kind| components.contains(&kind));
    let quantized = manifest.components.iter().map(|entry| &entry.component);
    for component in quantized.filter(|component| is_quantized(component)) {
        // Only later latent frames have the temporal taps of a convolution.
        let bin = (*component == Component::Decoder).then_some(1);
        let groups = groups(manifest, component);
        let blocks = blocks_of(&groups);
        let quantized =
            groups.iter().filter(|group| scheme_keep_reason(scheme, component, group, blocks).is_none());
        for layer in quantized.filter_map(|group| group.layers.first()) {
            if !table.has_input(component, layer, bin) {
                let component = component.to_string();
                return Err(Error::NotObserved { layer: layer.clone(), component });
            }
        }
    }
    Ok(())
}

/// Returns the measured relative error of each linear layer's output if only that layer is quantised, as a ratio of
/// mean squares, on sampled rows and with the rounding of `kernels`. Layers without sampled rows are left out.
///
/// # Errors
/// Weights cannot be read.
pub fn measured_errors(
    sources: Sources<'_>,
    numerics: &ComponentNumerics,
    kernels: KernelLibrary,
) -> Result<BTreeMap<String, f64>, Error> {
    let mut errors = BTreeMap::new();
    // Convolutions read neighbouring positions, which are not sampled together.
    if numerics.component == Component::Decoder {
        return Ok(errors);
    }
    for (layer, numbers) in &numerics.layers {
        let Some(statistics) = sources.table.input(&numerics.component, layer) else { continue };
        let weight = Matrix::read(sources.weights, &numerics.component, layer)?;
        let error = output_error(&weight, numbers, &statistics.samples, kernels);
        errors.extend(error.map(|error| (layer.clone(), error)));
    }
    Ok(errors)
}

/// Errors by name of the layer.
pub(super) type Errors = BTreeMap<String, f64>;

pub(super) struct Planner<'a> {
    pub(super) sources: Sources<'a>,
    entry: &'a ComponentEntry,
    pub(super) component: &'a Component,
    pub(super) options: &'a PlanOptions,
}

impl Planner<'_> {
    /// How ranges are chosen.
    pub(super) fn ranges(&self) -> Ranges {
        let format = if self.options.is_plain {
            ActivationFormat::Signed(self.weight_type())
        } else {
            ActivationFormat::Unsigned
        };
        Ranges { method: self.options.method, format }
    }

    /// The number format of the exported weights.
    pub(super) fn weight_type(&self) -> WeightType {
        self.entry.weight_type
    }

    fn matrices(&self, group: &LayerGroup) -> Result<Vec<Matrix>, Error> {
        group.layers.iter().map(|layer| Matrix::read(self.sources.weights, self.component, layer)).collect()
    }

    pub(super) fn not_observed(&self, layer: &str) -> Error {
        Error::NotObserved { layer: layer.to_owned(), component: self.component.to_string() }
    }

    fn input(&self, layer: &str) -> Result<Statistics, Error> {
        let statistics = self.sources.table.input(self.component, layer);
        statistics.ok_or_else(|| self.not_observed(layer))
    }

    /// Layers with a common input: smoothing, range, per-row scales, bias shifts.
    fn linear(
        &self,
        numerics: &mut ComponentNumerics,
        errors: &mut Errors,
        group: &LayerGroup,
    ) -> Result<(), Error> {
        let mut weights = self.matrices(group)?;
        let statistics = self.input(&group.layers[0])?;
        let gain = match &group.input {
            LayerInput::Norm => Some(1.0),
            LayerInput::Values(from) => numerics.layers.contains_key(from).then_some(1.0),
            LayerInput::Text => Some(PRODUCT_GAIN),
            LayerInput::Activation => None,
        };
        let choice = search(&weights, &statistics, gain, self.ranges());
        let smoothing = choice.divisors.map(|divisors| {
            weights.iter_mut().for_each(|weight| weight.scale_columns(&divisors));
            let fold = if group.input == LayerInput::Text { Fold::Product } else { Fold::Upstream };
            Smoothing { divisors, fold, alpha: choice.alpha }
        });
        if let (LayerInput::Values(from), Some(smoothing)) = (&group.input, &smoothing)
            && let Some(values) = numerics.layers.get_mut(from)
        {
            divide_rows(values, &smoothing.divisors);
        }
        for (layer, weight) in group.layers.iter().zip(&weights) {
            let SmoothedInput { range, importance, mean, error, shift } = &choice.input;
            let scales = row_scales(weight, importance, self.ranges().format);
            errors.insert(layer.clone(), relative_error(weight, &scales, importance, error));
            let zeros = vec![0.0; weight.columns];
            let range_shift = Some(bias_shift(weight, &scales, &zeros, shift));
            let bias_shift = Some(bias_shift(weight, &scales, mean, &zeros));
            let layer_numerics = LayerNumerics {
                weights: WeightScales::Rows(scales),
                input: Some(*range),
                output: None,
                smoothing: smoothing.clone(),
                row_factors: None,
                bias_shift,
                range_shift,
            };
            numerics.layers.insert(layer.clone(), layer_numerics);
        }
        Ok(())
    }

    /// Weight-only quantisation: a scale per block of weights.
    fn weights_only(
        &self,
        numerics: &mut ComponentNumerics,
        errors: &mut Errors,
        group: &LayerGroup,
    ) -> Result<(), Error> {
        for (layer, weight) in group.layers.iter().zip(self.matrices(group)?) {
            let importance = match self.sources.table.input(self.component, layer) {
                Some(statistics) => to_f32(&statistics.mean_squares()),
                None => vec![1.0; weight.columns],
            };
            let scales = block_scales(&weight, &importance, BLOCK);
            let error = |value: f32, scale: f32| value - nearest(scale, value);
            errors.insert(layer.clone(), block_error(&weight, &scales, &importance, BLOCK, error));
            let weights = WeightScales::Blocks { size: BLOCK, scales };
            numerics.layers.insert(layer.clone(), LayerNumerics::plain(weights, None));
        }
        Ok(())
    }

    fn fp8(
        &self,
        numerics: &mut ComponentNumerics,
        errors: &mut Errors,
        group: &LayerGroup,
    ) -> Result<(), Error> {
        let statistics = self.input(&group.layers[0])?;
        let input = fp8::range(statistics.magnitude(), self.weight_type());
        let importance = to_f32(&statistics.mean_squares());
        let input_error = fp8::input_error(statistics.samples.iter(), input.scale);
        for (layer, weight) in group.layers.iter().zip(self.matrices(group)?) {
            let (weights, weight_error) = self.fp8_weights(&weight, &importance);
            errors.insert(layer.clone(), weight_error + input_error);
            numerics.layers.insert(layer.clone(), LayerNumerics::plain(weights, Some(input)));
        }
        Ok(())
    }

    /// The E4M3 scale of a weight, and the relative error of the outputs from rounding it.
    pub(super) fn fp8_weights(&self, weight: &Matrix, importance: &[f32]) -> (WeightScales, f64) {
        let scale = fp8::range(weight.magnitude(), self.weight_type()).scale;
        let rounding = |value: f32, scale: f32| value - fp8::nearest(scale, value);
        let error = block_error(weight, &vec![scale; weight.rows], importance, usize::MAX, rounding);
        (WeightScales::Tensor(scale), error)
    }

    /// The attentions of every block whose layers are quantised.
    fn attention(&self, numerics: &mut ComponentNumerics) -> Result<(), Error> {
        let spec = &self.sources.manifest.denoiser;
        #[expect(clippy::cast_precision_loss, reason = "head widths are small")]
        let scale = 1.0 / (spec.head_width as f32).sqrt();
        for block in 0..spec.layers {
            // The names of the two attention nodes in a step's graph.
            for (name, node) in [("attn1", "MultiHeadAttention"), ("attn2", "MultiHeadAttention.2")] {
                let name = format!("blocks.{block}.{name}");
                if !numerics.layers.contains_key(&format!("{name}.to_q")) {
                    continue;
                }
                let magnitude = |part: &str| {
                    let point = format!("block.{block}/{node}:{part}");
                    let statistics = self.sources.table.over_bins(self.component, &point);
                    statistics
                        .map(|statistics| statistics.magnitude())
                        .ok_or_else(|| self.not_observed(&point))
                };
                let numbers = AttentionNumerics {
                    queries: fp8::range(scale * magnitude("q")?, self.weight_type()).scale,
                    keys: fp8::range(magnitude("k")?, self.weight_type()).scale,
                    values: fp8::range(magnitude("v")?, self.weight_type()).scale,
                };
                numerics.attention.insert(name, numbers);
            }
        }
        Ok(())
    }
}

/// Divides the outputs of a quantised layer. Exact, because each output row has its own scale.
fn divide_rows(layer: &mut LayerNumerics, divisors: &[f32]) {
    let factors: Vec<f32> = divisors.iter().map(|divisor| 1.0 / divisor).collect();
    if let WeightScales::Rows(scales) = &mut layer.weights {
        scales.iter_mut().zip(&factors).for_each(|(scale, factor)| *scale *= factor);
    }
    for shift in [&mut layer.bias_shift, &mut layer.range_shift].into_iter().flatten() {
        shift.iter_mut().zip(&factors).for_each(|(shift, factor)| *shift *= factor);
    }
    layer.row_factors = Some(factors);
}

pub(super) fn to_f32(values: &[f64]) -> Vec<f32> {
    #[expect(clippy::cast_possible_truncation, reason = "statistics of f32 values")]
    let to_f32 = |value: &f64| *value as f32;
    values.iter().map(to_f32).collect()
}
