//! The arguments for devices and their memory.

use super::global::GlobalArgs;
use crate::Error;
use bundle::manifest::Manifest;
use bundle::variant::KernelLibrary;
use clap::Args;
use engines::providers::{DriverProblem, best_device};
use engines::residency::Residency;
use engines::{
    BestDevice, CpuNodes, Device, DeviceChoice, GuidanceDevices, MemoryBudgets, Placement, PlacementRequest,
};
use std::collections::BTreeSet;

/// Where graphs run.
#[derive(Debug, Clone, Args)]
pub(super) struct DeviceArgs {
    /// Device that graphs run on: auto (tensorrt, cuda or cpu, the first that can be used), or an execution provider
    /// (cpu, cuda, tensorrt, tensorrt-rtx, openvino or webgpu), with the index of a device if it is not 0, such as
    /// cuda:1
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub(super) ep: DeviceChoice,
    /// Run components on other devices, such as high=cuda:0,low=cuda:1. Components are text_encoder, image_encoder,
    /// high_noise or high, low_noise or low, only, experts (all of them), decoder and preview. An expert on two
    /// devices, such as high=cuda:0+cuda:1, makes one guidance pass on each. May be given more than once
    #[arg(long, value_name = "COMPONENT=DEVICE,...")]
    place: Vec<PlacementRequest>,
    /// Make the two guidance passes of a step at the same time, the one with the prompt on the first device. The same
    /// as --place experts=A+B
    #[arg(long, value_name = "A,B")]
    guidance_devices: Option<GuidanceDevices>,
    /// Run nodes on the CPU that the provider does not take. Without it only those that compute shapes may
    #[arg(long)]
    pub(super) allow_cpu_nodes: bool,
}

impl DeviceArgs {
    /// The components that are placed on a device of their own.
    ///
    /// # Errors
    /// Returns an error if a component is placed twice.
    pub(super) fn request(&self) -> Result<PlacementRequest, Error> {
        let mut request = PlacementRequest::combined(&self.place)?;
        if let Some(devices) = self.guidance_devices {
            request.place_guidance(devices)?;
        }
        Ok(request)
    }

    /// The device of each component of a bundle.
    ///
    /// # Errors
    /// Returns an error if a component is placed twice, or if the bundle lacks it.
    pub(super) fn placement(&self, manifest: &Manifest, global: &GlobalArgs) -> Result<Placement, Error> {
        Ok(Placement::new(manifest, self.device(manifest, global).device, &self.request()?)?)
    }

    /// The device of components that are not placed, and why a better one was not chosen.
    pub(super) fn device(&self, manifest: &Manifest, global: &GlobalArgs) -> BestDevice {
        let has_graphs = |target| !manifest.precisions(target, KernelLibrary::Rushes).is_empty();
        match self.ep.device() {
            Some(device) => BestDevice { device, why: String::new() },
            None => best_device(&global.machine(), has_graphs),
        }
    }

    /// Which device was chosen and why not a better one. `None` if it was named, or if the machine has no NVIDIA driver,
    /// without which there is no choice.
    pub(super) fn note(&self, manifest: &Manifest, global: &GlobalArgs) -> Option<String> {
        let has_driver = !matches!(global.machine().cuda, Err(DriverProblem::Absent { .. }));
        if self.ep != DeviceChoice::Auto || !has_driver {
            return None;
        }
        let BestDevice { device, why } = self.device(manifest, global);
        Some(if why.is_empty() {
            format!("--ep auto: {device}")
        } else {
            format!("--ep auto: {device}; {why}")
        })
    }

    /// The arguments that these were parsed from.
    pub(super) fn arguments(&self) -> Vec<String> {
        let mut found = vec!["--ep".to_owned(), self.ep.to_string()];
        found.extend(self.place.iter().flat_map(|place| ["--place".to_owned(), place.to_string()]));
        if self.allow_cpu_nodes {
            found.push("--allow-cpu-nodes".into());
        }
        found
    }

    /// The nodes that may run on the CPU.
    pub(super) fn cpu_nodes(&self) -> CpuNodes {
        if self.allow_cpu_nodes { CpuNodes::All } else { CpuNodes::Integers }
    }
}

/// How much memory may be used.
#[derive(Debug, Clone, Args)]
pub(super) struct BudgetArgs {
    /// Limit of memory use, such as 8GB, of every device, or of one as in cpu=8GB,cuda:0=24GB. May be given more than
    /// once [default: the available memory]
    #[arg(long, value_name = "[DEVICE=]BYTES")]
    memory_budget: Vec<MemoryBudgets>,
}

impl BudgetArgs {
    /// The budget of each device of a placement.
    ///
    /// # Errors
    /// Returns an error if a budget is given twice, or for a device that has no component.
    pub(super) fn budgets(&self, placement: &Placement) -> Result<MemoryBudgets, Error> {
        let budgets = MemoryBudgets::combined(&self.memory_budget)?;
        budgets.check(placement)?;
        Ok(budgets)
    }

    /// The budgets of a command that runs clips of several models.
    ///
    /// # Errors
    /// Returns an error if a budget is given twice, or for a device that is not used.
    pub(super) fn budgets_of(&self, used: &BTreeSet<Device>) -> Result<MemoryBudgets, Error> {
        let budgets = MemoryBudgets::combined(&self.memory_budget)?;
        budgets.check_devices(used)?;
        Ok(budgets)
    }

    /// The budgets of a command that runs on the CPU.
    ///
    /// # Errors
    /// Returns an error if the budget is given twice, or for another device.
    pub(super) fn budgets_of_cpu(&self) -> Result<MemoryBudgets, Error> {
        self.budgets(&Placement::on(Device::CPU))
    }
}

/// What stays in memory.
#[derive(Debug, Clone, Args)]
pub(super) struct MemoryArgs {
    /// Components to keep in memory: all, one at a time (one), or as many as fit (auto)
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub(super) residency: Residency,
    #[command(flatten)]
    pub(super) budget: BudgetArgs,
}
