//! Bundles for these tests: graphs for the CPU and plain graphs, in one number format.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::dtype::WeightType;
use bundle::manifest::Bundle;
use bundle::units::ByteCount;
use bundle::variant::Target;
use engines::residency::Residency;
use engines::sessions::Sessions;
use engines::{Backend, Device, DeviceChoice, MemoryBudgets, PlacementRequest};
use export::ExportRequest;
use runtime::model::{Model, ModelOptions};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use tests::golden::Case;

/// More memory than a test uses.
pub(crate) const ENDLESS: ByteCount = ByteCount(1 << 40);

/// A bundle in a folder that is removed on drop.
#[derive(Debug)]
pub(crate) struct Exported {
    folder: TempDir,
}

impl Exported {
    /// Exports the checkpoint of a case for the CPU and for providers that read plain graphs.
    pub(crate) fn new(case: &Case, weights: WeightType) -> Self {
        Self::for_target(case, weights, Target::Plain)
    }

    /// Exports the checkpoint of a case for the CPU and for a device.
    pub(crate) fn for_device(case: &Case, weights: WeightType, device: Device) -> Self {
        Self::for_target(case, weights, device.target())
    }

    fn for_target(case: &Case, weights: WeightType, target: Target) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let request = ExportRequest {
            targets: vec![Target::Cpu, target],
            weights: Some(weights),
            ..ExportRequest::new(&case.checkpoint(), &folder.path().join("bundle"))
        };
        export::export(&request, &mut |_| ()).unwrap();
        Self { folder }
    }

    /// The folder of the bundle.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("bundle")
    }

    /// A model of the bundle in sessions of its own, on one thread.
    pub(crate) fn model(&self, backend: impl Backend + 'static, device: Device, placement: &str) -> Model {
        let budgets = MemoryBudgets::common(ENDLESS);
        let sessions = Sessions::new(Arc::new(backend), budgets, Residency::Auto);
        model_in(&sessions, &self.path(), device, placement)
    }
}

/// A model in `sessions`, on one thread.
pub(crate) fn model_in(sessions: &Sessions, bundle: &Path, device: Device, placement: &str) -> Model {
    let options = ModelOptions {
        device: DeviceChoice::On(device),
        threads: Some(NonZeroUsize::MIN),
        ..ModelOptions::default()
    };
    let request = match placement {
        "" => PlacementRequest::default(),
        placement => placement.parse().unwrap(),
    };
    let bundle = Bundle::open(bundle).unwrap();
    Model::with_sessions(bundle, sessions, options).unwrap().placed(&request).unwrap()
}
