//! The way from the names of LoRAs to a job whose bundle applies them.

use super::request::ClipLora;
use super::{Room, ServedLoras, folder};
use crate::app::App;
use crate::clips::ticket::Ticket;
use crate::fault::Fault;
use crate::models::ServedModel;
use bundle::lock::ReadLock;
use bundle::lora::{LoraExpert, LoraUse};
use bundle::manifest::Bundle;
use jobs::request::Request;
use std::path::PathBuf;
use std::sync::Arc;

/// The parameter that refusals name once the files are found.
const FIELD: &str = "loras";

/// Gives a job the bundle that applies LoRAs to the model. The bundle stays until the lock is dropped, and while the job
/// waits or runs.
///
/// # Errors
/// The operator has named no folder, there is no such file, it cannot be applied to the model, or too many others are in
/// use.
pub(crate) async fn apply(
    app: &App,
    model: &ServedModel,
    loras: &[ClipLora],
    job: &mut Request,
    ticket: &mut Ticket,
) -> Result<Option<ReadLock>, Fault> {
    if loras.is_empty() {
        return Ok(None);
    }
    let Some(served) = &app.config.loras else {
        let message = format!("`{FIELD}` cannot be used: the operator has named no folder of LoRAs");
        return Err(Fault::unsupported(FIELD, message));
    };
    let uses = loras.iter().map(|lora| lora_use(served, model, lora)).collect::<Result<Vec<_>, _>>()?;
    let (folder, lock) = opened(app, served, model, uses).await?;
    job.bundle = folder;
    ticket.loras = loras.to_vec();
    ticket.base = Some(model.folder.clone());
    Ok(Some(lock))
}

/// Keeps the bundle with LoRAs of a clip for one that goes on from it, and makes it again if it was removed.
///
/// # Errors
/// It cannot be made again as it was.
pub(crate) async fn again(
    app: &App,
    model: &ServedModel,
    ticket: &mut Ticket,
    (parent, bundle): (&Ticket, &PathBuf),
) -> Result<Option<ReadLock>, Fault> {
    ticket.loras.clone_from(&parent.loras);
    ticket.base.clone_from(&parent.base);
    if parent.loras.is_empty() {
        return Ok(None);
    }
    let lock = ReadLock::acquire(bundle);
    if Bundle::read(bundle).is_ok() {
        return Ok(Some(lock));
    }
    let gone = || Fault::conflict("loras_changed", "the LoRAs of that video are no longer as they were");
    let served = app.config.loras.as_ref().ok_or_else(gone)?;
    let uses = parent.loras.iter().map(|lora| lora_use(served, model, lora)).collect::<Result<Vec<_>, _>>();
    let (found, lock) = opened(app, served, model, uses.map_err(|_missing| gone())?).await?;
    if found == *bundle { Ok(Some(lock)) } else { Err(gone()) }
}

/// The bundle of a model with LoRAs.
async fn opened(
    app: &App,
    served: &ServedLoras,
    model: &ServedModel,
    uses: Vec<LoraUse>,
) -> Result<(PathBuf, ReadLock), Fault> {
    let turn = Arc::clone(&app.lora_turn).lock_owned().await;
    let (bundles, clips) = (Arc::clone(&served.bundles), Arc::clone(&app.clips));
    let (base, most) = (model.folder.clone(), app.config.limits.lora_bundles);
    let opened = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        let room = Room { most, is_used: &|folder| clips.is_needed(folder) };
        let folder = bundles.open(&base, &uses, &room)?;
        Ok::<_, bundle::Report>(folder.map(|folder| (ReadLock::acquire(&folder), folder)))
    });
    match opened.await.map_err(Fault::internal)? {
        Ok(Some((lock, folder))) => Ok((folder, lock)),
        Ok(None) => {
            let message = "clips with too many different LoRAs or strengths wait; try again later";
            Err(Fault::too_many(message, 60))
        }
        Err(report) => {
            let fault = Fault::of_report(&report);
            Err(Fault { message: crate::paths::without(&fault.message), ..fault }.about(FIELD))
        }
    }
}

/// The file of a LoRA, with its strength and the expert that it is for.
fn lora_use(served: &ServedLoras, model: &ServedModel, lora: &ClipLora) -> Result<LoraUse, Fault> {
    let file = folder::find(&served.folder, &lora.name, FIELD)?;
    // The one expert of a model is for all noise.
    let has_one = model.manifest.routing.routes().len() == 1;
    let expert = match lora.expert {
        Some(LoraExpert::HighNoise) if has_one => Some(LoraExpert::All),
        expert => expert,
    };
    Ok(LoraUse { expert, file, strength: lora.strength })
}
