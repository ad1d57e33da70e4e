//! Times what a job does between two evaluations of the denoiser, on the latent of 81 frames of 1280x720.
//!
//! `advance` and `by-hand` are the same arithmetic: `Denoising::advance`, and guidance and a step of the sampler without
//! any state around them.

use bundle::routing::Routing;
use bundle::settings::{ScheduleKind, SolverKind};
use bundle::units::{GuidanceScale, Seed, Shift, Sigma};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ndarray::Array4;
use runtime::denoise::{DenoiseSettings, Denoising, GuidanceForm, StepOutputs, StepPolicy};
use runtime::job::{LatentDigest, RunConditions, SnapshotIdentity, StoredSnapshot};
use runtime::sampler::{NoiseStream, RandomPosition, Sampler, Schedule, guide, torch_normal};
use std::hint::black_box;
use std::sync::Arc;

/// Shape of the latent, `[C,T,h,w]`.
const LATENT: [usize; 4] = [16, 21, 90, 160];
/// Steps before the timed one, so that the history of every solver is full.
const BEFORE: usize = 5;
/// Steps of the clip.
const STEPS: usize = 20;
const GUIDANCE: GuidanceScale = GuidanceScale(4.0);

/// A clip in the middle of its steps.
struct Middle {
    denoising: Denoising,
    /// The same state without a [`Denoising`].
    sampler: Sampler,
    latent: Arc<Array4<f32>>,
    /// The velocities of the next step.
    outputs: StepOutputs,
    /// The noise that the solver may add.
    noise: NoiseStream,
}

impl Middle {
    fn new(solver: SolverKind) -> Self {
        let noise = |seed| {
            let values = torch_normal(Seed(seed), LATENT.iter().product());
            Array4::from_shape_vec(LATENT, values).expect("one value for each element")
        };
        let outputs = StepOutputs { conditional: noise(2), unconditional: Some(noise(3)) };
        let schedule = Schedule::new(solver, ScheduleKind::Official, STEPS, Shift(5.0));
        let settings = DenoiseSettings {
            routing: Routing::single(),
            guidance: vec![GUIDANCE],
            guidance_until: Sigma(0.0),
            schedule: schedule.clone(),
            solver,
            policy: StepPolicy::ComputeAll,
        };
        let mut denoising = Denoising::new(settings, noise(1), Seed(1)).expect("one guidance scale");
        let (mut sampler, mut latent) = (Sampler::new(schedule, solver), Arc::clone(denoising.latent()));
        let drawn = LATENT.iter().product::<usize>() as u64;
        let mut stream = NoiseStream::at(RandomPosition { seed: Seed(1), drawn });
        for _ in 0..BEFORE {
            denoising.advance(outputs.clone()).expect("a step");
            latent = by_hand((&mut sampler, &mut stream), &latent, outputs.clone());
        }
        assert_eq!(denoising.latent(), &latent, "the same arithmetic");
        Self { denoising, sampler, latent, outputs, noise: stream }
    }

    /// A snapshot with its settings, as it is written after a step.
    fn stored(&self) -> StoredSnapshot {
        let digest = "0123456789abcdef".repeat(4);
        StoredSnapshot {
            forks_applied: 0,
            earlier: Vec::new(),
            snapshot: self.denoising.snapshot(),
            identity: SnapshotIdentity { bundle: digest.clone(), text: digest.clone(), settings: digest },
            conditions: RunConditions {
                program: "0.1.0".into(),
                devices: "cpu".into(),
                onnx_runtime: "1.31.1".into(),
                accelerators: Vec::new(),
                processor: "none".into(),
                cpu_path: "scalar".into(),
                threads: 1,
                mapped_weights: false,
                guidance: GuidanceForm::TwoCalls,
                tile: None,
            },
            latents: vec![LatentDigest::of(&self.latent); BEFORE],
        }
    }
}

/// Guidance and a step of the sampler.
fn by_hand(
    (sampler, noise): (&mut Sampler, &mut NoiseStream),
    latent: &Arc<Array4<f32>>,
    outputs: StepOutputs,
) -> Arc<Array4<f32>> {
    let unconditional = outputs.unconditional.expect("a guided step");
    sampler.step(latent, &guide(&unconditional, &outputs.conditional, GUIDANCE), noise).expect("a step")
}

fn advance(criterion: &mut Criterion) {
    for solver in SolverKind::ALL {
        let middle = Middle::new(solver);
        let mut group = criterion.benchmark_group(format!("denoising/{solver}"));
        group.throughput(Throughput::Elements(LATENT.iter().product::<usize>() as u64)).sample_size(20);
        group.bench_function("advance", |bencher| {
            let setup = || (middle.denoising.clone(), middle.outputs.clone());
            let step = |(mut denoising, outputs): (Denoising, StepOutputs)| {
                denoising.advance(outputs).expect("a step");
                denoising
            };
            bencher.iter_batched(setup, step, BatchSize::PerIteration);
        });
        group.bench_function("by-hand", |bencher| {
            let setup = || (middle.sampler.clone(), middle.noise.clone(), middle.outputs.clone());
            let step = |(mut sampler, mut noise, outputs): (Sampler, NoiseStream, StepOutputs)| {
                let latent = by_hand((&mut sampler, &mut noise), &middle.latent, outputs);
                (sampler, latent)
            };
            bencher.iter_batched(setup, step, BatchSize::PerIteration);
        });
        group.finish();
    }
}

fn storing(criterion: &mut Criterion) {
    let middle = Middle::new(SolverKind::UniPc);
    let stored = middle.stored();
    let mut group = criterion.benchmark_group("denoising/storing");
    group.sample_size(20);
    group.bench_function("snapshot", |bencher| bencher.iter(|| black_box(middle.denoising.snapshot())));
    group.bench_function("digest-of-latent", |bencher| {
        bencher.iter(|| LatentDigest::of(black_box(&middle.latent)));
    });
    group.bench_function("snapshot-to-bytes", |bencher| {
        bencher.iter_with_large_drop(|| black_box(&stored).to_bytes());
    });
    group.finish();
}

criterion_group!(benches, advance, storing);
criterion_main!(benches);
