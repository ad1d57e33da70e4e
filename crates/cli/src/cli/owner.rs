//! The arguments of commands that make the jobs of a queue: where and in which order.

use super::devices::{DeviceArgs, MemoryArgs};
use super::global::GlobalArgs;
use super::jobs::store_budget;
use super::threads::Threads;
use crate::Error;
use ::jobs::owner::Options;
use bundle::Report;
use bundle::units::ByteCount;
use clap::Args;
use engines::Device;
use engines::providers::best_device;
use runtime::decode::Tiles;
use runtime::scheduler::{Bounds, Order};
use std::collections::BTreeSet;
use std::sync::Arc;

/// How the jobs of a queue are made.
#[derive(Debug, Args)]
pub(super) struct OwnerArgs {
    /// Order of the jobs: waves of experts, with priorities (waves), or one after another (first-come)
    #[arg(long, value_name = "NAME", default_value = "waves")]
    order: Order,
    /// Remove the folders of jobs that have ended, oldest first, when the queue takes more disk space than this. Clips
    /// are not counted, and not removed; neither are jobs that are stopped
    #[arg(long, value_name = "BYTES", default_value = "20GB", value_parser = store_budget)]
    store_budget: ByteCount,
    #[command(flatten)]
    devices: DeviceArgs,
    #[command(flatten)]
    memory: MemoryArgs,
    /// Decode in tiles: only if memory is short (auto), off, or the side of a tile in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = Tiles::Auto)]
    tile: Tiles,
    /// Number of threads, at most one per core that this process may use [default: one per core]
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    threads: Option<Threads>,
}

impl OwnerArgs {
    /// The value of `--threads`.
    pub(super) fn threads(&self) -> Option<Threads> {
        self.threads
    }

    /// The devices.
    pub(super) fn devices(&self) -> &DeviceArgs {
        &self.devices
    }

    /// The options of the owner. Loads ONNX Runtime. A second signal ends the process with the report `left`.
    ///
    /// # Errors
    /// A device cannot be used, a budget is for another one, or ONNX Runtime cannot be loaded.
    pub(super) fn options(
        &self,
        global: &GlobalArgs,
        until_idle: bool,
        left: Report,
    ) -> Result<Options, Error> {
        let placement = self.devices.request()?;
        let mut used: BTreeSet<_> = self.devices.ep.device().into_iter().collect();
        if used.is_empty() {
            // Each bundle has its own best device.
            used.extend([Device::CPU, best_device(&global.machine(), |_| true).device]);
        }
        used.extend(placement.devices());
        let budgets = self.memory.budget.budgets_of(&used)?;
        let cancel = global.interrupts.cancel_leaving(left);
        // Loading may set an environment variable, so it comes before GStreamer starts threads.
        let onnx = global.onnx_runtime_for(used)?;
        Ok(Options {
            backend: Arc::new(onnx),
            device: self.devices.ep,
            cpu_nodes: self.devices.cpu_nodes(),
            placement,
            budgets,
            residency: self.memory.residency,
            tiles: self.tile,
            threads: self.threads.map(Threads::used),
            store_budget: self.store_budget,
            order: self.order,
            bounds: Bounds::default(),
            texts: None,
            follower: None,
            until_idle,
            cancel,
        })
    }
}
