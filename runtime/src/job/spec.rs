//! Everything that determines a clip, as data.

use super::fork_spec::{ForkSpec, GridSpec};
use crate::Error;
use crate::denoise::StepPolicy;
use crate::model::Model;
use crate::plan::{GenerateRequest, GenerationPlan, Length};
use bundle::digest::Digest;
use bundle::geometry::PixelSize;
use bundle::lora::AppliedLora;
use bundle::manifest::{Component, ComponentEntry, Manifest};
use bundle::routing::ExpertName;
use bundle::settings::{ScheduleKind, SolverKind};
use bundle::timesteps::{GuidanceUntil, Start, TimestepChoice, TimestepList};
use bundle::units::{FrameRate, GuidanceScale, Seed, Shift, Sigma};
use bundle::variant::Variant;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of [`JobSpec`] that is written.
pub const SPEC_VERSION: u32 = 1;

/// Everything that determines a clip: model, prompts, settings, inputs. Files are named by digest and name, never by
/// path.
///
/// Its JSON is stored in job folders and in the clips themselves.
///
/// # Examples
/// ```no_run
/// # fn spec(model: &runtime::model::Model) -> Result<(), runtime::Error> {
/// use bundle::units::Seed;
/// use runtime::job::JobSpec;
/// use runtime::plan::{GenerateRequest, GenerationPlan};
///
/// let request = GenerateRequest::new("a red ball bounces on the beach", Seed(42));
/// let plan = GenerationPlan::new(model.manifest(), &request)?;
/// let spec = JobSpec::new(&plan, model)?;
/// assert_eq!(spec.plan(model.manifest())?, plan);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// [`SPEC_VERSION`].
    pub version: u32,
    /// The model.
    pub model: ModelIdentity,
    /// The graphs that run.
    pub variant: Variant,
    /// The prompt.
    pub prompt: String,
    /// The negative prompt.
    pub negative: String,
    /// Size of a frame.
    pub size: PixelSize,
    /// Number of frames.
    pub frames: usize,
    /// Frame rate.
    pub fps: FrameRate,
    /// Number of denoising steps.
    pub steps: usize,
    /// Solver.
    pub sampler: SolverKind,
    /// Sigma grid; not used while there is a list of timesteps.
    pub schedule: ScheduleKind,
    /// Shift of the grid; not used while there is a list of timesteps.
    pub shift: Shift,
    /// The list of timesteps, in place of the grid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timesteps: Option<TimestepList>,
    /// The latent that sampling begins with.
    #[serde(default, skip_serializing_if = "Start::is_noise")]
    pub start: Start,
    /// Guidance scale of each expert, starting with the one for the highest noise.
    pub guidance: Vec<GuidanceScale>,
    /// The lowest noise level that is guided; 0 for all.
    #[serde(default = "all_levels", skip_serializing_if = "is_all_levels")]
    pub guidance_until: Sigma,
    /// What steps compute.
    #[serde(default, skip_serializing_if = "StepPolicy::is_compute_all")]
    pub step_cache: StepPolicy,
    /// Seed of the noise.
    pub seed: Seed,
    /// Factor on the noise.
    pub noise_scale: f32,
    /// The LoRAs that are applied to the model without being merged, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<LoraSpec>,
    /// The file that the noise was read from, instead of the seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise: Option<InputFile>,
    /// Changes after some of the steps, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forks: Vec<ForkSpec>,
    /// The clip ends with the clean latent that this step predicted, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_after: Option<usize>,
    /// Settings of the program that made the clip, such as post-processing, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extras: BTreeMap<String, Extra>,
}

fn all_levels() -> Sigma {
    Sigma(0.0)
}

fn is_all_levels(sigma: &Sigma) -> bool {
    *sigma == all_levels()
}

/// A model by name and content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelIdentity {
    /// Name of the model.
    pub name: String,
    /// Digest of everything of the bundle that a clip of the variant is computed from: BLAKE3, 64 hexadecimal digits.
    pub digest: String,
}

/// A file that a clip was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputFile {
    /// The name of the file, without its folder.
    pub name: String,
    /// BLAKE3 of its content, 64 hexadecimal digits.
    pub digest: String,
}

