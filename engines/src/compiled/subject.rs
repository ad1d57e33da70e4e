//! What an engine was compiled from, in words, and what its bundle says about it.

use bundle::geometry::Patch;
use bundle::layout;
use bundle::manifest::Bundle;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The graph that an engine was compiled from, in words. It is for people: engines are found by their key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineSubject {
    /// The model; empty if the graph belongs to no bundle.
    pub model: String,
    /// The component, as placements name it; empty if the graph belongs to no bundle.
    pub component: String,
    /// The part of the component, such as `whole` or `first`; empty if the graph belongs to no bundle.
    pub part: String,
    /// The file of the graph, in its bundle if it belongs to one.
    pub graph: String,
}

impl EngineSubject {
    /// A graph that belongs to no bundle.
    pub fn of_file(graph: &str) -> Self {
        Self { graph: graph.to_owned(), ..Self::default() }
    }

    /// The component, with the part if it has several; or the file of the graph.
    pub(crate) fn title(&self) -> String {
        match (&*self.component, &*self.part) {
            ("", _) => self.graph.clone(),
            (component, "whole") => component.to_owned(),
            (component, part) => format!("{component} {part}"),
        }
    }
}

/// A graph of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GraphOfBundle {
    /// The graph in words.
    pub(crate) subject: EngineSubject,
    /// The patch of the model's denoiser.
    pub(crate) patch: Patch,
}

impl GraphOfBundle {
    /// Finds the bundle that a graph belongs to: the nearest folder above it with a manifest.
    pub(crate) fn find(graph: &Path) -> Option<Self> {
        let folder = graph.ancestors().skip(1).find(|folder| folder.join(layout::MANIFEST).is_file())?;
        let Bundle { manifest, .. } = Bundle::read(folder).ok()?;
        let file = graph.strip_prefix(folder).ok()?.to_str()?;
        let (component, part) = manifest.components.iter().find_map(|entry| {
            let graph = entry.graphs.iter().find(|graph| graph.file == file)?;
            Some((&entry.component, graph.part))
        })?;
        let part = serde_json::to_value(part).ok()?;
        let subject = EngineSubject {
            component: crate::placement::name_of(component).to_owned(),
            part: part.as_str().unwrap_or_default().to_owned(),
            graph: file.to_owned(),
            model: manifest.model.clone(),
        };
        Some(Self { subject, patch: manifest.denoiser.patch })
    }
}
