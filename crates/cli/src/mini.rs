//! The embedded model: *mini*, exported on first use into the user's cache.

use crate::Error;
use bundle::stop::Stop;
use std::path::{Path, PathBuf};

/// What a user may want to know while the embedded model is made ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MiniEvent {
    /// Another run is making it; this one waits.
    Waiting,
    /// What is in the cache is damaged and is made again.
    Repairing {
        /// Its folder.
        folder: PathBuf,
    },
}

impl std::fmt::Display for MiniEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Waiting => f.write_str("another run is making the embedded model ready; waiting for it"),
            Self::Repairing { folder } => write!(
                f,
                "warning: the embedded model in {} is damaged and is made again, without the variants it may have had",
                folder.display()
            ),
        }
    }
}

/// The folder of the embedded model's bundle, made if it is not there yet and made again if it is damaged.
///
/// `cache` overrides the user's cache folder.
///
/// # Errors
/// No cache folder, one that cannot be written, or a program without the embedded model.
pub fn bundle_folder(cache: Option<&Path>) -> Result<PathBuf, Error> {
    prepare(cache, &Stop::new(), &mut |_| ())
}

/// [`bundle_folder`] for those who watch, and may end it.
///
/// # Errors
/// As there, or a stop.
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

/// Where programs keep what they can make again, by the XDG rules.
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

    /// Digests of the files that were exported, relative to the bundle.
    const DIGESTS: &str = "exported.json";
    /// Between two looks at what another run makes.
    const WAIT: Duration = Duration::from_millis(50);

    pub(super) fn bundle_in(
        cache: &Path,
        stop: &Stop,
        on_event: &mut dyn FnMut(MiniEvent),
    ) -> Result<PathBuf, Error> {
        // Another checkpoint, format or version of the exporter makes another folder.
        let name = format!("mini-{}-v{}-{FORMAT}", digest().short(), env!("CARGO_PKG_VERSION"));
        let folder = cache.join(name);
        let mut waits = false;
        let staging = loop {
            if is_whole(&folder) {
                return Ok(folder);
            }
            match Staging::replace(&folder) {
                Ok(staging) => break staging,
                Err(bundle::Error::Busy { .. }) => {
                    if !std::mem::replace(&mut waits, true) {
                        on_event(MiniEvent::Waiting);
                    }
                    stop.check()?;
                    std::thread::sleep(WAIT);
                }
                Err(error) => return Err(error.into()),
            }
        };
        // Between the look and the right to write, another run may have come to its end.
        if is_whole(&folder) {
            return Ok(folder);
        }
        if folder.exists() {
            on_event(MiniEvent::Repairing { folder: folder.clone() });
        }
        // The model is called after its folder.
        let checkpoint = staging.scratch()?.join("mini");
        write(&checkpoint)?;
        let request = ExportRequest { stop: stop.clone(), ..ExportRequest::new(&checkpoint, &folder) };
        let whole = staging.folder();
        export::export_into(&request, &whole, &mut |_| ())?;
        write_digests(&whole)?;
        stop.check()?;
        staging.publish(layout::MANIFEST)?;
        Ok(folder)
    }

    /// Whether the bundle is there and every file that was exported has its bytes still; variants and calibrations that
    /// it got later are not looked at. It is small, so all of it is read.
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
