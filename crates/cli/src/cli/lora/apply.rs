//! LoRAs of a run: the bundle whose graphs apply them, beside the weights of the base bundle.

use super::{LoraArgs, kept};
use crate::Error;
use crate::cli::global::GlobalArgs;
use crate::cli::render;
use bundle::Field;
use bundle::layout;
use bundle::manifest::{Bundle, Component};
use bundle::routing::ExpertName;
use bundle::staging::Staging;
use bundle::stop::Stop;
use export::branched::{self, BranchedRequest};
use export::lora::resolved::{BaseModel, Resolved};
use export::quantized::BundleWeights;
use runtime::job::{JobSpec, LoraSpec};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Opens the bundle in `folder`, with LoRAs if there are any. What they change is printed to standard error.
///
/// The bundle with LoRAs is kept in the folder `loras` of the base bundle, or in the cache if that cannot be written.
///
/// # Errors
/// Returns an error if a file cannot be applied, or if the bundle cannot be written.
pub(in crate::cli) fn open(
    folder: &Path,
    args: &LoraArgs,
    (global, stop): (&GlobalArgs, &Stop),
) -> Result<Bundle, Error> {
    let base = Bundle::open(folder)?;
    if args.lora.is_empty() {
        return Ok(base);
    }
    let resolved = against(&base, &args.lora, args.lora_lenient)?;
    if !global.json {
        resolved.proofs.iter().for_each(|proof| render::note(&proof.to_string()));
    }
    if resolved.merges.is_empty() {
        return Ok(base);
    }
    let cache = crate::mini::cache_folder(global.cache_dir.as_deref());
    match kept_bundle(&base, &resolved, cache.as_deref()) {
        Some(found) => Ok(found),
        None => make(&base, &resolved, cache.as_deref(), stop),
    }
}

/// Where a bundle with LoRAs is kept: in the folder of its base, and in the cache.
fn places(base: &Bundle, resolved: &Resolved, cache: Option<&Path>) -> (PathBuf, Option<PathBuf>) {
    let name = branched::digest(base, resolved);
    let below = |folder: &Path| folder.join(layout::LORAS).join(name.short());
    (below(&base.folder), cache.map(below))
}

/// The bundle with these LoRAs that an earlier run has kept.
pub(in crate::cli) fn kept_bundle(
    base: &Bundle,
    resolved: &Resolved,
    cache: Option<&Path>,
) -> Option<Bundle> {
    let (own, cached) = places(base, resolved, cache);
    // Files may be left of a run that was ended, or of a bundle whose files were replaced.
    let found = [Some(own), cached].into_iter().flatten().find_map(|folder| Bundle::open(&folder).ok())?;
    kept::note_use(&found.folder);
    Some(found)
}

/// Makes the bundle with these LoRAs, and keeps it.
///
/// # Errors
/// Returns an error if a change cannot be a branch, or if the bundle cannot be written.
pub(in crate::cli) fn make(
    base: &Bundle,
    resolved: &Resolved,
    cache: Option<&Path>,
    stop: &Stop,
) -> Result<Bundle, Error> {
    let (own, cached) = places(base, resolved, cache);
    let (staging, target) = match (Staging::replace(&own), cached) {
        (Ok(staging), _) => (staging, own),
        (Err(bundle::Error::File { .. }), Some(cached)) => (Staging::replace(&cached)?, cached),
        (Err(error), _) => return Err(error.into()),
    };
    let request = BranchedRequest { bundle: base, loras: resolved, stop };
    branched::write(&request, &staging.folder())?;
    stop.check()?;
    kept::write_record(&staging.folder(), base)?;
    staging.publish(layout::MANIFEST)?;
    Ok(Bundle::open(&target)?)
}

/// Matches LoRA files with the experts of a bundle.
///
/// # Errors
/// Returns an error if a file or a weight cannot be read, or if a file cannot be applied.
pub(in crate::cli) fn against(
    bundle: &Bundle,
    loras: &[bundle::lora::LoraUse],
    lenient: bool,
) -> Result<Resolved, Error> {
    if loras.is_empty() {
        return Ok(Resolved::default());
    }
    let manifest = &bundle.manifest;
    let mut weights = BTreeMap::new();
    for route in manifest.routing.routes() {
        let entry = manifest.component(&Component::Expert(route.expert.clone()))?;
        weights.insert(route.expert.clone(), BundleWeights::open(bundle, entry)?);
    }
    let read = |expert: &ExpertName, name: &str| {
        let missing =
            || export::Error::MissingTensor { name: name.to_owned(), folder: PathBuf::from(&expert.0) };
        weights.get(expert).ok_or_else(missing)?.read(name)
    };
    let model = BaseModel { spec: &manifest.denoiser, routing: &manifest.routing, weights: Some(&read) };
    Ok(Resolved::new(loras, lenient, &model)?)
}

/// Checks that a run that goes on, or that repeats a clip, has the LoRAs of the first one. Other LoRAs are allowed where
/// `may_differ` is true, but not none.
///
/// # Errors
/// Returns an error that names the first LoRA that is missing or another one.
pub(in crate::cli) fn check(spec: &JobSpec, bundle: &Bundle, may_differ: bool) -> Result<(), Error> {
    let own = LoraSpec::of(&bundle.manifest);
    if own == spec.loras || (may_differ && !own.is_empty()) {
        return Ok(());
    }
    let short = |digest: &str| digest.get(..12).unwrap_or(digest).to_owned();
    let (rule, fix) = match spec.loras.iter().find(|lora| !own.contains(lora)) {
        Some(LoraSpec { file, expert, strength }) => {
            let changed =
                own.iter().find(|lora| lora.file.name == file.name && lora.file.digest != file.digest);
            let changed = changed.map(|lora| {
                format!("; the file of this name is another one ({}…)", short(&lora.file.digest))
            });
            (
                format!(
                    "{} (BLAKE3 {}…) was applied to the expert {expert} with strength {strength}{}",
                    file.name,
                    short(&file.digest),
                    changed.unwrap_or_default()
                ),
                format!("give `lora` {expert}={}@{strength}", file.name),
            )
        }
        None => (
            "the clip was made without some of the given files, or in another order".to_owned(),
            "leave them out".into(),
        ),
    };
    Err(bundle::Error::value(Field::Lora, "other than before", rule, &fix).into())
}
