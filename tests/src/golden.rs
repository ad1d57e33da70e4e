//! The golden cases: tiny checkpoints and the results of diffusers (`tests/golden/README.md`).

use bundle::dtype::WeightType;
use bundle::geometry::PixelSize;
use bundle::manifest::Bundle;
use bundle::settings::{ScheduleKind, SolverKind};
use bundle::timesteps::{Start, TimestepChoice, TimestepList};
use bundle::units::{GuidanceScale, Seed};
use bundle::variant::Target;
use engines::OnnxRuntime;
use export::ExportRequest;
use ndarray::{Array2, Array4, ArrayD, Axis, concatenate};
use runtime::job::{Job, JobEvent, JobStart};
use runtime::model::{Model, ModelOptions};
use runtime::pipeline::Pipeline;
use runtime::plan::{GenerateRequest, GenerationPlan, Length};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The settings of a case, from `case.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Case {
    /// The name of the case and of its folder.
    pub name: String,
    /// Prompt.
    pub prompt: String,
    /// Negative prompt.
    pub negative: String,
    /// Width of the clip in pixels.
    pub width: usize,
    /// Height of the clip in pixels.
    pub height: usize,
    /// Number of frames.
    pub frames: usize,
    /// Number of denoising steps.
    pub steps: usize,
    /// Guidance scales for high and for low noise.
    pub guidance: Vec<f32>,
    /// Shift of the sigma schedule.
    pub shift: f64,
    /// Sampler.
    pub sampler: SolverKind,
    /// Sigma schedule.
    pub schedule: ScheduleKind,
    /// List of timesteps, in place of steps, shift and schedule.
    #[serde(default)]
    pub timesteps: Option<TimestepList>,
    /// The latent that sampling begins with.
    #[serde(default)]
    pub start: Start,
    /// Seed of the noise.
    pub seed: u64,
    /// Number of experts.
    pub experts: usize,
    /// The folder of the expert of each step.
    pub experts_by_step: Vec<String>,
    /// The path of the checkpoint from the root of the repository, if it is not in the folder of the case.
    #[serde(default, rename = "checkpoint")]
    shipped_checkpoint: Option<PathBuf>,
}

/// The folder of all golden data.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// The folder of the tiny decoders, which has a reference but is not a case.
const TINY_DECODERS: &str = "tiny-decoder";

/// Every case, sorted by name: each folder with a reference, except that of the tiny decoders.
///
/// # Panics
/// Panics if a case cannot be read.
pub fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = std::fs::read_dir(folder())
        .expect("tests/golden exists")
        .map(|entry| entry.expect("a readable entry").path())
        .filter(|path| path.join("reference.safetensors").exists() && !path.ends_with(TINY_DECODERS))
        .map(|path| read_case(&path))
        .collect();
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    cases
}

fn read_case(folder: &Path) -> Case {
    let path = folder.join("case.json");
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let case: Case =
        serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(folder.ends_with(&case.name), "{} is the case {}", path.display(), case.name);
    case
}

/// The case with this name.
///
/// # Panics
/// Panics if there is none.
pub fn case(name: &str) -> Case {
    cases().into_iter().find(|case| case.name == name).expect("a case of that name")
}

impl Case {
    /// The folder of its checkpoint.
    pub fn checkpoint(&self) -> PathBuf {
        match &self.shipped_checkpoint {
            Some(path) => Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path),
            None => folder().join(&self.name).join("checkpoint"),
        }
    }

    /// The results of diffusers.
    pub fn reference(&self) -> Tensors {
        Tensors::read(&folder().join(&self.name).join("reference.safetensors"))
    }

    /// A request with the settings of the case.
    pub fn request(&self) -> GenerateRequest {
        let scales = self.guidance.iter().take(self.experts).copied().map(GuidanceScale).collect();
        GenerateRequest {
            negative: Some(self.negative.clone()),
            size: Some(PixelSize { width: self.width, height: self.height }),
            length: Some(Length::Frames(self.frames)),
            steps: Some(self.steps),
            guidance: Some(scales),
            shift: self.timesteps.is_none().then_some(self.shift),
            sampler: Some(self.sampler),
            schedule: self.timesteps.is_none().then_some(self.schedule),
            timesteps: self.timesteps.clone().map(TimestepChoice::List),
            start: Some(self.start),
            ..GenerateRequest::new(self.prompt.clone(), Seed(self.seed))
        }
    }
}

/// The f32 tensors of a safetensors file.
#[derive(Debug, Clone)]
pub struct Tensors(BTreeMap<String, ArrayD<f32>>);

impl Tensors {
    /// Reads all f32 tensors.
    ///
    /// # Panics
    /// Panics if the file cannot be read.
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).expect("a readable safetensors file");
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let tensors = file.tensors().into_iter().filter(|(_, view)| view.dtype() == Dtype::F32);
        Self(
            tensors
                .map(|(name, view)| {
                    let values = view
                        .data()
                        .chunks_exact(4)
                        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                        .collect();
                    (
                        name,
                        ArrayD::from_shape_vec(view.shape(), values)
                            .expect("as many values as the shape needs"),
                    )
                })
                .collect(),
        )
    }

    /// The tensor with this name, if there is one.
    pub fn get(&self, name: &str) -> Option<&ArrayD<f32>> {
        self.0.get(name)
    }

    /// The tensor with this name.
    ///
    /// # Panics
    /// Panics if there is none.
    pub fn expect(&self, name: &str) -> &ArrayD<f32> {
        self.get(name).unwrap_or_else(|| panic!("no tensor `{name}` among {:?}", self.0.keys()))
    }

    /// The tensor with this name, which has four axes.
    ///
    /// # Panics
    /// Panics if there is none, or if it has another number of axes.
    pub fn latent(&self, name: &str) -> Array4<f32> {
        self.expect(name).clone().into_dimensionality().expect("four axes")
    }
}

/// A bundle in a temporary folder.
#[derive(Debug)]
pub struct Exported {
    /// The opened model.
    pub model: Model,
    /// The folder, which is removed on drop.
    pub folder: TempDir,
}

/// Exports a checkpoint for the CPU and opens it.
///
/// # Errors
/// Returns an error if the export fails, or if the bundle cannot be opened.
///
/// # Panics
/// Panics if there is no temporary folder.
pub fn export(checkpoint: &Path) -> Result<Exported, rushes::Error> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("bundle");
    export::export(&ExportRequest::new(checkpoint, &out), &mut |_| ())?;
    let model = Model::new(Bundle::open(&out)?, OnnxRuntime::load(None)?, ModelOptions::default())?;
    Ok(Exported { model, folder })
}

/// Exports a case for every target, into a temporary folder.
///
/// # Panics
/// Panics if the export fails.
pub fn export_for_all_targets(name: &str, weights: WeightType) -> (TempDir, Bundle) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("bundle");
    let request = ExportRequest {
        targets: Target::ALL.to_vec(),
        weights: Some(weights),
        ..ExportRequest::new(&case(name).checkpoint(), &out)
    };
    export::export(&request, &mut |_| ()).expect("an export");
    let bundle = Bundle::open(&out).expect("a bundle");
    (folder, bundle)
}

/// The results of a run.
#[derive(Debug, Default)]
pub struct Computed {
    /// Text states of the prompt, `[512,D]`.
    pub prompt: Array2<f32>,
    /// Text states of the negative prompt, `[512,D]`, if guidance needs them.
    pub negative: Option<Array2<f32>>,
    /// The latent after each step.
    pub latents: Vec<Array4<f32>>,
    /// The expert of each step.
    pub experts: Vec<String>,
    /// Frames, `[F,H,W,3]` in 0..1.
    pub frames: Array4<f32>,
}

/// Runs a case on the given noise.
///
/// # Errors
/// Returns an error if the pipeline fails.
pub fn compute(model: &Model, case: &Case, noise: Array4<f32>) -> Result<Computed, runtime::Error> {
    let plan = GenerationPlan::new(model.manifest(), &case.request())?;
    let mut computed = Computed::default();
    let mut chunks = Vec::new();
    let mut pipeline = Pipeline::new(model);
    let (mut job, _) = Job::new(&pipeline, JobStart::new(&pipeline, plan, noise)?);
    job.run(&mut pipeline, &mut |event| {
        match event {
            JobEvent::Encoded(text) => {
                computed.prompt = text.prompt.rows().clone();
                computed.negative = text.negative.map(|states| states.rows().clone());
            }
            JobEvent::Step { done, .. } => {
                computed.latents.push((*done.latent).clone());
                computed.experts.push(done.expert.0.clone());
            }
            JobEvent::Frames(frames) => chunks.push(runtime::decode::pictures(frames.view())),
            _ => {}
        }
        Ok(())
    })?;
    let views: Vec<_> = chunks.iter().map(|chunk| chunk.view()).collect();
    computed.frames = concatenate(Axis(0), &views).unwrap_or_default();
    Ok(computed)
}
