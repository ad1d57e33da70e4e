//! How an owner makes jobs, and what it tells.

use super::follower::Follower;
use crate::store::{Progress, State};
use bundle::manifest::Manifest;
use bundle::units::ByteCount;
use bundle::variant::KernelLibrary;
use engines::residency::Residency;
use engines::{Backend, Cancel, CpuNodes, Device, DeviceChoice, MemoryBudgets, PlacementRequest};
use media::OutputSpec;
use runtime::decode::Tiles;
use runtime::driver::Activity;
use runtime::scheduler::{Bounds, Counts, DeviceName, JobId, Order, Priority};
use runtime::text_store::TextStore;
use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::Arc;

/// How an owner makes jobs.
#[derive(Debug, Clone)]
pub struct Options {
    /// What opens graphs.
    pub backend: Arc<dyn Backend>,
    /// The device of components that are not placed elsewhere.
    pub device: DeviceChoice,
    /// Nodes that may run on the CPU beside an accelerator.
    pub cpu_nodes: CpuNodes,
    /// The components that are placed on devices of their own.
    pub placement: PlacementRequest,
    /// The memory of each device that may be used. Without a budget it is what is free at the start.
    pub budgets: MemoryBudgets,
    /// Which components stay open.
    pub residency: Residency,
    /// Decoder tiles.
    pub tiles: Tiles,
    /// Threads of a session on the CPU; `None` uses every core.
    pub threads: Option<NonZeroUsize>,
    /// Disk space that the store may use. Outputs are not counted.
    pub store_budget: ByteCount,
    /// The order of jobs.
    pub order: Order,
    /// Limits of waves.
    pub bounds: Bounds,
    /// Where text states are kept for later jobs.
    pub texts: Option<Arc<TextStore>>,
    /// Sees the pictures of clips while they are made.
    pub follower: Option<Arc<dyn Follower>>,
    /// True to end when no job is left.
    pub until_idle: bool,
    /// Ends the owner within the current steps. Its jobs go back to the queue.
    pub cancel: Cancel,
}

impl Options {
    /// The device of components of a bundle that are not placed elsewhere.
    pub(super) fn device_for(&self, manifest: &Manifest) -> Device {
        let has_graphs = |target| !manifest.precisions(target, KernelLibrary::Rushes).is_empty();
        self.device.device().unwrap_or_else(|| self.backend.best_device(&has_graphs).device)
    }

    /// The devices that jobs may be placed on.
    pub(super) fn devices(&self) -> Vec<Device> {
        let mut devices = match self.device.device() {
            Some(device) => vec![device],
            // Each bundle has its own best device.
            None => vec![Device::CPU, self.backend.best_device(&|_| true).device],
        };
        devices.extend(self.placement.devices());
        let mut seen = BTreeSet::new();
        devices.retain(|device| seen.insert(*device));
        devices
    }
}

/// What an owner tells while it runs.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Notice {
    /// The store is owned, and its jobs are going to be made.
    Started {
        /// The jobs that wait.
        waiting: usize,
    },
    /// A sentence for the user, such as a warning.
    Message(String),
    /// The jobs and devices, at most a few times in a second.
    Jobs {
        /// The jobs that are queued or running, in the order of their numbers.
        jobs: Vec<JobStatus>,
        /// What each device is doing.
        devices: Vec<(DeviceName, Activity)>,
    },
    /// A job has ended.
    Ended {
        /// The job.
        id: JobId,
        /// How it ended.
        outcome: crate::store::Outcome,
    },
}

/// A job that is queued or running.
#[derive(Debug, Clone, PartialEq)]
pub struct JobStatus {
    /// Its number.
    pub id: JobId,
    /// [`State::Queued`] or [`State::Running`].
    pub state: State,
    /// How soon it is wanted.
    pub priority: Priority,
    /// The name of its model.
    pub model: String,
    /// The prompt.
    pub prompt: String,
    /// Where its clip is written.
    pub outputs: Vec<OutputSpec>,
    /// How far it is.
    pub progress: Progress,
}

/// What an owner has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Jobs whose outputs are complete.
    pub done: usize,
    /// Jobs that made the steps that they were asked for, and have others left.
    pub stopped: usize,
    /// Jobs that failed.
    pub failed: usize,
    /// Jobs that were cancelled.
    pub cancelled: usize,
    /// Jobs that had begun and went back to the queue because the owner ended. Those that waited for a disk and were
    /// made later are counted by their end.
    pub queued_again: usize,
    /// Jobs that had not begun, and wait.
    pub waiting: usize,
    /// What the scheduler has counted.
    pub counts: Counts,
}
