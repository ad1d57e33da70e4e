//! The compiled engines that clips of a model need.

use crate::Error;
use crate::denoise::GuidanceForm;
use crate::model::{Model, engine_shape};
use crate::plan::{GenerateRequest, GenerationPlan, Length};
use bundle::Field;
use bundle::geometry::PixelSize;
use bundle::manifest::{Component, Part};
use bundle::units::{ByteCount, Seed};
use bundle::variant::Precision;
use engines::{Backend, Compilation, Device, EngineShape, GraphSource, OpenOptions, Provider};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Width, height and frames of clips, written `WxHxF`.
///
/// ```
/// use runtime::engine_builds::ClipShape;
///
/// let shape: ClipShape = "832x480x81".parse()?;
/// assert_eq!((shape.size.width, shape.size.height, shape.frames), (832, 480, 81));
/// assert_eq!(shape.to_string(), "832x480x81");
/// # Ok::<(), bundle::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClipShape {
    /// Size of a frame.
    pub size: PixelSize,
    /// Number of frames.
    pub frames: usize,
}

impl fmt::Display for ClipShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.size, self.frames)
    }
}

impl FromStr for ClipShape {
    type Err = bundle::Error;

    fn from_str(text: &str) -> Result<Self, bundle::Error> {
        let parsed = text
            .rsplit_once('x')
            .and_then(|(size, frames)| Some((size.parse::<PixelSize>().ok()?, frames.parse().ok()?)));
        parsed.map(|(size, frames)| Self { size, frames }).ok_or_else(|| {
            bundle::Error::value(
                Field::Shape,
                format!("`{text}`"),
                "expected width, height and number of frames",
                "write it like 832x480x81",
            )
        })
    }
}

/// An engine that clips need.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineNeed {
    /// The component.
    pub component: Component,
    /// The graph of the component.
    pub part: Part,
    /// The device.
    pub device: Device,
    /// The shape that it runs; `None` if it runs every shape.
    pub shape: Option<EngineShape>,
    /// The file of the graph.
    pub graph: PathBuf,
    /// The options that the graph is opened with.
    pub options: OpenOptions,
    /// The length of its weights.
    pub weights: ByteCount,
    /// The predicted peak of the memory of the machine while it is compiled.
    pub peak: ByteCount,
}

/// The clips that engines are built for: one for each shape, or one of the bundle's defaults.
///
/// # Errors
/// A shape is out of range.
pub fn clips_of(
    manifest: &bundle::manifest::Manifest,
    shapes: &[ClipShape],
) -> Result<Vec<GenerationPlan>, Error> {
    // The prompt changes no shape.
    let default = GenerateRequest::new("a clip", Seed(0));
    let with_shape = |shape: &ClipShape| GenerateRequest {
        size: Some(shape.size),
        length: Some(Length::Frames(shape.frames)),
        ..default.clone()
    };
    let requests =
        if shapes.is_empty() { vec![default.clone()] } else { shapes.iter().map(with_shape).collect() };
    requests.iter().map(|request| GenerationPlan::new(manifest, request)).collect()
}

/// Every engine that clips of a model need, in the order in which a clip uses them. Components on devices that open
/// graphs as they are need none.
///
/// # Errors
/// The bundle lacks a component or its graphs.
pub fn engines_needed(model: &Model, clips: &[GenerationPlan]) -> Result<Vec<EngineNeed>, Error> {
    let manifest = model.manifest();
    let experts = manifest.routing.routes().iter().map(|route| Component::Expert(route.expert.clone()));
    let mut graphs = vec![(Component::TextEncoder, Part::Whole)];
    graphs.extend(experts.map(|expert| (expert, Part::Whole)));
    graphs.extend([Part::First, Part::Next].map(|part| (Component::Decoder, part)));
    let mut needs: Vec<EngineNeed> = Vec::new();
    for (component, part) in graphs {
        for device in model.placement().devices_of(&component) {
            let compilation = device.provider().compilation();
            if compilation == Compilation::None {
                continue;
            }
            for clip in clips {
                let shape =
                    shape_of(model, &component, clip).filter(|_| compilation == Compilation::FixedShape);
                let is_known = |need: &EngineNeed| {
                    (&need.component, need.part, need.device, need.shape) == (&component, part, device, shape)
                };
                if !needs.iter().any(is_known) {
                    needs.push(need(model, &component, part, device, shape)?);
                }
            }
        }
    }
    Ok(needs)
}

