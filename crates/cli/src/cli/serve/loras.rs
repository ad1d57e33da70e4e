//! The LoRAs of `rushes serve`.

use super::folder;
use crate::Error;
use crate::cli::global::GlobalArgs;
use crate::cli::lora;
use ::server::{LoraBundles, Room, ServedLoras};
use bundle::lora::LoraUse;
use bundle::manifest::Bundle;
use bundle::stop::Stop;
use bundle::{Diagnose, Report, layout};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The LoRAs in a folder.
///
/// # Errors
/// There is no such folder.
pub(super) fn served(path: &Path, global: &GlobalArgs) -> Result<ServedLoras, Error> {
    let cache = crate::mini::cache_folder(global.cache_dir.as_deref());
    Ok(ServedLoras { folder: folder("--lora-dir", path)?, bundles: Arc::new(Branches { cache }) })
}

/// Makes bundles with LoRAs as the command line does, and keeps a few.
#[derive(Debug)]
struct Branches {
    cache: Option<PathBuf>,
}

impl LoraBundles for Branches {
    fn open(&self, base: &Path, loras: &[LoraUse], room: &Room<'_>) -> Result<Option<PathBuf>, Report> {
        self.opened(base, loras, room).map_err(|error| error.report())
    }
}

impl Branches {
    fn opened(&self, base: &Path, loras: &[LoraUse], room: &Room<'_>) -> Result<Option<PathBuf>, Error> {
        let base = Bundle::open(base)?;
        let resolved = lora::against(&base, loras, false)?;
        if resolved.merges.is_empty() {
            return Ok(Some(base.folder));
        }
        for proof in &resolved.proofs {
            tracing::info!("{proof}");
        }
        if let Some(found) = lora::kept_bundle(&base, &resolved, self.cache.as_deref()) {
            return Ok(Some(absolute(&found.folder)?));
        }
        if !self.make_room(&base, room)? {
            return Ok(None);
        }
        let made = lora::make(&base, &resolved, self.cache.as_deref(), &Stop::new())?;
        Ok(Some(absolute(&made.folder)?))
    }

    /// Removes the bundles that were not used for longest, so that one more may be kept. Returns false if jobs need all
    /// of the others. Those that are open stay too: there are not more of them than fit into the memory.
    fn make_room(&self, base: &Bundle, room: &Room<'_>) -> Result<bool, Error> {
        let base_folder = absolute(&base.folder)?;
        let cache = self.cache.as_deref().map(absolute).transpose()?;
        for folder in std::iter::once(base_folder).chain(cache) {
            let mut kept = lora::list_kept(&folder.join(layout::LORAS))?;
            kept.retain(|kept| kept.is_of(base));
            let mut left = kept.len();
            kept.retain(|kept| !(room.is_used)(&kept.folder));
            if left - kept.len() >= room.most {
                return Ok(false);
            }
            kept.sort_by_key(|kept| std::cmp::Reverse(kept.unused_for));
            for kept in kept {
                if left < room.most {
                    break;
                }
                left -= usize::from(kept.remove()?);
            }
        }
        Ok(true)
    }
}

fn absolute(path: &Path) -> Result<PathBuf, bundle::Error> {
    std::path::absolute(path).map_err(bundle::Error::file("find", path))
}
