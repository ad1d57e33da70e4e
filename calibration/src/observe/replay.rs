//! Replays a calibration set through observed graphs. The only part of calibration that runs graphs.

use super::points::{ObservedGraph, observe};
use super::set::{CalibrationSet, Sample};
use super::statistics::{Points, Record};
use super::table::{NOISE_BINS, Table};
use crate::Error;
use bundle::layout::component_folder;
use bundle::manifest::{Bundle, Component, Part};
use bundle::routing::Routing;
use bundle::signature::{CACHE_INPUT, CACHE_OUTPUT, ROWS_INPUT};
use bundle::units::Timestep;
use bundle::variant::{KernelLibrary, Precision, Variant};
use engines::{Cancel, Engine, OnnxRuntime, OpenOptions, Outputs, Value};
use graph::Model;
use ndarray::{Array1, ArrayD, Axis, Slice};
use std::path::PathBuf;

/// Approximate number of rows that are sampled per linear input and bin.
const ROWS: usize = 512;
/// Approximate number of elements that are sampled per other value and bin.
const ELEMENTS: usize = 1 << 15;
const PROGRESS: &str = "progress.safetensors";

/// A replay of a calibration set.
#[derive(Debug)]
pub struct Replay<'a> {
    /// The bundle that the set was recorded with. Its exported graphs are observed.
    pub bundle: &'a Bundle,
    /// The set.
    pub set: &'a CalibrationSet,
    /// ONNX Runtime.
    pub onnx: &'a OnnxRuntime,
    /// Options for opening graphs.
    pub options: OpenOptions,
}

/// Progress of a replay. One unit is one sample through one component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Finished units.
    pub done: usize,
    /// All units.
    pub total: usize,
}

impl Replay<'_> {
    /// Replays everything that was not replayed before. Progress is saved after each unit, so that an interrupted
    /// replay continues and ends with the same bits.
    ///
    /// # Errors
    /// A graph or sample cannot be used, a value is not finite, the run is cancelled, or `on_progress` returns an
    /// error.
    pub fn run(
        &self,
        cancel: &Cancel,
        on_progress: &mut dyn FnMut(Progress) -> Result<(), Error>,
    ) -> Result<Table, Error> {
        let samples = self.set.info.samples.len();
        let components = self.bundle.manifest.components.iter();
        let components: Vec<_> = components.filter(|entry| entry.component.is_quantizable()).collect();
        let total = samples * components.len();
        let (mut table, mut done) = self.resume();
        for (index, entry) in components.iter().enumerate() {
            let folder = component_folder(&entry.component);
            let Some(mut component_replay) = ComponentReplay::open(self, &entry.component)? else { continue };
            table.inputs.insert(folder, component_replay.inputs());
            for sample in 0..samples {
                let unit = index * samples + sample;
                if unit < done {
                    continue;
                }
                component_replay.replay(&self.set.read(sample)?, &mut table, cancel)?;
                done = unit + 1;
                self.save_progress(&table, done)?;
                on_progress(Progress { done, total })?;
            }
        }
        Ok(table)
    }

    fn progress_path(&self) -> PathBuf {
        self.set.folder().join(PROGRESS)
    }

    /// Reads the progress of an interrupted replay of this set. Returns an empty table if there is none or it is
    /// damaged.
    fn resume(&self) -> (Table, usize) {
        let read = std::fs::read(self.progress_path()).ok();
        let saved = read.and_then(|bytes| Table::from_bytes(&bytes).ok());
        saved.and_then(|(table, mark)| Some((table, mark?.parse().ok()?))).unwrap_or_default()
    }

    fn save_progress(&self, table: &Table, done: usize) -> Result<(), Error> {
        let path = self.progress_path();
        let bytes =
            table.to_bytes(Some(&done.to_string())).map_err(|why| Error::file_content(&path, &why))?;
        Ok(bundle::atomic::write_atomic(&path, &bytes)?)
    }
}

/// An open observed graph.
struct OpenGraph {
    engine: Engine,
    points: Vec<String>,
    observed: ObservedGraph,
}

