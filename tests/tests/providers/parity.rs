//! What a provider computes, compared with the results of diffusers and of the CPU.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use crate::bundles::Exported;
use bundle::dtype::WeightType;
use bundle::manifest::Component;
use bundle::units::Seed;
use engines::{Device, OnnxRuntime, OpenOptions, Placement, Provider, WeightMemory};
use ndarray::{Array2, Array4, Axis, aview1};
use quality::quantize::metrics::psnr;
use runtime::job::{Job, JobEvent, JobStart};
use runtime::model::Model;
use runtime::pipeline::{Pipeline, seeded_noise};
use runtime::plan::{GenerateRequest, GenerationPlan};
use std::collections::BTreeSet;
use tests::compare::{largest_difference, relative_difference};
use tests::golden::{Case, Computed, case, compute};
use tests::sparse::{self, Layout};
use tests::two_blocks;

/// The prompt of the clips of mini.
pub(crate) const PROMPT: &str = "A red ball bounces on the beach";
/// The bound of every difference from the results of diffusers, in f32.
pub(crate) const BOUND: f64 = 5e-3;

/// The largest difference of each kind from the results of diffusers.
#[derive(Debug)]
struct Differences {
    text: f64,
    latents: f64,
    frames: f64,
}

impl Differences {
    fn of(computed: &Computed, case: &Case) -> Self {
        let reference = case.reference();
        let text = |found: &Array2<f32>, name: &str| {
            largest_difference(found.view().into_dyn(), reference.expect(name).view())
        };
        let negative = computed.negative.as_ref().map_or(0.0, |found| text(found, "negative_prompt_embeds"));
        let latents = computed.latents.iter().enumerate().map(|(step, latent)| {
            relative_difference(latent.view(), reference.latent(&format!("latents.{step:03}")).view())
        });
        Self {
            text: text(&computed.prompt, "prompt_embeds").max(negative),
            latents: latents.fold(0.0, f64::max),
            frames: largest_difference(computed.frames.view(), reference.latent("frames").view()),
        }
    }

    fn hold(&self) -> bool {
        [self.text, self.latents, self.frames].iter().all(|difference| *difference <= BOUND)
    }
}

/// Checks that a case in f32 on a device equals the results of diffusers, with every float on the device.
pub(crate) fn equals_diffusers(runtime: &OnnxRuntime, device: Device, case: &Case) {
    let exported = Exported::for_device(case, WeightType::F32, device);
    let model = exported.model(runtime.clone(), device, "");
    let computed = compute(&model, case, case.reference().latent("noise")).unwrap();
    assert_eq!(computed.latents.len(), case.steps);
    let differences = Differences::of(&computed, case);
    println!("{} on {device}: {differences:?}", case.name);
    assert!(differences.hold(), "{}: {differences:?}", case.name);
    runs_alone(&model, device);
}

/// Checks that every graph of a clip ran on a device, and that no node on the CPU computed floats.
pub(crate) fn runs_alone(model: &Model, device: Device) {
    let placed = model.placed_graphs();
    let components: BTreeSet<String> = placed.iter().map(|graph| graph.component.to_string()).collect();
    let expected = model.manifest().components.iter().map(|entry| &entry.component);
    let expected = expected.filter(|component| **component != Component::Preview);
    assert_eq!(components, expected.map(ToString::to_string).collect());
    let name = device.provider().onnx_name();
    for graph in placed {
        assert_eq!(graph.device, device);
        assert!(graph.nodes.others_on_cpu.is_empty(), "{graph:?}");
        // CUDA leaves the arithmetic of shapes to the CPU.
        assert!(device.provider() == Provider::Cuda || !graph.nodes.has_cpu_nodes(), "{graph:?}");
        assert!(graph.nodes.nodes[name] > 0, "{graph:?}");
    }
}

/// Checks that two blocks of A14B in f32 compute on a device what they compute on the CPU.
pub(crate) fn two_blocks_equal_those_of_the_cpu(runtime: &OnnxRuntime, device: Device) {
    let folder = tempfile::tempdir().unwrap();
    if !sparse::has_holes(folder.path()) {
        eprintln!("skipped: temporary files cannot have holes");
        return;
    }
    let bundle = two_blocks::exported(folder.path(), Layout::Official, device.target());
    let cpu = OpenOptions::cpu(None, WeightMemory::Mapped);
    let options = OpenOptions { device, ..cpu };
    let velocities =
        |options: &OpenOptions| two_blocks::velocities(&bundle, options.device.target(), runtime, options);
    for (found, expected) in velocities(&options).iter().zip(&velocities(&cpu)) {
        let difference = relative_difference(aview1(found).into_dyn(), aview1(expected).into_dyn());
        println!("two blocks on {device}: {difference:.1e}");
        assert!(difference <= BOUND, "{difference}");
    }
}

/// The frames `[F,H,W,3]` of a clip of mini with its own settings and a seed.
pub(crate) fn clip_of_mini(model: &Model, seed: u64) -> Array4<f32> {
    let request = GenerateRequest::new(PROMPT, Seed(seed));
    let plan = GenerationPlan::new(model.manifest(), &request).unwrap();
    let noise = seeded_noise(&plan);
    let mut pipeline = Pipeline::new(model);
    let (mut job, _) = Job::new(&pipeline, JobStart::new(&pipeline, plan, noise).unwrap());
    let mut chunks = Vec::new();
    job.run(&mut pipeline, &mut |event| {
        if let JobEvent::Frames(frames) = event {
            chunks.push(runtime::decode::pictures(frames.view()));
        }
        Ok(())
    })
    .unwrap();
    let nodes = job.report(None).nodes;
    assert_eq!(nodes.is_empty(), *model.placement() == Placement::on(Device::CPU), "{nodes:?}");
    let views: Vec<_> = chunks.iter().map(|chunk| chunk.view()).collect();
    ndarray::concatenate(Axis(0), &views).unwrap()
}

/// Checks that clips of mini on a device, in f32 and bf16, are the clip of the CPU in f32.
pub(crate) fn clips_of_mini_are_those_of_the_cpu(runtime: &OnnxRuntime, device: Device) {
    let mini = case("mini");
    let f32 = Exported::for_device(&mini, WeightType::F32, device);
    let expected = clip_of_mini(&f32.model(runtime.clone(), Device::CPU, ""), 1);
    let bf16 = Exported::for_device(&mini, WeightType::Bf16, device);
    for (exported, decibels) in [(f32, 40.0), (bf16, 35.0)] {
        let model = exported.model(runtime.clone(), device, "");
        let clip = clip_of_mini(&model, 1);
        assert_eq!(clip.shape(), expected.shape());
        let found = psnr(clip.view(), expected.view());
        println!("mini on {device} in {}: {found:.1} dB to the CPU's f32", model.variant().precision);
        assert!(found >= decibels, "{}: {found:.1} dB", model.variant().precision);
        runs_alone(&model, device);
    }
}
