//! The predicted time of a clip, on the devices of this machine or on GPUs that are named.

use super::cpu_peaks::cpu_peaks;
use super::global::GlobalArgs;
use super::gpu::{GpuChoice, chosen};
use crate::Error;
use bundle::manifest::Manifest;
use bundle::variant::{KernelLibrary, Precision};
use engines::{Device, Provider};
use runtime::estimate::{ClipEstimate, CpuPeaks, Peaks, PhaseEstimate, Span, known_gpu};
use runtime::memory_plan::{MemoryPlan, MemoryRequest};
use runtime::plan::GenerationPlan;
use std::collections::BTreeMap;

/// Seconds of a step from which on the user is warned.
const LONG_STEP: f64 = 600.0;

/// The predicted time of a clip, and the speeds that it was predicted from.
pub(super) struct ClipTime {
    pub(super) estimate: ClipEstimate,
    /// What the speed of each device is taken from; none if it is not known.
    pub(super) speeds: BTreeMap<Device, Option<DeviceSpeed>>,
}

/// What the speed of a device is taken from.
#[derive(Debug, Clone, Copy)]
pub(super) enum DeviceSpeed {
    /// Measured peaks of this processor.
    Measured(CpuPeaks),
    /// The data sheet of a GPU.
    Gpu(runtime::estimate::Gpu),
}

impl DeviceSpeed {
    fn peaks(self) -> Peaks {
        match self {
            Self::Measured(peaks) => Peaks::Cpu(peaks),
            Self::Gpu(gpu) => Peaks::Gpu(gpu.peaks),
        }
    }
}

impl ClipTime {
    /// Predicts the time of a clip. `gpus` are those that were named; the others are those of this machine.
    ///
    /// # Errors
    /// Returns an error if this processor lacks the selected path of the Rushes kernels.
    pub(super) fn predict(
        global: &GlobalArgs,
        manifest: &Manifest,
        plan: &GenerationPlan,
        (request, memory): (&MemoryRequest, &MemoryPlan),
        gpus: &[GpuChoice],
    ) -> Result<Self, Error> {
        let mut speeds = BTreeMap::new();
        for device in memory.placement.devices() {
            speeds.insert(device, speed(global, request, gpus, device)?);
        }
        let peaks = |device| speeds.get(&device).copied().flatten().map(DeviceSpeed::peaks);
        let estimate = ClipEstimate::new(manifest, plan, (request, memory), &peaks);
        Ok(Self { estimate, speeds })
    }

    /// One line: the time of a step of each expert, and that of the clip.
    pub(super) fn line(&self) -> Option<String> {
        let (longest, step) = self.estimate.longest_step()?;
        let devices = named(&longest.devices);
        let total = self.estimate.total().map_or(String::new(), |total| format!(", {total} in all"));
        Some(format!("{step} per step on {devices}{total}, as predicted"))
    }

    /// A warning if a step takes long, with what would help.
    pub(super) fn warning(&self, manifest: &Manifest, request: &MemoryRequest) -> Option<String> {
        let (longest, step) = self.estimate.longest_step()?;
        let is_long = |span: Span| span.middle() > LONG_STEP;
        is_long(step).then(|| {
            format!("warning: a step is predicted to take {step}; {}", what_helps(manifest, request, longest))
        })
    }
}

fn speed(
    global: &GlobalArgs,
    request: &MemoryRequest,
    gpus: &[GpuChoice],
    device: Device,
) -> Result<Option<DeviceSpeed>, Error> {
    Ok(match device.provider() {
        Provider::Cpu | Provider::OpenVino => {
            Some(DeviceSpeed::Measured(cpu_peaks(global, request.threads)?))
        }
        Provider::Cuda | Provider::TensorRt | Provider::TensorRtRtx => {
            chosen(gpus, device).or_else(|| gpu_of_this_machine(global, device)).map(DeviceSpeed::Gpu)
        }
        Provider::WebGpu => None,
    })
}

/// The GPU of an NVIDIA device of this machine, if it is a known one.
fn gpu_of_this_machine(global: &GlobalArgs, device: Device) -> Option<runtime::estimate::Gpu> {
    let driver = global.machine().cuda.ok()?;
    let found = driver.devices.get(usize::try_from(device.index()).ok()?)?;
    known_gpu(&found.name)
}

/// What makes a long step shorter.
fn what_helps(manifest: &Manifest, request: &MemoryRequest, longest: &PhaseEstimate) -> String {
    let mut ways = Vec::new();
    if longest.devices.contains(&Device::CPU) {
        let variant = request.variants.get(&Device::CPU.target());
        let is_int8 = variant.is_some_and(|variant| {
            (variant.precision, variant.kernels) == (Precision::Int8, KernelLibrary::Rushes)
        });
        ways.extend((!is_int8).then_some(match manifest.has_rushes_kernels(Precision::Int8) {
            true => "--precision int8",
            false => "an INT8 variant (`rushes quantize`)",
        }));
        ways.push("a GPU (--ep cuda)");
    }
    ways.push("a smaller --size or fewer --frames");
    format!("what helps: {}", ways.join(", or "))
}

/// The names of devices.
pub(super) fn named(devices: &[Device]) -> String {
    devices.iter().map(Device::to_string).collect::<Vec<_>>().join("+")
}
