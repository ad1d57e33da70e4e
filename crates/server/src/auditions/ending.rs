//! What happens to takes: one is kept and becomes a video, the others are given up; an audition is cancelled or deleted.

use super::index::Audition;
use crate::access::Caller;
use crate::app::App;
use crate::clips::checked;
use crate::clips::deleting::remove_files;
use crate::clips::index::{Clip, Status};
use crate::clips::queue::Ordered;
use crate::clips::submitting::{Sent, cancel, places};
use crate::clips::ticket::Ticket;
use crate::fault::Fault;
use crate::loras::apply as loras;
use crate::screening::POLICY;
use futures_util::future::join_all;
use jobs::store::{Answer, JobOrder, State};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long a client waits until takes that are given up have ended. They end within their current step in any case.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a complete take is kept for somebody who might want it, in seconds. After that the queue may need its room.
const LIFE: f64 = 24.0 * 3600.0;

/// Makes the whole clip of a take, which is a video from now on, and gives up the other takes. A take that waits or is
/// being made ends within its step and goes on from there. A video that has failed is tried again.
///
/// # Errors
/// There is no such take, its picture was refused, the queue is full, or the store cannot be written.
pub(super) async fn keep(
    app: &Arc<App>,
    caller: &Caller,
    audition: Arc<Audition>,
    number: usize,
) -> Result<Arc<Clip>, Fault> {
    let (app, caller) = (Arc::clone(app), caller.clone());
    // A client that vanishes meanwhile leaves no take cancelled that was to be kept.
    let kept = tokio::spawn(async move {
        let _turn = audition.turn.lock().await;
        let clip = audition.take(&app.clips, number)?;
        keep_one(&app, &caller, &clip).await?;
        let others = audition.clips(&app.clips).into_iter().filter(|other| other.job != clip.job);
        give_up(&app, others.collect()).await;
        Ok::<_, Fault>(clip)
    });
    kept.await.map_err(Fault::internal)?
}

async fn keep_one(app: &App, caller: &Caller, clip: &Clip) -> Result<(), Fault> {
    let status = clip.status();
    if let Some(why) = status.refused {
        return Err(Fault::conflict(POLICY, why));
    }
    let is_lost = matches!(status.state, State::Failed | State::Cancelled);
    if status.is_kept && !is_lost {
        return Ok(());
    }
    // A take that waits or runs has its place.
    let is_open = !status.state.has_ended();
    let place = if is_open { None } else { Some(places(app, caller, 1, &Sent::default())?) };
    let gone = || Fault::conflict("model_not_served", "the model of this take is no longer served");
    let model = app.models.of_clip(clip).ok_or_else(gone)?;
    // Its bundle with LoRAs may have been removed since.
    let mut ticket = clip.ticket.clone();
    let bundle = loras::again(app, model, &mut ticket, (&clip.ticket, &clip.request.bundle)).await?;
    if is_open {
        end_step(app, clip).await?;
    }
    let outputs = vec![checked::output(app.clips.folder(), &clip.ticket.id, clip.ticket.format())];
    let before = app.clips.note_kept(clip);
    drop(place);
    let refused = match app.queue.order(clip.job, JobOrder::Keep { outputs }).await {
        Ok(Ordered { answer: Some(Answer::Refused { why }), .. }) => Fault::conflict("unsuitable_state", why),
        // Without an answer it is carried out later.
        Ok(_) => {
            drop(bundle);
            return Ok(());
        }
        Err(error) => of_take(error),
    };
    app.clips.note_not_kept(clip, before);
    Err(refused)
}

/// Ends a take that waits or runs.
async fn end_step(app: &App, clip: &Clip) -> Result<(), Fault> {
    // A refusal means that it has ended by itself.
    let cancelled = cancel(app, clip).await;
    if clip.status().state.has_ended() {
        return Ok(());
    }
    cancelled?;
    let message = "the take is in the middle of a long step: keep it again in a moment";
    Err(Fault { retry_after: Some(5), ..Fault::conflict("take_not_ready", message) })
}

