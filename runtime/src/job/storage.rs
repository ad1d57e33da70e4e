//! The folder of a job that runs: what is written there, and whether that works.

use super::folder::JobFolder;
use super::snapshot_writer::{SnapshotWriter, Storing, ToWrite};
use super::stored_snapshot::StoredSnapshot;
use crate::Error;
use crate::denoise::TextConditioning;
use bundle::{Diagnose, Report};
use std::path::Path;

/// The folder of a job that runs.
#[derive(Debug)]
pub(super) struct Storage {
    folder: JobFolder,
    writer: SnapshotWriter,
    /// Text states that could not be written, and why.
    unwritten_text: Option<(TextConditioning, Storing)>,
    /// True after the warning that something cannot be written, until it can.
    has_warned: bool,
}

impl Storage {
    pub(super) fn new(folder: JobFolder) -> Self {
        let writer = folder.writer();
        Self { folder, writer, unwritten_text: None, has_warned: false }
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes text states. Returns what to warn of.
    pub(super) fn write_text(&mut self, text: &TextConditioning) -> Option<Report> {
        match self.folder.write_text(text) {
            Ok(()) => {
                self.unwritten_text = None;
                None
            }
            Err(error) => {
                let why = match &error {
                    Error::Contract(bundle::Error::File { source, .. }) => Storing::of(source),
                    _ => Storing::Failed,
                };
                self.unwritten_text = Some((text.clone(), why));
                (!std::mem::replace(&mut self.has_warned, true)).then(|| error.report())
            }
        }
    }

    /// Hands a snapshot to the thread that writes it, with its names besides that of the newest one. Waits while the one
    /// before it is not written, unless `is_cancelled`. Returns what to warn of: a full disk fails again at every step,
    /// and one warning is enough.
    pub(super) fn write(
        &mut self,
        snapshot: StoredSnapshot,
        names: Vec<String>,
        is_cancelled: impl Fn() -> bool,
    ) -> Option<Report> {
        let text = self.unwritten_text.take().and_then(|(text, _)| self.write_text(&text));
        self.writer.write(ToWrite { snapshot, names }, is_cancelled);
        text.or_else(|| self.warning())
    }

    fn warning(&mut self) -> Option<Report> {
        let Some(error) = self.writer.take_error() else {
            self.has_warned &= self.storing() != Storing::Ok;
            return None;
        };
        (!std::mem::replace(&mut self.has_warned, true)).then(|| error.report())
    }

    /// Whether what was written is stored.
    pub(super) fn storing(&self) -> Storing {
        match (self.writer.storing(), &self.unwritten_text) {
            (Storing::Ok, Some((_, why))) => *why,
            (storing, _) => storing,
        }
    }

    /// Waits until everything is on disk. Returns what to warn of.
    pub(super) fn finish(self) -> Option<Report> {
        let has_warned = self.has_warned;
        self.writer.finish().err().filter(|_| !has_warned).map(|error| error.report())
    }
}