/// A LoRA that is applied to an expert without being merged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraSpec {
    /// The file.
    pub file: InputFile,
    /// The expert.
    pub expert: ExpertName,
    /// Factor on its changes.
    pub strength: f32,
}

impl LoraSpec {
    /// The LoRAs that the graphs of a bundle apply, by expert.
    pub fn of(manifest: &Manifest) -> Vec<Self> {
        let of_entry = |entry: &ComponentEntry| {
            let Component::Expert(expert) = &entry.component else { return Vec::new() };
            let branches = entry.loras.iter().filter(|lora| lora.is_branch);
            let spec = |lora: &AppliedLora| Self {
                file: InputFile { name: lora.name.clone(), digest: lora.digest.clone() },
                expert: expert.clone(),
                strength: lora.strength,
            };
            branches.map(spec).collect()
        };
        manifest.components.iter().flat_map(of_entry).collect()
    }
}

/// A setting of the program that made the clip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Extra {
    /// A text.
    Value(String),
    /// A file, with a text that says how it is used.
    File {
        /// The file.
        file: InputFile,
        /// How it is used; may be empty.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        with: String,
    },
}

impl JobSpec {
    /// The spec of a plan, for a model.
    ///
    /// # Errors
    /// The bundle lacks a component.
    pub fn new(plan: &GenerationPlan, model: &Model) -> Result<Self, Error> {
        Ok(Self {
            version: SPEC_VERSION,
            model: ModelIdentity::of(model)?,
            variant: model.effective_variant(),
            prompt: plan.prompt.clone(),
            negative: plan.negative.clone(),
            size: plan.size,
            frames: plan.frames.get(),
            fps: plan.rate,
            steps: plan.schedule.steps(),
            sampler: plan.solver,
            schedule: plan.schedule_kind,
            shift: plan.shift,
            timesteps: plan.timesteps.clone(),
            start: plan.start,
            guidance: plan.guidance.clone(),
            guidance_until: plan.guidance_until,
            step_cache: plan.step_cache,
            seed: plan.seed,
            noise_scale: plan.noise_scale,
            loras: LoraSpec::of(model.manifest()),
            noise: None,
            forks: Vec::new(),
            stop_after: None,
            extras: BTreeMap::new(),
        })
    }

    /// Reads a spec from JSON.
    ///
    /// # Errors
    /// The text is not a spec, or one of another version.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let wrong = |why: String| Error::Spec { why };
        let Version { version } = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
        if version != SPEC_VERSION {
            return Err(wrong(format!("its version is {version}, and this program reads {SPEC_VERSION}")));
        }
        serde_json::from_str(text).map_err(|error| wrong(error.to_string()))
    }

    /// The request that leads to this spec.
    pub fn request(&self) -> GenerateRequest {
        GenerateRequest {
            prompt: self.prompt.clone(),
            negative: Some(self.negative.clone()),
            size: Some(self.size),
            length: Some(Length::Frames(self.frames)),
            fps: Some(self.fps),
            steps: Some(self.steps),
            guidance: Some(self.guidance.clone()),
            // A list replaces them.
            shift: self.timesteps.is_none().then_some(self.shift.0),
            sampler: Some(self.sampler),
            schedule: self.timesteps.is_none().then_some(self.schedule),
            timesteps: Some(self.timesteps.clone().map_or(TimestepChoice::Grid, TimestepChoice::List)),
            start: Some(self.start),
            guidance_until: Some(GuidanceUntil::Sigma(self.guidance_until)),
            step_cache: Some(self.step_cache),
            seed: self.seed,
            noise_scale: self.noise_scale,
        }
    }

    /// Checks every value against a bundle.
    ///
    /// # Errors
    /// The first value that is out of range.
    pub fn plan(&self, manifest: &Manifest) -> Result<GenerationPlan, Error> {
        GenerationPlan::new(manifest, &self.request())
    }

    /// The digest of the settings: of the JSON of this spec without its extras, which do not affect the latents.
    pub fn digest(&self) -> String {
        let plain = Self { extras: BTreeMap::new(), stop_after: None, ..self.clone() };
        let json = serde_json::to_vec(&plain).unwrap_or_else(|_| unreachable!("keys are strings"));
        Digest::of_parts([&json[..]]).blake3
    }

    /// The grid that the clip begins with.
    pub fn grid(&self) -> GridSpec {
        GridSpec {
            sampler: self.sampler,
            schedule: self.schedule,
            steps: self.steps,
            shift: self.shift,
            timesteps: self.timesteps.clone(),
        }
    }

    /// The prompts that apply once `done` steps are made.
    pub fn prompts_after(&self, done: usize) -> (&str, &str) {
        self.prompts_of_forks(self.forks.iter().take_while(|fork| fork.after <= done).count())
    }

    /// The prompts that apply after the first `count` forks.
    pub(super) fn prompts_of_forks(&self, count: usize) -> (&str, &str) {
        let mut prompts = (&*self.prompt, &*self.negative);
        for fork in self.forks.iter().take(count) {
            prompts.0 = fork.prompt.as_deref().unwrap_or(prompts.0);
            prompts.1 = fork.negative.as_deref().unwrap_or(prompts.1);
        }
        prompts
    }
}

