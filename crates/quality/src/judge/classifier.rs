//! The judge: a classifier graph, and the description of its outputs.

use super::Error;
use bundle::dtype::ElementType;
use bundle::geometry::PixelSize;
use bundle::signature::{Extent, Signature, TensorSpec};
use engines::{Cancel, Engine, OnnxRuntime, OpenOptions, Value, WeightMemory};
use ndarray::{Array2, ArrayView4, Axis};
use runtime::model::take_array;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;

/// The input of a judge's graph.
const CLIP: &str = "clip";

/// An attribute that a judge classifies.
#[derive(Debug, Clone, PartialEq)]
pub struct Attribute {
    /// Its name, which is also the name of the graph's output.
    pub name: String,
    /// Its values, in the order of the output's scores; at least two.
    pub values: Vec<String>,
    /// Share of correct readings on clips that show exactly the prompt, in 0..=1.
    pub accuracy: f64,
}

impl Attribute {
    /// Share of correct readings by guessing.
    pub fn chance(&self) -> f64 {
        1.0 / as_f64(self.values.len())
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn as_f64(count: usize) -> f64 {
    count as f64
}

/// The files of a judge: `NAME.onnx`, and `NAME.json` with the description of its outputs.
#[derive(Debug, Clone)]
pub struct JudgeFiles {
    /// Name of the graph in errors.
    pub name: String,
    /// The graph: `clip [1,F,H,W,3]` f32 in 0..1 to `[1,values]` scores under the name of each attribute.
    pub graph: Cow<'static, [u8]>,
    /// The attributes, in the order of the description.
    pub attributes: Vec<Attribute>,
}

impl JudgeFiles {
    /// Reads `graph` and its description, which has the same path with the extension `.json`.
    ///
    /// # Errors
    /// A file cannot be read, or the description is invalid.
    pub fn read(graph: &Path) -> Result<Self, crate::Error> {
        let description = graph.with_extension("json");
        let bytes = std::fs::read(graph).map_err(bundle::Error::file("read", graph))?;
        let text = std::fs::read(&description).map_err(bundle::Error::file("read", &description))?;
        let attributes = attributes(&text, &description.display().to_string())?;
        Ok(Self { name: graph.display().to_string(), graph: bytes.into(), attributes })
    }
}

/// `{"attributes": {"subject": {"values": ["car", …], "accuracy": 0.99}, …}}`.
#[derive(Deserialize)]
struct Description {
    // Keeps the order of the file, which is the order of the score table.
    attributes: serde_json::Map<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct Described {
    values: Vec<String>,
    accuracy: f64,
}

/// Parses the attributes of a description; `file` is its name in errors.
pub(super) fn attributes(text: &[u8], file: &str) -> Result<Vec<Attribute>, Error> {
    let wrong = |why: String| Error::Description { file: file.to_owned(), why };
    let description: Description = serde_json::from_slice(text).map_err(|error| wrong(format!("{error}")))?;
    let mut attributes = Vec::new();
    for (name, value) in description.attributes {
        let Described { values, accuracy } =
            serde_json::from_value(value).map_err(|error| wrong(format!("`{name}`: {error}")))?;
        if values.len() < 2 {
            return Err(wrong(format!("`{name}` needs at least two values")));
        }
        if !(0.0..=1.0).contains(&accuracy) {
            return Err(wrong(format!("`{name}` has an accuracy of {accuracy}, which is not in 0..=1")));
        }
        attributes.push(Attribute { name, values, accuracy });
    }
    if attributes.is_empty() {
        return Err(wrong("it names no attribute".into()));
    }
    Ok(attributes)
}

/// The shape of the clips that a judge reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClipShape {
    /// Number of frames.
    pub frames: usize,
    /// Size of each frame.
    pub size: PixelSize,
}

/// A judge's reading of a clip: a value for every attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Values by name of the attribute.
    pub values: BTreeMap<String, String>,
}

/// An open judge.
///
/// # Examples
/// ```no_run
/// use engines::{Cancel, OnnxRuntime};
/// use ndarray::Array4;
/// use quality::judge::{Judge, JudgeFiles};
/// use std::path::Path;
///
/// # fn main() -> Result<(), quality::Error> {
/// let files = JudgeFiles::read(Path::new("judge.onnx"))?;
/// let mut judge = Judge::open(&OnnxRuntime::load(None)?, &files, None)?;
/// let shape = judge.clip_shape();
/// let clip = Array4::zeros((shape.frames, shape.size.height, shape.size.width, 3));
/// for (attribute, value) in judge.read(clip.view(), &Cancel::new())?.values {
///     println!("{attribute}: {value}");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Judge {
    engine: Engine,
    attributes: Vec<Attribute>,
    shape: ClipShape,
}

