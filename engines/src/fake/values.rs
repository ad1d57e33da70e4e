//! The values of outputs: a pure function of the graph's name and the inputs.

use super::graph::{FakeGraph, InputShapes};
use super::hash::{Mixer, unit};
use crate::Value;
use bundle::dtype::ElementType;
use bundle::signature::{Extent, TensorSpec};
use ndarray::{ArrayD, IxDyn};

impl FakeGraph {
    /// The outputs of a run. Every value depends on the name of the graph and of the output, and on every input with its
    /// shape: f32 in -1..1, i64 in 0..1000.
    ///
    /// # Errors
    /// Inputs contradict each other, or a shape or number format cannot be made. The text is that of the run's error.
    pub fn outputs(&self, inputs: &[(&str, &Value)]) -> Result<Vec<(String, Value)>, String> {
        let shapes = InputShapes::new(&self.signature, inputs);
        if let Some((name, first, other)) = shapes.contradiction() {
            return Err(format!("the extent {name} is {first} in one input and {other} in another"));
        }
        let seed = seed(&self.name, inputs)?;
        let outputs = self.signature.outputs.iter();
        outputs.map(|output| Ok((output.name.clone(), self.output(output, &shapes, seed)?))).collect()
    }

    fn output(
        &self,
        output: &TensorSpec,
        inputs: &InputShapes<'_>,
        mut seed: Mixer,
    ) -> Result<Value, String> {
        let shape = match self.shapes.iter().find(|(name, _)| *name == output.name) {
            Some((_, shape)) => shape.shape(inputs),
            None => output
                .shape
                .iter()
                .map(|extent| match extent {
                    Extent::Fixed(size) => Ok(*size),
                    Extent::Dynamic(name) => {
                        inputs.find(name).ok_or_else(|| format!("the extent {name} is not known"))
                    }
                })
                .collect::<Result<_, _>>()?,
        };
        seed.add_text(&output.name);
        filled(output.element, &shape, seed)
    }
}

/// A tensor of pseudo-random values.
pub(super) fn filled(element: ElementType, shape: &[usize], seed: Mixer) -> Result<Value, String> {
    let count = shape.iter().try_fold(1_usize, |count, extent| count.checked_mul(*extent));
    let count = count.ok_or_else(|| format!("the shape {shape:?} is too large"))? as u64;
    let wrong = |error: ndarray::ShapeError| error.to_string();
    match element {
        #[expect(clippy::cast_possible_truncation, reason = "rounded to f32")]
        ElementType::F32 => {
            let values = (0..count).map(|index| (unit(seed.at(index)) * 2.0 - 1.0) as f32).collect();
            ArrayD::from_shape_vec(IxDyn(shape), values).map(Value::from_f32).map_err(wrong)
        }
        ElementType::I64 => {
            #[expect(clippy::cast_possible_wrap, reason = "below 1000")]
            let values = (0..count).map(|index| (seed.at(index) % 1000) as i64).collect();
            ArrayD::from_shape_vec(IxDyn(shape), values).map(Value::from_i64).map_err(wrong)
        }
        other => Err(format!("the fake makes no tensors of {other}")),
    }
}

/// Mixes the name of a graph and all inputs, in the order of their names.
fn seed(graph: &str, inputs: &[(&str, &Value)]) -> Result<Mixer, String> {
    let mut seed = Mixer::new(0);
    seed.add_text(graph);
    let mut inputs = inputs.to_vec();
    inputs.sort_by_key(|(name, _)| *name);
    for (name, value) in inputs {
        seed.add_text(name);
        value.shape().iter().for_each(|extent| seed.add(*extent as u64));
        match value.element() {
            ElementType::F32 => {
                let view = value.view_f32().map_err(|error| error.to_string())?;
                view.iter().for_each(|x| seed.add(u64::from(x.to_bits())));
            }
            ElementType::I64 => {
                let view = value.view::<i64>().map_err(|error| error.to_string())?;
                view.iter().for_each(|x| seed.add(x.cast_unsigned()));
            }
            other => return Err(format!("the fake reads no tensors of {other}")),
        }
    }
    Ok(seed)
}
