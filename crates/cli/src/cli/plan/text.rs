//! The plan as text.

use super::{Planned, engine, role_name, timeline};
use crate::cli::clip_time::DeviceSpeed;
use crate::cli::flags::flag;
use bundle::Field;
use bundle::preview::PreviewKind;
use engines::WeightMemory;
use engines::residency::{DevicePlan, Residency};
use std::fmt::Write;

impl Planned<'_> {
    pub(super) fn as_text(&self) -> String {
        // Writing into a String cannot fail.
        let mut text = String::new();
        let plan = self.plan.to_string();
        let clip = plan.rsplit_once("; seed").map_or(plan.as_str(), |(clip, _)| clip);
        let _ = writeln!(text, "clip      {clip}");
        let weights = match self.memory.weights {
            WeightMemory::Prepacked => "in memory",
            WeightMemory::Mapped => "used directly from their files, which is slower",
        };
        let _ = writeln!(text, "weights   {weights}");
        let frames = match self.tile_pixels() {
            Some(pixels) => format!("decoded in tiles of {pixels} pixels, which is slower"),
            None => "decoded whole".to_owned(),
        };
        let _ = writeln!(text, "frames    {frames}");
        for device in &self.memory.devices {
            self.device_as_text(&mut text, device);
        }
        if let Some(proposal) = &self.memory.proposal {
            let _ = writeln!(text, "\n{}", proposal.to_string().replace("`place`", flag(Field::Place)));
        }
        self.time_as_text(&mut text);
        text
    }

    fn device_as_text(&self, text: &mut String, device: &DevicePlan) {
        let budget = device.budget.map_or("no known limit".to_owned(), |budget| budget.to_string());
        let variant = self.variant_on(device.device).map_or(String::new(), |variant| format!(", {variant}"));
        let open = match (device.all_stay_open, self.request.residency) {
            (true, _) => "all stay open",
            (false, Residency::One) => "one component at a time",
            (false, _) if device.experts_stay_open => "the experts stay open, the others take turns",
            (false, _) => "closed when memory is short",
        };
        let _ = writeln!(text, "\n{}{variant}: {} of {budget}; {open}", device.device, device.peak);
        for (role, need) in &device.needs {
            let _ = write!(
                text,
                "  {:<26} {:>10}  weights {}, activations {}",
                role.to_string(),
                need.total().to_string(),
                need.weights,
                need.activations
            );
            if let Some(caches) = self.caches(device.device, role) {
                let _ = write!(text, ", {caches} of them caches");
            }
            if need.opening > need.activations {
                let _ = write!(text, ", opening {}", need.opening);
            }
            if let Some(engine) = engine(device, need) {
                let _ = write!(text, "; engine of about {engine} on disk");
            }
            text.push('\n');
        }
        if !device.all_stay_open {
            for phase in &device.phases {
                let open: Vec<&str> = phase.open.iter().map(role_name).collect();
                let _ = writeln!(
                    text,
                    "  {:<26} {:>10}  open: {}",
                    format!("while {} runs", role_name(&phase.role)),
                    phase.used.to_string(),
                    open.join(", ")
                );
            }
        }
    }

    fn time_as_text(&self, text: &mut String) {
        let estimate = &self.time.estimate;
        let unknown = || "not known".to_owned();
        let total = estimate.total().map_or_else(unknown, |total| total.to_string());
        let _ = writeln!(text, "\ntime      {total}, with all files in the page cache");
        if !self.plan.step_cache.is_compute_all() {
            let _ = writeln!(
                text,
                "          every step is counted as computed; the step cache reuses some of them"
            );
        }
        if let Some(step) = estimate.until_first_step() {
            let first = match self.preview {
                PreviewKind::Off => format!("none; with --preview rgb after {step}"),
                _ => format!("after {step}"),
            };
            let _ = writeln!(text, "preview   {first}");
        }
        if let Some(frame) = estimate.until_first_frame() {
            let _ = writeln!(text, "frame     the first after {frame}");
        }
        text.push_str(&timeline::drawn(estimate));
        for (device, speed) in &self.time.speeds {
            let speed = match speed {
                Some(DeviceSpeed::Gpu(gpu)) => format!("the data sheet of the {}", gpu.name),
                Some(DeviceSpeed::Measured(_)) => "peaks measured on this processor".to_owned(),
                None => "not known; --gpu names a known GPU".to_owned(),
            };
            let _ = writeln!(text, "speed     {device}: {speed}");
        }
        if let Some(warning) = self.time.warning(self.manifest, &self.request) {
            let _ = writeln!(text, "\n{warning}");
        }
    }
}
