//! The plan as JSON.

use super::{Planned, engine, role_name};
use crate::cli::clip_time::DeviceSpeed;
use engines::WeightMemory;
use engines::placement::name_of;
use engines::residency::{DevicePlan, Phase, Role};
use runtime::estimate::{PhaseEstimate, Span};
use serde_json::{Value, json};

impl Planned<'_> {
    pub(super) fn as_json(&self) -> Value {
        let Self { plan, request, memory, .. } = self;
        let experts = plan.expert_steps.iter().zip(plan.guidance.iter().zip(&plan.guided_steps));
        let proposal = memory.proposal.as_ref().map(|proposal| {
            json!({"place": proposal.place.to_string(), "needed": proposal.needed, "device": proposal.to.to_string()})
        });
        json!({
            "event": "plan",
            "size": plan.size.to_string(),
            "frames": plan.frames.get(),
            "fps": plan.rate.to_string(),
            "steps": plan.schedule.steps(),
            "tokens": plan.tokens,
            "sampler": plan.solver,
            "timesteps": plan.schedule.timesteps(),
            "sigmas": plan.schedule.sigmas(),
            "start": plan.start,
            "guidance_until": plan.guidance_until,
            "step_cache": plan.step_cache.to_string(),
            "experts": experts.map(|((expert, steps), (scale, guided))| {
                json!({"expert": expert, "steps": steps, "guidance": scale, "guided_steps": guided})
            }).collect::<Vec<_>>(),
            "residency": request.residency.to_string(),
            "mapped_weights": memory.weights == WeightMemory::Mapped,
            "tile": self.tile_pixels(),
            "proposal": proposal,
            "devices": memory.devices.iter().map(|device| self.device(device)).collect::<Vec<_>>(),
            "time": self.time_as_json(),
        })
    }

    fn device(&self, device: &DevicePlan) -> Value {
        let needs = device.needs.iter().map(|(role, need)| {
            json!({
                "component": role_name(role),
                "weights": need.weights,
                "activations": need.activations,
                "opening": need.opening,
                "caches": self.caches(device.device, role),
                "engine": engine(device, need),
            })
        });
        let phase = |phase: &Phase| {
            let open: Vec<&str> = phase.open.iter().map(|role: &Role| role_name(role)).collect();
            json!({"component": role_name(&phase.role), "open": open, "memory": phase.used})
        };
        json!({
            "device": device.device.to_string(),
            "variant": self.variant_on(device.device),
            "budget": device.budget,
            "needed": device.peak,
            "all_stay_open": device.all_stay_open,
            "experts_stay_open": device.experts_stay_open,
            "components": needs.collect::<Vec<_>>(),
            "phases": device.phases.iter().map(phase).collect::<Vec<_>>(),
        })
    }

    fn time_as_json(&self) -> Value {
        let estimate = &self.time.estimate;
        let phase = |phase: &PhaseEstimate| {
            json!({
                "component": name_of(&phase.component),
                "devices": phase.devices.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "units": phase.units,
                "opening_seconds": range(Some(phase.opening)),
                "first_unit_seconds": range(phase.first),
                "unit_seconds": range(phase.unit),
                "seconds": range(phase.time()),
            })
        };
        let speeds = self.time.speeds.iter().map(|(device, speed)| match speed {
            Some(DeviceSpeed::Gpu(gpu)) => json!({"device": device.to_string(), "gpu": gpu.name}),
            Some(DeviceSpeed::Measured(peaks)) => json!({
                "device": device.to_string(),
                "int8_gops": peaks.int8 / 1e9,
                "bf16_gflops": peaks.bf16.map(|peak| peak / 1e9),
                "f32_gflops": peaks.f32 / 1e9,
            }),
            None => json!({"device": device.to_string()}),
        });
        json!({
            "seconds": range(estimate.total()),
            "first_step_seconds": range(estimate.until_first_step()),
            "first_frame_seconds": range(estimate.until_first_frame()),
            "phases": estimate.phases.iter().map(phase).collect::<Vec<_>>(),
            "speeds": speeds.collect::<Vec<_>>(),
        })
    }
}

/// The shortest and the longest time; null if it is not known.
fn range(span: Option<Span>) -> Value {
    json!(span.map(|span| [span.least, span.most]))
}