impl Judge {
    /// Opens a judge and checks its graph against the description.
    ///
    /// # Errors
    /// ONNX Runtime cannot run the graph, its inputs or outputs differ from the description, or its clips have no fixed
    /// shape.
    pub fn open(
        onnx: &OnnxRuntime,
        files: &JudgeFiles,
        threads: Option<NonZeroUsize>,
    ) -> Result<Self, crate::Error> {
        let options = OpenOptions::cpu(threads, WeightMemory::Prepacked);
        let engine =
            onnx.open_in_memory(&files.name, &files.graph, &contract(&files.attributes), &options)?;
        let shape =
            clip_shape(engine.signature()).ok_or_else(|| Error::ClipShape { graph: files.name.clone() })?;
        Ok(Self { engine, attributes: files.attributes.clone(), shape })
    }

    /// The attributes that it classifies.
    pub fn attributes(&self) -> &[Attribute] {
        &self.attributes
    }

    /// The shape of clips that it reads.
    pub fn clip_shape(&self) -> ClipShape {
        self.shape
    }

    /// Reads `clip [F,H,W,3]`, RGB in 0..1, with the shape of [`Self::clip_shape`].
    ///
    /// # Errors
    /// The clip has another shape, the graph fails, or the run is cancelled.
    pub fn read(&mut self, clip: ArrayView4<'_, f32>, cancel: &Cancel) -> Result<Reading, crate::Error> {
        let clip = Value::from_f32(clip.insert_axis(Axis(0)).to_owned());
        let mut outputs = self.engine.run(&[(CLIP, &clip)], cancel)?;
        let mut values = BTreeMap::new();
        for attribute in &self.attributes {
            let scores: Array2<f32> = take_array(&mut outputs, &attribute.name)?;
            let best = scores.iter().zip(&attribute.values).max_by(|(a, _), (b, _)| a.total_cmp(b));
            let Some((_, value)) = best else { unreachable!("an attribute has values") };
            values.insert(attribute.name.clone(), value.clone());
        }
        Ok(Reading { values })
    }
}

fn contract(attributes: &[Attribute]) -> Signature {
    let any = |name: &str| Extent::Dynamic(name.into());
    let clip = TensorSpec {
        name: CLIP.into(),
        element: ElementType::F32,
        shape: vec![Extent::Fixed(1), any("F"), any("H"), any("W"), Extent::Fixed(3)],
    };
    let scores = |attribute: &Attribute| TensorSpec {
        name: attribute.name.clone(),
        element: ElementType::F32,
        shape: vec![Extent::Fixed(1), Extent::Fixed(attribute.values.len())],
    };
    Signature { inputs: vec![clip], outputs: attributes.iter().map(scores).collect() }
}

fn clip_shape(signature: &Signature) -> Option<ClipShape> {
    let [clip] = &signature.inputs[..] else { return None };
    let [_, Extent::Fixed(frames), Extent::Fixed(height), Extent::Fixed(width), _] = clip.shape[..] else {
        return None;
    };
    Some(ClipShape { frames, size: PixelSize { width, height } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_keeps_the_order_of_its_attributes() {
        let text = br#"{"attributes": {"subject": {"values": ["car", "ball"], "accuracy": 0.99},
            "color": {"values": ["red", "blue", "pink"], "accuracy": 1}}, "made by": "anything"}"#;
        let attributes = attributes(text, "judge.json").unwrap();
        let names: Vec<&str> = attributes.iter().map(|attribute| attribute.name.as_str()).collect();
        assert_eq!(names, ["subject", "color"]);
        assert!((attributes[1].chance() - 1.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn a_description_without_usable_attributes_is_refused() {
        let refused = |text: &str| attributes(text.as_bytes(), "judge.json").unwrap_err().to_string();
        insta::assert_snapshot!(refused(r#"{"attributes": {}}"#), @r#"the judge's description judge.json cannot be used: it names no attribute (describe every output as {"attributes": {NAME: {"values": [...], "accuracy": 0.99}}})"#);
        insta::assert_snapshot!(refused(r#"{"attributes": {"time": {"values": ["day"], "accuracy": 1}}}"#), @r#"the judge's description judge.json cannot be used: `time` needs at least two values (describe every output as {"attributes": {NAME: {"values": [...], "accuracy": 0.99}}})"#);
        insta::assert_snapshot!(refused(r#"{"attributes": {"time": {"values": ["day", "night"], "accuracy": 97}}}"#), @r#"the judge's description judge.json cannot be used: `time` has an accuracy of 97, which is not in 0..=1 (describe every output as {"attributes": {NAME: {"values": [...], "accuracy": 0.99}}})"#);
        insta::assert_snapshot!(refused(r#"{"attributes": {"time": ["day", "night"]}}"#), @r#"the judge's description judge.json cannot be used: `time`: invalid type: string "day", expected a sequence (describe every output as {"attributes": {NAME: {"values": [...], "accuracy": 0.99}}})"#);
    }
}
