//! The stored form of weights for plain graphs: quantised values, and everything else in the exported number format.
//!
//! The graphs read scales, biases and the other weights in the format of their arithmetic, so nothing is converted in
//! them.

use super::source::BundleWeights;
use super::values::{Content, Planned};
use crate::Error;
use crate::checkpoint::inventory::Required;
use crate::weights::new_file::Stored;
use crate::weights::{INPUT_FACTORS, NEWEST_TAP, SCALES};
use bundle::dtype::{ElementType, WeightType};
use bundle::manifest::Component;
use bundle::quantization::{ComponentNumerics, LayerNumerics, WeightScales};

/// Returns all tensors of a variant in file order.
pub(super) fn plan(
    source: &BundleWeights,
    numerics: &ComponentNumerics,
    exported: WeightType,
) -> Result<Vec<Planned>, Error> {
    let mut all = Vec::new();
    for required in &source.required {
        let Required { name, shape } = required;
        let (layer, part) = name.rsplit_once('.').unwrap_or((name, ""));
        match (numerics.layers.get(layer), part) {
            (Some(numbers), "weight") => {
                let layer = Layer { source, name: layer, numbers, exported };
                all.extend(if numerics.component == Component::Decoder {
                    layer.convolution(shape)?
                } else {
                    layer.linear(shape)?
                });
            }
            (Some(_), "bias") => {}
            _ => {
                let stored = Stored { name: name.clone(), element: exported.element(), shape: shape.clone() };
                all.push(Planned::one(stored, Content::Rounded(name.clone())));
            }
        }
    }
    Ok(all)
}

/// A quantised layer.
struct Layer<'a> {
    source: &'a BundleWeights,
    name: &'a str,
    numbers: &'a LayerNumerics,
    exported: WeightType,
}

impl Layer<'_> {
    fn part(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.name)
    }

    fn wrong(&self) -> Error {
        Error::Numerics { layer: self.name.to_owned() }
    }

    /// A tensor of the layer.
    fn tensor(
        &self,
        suffix: &str,
        element: ElementType,
        shape: Vec<usize>,
        content: fn(String) -> Content,
    ) -> Planned {
        Planned::one(Stored { name: self.part(suffix), element, shape }, content(self.name.to_owned()))
    }

    /// The number format of the quantised values.
    fn quantized(&self) -> Result<ElementType, Error> {
        match (&self.numbers.weights, self.numbers.input) {
            (WeightScales::Rows(_), Some(input)) if input.signed_scale().is_some() => Ok(ElementType::I8),
            (WeightScales::Tensor(_), Some(_)) => Ok(ElementType::F8E4M3),
            _ => Err(self.wrong()),
        }
    }

    /// The scales of the rows, if each has one.
    fn scales(&self, rows: usize) -> Option<Planned> {
        let has_scales = matches!(self.numbers.weights, WeightScales::Rows(_));
        has_scales.then(|| self.tensor(SCALES, self.exported.element(), vec![rows], Content::Scales))
    }

    fn bias(&self, rows: usize) -> Option<Planned> {
        let (name, numbers) = (self.part("bias"), self.numbers);
        let has_bias = self.source.required.iter().any(|other| other.name == name)
            || numbers.bias_shift.is_some()
            || numbers.range_shift.is_some();
        has_bias.then(|| self.tensor("bias", self.exported.element(), vec![rows], Content::Bias))
    }

    /// A linear layer, whose weight is stored as `[in,out]`.
    fn linear(&self, shape: &[usize]) -> Result<Vec<Planned>, Error> {
        let [rows, columns] = *shape else { return Err(self.wrong()) };
        let weight = self.tensor("weight", self.quantized()?, vec![columns, rows], Content::Quantized);
        let factors = self.numbers.smoothing.as_ref().map(|smoothing| {
            let shape = vec![smoothing.divisors.len()];
            self.tensor(INPUT_FACTORS, self.exported.element(), shape, Content::InputFactors)
        });
        Ok([Some(weight), self.scales(rows), factors, self.bias(rows)].into_iter().flatten().collect())
    }

    /// A convolution. The graph for the first latent frame reads the newest tap alone, which is stored a second time: a
    /// slice of quantised values would stand between them and the product.
    fn convolution(&self, shape: &[usize]) -> Result<Vec<Planned>, Error> {
        let (Some(rows), None) = (shape.first().copied(), &self.numbers.smoothing) else {
            return Err(self.wrong());
        };
        let element = self.quantized()?;
        let weight = self.tensor("weight", element, shape.to_vec(), Content::QuantizedKernel);
        let newest = match *shape {
            [out, channels, 3, height, width] => {
                let shape = vec![out, channels, height, width];
                Some(self.tensor(NEWEST_TAP, element, shape, Content::NewestTap))
            }
            _ => None,
        };
        Ok([Some(weight), newest, self.scales(rows), self.bias(rows)].into_iter().flatten().collect())
    }
}
