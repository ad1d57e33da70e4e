//! The embedded model *mini*, which is exported to the user's cache on first use.

use crate::Error;
use bundle::stop::Stop;
use std::path::{Path, PathBuf};

/// A notice to the user while the embedded model is prepared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MiniEvent {
    /// Another run is exporting the model; this one waits.
    Waiting,
    /// The bundle in the cache is damaged and is exported again.
    Repairing {
        /// The folder of the bundle.
        folder: PathBuf,
    },
}

impl std::fmt::Display for MiniEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Waiting => f.write_str("another run is exporting the embedded model; waiting for it"),
            Self::Repairing { folder } => write!(
                f,
                "warning: the embedded model in {} is damaged and is exported again, without any quantised variants",
                folder.display()
            ),
        }
    }
}

/// Returns the folder of the embedded model's bundle. The model is exported if the bundle is absent or damaged.
///
/// `cache` replaces the folder `rushes` in the user's cache.
///
/// # Errors
/// Returns an error if there is no cache folder, if it cannot be written, or if the program was built without the
/// model.
pub fn bundle_folder(cache: Option<&Path>) -> Result<PathBuf, Error> {
    prepare(cache, &Stop::new(), &mut |_| ())
}

/// [`bundle_folder`] with events, and with a way to stop it.
///
/// # Errors
/// See [`bundle_folder`]; also returns an error if `stop` is requested.
pub fn prepare(
    cache: Option<&Path>,
    stop: &Stop,
    on_event: &mut dyn FnMut(MiniEvent),
) -> Result<PathBuf, Error> {
    let cache = match cache {
        Some(cache) => cache.to_owned(),
        None => user_cache().ok_or(Error::NoCacheFolder)?.join("rushes"),
    };
    embedded::bundle_in(&cache, stop, on_event)
}

/// The user's cache folder, by the XDG base directory specification.
fn user_cache() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))
}

#[cfg(feature = "embed-mini")]
mod embedded {
    use super::MiniEvent;
    use crate::Error;
    use bundle::digest::Digest;
    use bundle::layout;
    use bundle::manifest::{Bundle, FORMAT};
    use bundle::staging::Staging;
    use bundle::stop::Stop;
    use export::ExportRequest;
    use include_dir::{Dir, include_dir};
    use rayon::prelude::*;
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    static CHECKPOINT: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../models/mini/checkpoint");

    /// The file with the digests of the exported files, relative to the bundle.
    const DIGESTS: &str = "exported.json";
    /// The time between two checks for the end of another run.
    const POLL_INTERVAL: Duration = Duration::from_millis(50);

    pub(super) fn bundle_in(
        cache: &Path,
        stop: &Stop,
        on_event: &mut dyn FnMut(MiniEvent),
    ) -> Result<PathBuf, Error> {
        // The name depends on the checkpoint, the bundle format and the version of the exporter.
        let name = format!("mini-{}-v{}-{FORMAT}", digest().short(), env!("CARGO_PKG_VERSION"));
        let folder = cache.join(name);
        let mut is_waiting = false;
        let staging = loop {
            if is_whole(&folder) {
                return Ok(folder);
            }
            match Staging::replace(&folder) {
                Ok(staging) => break staging,
                Err(bundle::Error::Busy { .. }) => {
                    if !std::mem::replace(&mut is_waiting, true) {
                        on_event(MiniEvent::Waiting);
                    }
                    stop.check()?;
                    std::thread::sleep(POLL_INTERVAL);
                }
                Err(error) => return Err(error.into()),
            }
        };
        // Another run may have finished between the check and the lock.
        if is_whole(&folder) {
            return Ok(folder);
        }
        if folder.exists() {
            on_event(MiniEvent::Repairing { folder: folder.clone() });
        }
        // The model is named after this folder.
        let checkpoint = staging.scratch()?.join("mini");
        write(&checkpoint)?;
        let request = ExportRequest { stop: stop.clone(), ..ExportRequest::new(&checkpoint, &folder) };
        let staged = staging.folder();
        export::export_into(&request, &staged, &mut |_| ())?;
        write_digests(&staged)?;
        stop.check()?;
        staging.publish(layout::MANIFEST)?;
        Ok(folder)
    }

    /// Returns true if every exported file of the bundle still has its bytes. Variants and calibrations that were added
    /// later are not checked. The bundle is small, so all of it is read.
    fn is_whole(folder: &Path) -> bool {
        let Ok(bundle) = Bundle::open(folder) else { return false };
        let Ok(text) = std::fs::read(folder.join(DIGESTS)) else { return false };
        let Ok(digests) = serde_json::from_slice::<BTreeMap<String, String>>(&text) else { return false };
        let named = bundle.manifest.files();
        !digests.is_empty()
            && digests.par_iter().all(|(file, digest)| {
                (file == layout::TOKENIZER || named.contains(file.as_str()))
                    && digest_of(&folder.join(file)).is_ok_and(|found| found == *digest)
            })
    }

    fn write_digests(folder: &Path) -> Result<(), Error> {
        let bundle = Bundle::open(folder)?;
        let files = bundle.manifest.files().into_iter().chain([layout::TOKENIZER]);
        let mut digests = BTreeMap::new();
        for file in files {
            let path = bundle.path(file);
            digests.insert(file, digest_of(&path).map_err(bundle::Error::file("read", &path))?);
        }
        let path = folder.join(DIGESTS);
        let text = serde_json::to_vec_pretty(&digests)
            .map_err(|error| bundle::Error::Manifest { path: path.clone(), why: error.to_string() })?;
        std::fs::write(&path, text).map_err(bundle::Error::file("write", &path))?;
        Ok(())
    }

    fn digest_of(file: &Path) -> std::io::Result<String> {
        Ok(Digest::of_parts([std::fs::read(file)?.as_slice()]).blake3)
    }

    fn write(checkpoint: &Path) -> Result<(), Error> {
        for file in files(&CHECKPOINT) {
            let path = checkpoint.join(file.path());
            let folder = path.parent().unwrap_or(checkpoint);
            std::fs::create_dir_all(folder).map_err(bundle::Error::file("create", folder))?;
            std::fs::write(&path, file.contents()).map_err(bundle::Error::file("write", &path))?;
        }
        Ok(())
    }

    fn files(dir: &'static Dir<'static>) -> Vec<&'static include_dir::File<'static>> {
        let mut all: Vec<_> = dir.files().collect();
        all.extend(dir.dirs().flat_map(files));
        all
    }

    fn digest() -> Digest {
        let mut parts: Vec<_> = files(&CHECKPOINT);
        parts.sort_by_key(|file| file.path());
        Digest::of_parts(
            parts.iter().flat_map(|file| [file.path().as_os_str().as_encoded_bytes(), file.contents()]),
        )
    }
}

#[cfg(not(feature = "embed-mini"))]
mod embedded {
    use super::MiniEvent;
    use crate::Error;
    use bundle::stop::Stop;
    use std::path::{Path, PathBuf};

    pub(super) fn bundle_in(
        _cache: &Path,
        _stop: &Stop,
        _on_event: &mut dyn FnMut(MiniEvent),
    ) -> Result<PathBuf, Error> {
        Err(Error::NoEmbeddedModel)
    }
}
