//! Adding an audition: places in the queue, the jobs of all takes in one change, the indexes.

use super::index::Audition;
use super::request::{AuditionRequest, Takes};
use crate::access::Caller;
use crate::app::App;
use crate::clips::checked::checked;
use crate::clips::queue::{NewJob, Prepare};
use crate::clips::submitting::{Sent, places, ticket};
use crate::clips::ticket::Ticket;
use crate::fault::Fault;
use crate::loras::apply as loras;
use crate::{ids, post};
use jobs::audition;
use jobs::request::Request;
use runtime::plan::GenerationPlan;
use runtime::scheduler::JobId;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Adds an audition. When this returns, it survives a power cut.
///
/// # Errors
/// The request cannot be carried out, the queue has too few places, or the store cannot be written.
pub(super) async fn submit(
    app: &Arc<App>,
    caller: &Caller,
    request: AuditionRequest,
    sent: &Sent,
) -> Result<Arc<Audition>, Fault> {
    if let Some(audition) = repeated(app, caller, sent)? {
        return Ok(audition);
    }
    let AuditionRequest { clip, takes, steps_of } = request;
    check_count(app, caller, &takes)?;
    let mut job = checked(app, &clip)?;
    if let Some(post) = &clip.post {
        post.apply(app, caller, &mut job, clip.format).await?;
    }
    let model = app.models.find(clip.model.as_deref())?;
    let steps = audition::steps_of(steps_of, &GenerationPlan::new(&model.manifest, &job.clip)?)?;
    let seeds = match takes {
        Takes::Count(count) => audition::consecutive(job.clip.seed, count),
        Takes::Seeds(seeds) => seeds,
    };
    let id = ids::audition_id();
    let mut first = ticket(app, caller, clip.model.as_deref(), clip.format, sent)?;
    first.audition = Some(id.clone());
    let place = places(app, caller, seeds.len(), sent)?;
    // Another request with the key may have been stored since.
    if let Some(audition) = repeated(app, caller, sent)? {
        return Ok(audition);
    }
    let bundle = loras::apply(app, model, &clip.loras, &mut job, &mut first).await?;
    let jobs = new_jobs(app, audition::takes(&job, &seeds, steps), first);
    let app = Arc::clone(app);
    // A client that vanishes meanwhile does not keep jobs that were stored out of the indexes.
    let added = tokio::spawn(async move {
        let tickets: Vec<Ticket> = jobs.iter().map(|job| job.ticket.clone()).collect();
        let rows = app.queue.submit_all(jobs).await?;
        let owner = tickets.first().and_then(|ticket| ticket.owner.clone());
        let takes = (1..).zip(rows.iter().map(|row| row.id)).collect();
        let audition = app.auditions.add(Audition::new(id, owner, takes));
        // The first one last: it has the idempotency key, which is to lead to all of them.
        for (row, ticket) in rows.into_iter().zip(tickets).rev() {
            app.clips.add(row, ticket);
        }
        // From now on the index says that they are taken.
        drop((place, bundle));
        Ok::<_, Fault>(audition)
    });
    added.await.map_err(Fault::internal)?
}

/// The audition that the same request has made before.
fn repeated(app: &App, caller: &Caller, sent: &Sent) -> Result<Option<Arc<Audition>>, Fault> {
    let Some(clip) = sent.repeated(app, caller)? else { return Ok(None) };
    let id = clip.ticket.audition.as_deref().unwrap_or_default();
    let gone = || {
        let message = "the audition of this idempotency key was deleted: use a new key for a new audition";
        Fault::conflict("idempotency_key_reused", message)
    };
    app.auditions.get(&app.clips, id).ok_or_else(gone).map(Some)
}

/// Refuses more takes than may ever wait at a time.
fn check_count(app: &App, caller: &Caller, takes: &Takes) -> Result<(), Fault> {
    let (name, count) = (takes.parameter(), takes.count());
    let refused = |most: usize, what: &str| {
        let message =
            format!("`{name}` asks for {count} takes, and {what} {most} jobs at a time: ask for fewer");
        Err(Fault::parameter(name, message))
    };
    let queue = app.config.limits.queue;
    if count > queue {
        return refused(queue, "the queue of this server has at most");
    }
    match caller.most_jobs() {
        Some(most) if count > most => refused(most, "this token may have at most"),
        _ => Ok(()),
    }
}

/// The jobs of takes. `first` is the ticket of the first one, and the others have names of their own.
fn new_jobs(app: &App, requests: Vec<Request>, first: Ticket) -> Vec<NewJob> {
    // The number of the first job, which gives the audition its number in the store. It is known when the jobs are
    // added, and becomes another one if they have to be added again.
    let number = Arc::new(AtomicU64::new(0));
    let mut tickets = vec![first.clone()];
    tickets.resize_with(requests.len(), || Ticket { id: ids::clip_id(), idempotency: None, ..first.clone() });
    let job = |(request, ticket): (Request, Ticket)| {
        let (queue, number) = (app.queue.clone(), Arc::clone(&number));
        let prepare: Prepare = Box::new(move |JobId(id), request, folder| {
            if let Some(take) = &mut request.take {
                if take.number == 1 {
                    number.store(id, Ordering::Relaxed);
                }
                take.audition = JobId(number.load(Ordering::Relaxed));
            }
            post::keep(request, folder, &queue.job_folder(JobId(id)))
        });
        NewJob { request, ticket, prepare }
    };
    requests.into_iter().zip(tickets).map(job).collect()
}
