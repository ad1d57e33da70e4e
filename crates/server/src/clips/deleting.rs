//! Deleting clips, and what is left of them.

use super::index::Clip;
use super::submitting::cancel;
use super::ticket::Ticket;
use crate::app::App;
use crate::fault::Fault;
use std::collections::HashSet;
use std::path::Path;

/// Deletes a clip: nobody sees it from now on, its job ends within the current step, and its files are removed.
///
/// # Errors
/// The deletion cannot be stored.
pub(crate) async fn delete(app: &App, clip: &Clip) -> Result<(), Fault> {
    let folder = app.queue.job_folder(clip.job);
    tokio::task::spawn_blocking(move || Ticket::delete(&folder)).await.map_err(Fault::internal)??;
    app.clips.note_deleted(clip);
    if !clip.status().state.has_ended() {
        // It may have ended meanwhile, or the queue may be locked; the files are removed when it ends.
        if let Err(fault) = cancel(app, clip).await {
            tracing::info!(clip = clip.ticket.id, "a deleted clip was not cancelled: {}", fault.message);
        }
    }
    if clip.status().state.has_ended() {
        remove_files(app.clips.folder(), &clip.ticket.id);
    }
    Ok(())
}

/// Removes the files of a clip, those that were not completed among them.
pub(crate) fn remove_files(clips: &Path, id: &str) {
    remove(clips, |name| name.split('.').next() == Some(id));
}

/// Removes files of clips that are not known. Only names that this server gives are looked at.
pub(crate) fn remove_unknown(clips: &Path, known: &HashSet<&str>) {
    remove(clips, |name| {
        let id = name.split('.').next().unwrap_or_default();
        crate::ids::is_clip_id(id) && !known.contains(id)
    });
}

fn remove(clips: &Path, is_meant: impl Fn(&str) -> bool) {
    let Ok(entries) = std::fs::read_dir(clips) else { return };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        if !name.to_str().is_some_and(&is_meant) {
            continue;
        }
        let path = entry.path();
        let removed =
            if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        if let Err(error) = removed {
            tracing::warn!("{} cannot be removed: {error}", path.display());
        }
    }
}
