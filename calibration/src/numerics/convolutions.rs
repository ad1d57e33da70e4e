//! Plans the convolutions of the decoder.

use super::fp8;
use super::plan::{Errors, Planner, to_f32};
use super::range::{Histogram, round_trip};
use super::weights::{Matrix, bias_shift, relative_error, row_scales};
use crate::Error;
use crate::observe::statistics::Statistics;
use bundle::quantization::{Affine, ComponentNumerics, LayerNumerics, WeightScales};

/// A convolution with what was observed of its input.
struct Observed<'a> {
    /// `[out,in·taps·k·k]`.
    weight: Matrix,
    /// Its input for the first latent frame, if it runs then, and for later ones. The latter is observed with the
    /// temporal taps after each channel, which is the order of the weight.
    inputs: [Option<&'a Statistics>; 2],
    next: &'a Statistics,
}

impl Observed<'_> {
    /// Spreads values of the channels over the positions of the kernel.
    fn spread(&self, values: &[f64]) -> Vec<f32> {
        let positions = self.weight.columns / self.next.channels().max(1);
        to_f32(values).into_iter().flat_map(|value| std::iter::repeat_n(value, positions)).collect()
    }
}

impl<'a> Planner<'a> {
    fn observed(&self, layer: &str) -> Result<Observed<'a>, Error> {
        let weight = Matrix::read(self.sources.weights, self.component, layer)?;
        let at = |bin| self.sources.table.point(self.component, bin, self.input_point(layer));
        let next = at(1).ok_or_else(|| self.not_observed(layer))?;
        Ok(Observed { weight, inputs: [at(0), Some(next)], next })
    }

    /// A convolution in integers.
    pub(super) fn convolution(
        &self,
        numerics: &mut ComponentNumerics,
        errors: &mut Errors,
        layer: &str,
    ) -> Result<(), Error> {
        let observed = self.observed(layer)?;
        let (input, input_error) = self.range_of(observed.inputs);
        // The integers of plain graphs end at the product.
        let (output, output_error) = if self.options.is_plain {
            (None, 0.0)
        } else {
            let point = format!("{layer}:out");
            let in_bin = |bin| self.sources.table.point(self.component, bin, &point);
            let (range, error) = self.range_of([in_bin(0), in_bin(1)]);
            (Some(range), error)
        };
        let importance = observed.spread(&observed.next.mean_squares());
        let mean = observed.spread(&observed.next.means());
        let weight = &observed.weight;
        let scales = row_scales(weight, &importance, self.ranges().format);
        let zeros = vec![0.0; mean.len()];
        let weight_error = relative_error(weight, &scales, &importance, &zeros);
        errors.insert(layer.to_owned(), weight_error + input_error + output_error);
        let bias_shift = Some(bias_shift(weight, &scales, &mean, &zeros));
        let layer_numerics = LayerNumerics {
            weights: WeightScales::Rows(scales),
            input: Some(input),
            output,
            smoothing: None,
            row_factors: None,
            bias_shift,
            range_shift: None,
        };
        numerics.layers.insert(layer.to_owned(), layer_numerics);
        Ok(())
    }

    /// A convolution in E4M3.
    pub(super) fn fp8_convolution(
        &self,
        numerics: &mut ComponentNumerics,
        errors: &mut Errors,
        layer: &str,
    ) -> Result<(), Error> {
        let observed = self.observed(layer)?;
        let inputs = || observed.inputs.into_iter().flatten();
        let magnitude = inputs().map(Statistics::magnitude).fold(0.0, f32::max);
        let input = fp8::range(magnitude, self.weight_type());
        let importance = observed.spread(&observed.next.mean_squares());
        let (weights, weight_error) = self.fp8_weights(&observed.weight, &importance);
        let input_error = fp8::input_error(inputs().flat_map(|part| &part.samples), input.scale);
        errors.insert(layer.to_owned(), weight_error + input_error);
        numerics.layers.insert(layer.to_owned(), LayerNumerics::plain(weights, Some(input)));
        Ok(())
    }

    /// The range of a value, and the relative error of rounding to it as a ratio of mean squares.
    fn range_of(&self, parts: [Option<&Statistics>; 2]) -> (Affine, f64) {
        let parts = || parts.into_iter().flatten();
        let (low, high) = parts()
            .map(Statistics::extremes)
            .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), (low_here, high_here)| {
                (low.min(low_here), high.max(high_here))
            });
        let samples = || parts().flat_map(|part| part.samples.iter().copied());
        let range = Histogram::new(samples(), (low, high)).range(self.ranges());
        let mut sums = (0.0, 0.0);
        for value in samples() {
            sums.0 += f64::from(round_trip(range, value) - value).powi(2);
            sums.1 += f64::from(value).powi(2);
        }
        (range, if sums.1 > 0.0 { sums.0 / sums.1 } else { 0.0 })
    }

    /// The point at which the input of a convolution is observed: its own name unless another layer reads the same
    /// value.
    fn input_point<'b>(&'b self, layer: &'b str) -> &'b str {
        let folder = bundle::layout::component_folder(self.component);
        let point = self.sources.table.inputs.get(&folder).and_then(|inputs| inputs.get(layer));
        point.map_or(layer, String::as_str)
    }
}
