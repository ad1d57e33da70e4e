//! Adding a clip: a place in the queue, the store, the index.

use super::checked;
use super::index::{Clip, Place};
use super::queue::{NewJob, Prepare};
use super::request::ClipRequest;
use super::result::{self, Submitted};
use super::ticket::{Idempotency, Ticket};
use crate::access::Caller;
use crate::app::App;
use crate::fault::Fault;
use crate::loras::apply as loras;
use crate::{ids, post};
use bundle::lock::ReadLock;
use jobs::fork;
use jobs::request::{Origin, Request};
use jobs::store::{JobOrder, ORIGIN, RUN};
use media::FileFormat;
use runtime::job::{ForkSpec, JobFolder, KeepSteps};
use std::sync::Arc;

/// A request as it identifies itself when it is sent again.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sent {
    /// The idempotency key.
    pub key: Option<String>,
    /// The digest of route and body.
    pub digest: String,
}

impl Sent {
    /// The longest idempotency key.
    const MOST: usize = 255;

    /// The clip that the same request has made before.
    ///
    /// # Errors
    /// Another request had the key, or it is too long.
    pub(crate) fn repeated(&self, app: &App, caller: &Caller) -> Result<Option<Arc<Clip>>, Fault> {
        let Some(key) = &self.key else { return Ok(None) };
        if key.len() > Self::MOST {
            let message = format!("an idempotency key has at most {} bytes", Self::MOST);
            return Err(Fault::bad_request(message).about("idempotency-key"));
        }
        app.clips.repeated(caller, key, &self.digest)
    }
}

/// Adds a clip. When this returns, it survives a power cut.
///
/// # Errors
/// The request cannot be carried out, the queue is full, or the store cannot be written.
pub(crate) async fn submit(
    app: &App,
    caller: &Caller,
    request: ClipRequest,
    sent: &Sent,
) -> Result<Submitted, Fault> {
    if let Some(clip) = sent.repeated(app, caller)? {
        return Ok(Submitted::own(clip));
    }
    let mut job = checked::checked(app, &request)?;
    if let Some(post) = &request.post {
        post.apply(app, caller, &mut job, request.format).await?;
    }
    if let Some(callback) = &request.callback {
        callback.check(&app.fetcher)?;
    }
    let mut ticket = Ticket {
        callback: request.callback.clone(),
        ..ticket(app, caller, request.model.as_deref(), request.format, sent)?
    };
    let model = app.models.find(request.model.as_deref())?;
    let cached = |digest: &str| result::cached(app, caller, &request, sent, digest);
    // The bundle of LoRAs is not known yet. Without any, a full queue is no reason to refuse what is there.
    if request.loras.is_empty()
        && let Some(found) = cached(&result::digest(&job, model))
    {
        return Ok(found);
    }
    let place = places(app, caller, 1, sent)?;
    // Another request with the key may have been stored since.
    if let Some(clip) = sent.repeated(app, caller)? {
        return Ok(Submitted::own(clip));
    }
    // Making a bundle takes time and disk space, so the request has its place in the queue by now.
    let bundle = loras::apply(app, model, &request.loras, &mut job, &mut ticket).await?;
    let digest = result::digest(&job, model);
    if let Some(found) = cached(&digest) {
        return Ok(found);
    }
    ticket.result = Some(digest);
    let queue = app.queue.clone();
    let prepare: Prepare =
        Box::new(move |id, request, folder| post::keep(request, folder, &queue.job_folder(id)));
    add(app, job, ticket, prepare, (place, bundle)).await.map(Submitted::own)
}