/// What the queue says about a take that it has removed to make room.
fn of_take(error: jobs::Error) -> Fault {
    match error {
        jobs::Error::NoJob { .. } => Fault::not_found("take"),
        error => error.into(),
    }
}

/// Gives up the takes that nobody has kept: those that wait or run end, and those that are complete need not be stored
/// any longer. They can be kept until the queue needs their room.
///
/// Returns when they have ended, or after a while.
async fn give_up(app: &Arc<App>, takes: Vec<Arc<Clip>>) {
    let left: Vec<_> = takes.into_iter().filter(|take| can_be_given_up(&take.status())).collect();
    let app = Arc::clone(app);
    let ended = tokio::spawn(async move {
        let end = |take: Arc<Clip>| {
            let app = Arc::clone(&app);
            async move {
                if let Err(fault) = cancel(&app, &take).await {
                    tracing::info!(clip = take.ticket.id, "a take was not given up: {}", fault.message);
                }
            }
        };
        join_all(left.into_iter().map(end)).await;
    });
    // They end without anybody who waits for it, too.
    let _ = tokio::time::timeout(PATIENCE, ended).await;
}

fn can_be_given_up(status: &Status) -> bool {
    !status.is_kept && matches!(status.state, State::Queued | State::Running | State::Stopped)
}

/// Ends the takes that wait or run. Those that are complete remain.
pub(super) async fn cancel_open(app: &Arc<App>, audition: &Audition) {
    let _turn = audition.turn.lock().await;
    let is_open = |take: &Arc<Clip>| !take.status().state.has_ended();
    give_up(app, audition.clips(&app.clips).into_iter().filter(is_open).collect()).await;
}

/// Deletes an audition with all takes but those that were kept, which are videos.
///
/// # Errors
/// The deletion cannot be stored. What was deleted before that is deleted.
pub(super) async fn delete(app: &Arc<App>, audition: Arc<Audition>) -> Result<(), Fault> {
    let app = Arc::clone(app);
    // It goes on if its client vanishes.
    let deleted = tokio::spawn(async move {
        let _turn = audition.turn.lock().await;
        let takes = audition.clips(&app.clips);
        for take in &takes {
            let (folder, is_kept) = (app.queue.job_folder(take.job), take.status().is_kept);
            tokio::task::spawn_blocking(move || mark(&folder, is_kept)).await.map_err(Fault::internal)??;
            if !is_kept {
                app.clips.note_deleted(take);
                remove_files(app.clips.folder(), &take.ticket.id);
            }
        }
        app.auditions.remove(&audition);
        give_up(&app, takes).await;
        Ok::<_, Fault>(())
    });
    deleted.await.map_err(Fault::internal)?
}

/// Notes on disk that a take or its audition is deleted. One that the queue has removed needs no note.
fn mark(folder: &Path, is_kept: bool) -> Result<(), bundle::Error> {
    match (folder.exists(), is_kept) {
        (false, _) => Ok(()),
        (true, true) => Ticket::delete_audition(folder),
        (true, false) => Ticket::delete(folder),
    }
}

/// Gives up takes that were complete long ago, so that the queue can remove them when it needs room.
pub(crate) async fn give_up_old(app: &Arc<App>) {
    let now = jobs::store::now();
    let is_old = |take: &Arc<Clip>| {
        let status = take.status();
        status.state == State::Stopped && status.ended.is_some_and(|ended| now - ended > LIFE)
    };
    let old: Vec<_> = app.clips.all().into_iter().filter(is_old).collect();
    if !old.is_empty() {
        give_up(app, old).await;
    }
}

/// Waits until no take waits or runs that nobody has kept, at most for a while.
pub(super) async fn ended(app: &App, audition: &Audition, limit: Duration) {
    let wait = |take: Arc<Clip>| async move {
        let mut status = take.watch();
        // An error means that the clip is gone.
        let _ = status.wait_for(|now| now.is_kept || now.is_deleted || now.state.has_ended()).await;
    };
    let all = join_all(audition.clips(&app.clips).into_iter().map(wait));
    tokio::select! {
        _ = all => {}
        () = tokio::time::sleep(limit) => {}
        () = app.ended() => {}
    }
}
