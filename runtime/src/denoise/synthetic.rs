//! A model that tests can compute: velocities that depend on latent, timestep, expert and pass.

use super::denoising::{DenoiseSettings, Denoising, StepOutputs};
use super::policy::StepPolicy;
use crate::sampler::{Schedule, torch_normal};
use bundle::routing::Routing;
use bundle::settings::{ScheduleKind, SolverKind};
use bundle::units::{GuidanceScale, Seed, Shift, Sigma, Timestep};
use ndarray::Array4;

/// Shape of the latents.
pub(crate) const SHAPE: (usize, usize, usize, usize) = (2, 3, 2, 2);

/// A clip of two experts. `guidance` is 0 for none, 1 for both experts, 2 for the low-noise expert alone.
pub(crate) fn denoising(
    solver: SolverKind,
    kind: ScheduleKind,
    steps: usize,
    guidance: usize,
    boundary: u16,
    seed: u64,
) -> Denoising {
    let scales = [[1.0, 1.0], [4.0, 3.0], [1.0, 3.0]][guidance].map(GuidanceScale);
    let settings = DenoiseSettings {
        routing: Routing::pair(Timestep(f32::from(boundary))).unwrap(),
        guidance: scales.to_vec(),
        guidance_until: Sigma(0.0),
        schedule: Schedule::new(solver, kind, steps, Shift(5.0)),
        solver,
        policy: StepPolicy::ComputeAll,
    };
    Denoising::new(settings, noise(Seed(seed)), Seed(seed)).unwrap()
}

/// Noise of [`SHAPE`].
pub(crate) fn noise(seed: Seed) -> Array4<f32> {
    Array4::from_shape_vec(SHAPE, torch_normal(seed, SHAPE.0 * SHAPE.1 * SHAPE.2 * SHAPE.3)).unwrap()
}

/// Makes one step.
pub(crate) fn step(denoising: &mut Denoising) {
    let request = denoising.next().unwrap();
    if request.passes.is_reused() {
        denoising.reuse().unwrap();
        return;
    }
    #[expect(clippy::cast_precision_loss, reason = "two experts")]
    let expert = request.expert.0 as f32;
    let velocity = |pass: f32| {
        denoising.latent().mapv(|x| (2.0 * x + pass).sin() + request.timestep.0 / 1000.0 * x + expert)
    };
    let unconditional = request.is_guided.then(|| velocity(0.5));
    let conditional = velocity(0.0);
    denoising.advance(StepOutputs { conditional, unconditional }).unwrap();
}

/// Makes all steps that are left and returns the clean latent.
pub(crate) fn run(mut denoising: Denoising) -> Array4<f32> {
    while denoising.next().is_some() {
        step(&mut denoising);
    }
    (**denoising.latent()).clone()
}
