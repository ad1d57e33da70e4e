//! The report of a finished job.

use super::conditions::RunConditions;
use super::record::LatentDigest;
use super::timing::JobTimes;
use crate::model::{Model, PlacedGraph};
use crate::preview::PreviewReport;
use bundle::manifest::{Component, Part};
use bundle::preview::PreviewKind;
use bundle::units::{ByteCount, Seed};
use bundle::variant::Variant;
use engines::sessions::{SessionUsage, Sessions};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a job did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobReport {
    /// Name of the model.
    pub model: String,
    /// The graphs that ran.
    pub variant: Variant,
    /// The device and everything else that decides bits.
    pub conditions: RunConditions,
    /// Seed of the noise.
    pub seed: Seed,
    /// Steps of the schedule.
    pub steps: usize,
    /// Steps that are done; fewer than all if the job was stopped after some.
    pub steps_done: usize,
    /// Steps that were done by the job itself; the others were done before it was resumed.
    pub steps_run: usize,
    /// Guidance passes that were not computed, because a policy reused or skipped them.
    pub skipped_passes: usize,
    /// The steps that reused velocities of an earlier one, counted from 1, those before the job was resumed among them.
    #[serde(default)]
    pub reused_steps: Vec<usize>,
    /// The digest of the latent after each step.
    pub latents: Vec<LatentDigest>,
    /// Duration of each phase in seconds, with the opening of graphs: `text`, `denoise`, `decode`.
    pub seconds: BTreeMap<String, f64>,
    /// Times without the opening of graphs.
    pub timing: JobTimes,
    /// The previews, if there were any.
    #[serde(default)]
    pub preview: Option<PreviewSummary>,
    /// The memory of each device that the sessions used.
    #[serde(default)]
    pub memory: Vec<DeviceMemory>,
    /// On which providers the nodes of the graphs on accelerators run. Those of graphs on the CPU all run there.
    #[serde(default)]
    pub nodes: Vec<NodesOfGraph>,
    /// The outputs. The caller writes the frames, and fills this in.
    #[serde(default)]
    pub outputs: Vec<OutputSummary>,
}

/// On which providers the nodes of a graph run, as ONNX Runtime reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodesOfGraph {
    /// The component.
    pub component: Component,
    /// The graph of the component.
    pub part: Part,
    /// The device.
    pub device: String,
    /// The number of nodes by ONNX Runtime's name of their provider.
    pub nodes: BTreeMap<String, usize>,
    /// Nodes on the CPU beside the accelerator, by operator.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub on_cpu: BTreeMap<String, usize>,
}

impl NodesOfGraph {
    /// The graphs that a model has borrowed, without those on the CPU.
    pub(super) fn of(model: &Model) -> Vec<Self> {
        let graph = |PlacedGraph { component, part, device, nodes }| Self {
            component,
            part,
            device: device.to_string(),
            on_cpu: nodes.on_cpu(),
            nodes: nodes.nodes,
        };
        model.placed_graphs().into_iter().map(graph).collect()
    }
}

/// The memory of a device, as counted by the sessions. Sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceMemory {
    /// The device.
    pub device: String,
    /// The memory that may be used.
    pub budget: ByteCount,
    /// The most that was charged for open sessions.
    pub peak: ByteCount,
    /// The sessions that are open at the end.
    pub sessions: Vec<SessionMemory>,
}

/// The memory of an open session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionMemory {
    /// The component.
    pub component: Component,
    /// The graph of the component.
    pub part: Part,
    /// Predicted weights and activations.
    pub predicted: ByteCount,
    /// The same, measured; 0 if it could not be measured.
    pub measured: ByteCount,
}

impl DeviceMemory {
    /// The memory of every device that sessions used.
    pub(super) fn of(sessions: &Sessions) -> Vec<Self> {
        let session = |session: SessionUsage| SessionMemory {
            component: session.key.component,
            part: session.key.part,
            predicted: session.predicted.held(),
            measured: session.measured.held(),
        };
        let usage = sessions.usage().into_iter();
        usage
            .map(|usage| Self {
                device: usage.device.to_string(),
                budget: usage.budget,
                peak: usage.peak,
                sessions: usage.sessions.into_iter().map(session).collect(),
            })
            .collect()
    }
}

/// The previews of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PreviewSummary {
    /// The kind.
    pub kind: PreviewKind,
    /// Previews that were shown.
    pub shown: usize,
    /// Previews that were skipped to keep up with denoising.
    pub skipped: usize,
    /// Skipped previews that the linear map showed instead.
    pub shown_by_map: usize,
    /// Time spent rendering.
    pub busy_seconds: f64,
    /// The error that ended them early.
    pub failed: Option<String>,
}

impl PreviewSummary {
    /// The summary of a report.
    pub fn new(report: &PreviewReport) -> Self {
        Self {
            kind: report.kind,
            shown: report.shown,
            skipped: report.skipped,
            shown_by_map: report.fallbacks,
            busy_seconds: report.busy.as_secs_f64(),
            failed: report.failed.as_ref().map(ToString::to_string),
        }
    }
}

/// One output of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputSummary {
    /// Its name: a path or an address without secrets.
    pub output: String,
    /// Frames that it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frames: Option<usize>,
    /// Its size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What is left of it after a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<String>,
}