impl OpenGraph {
    fn open(replay: &Replay<'_>, component: &Component, part: Part, records: usize) -> Result<Self, Error> {
        let entry = replay.bundle.manifest.component(component)?;
        let graph = [Precision::F32, Precision::Bf16, Precision::F16].iter().find_map(|precision| {
            entry.graph(part, Variant::cpu(*precision, KernelLibrary::OnnxRuntime)).ok()
        });
        let graph = match graph {
            Some(graph) => graph,
            None => entry.graph(part, Variant::cpu(Precision::F32, KernelLibrary::OnnxRuntime))?,
        };
        let source = replay.bundle.path(&graph.file);
        let rows = (ROWS / records.max(1)).clamp(4, 256);
        let elements = (ELEMENTS / records.max(1)).clamp(32, 4096);
        let observed = observe(Model::read(&source)?, rows, elements);
        // Written next to the source graph, whose folder contains the weights, and removed once it is open.
        let part =
            bundle::atomic::create_part(&source).map_err(bundle::Error::file("write next to", &source))?;
        observed.model.write(part.path())?;
        let engine = replay.onnx.open(part.path(), &observed.model.signature(), &replay.options);
        drop(part);
        Ok(Self { engine: engine?, points: observed.points.clone(), observed })
    }

    /// Runs the graph and adds its statistics to `points`.
    fn run(
        &mut self,
        inputs: &[(&str, &Value)],
        points: &mut Points,
        cancel: &Cancel,
    ) -> Result<Outputs, Error> {
        let mut outputs = self.engine.run(inputs, cancel)?;
        for point in &self.points {
            let mut take = |statistic: &str| -> Result<ArrayD<f32>, Error> {
                let value = outputs.take(&format!("{point}#{statistic}")).map_err(engines::Error::from)?;
                Ok(value.to_f32().map_err(engines::Error::from)?)
            };
            let [min, max, sum, square] = ["min", "max", "sum", "square"].map(&mut take);
            let (min, max, sum, square) = (min?, max?, sum?, square?);
            let (size, samples) = (take("size")?, take("samples")?);
            let slice = |array: &ArrayD<f32>| array.iter().copied().collect::<Vec<_>>();
            let record = Record {
                min: &slice(&min),
                max: &slice(&max),
                sum: &slice(&sum),
                square: &slice(&square),
                size: size.first().copied().unwrap_or_default(),
                samples: &slice(&samples),
            };
            points.entry(point.clone()).or_default().add(point, record)?;
        }
        Ok(outputs)
    }
}

/// The open graphs of a component.
enum ComponentReplay {
    Text(Component, Box<OpenGraph>),
    Expert { component: Component, graph: Box<OpenGraph>, routing: Routing },
    Decoder { first: Box<OpenGraph>, next: Box<OpenGraph> },
}

impl ComponentReplay {
    /// Opens the graphs of a component. Returns `None` if it is not quantised.
    fn open(replay: &Replay<'_>, component: &Component) -> Result<Option<Self>, Error> {
        let samples = replay.set.info.samples.len().max(1);
        let open = |part, records| OpenGraph::open(replay, component, part, records).map(Box::new);
        Ok(Some(match component {
            Component::ImageEncoder | Component::Preview => return Ok(None),
            Component::TextEncoder => Self::Text(component.clone(), open(Part::Whole, 2 * samples)?),
            Component::Expert(_) => {
                let steps = if replay.set.has(0) { replay.set.read(0)?.timesteps.len() } else { 1 };
                let graph = open(Part::Whole, 2 * samples * steps / NOISE_BINS)?;
                let routing = replay.bundle.manifest.routing.clone();
                Self::Expert { component: component.clone(), graph, routing }
            }
            Component::Decoder => {
                let frames = if replay.set.has(0) { replay.set.read(0)?.latent.len_of(Axis(1)) } else { 1 };
                Self::Decoder {
                    first: open(Part::First, samples)?,
                    next: open(Part::Next, samples * frames)?,
                }
            }
        }))
    }

    fn inputs(&self) -> std::collections::BTreeMap<String, String> {
        match self {
            Self::Text(_, graph) | Self::Expert { graph, .. } => graph.observed.inputs.clone(),
            Self::Decoder { next, .. } => next.observed.inputs.clone(),
        }
    }