/// Adds a clip that goes on from a step of another one, with another prompt.
///
/// # Errors
/// The other clip has no snapshot to go on from, the prompt cannot be used, the queue is full, or the store cannot be
/// written.
pub(crate) async fn remix(
    app: &App,
    caller: &Caller,
    parent: &Clip,
    prompt: String,
    sent: &Sent,
) -> Result<Arc<Clip>, Fault> {
    if let Some(clip) = sent.repeated(app, caller)? {
        return Ok(clip);
    }
    let model = app
        .models
        .of_clip(parent)
        .ok_or_else(|| Fault::conflict("model_not_served", "the model of that video is no longer served"))?;
    // The prompt is checked as that of a new clip would be.
    let like = ClipRequest { model: Some(model.name.clone()), ..ClipRequest::new(prompt.clone()) };
    checked::checked(app, &like)?;
    // The other texts are those of the other video. Its own prompt has made the steps before the fork.
    let clip = &parent.request.clip;
    for prompt in [&prompt, &clip.prompt] {
        let negative = clip.negative.as_deref().unwrap_or_default();
        let guidance = clip.guidance.as_deref().unwrap_or_default();
        let captions = post::texts(&parent.request.post_process.captions);
        checked::screen(app, prompt, negative, guidance, &captions)?;
    }
    let run = app.queue.job_folder(parent.job).join(RUN);
    let step = remix_step_of(&run, &parent.request)?;
    let mut ticket = Ticket {
        remixed_from: Some(parent.ticket.id.clone()),
        model: parent.ticket.model.clone(),
        ..ticket(app, caller, Some(&model.name), parent.ticket.format(), sent)?
    };
    let request = Request {
        stop_after: None,
        outputs: Vec::new(),
        keep_steps: KeepSteps::None,
        origin: None,
        take: None,
        ..parent.request.clone()
    };
    let job = parent.job;
    let queue = app.queue.clone();
    let prepare: Prepare = Box::new(move |id, request, folder| {
        post::keep(request, folder, &queue.job_folder(id))?;
        let origin = folder.join(ORIGIN);
        JobFolder::make_origin(&run, step, &origin)?;
        let changed = fork::changed(&origin, step, &|_spec, _applied| {
            Ok(ForkSpec { prompt: Some(prompt.clone()), ..ForkSpec::default() })
        })?;
        request.clip = changed.clip;
        request.origin = Some(Origin { job, step, steps: changed.steps, fork: changed.fork });
        Ok(())
    });
    let place = places(app, caller, 1, sent)?;
    let bundle = loras::again(app, model, &mut ticket, (&parent.ticket, &parent.request.bundle)).await?;
    add(app, request, ticket, prepare, (place, bundle)).await
}

/// The step that a remix of a clip goes on from.
fn remix_step_of(run: &std::path::Path, request: &Request) -> Result<usize, Fault> {
    let kept = JobFolder::kept_steps_in(run);
    let steps = request.steps().unwrap_or(usize::MAX);
    let best = checked::remix_step(steps);
    // That after the last step leaves nothing to change.
    let nearest = kept.into_iter().filter(|step| *step < steps).min_by_key(|step| step.abs_diff(best));
    nearest.ok_or_else(|| {
        let message = "the video has no stored step to go on from: it has not made one yet, or it is so old that \
                       they were removed";
        Fault::conflict("no_snapshot", message)
    })
}

/// The ticket of a new clip.
///
/// # Errors
/// There is no such model.
pub(crate) fn ticket(
    app: &App,
    caller: &Caller,
    model: Option<&str>,
    format: FileFormat,
    sent: &Sent,
) -> Result<Ticket, Fault> {
    let served = app.models.find(model)?;
    let idempotency = sent.key.clone().map(|key| Idempotency { key, request: sent.digest.clone() });
    Ok(Ticket {
        id: ids::clip_id(),
        owner: caller.owner().map(str::to_owned),
        model: model.unwrap_or(&served.name).to_owned(),
        extension: format.extension().to_owned(),
        remixed_from: None,
        audition: None,
        loras: Vec::new(),
        base: None,
        result: None,
        callback: None,
        idempotency,
    })
}

/// Takes places in the queue for `count` jobs.
///
/// # Errors
/// The server ends, there are not as many places, or a request with the same key is being stored.
pub(crate) fn places(app: &App, caller: &Caller, count: usize, sent: &Sent) -> Result<Place, Fault> {
    if *app.ending.borrow() {
        return Err(Fault::unavailable("the server is ending"));
    }
    app.clips.reserve(caller, (app.config.limits.queue, count), sent.key.as_deref())
}

async fn add(
    app: &App,
    mut request: Request,
    ticket: Ticket,
    prepare: Prepare,
    held: (Place, Option<ReadLock>),
) -> Result<Arc<Clip>, Fault> {
    request.outputs = vec![checked::output(app.clips.folder(), &ticket.id, ticket.format())];
    let (queue, clips) = (app.queue.clone(), Arc::clone(&app.clips));
    // A client that vanishes meanwhile does not keep a job that was stored out of the index.
    let added = tokio::spawn(async move {
        let row = queue.submit(NewJob { request, ticket: ticket.clone(), prepare }).await?;
        let clip = clips.add(row, ticket);
        // From now on the index says that they are taken.
        drop(held);
        Ok::<_, Fault>(clip)
    });
    added.await.map_err(Fault::internal)?
}

/// Ends a job within its current step.
///
/// # Errors
/// The job has ended already, or the store cannot be written.
pub(crate) async fn cancel(app: &App, clip: &Clip) -> Result<(), Fault> {
    let ordered = app.queue.order(clip.job, JobOrder::Cancel).await?;
    app.clips.note_row(&ordered.row);
    match ordered.answer {
        Some(jobs::store::Answer::Refused { why }) => Err(Fault::conflict("unsuitable_state", why)),
        _ => Ok(()),
    }
}