impl ModelIdentity {
    /// The identity of the variant that runs: name of the model, and a digest over the routing table and the digests of
    /// the files of every component that a clip needs.
    ///
    /// # Errors
    /// The bundle lacks a component or a graph.
    pub fn of(model: &Model) -> Result<Self, Error> {
        let manifest = model.manifest();
        let experts = manifest.routing.routes().iter().map(|route| Component::Expert(route.expert.clone()));
        let components = [Component::TextEncoder, Component::Decoder].into_iter().chain(experts);
        let routes =
            serde_json::to_string(&manifest.routing).unwrap_or_else(|_| unreachable!("a list of routes"));
        let mut parts: Vec<String> = vec![manifest.model.clone(), routes];
        let mut files: Vec<&str> = vec!["tokenizer.json"];
        for component in components {
            let entry = manifest.component(&component)?;
            parts.extend([component.to_string(), entry.digest.blake3.clone()]);
            // The devices of a pair may run different graphs.
            let devices = model.placement().devices_of(&component);
            let mut variants =
                devices.map(|device| model.variant_on(device, &component)).collect::<Result<Vec<_>, _>>()?;
            variants.dedup();
            for variant in variants {
                files.extend(
                    entry.graphs.iter().filter(|graph| graph.variant == variant).map(|graph| &*graph.file),
                );
                let quantised = entry.variant(variant);
                let weights = quantised.map_or(&entry.weights, |quantised| &quantised.weights);
                files.extend(weights.iter().map(|weights| &*weights.file));
            }
        }
        for file in files {
            let digest = manifest.digests.get(file).map_or("", |digest| &*digest.sampled);
            parts.extend([file.to_owned(), digest.to_owned()]);
        }
        let digest = Digest::of_parts(parts.iter().map(|part| part.as_bytes())).blake3;
        Ok(Self { name: manifest.model.clone(), digest })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::fork_spec::VariationSpec;
    use super::*;
    use bundle::variant::{KernelLibrary, Precision};
    use proptest::prelude::*;

    /// A spec with every field.
    pub(crate) fn spec() -> JobSpec {
        let file = InputFile { name: "logo.png".into(), digest: "ab".repeat(32) };
        JobSpec {
            version: SPEC_VERSION,
            model: ModelIdentity { name: "mini".into(), digest: "01".repeat(32) },
            variant: Variant::cpu(Precision::F32, KernelLibrary::OnnxRuntime),
            prompt: "a \"red\" ball 猫".into(),
            negative: String::new(),
            size: PixelSize { width: 160, height: 96 },
            frames: 17,
            fps: FrameRate::WAN,
            steps: 8,
            sampler: SolverKind::UniPc,
            schedule: ScheduleKind::Official,
            shift: Shift(3.1),
            timesteps: Some("1000,900.5".parse().unwrap()),
            start: Start::ScaledNoise,
            guidance: vec![GuidanceScale(4.0), GuidanceScale(3.0)],
            guidance_until: Sigma(0.35),
            step_cache: StepPolicy::EasyCache { threshold: 0.07 },
            seed: Seed(u64::MAX),
            noise_scale: 0.85,
            loras: vec![LoraSpec { file: file.clone(), expert: ExpertName("only".into()), strength: 0.8 }],
            noise: Some(file.clone()),
            forks: vec![ForkSpec {
                after: 3,
                prompt: Some("a blue ball".into()),
                negative: None,
                guidance: Some(vec![GuidanceScale(1.0), GuidanceScale(2.0)]),
                grid: Some(GridSpec {
                    sampler: SolverKind::Euler,
                    schedule: ScheduleKind::Diffusers,
                    steps: 4,
                    shift: Shift(5.0),
                    timesteps: None,
                }),
                guidance_until: Some(Sigma(0.6)),
                step_cache: Some(StepPolicy::ComputeAll),
                variation: Some(VariationSpec { strength: 0.25, seed: Seed(9) }),
            }],
            stop_after: Some(6),
            extras: [
                ("logo".to_owned(), Extra::File { file, with: "top-left".into() }),
                ("caption".to_owned(), Extra::Value("hello".into())),
            ]
            .into(),
        }
    }

    #[test]
    fn a_spec_survives_json() {
        let json = serde_json::to_string(&spec()).unwrap();
        assert_eq!(JobSpec::from_json(&json).unwrap(), spec());
    }

    #[test]
    fn other_versions_and_unknown_fields_are_refused() {
        let json = serde_json::to_value(spec()).unwrap();
        let with = |key: &str, value: serde_json::Value| {
            let mut json = json.clone();
            json[key] = value;
            JobSpec::from_json(&json.to_string()).map_err(|error| error.to_string())
        };
        assert!(with("version", 2.into()).unwrap_err().contains("version is 2"));
        assert!(with("prompts", "x".into()).unwrap_err().contains("prompts"));
        assert!(with("steps", (-1).into()).is_err());
        // An infinite number could not be written again.
        assert!(with("guidance", serde_json::json!([1e39])).unwrap_err().contains("out of range"));
        assert!(JobSpec::from_json("").is_err());
    }

    #[test]
    fn extras_and_the_end_do_not_change_the_digest_and_settings_do() {
        let digest = spec().digest();
        assert_eq!(JobSpec { extras: BTreeMap::new(), stop_after: None, ..spec() }.digest(), digest);
        assert_ne!(JobSpec { seed: Seed(1), ..spec() }.digest(), digest);
        assert_ne!(JobSpec { timesteps: None, ..spec() }.digest(), digest);
        assert_ne!(JobSpec { start: Start::Noise, ..spec() }.digest(), digest);
        assert_ne!(JobSpec { guidance_until: Sigma(0.0), ..spec() }.digest(), digest);
        assert_ne!(JobSpec { step_cache: StepPolicy::ComputeAll, ..spec() }.digest(), digest);
        assert_ne!(JobSpec { forks: Vec::new(), ..spec() }.digest(), digest);
    }

    #[test]
    fn a_fork_names_its_changes() {
        insta::assert_snapshot!(spec().forks[0], @"after step 3: another prompt; guidance 1, 2; guidance until sigma 0.6; the rest of 4 steps of euler (diffusers, shift 5); step cache off; 0.25 of fresh noise from seed 9");
    }

    #[test]
    fn the_prompts_of_a_fork_apply_from_its_step_on() {
        assert_eq!(spec().prompts_after(2).0, spec().prompt);
        assert_eq!(spec().prompts_after(3).0, "a blue ball");
    }

    proptest! {
        #[test]
        fn numbers_keep_their_bits(shift in 0.01_f64..100.0, scale in -50.0_f32..50.0, noise in 0.001_f32..10.0) {
            let spec =
                JobSpec { shift: Shift(shift), guidance: vec![GuidanceScale(scale)], noise_scale: noise, ..spec() };
            let json = serde_json::to_string(&spec).unwrap();
            prop_assert_eq!(JobSpec::from_json(&json).unwrap(), spec);
        }
    }
}