/// Checks that there is an engine for every graph of a clip that is not compiled when it is opened.
///
/// # Errors
/// The first engine that is missing, with the command that builds it.
pub fn check_engines(model: &Model, clip: &GenerationPlan) -> Result<(), Error> {
    let backend: &dyn Backend = model.sessions().backend();
    for need in engines_needed(model, std::slice::from_ref(clip))? {
        let shape = engine_shape(clip.latent, 1);
        backend
            .check_engine(GraphSource::File(&need.graph), &need.options)
            .map_err(|error| model.with_command(error, need.device, Some(shape)))?;
    }
    Ok(())
}

/// The shape of a component's graphs for a clip; `None` if they do not depend on it.
fn shape_of(model: &Model, component: &Component, clip: &GenerationPlan) -> Option<EngineShape> {
    let batch = match component {
        Component::TextEncoder => return None,
        Component::Expert(_) if clip.is_guided() => GuidanceForm::of(clip.tokens, model.placement()).batch(),
        _ => 1,
    };
    Some(engine_shape(clip.latent, batch))
}

fn need(
    model: &Model,
    component: &Component,
    part: Part,
    device: Device,
    shape: Option<EngineShape>,
) -> Result<EngineNeed, Error> {
    let entry = model.manifest().component(component)?;
    let graph = model.graph_on(device, component, part)?;
    let options = model.open_options(device, entry, graph, shape);
    let weights = entry.weights_of(graph.variant);
    Ok(EngineNeed {
        component: component.clone(),
        part,
        device,
        shape,
        graph: model.bundle().path(&graph.file),
        options,
        weights,
        peak: peak(device.provider(), weights, entry.weight_type.into(), graph.variant.precision),
    })
}

/// The predicted peak of the memory of the machine while a graph is compiled.
///
/// OpenVINO maps the stored weights and converts them to the format that it computes in: measured for 400 MB of f32
/// weights, 1.0 times their length in f32 and 1.5 times in bf16. TensorRT holds the weights of the graph, folded
/// constants and the engine, about three times the weights; that is not measured.
fn peak(provider: Provider, weights: ByteCount, stored: Precision, computed: Precision) -> ByteCount {
    let bytes = weights.0;
    let converted = match (stored, computed) {
        _ if provider != Provider::OpenVino => bytes.saturating_mul(2),
        (stored, computed) if stored == computed => 0,
        (Precision::F32, _) => bytes / 2,
        (_, Precision::F32) => bytes.saturating_mul(2),
        _ => bytes,
    };
    ByteCount(bytes.saturating_add(converted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_width_height_and_frames() {
        for text in
            ["", "832x480", "832x480x", "x480x81", "832x480x81x2", "832*480*81", "832x480x-1", "0x0x0x"]
        {
            assert!(text.parse::<ClipShape>().is_err(), "{text}");
        }
        insta::assert_snapshot!("480p".parse::<ClipShape>().unwrap_err(), @"shape cannot be `480p`: expected width, height and number of frames (write it like 832x480x81)");
    }

    #[test]
    fn the_peak_counts_weights_that_are_converted() {
        let peak = |provider, stored, computed| peak(provider, ByteCount(1000), stored, computed).0;
        assert_eq!(peak(Provider::OpenVino, Precision::F32, Precision::F32), 1000);
        assert_eq!(peak(Provider::OpenVino, Precision::F32, Precision::Bf16), 1500);
        assert_eq!(peak(Provider::OpenVino, Precision::Bf16, Precision::Bf16), 1000);
        assert_eq!(peak(Provider::TensorRt, Precision::Bf16, Precision::Bf16), 3000);
    }
}