    fn replay(&mut self, sample: &Sample, table: &mut Table, cancel: &Cancel) -> Result<(), Error> {
        match self {
            Self::Text(component, graph) => {
                for ids in &sample.ids {
                    let ids = Value::from_i64(ids.clone().insert_axis(Axis(0)));
                    graph.run(&[("ids", &ids)], table.bin(component, 0), cancel)?;
                }
                Ok(())
            }
            Self::Expert { component, graph, routing } => {
                replay_steps(sample, component, routing, graph, table, cancel)
            }
            Self::Decoder { first, next } => replay_decoder(sample, first, next, table, cancel),
        }
    }
}

/// Returns the noise bin of a timestep: the third of its expert's noise levels that it is in, 0 for the lowest noise.
pub fn noise_bin(routing: &Routing, timestep: Timestep) -> usize {
    let expert = routing.expert_at(timestep).0;
    let routes = routing.routes();
    let low = routes[expert].from_timestep;
    let high = if expert == 0 { 1000.0 } else { routes[expert - 1].from_timestep };
    #[expect(clippy::cast_precision_loss, reason = "a handful of bins")]
    let bins = NOISE_BINS as f32;
    let position = (timestep.0 - low) / (high - low).max(f32::MIN_POSITIVE) * bins;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "cut to the bins there are")]
    let bin = position.max(0.0) as usize;
    bin.min(NOISE_BINS - 1)
}

fn replay_steps(
    sample: &Sample,
    component: &Component,
    routing: &Routing,
    graph: &mut OpenGraph,
    table: &mut Table,
    cancel: &Cancel,
) -> Result<(), Error> {
    let (cos, sin) = (Value::from_f32(sample.cos.clone()), Value::from_f32(sample.sin.clone()));
    let rows = Value::from_i64(Array1::zeros(1));
    let texts: Vec<Value> =
        sample.text.iter().map(|text| Value::from_f32(text.clone().insert_axis(Axis(0)))).collect();
    for (timestep, latent) in sample.timesteps.iter().zip(sample.latents.outer_iter()) {
        let level = Timestep(*timestep);
        if Component::Expert(routing.name(routing.expert_at(level))?.clone()) != *component {
            continue;
        }
        let points = table.bin(component, noise_bin(routing, level));
        let latent = Value::from_f32(latent.to_owned().insert_axis(Axis(0)));
        let timestep = Value::from_f32(Array1::from_elem(1, *timestep));
        for text in &texts {
            let mut inputs = vec![
                ("latent", &latent),
                ("timestep", &timestep),
                ("text", text),
                ("cos", &cos),
                ("sin", &sin),
            ];
            inputs.extend(graph.engine.signature().takes_rows().then_some((ROWS_INPUT, &rows)));
            graph.run(&inputs, points, cancel)?;
        }
    }
    Ok(())
}

fn replay_decoder(
    sample: &Sample,
    first: &mut OpenGraph,
    next: &mut OpenGraph,
    table: &mut Table,
    cancel: &Cancel,
) -> Result<(), Error> {
    let mut caches: Vec<(String, Value)> = Vec::new();
    for index in 0..sample.latent.len_of(Axis(1)) {
        let frame = sample.latent.slice_axis(Axis(1), Slice::from(index..index + 1)).insert_axis(Axis(0));
        let frame = Value::from_f32(frame.to_owned());
        let mut inputs = vec![("latent", &frame)];
        inputs.extend(caches.iter().map(|(name, cache)| (name.as_str(), cache)));
        let (graph, bin) = if index == 0 { (&mut *first, 0) } else { (&mut *next, 1) };
        let outputs = graph.run(&inputs, table.bin(&Component::Decoder, bin), cancel)?;
        caches = outputs
            .into_iter()
            .filter_map(|(name, value)| {
                name.strip_prefix(CACHE_OUTPUT).map(|number| (format!("{CACHE_INPUT}{number}"), value))
            })
            .collect();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_levels_are_split_into_bins_per_expert() {
        let routing = Routing::pair(Timestep(875.0)).unwrap();
        let bins = |levels: [f32; 4]| levels.map(|level| noise_bin(&routing, Timestep(level)));
        assert_eq!(bins([1000.0, 960.0, 920.0, 875.0]), [2, 2, 1, 0]);
        assert_eq!(bins([874.9, 600.0, 300.0, 0.0]), [2, 2, 1, 0]);
        assert_eq!(noise_bin(&Routing::single(), Timestep(500.0)), 1);
    }
}
