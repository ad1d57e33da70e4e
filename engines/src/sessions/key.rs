//! What a session is found by, and what is known before it is opened.

use crate::OpenOptions;
use crate::residency::MemoryNeed;
use bundle::manifest::{Component, Part};
use bundle::signature::Signature;
use bundle::variant::Variant;
use std::path::Path;
use std::sync::Arc;

/// What a session is found by. Equal keys share one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionKey {
    /// The folder of the bundle.
    pub bundle: Arc<Path>,
    /// A digest of the bundle: another one may be written to the same folder.
    pub digest: Arc<str>,
    /// The component.
    pub component: Component,
    /// The graph of the component.
    pub part: Part,
    /// The variant of the graph.
    pub variant: Variant,
    /// Device, threads and weights.
    pub options: OpenOptions,
    /// What it is used for.
    pub purpose: Purpose,
}

/// What a session is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The clip itself.
    Clip,
    /// Previews, which run while the clip is denoised.
    Preview,
}

impl SessionKey {
    /// Returns true if both are used in one stage of a clip: sessions of one component, where the graphs for the first
    /// latent frame and those for the later ones are two stages.
    pub(super) fn shares_stage(&self, other: &Self) -> bool {
        let is_first = |part| matches!(part, Part::First | Part::TrunkFirst | Part::UpsamplerFirst);
        self.bundle == other.bundle
            && self.digest == other.digest
            && self.component == other.component
            && is_first(self.part) == is_first(other.part)
    }
}

/// A request for a session.
#[derive(Debug, Clone)]
pub struct SessionRequest<'a> {
    /// What it is found by.
    pub key: SessionKey,
    /// The file of the graph.
    pub graph: &'a Path,
    /// The signature that the graph must have.
    pub contract: &'a Signature,
    /// Its predicted memory for this use.
    pub need: MemoryNeed,
    /// Its place in the order in which a clip uses its sessions, from 0. Eviction goes by it.
    pub stage: u32,
}
