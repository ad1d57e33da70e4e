//! The embedded model: *mini*, exported on first use into the user's cache.

use crate::Error;
use std::path::{Path, PathBuf};

/// The folder of the embedded model's bundle, made if it is not there yet.
///
/// `cache` overrides the user's cache folder.
///
/// # Errors
/// No cache folder, one that cannot be written, or a program without the embedded model.
pub fn bundle_folder(cache: Option<&Path>) -> Result<PathBuf, Error> {
    let cache = match cache {
        Some(cache) => cache.to_owned(),
        None => user_cache().ok_or(Error::NoCacheFolder)?.join("rushes"),
    };
    embedded::bundle_in(&cache)
}

/// Where programs keep what they can make again, by the XDG rules.
fn user_cache() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))
}

#[cfg(feature = "embed-mini")]
mod embedded {
    use crate::Error;
    use bundle::digest::Digest;
    use bundle::manifest::{Bundle, FORMAT};
    use export::ExportRequest;
    use include_dir::{Dir, include_dir};
    use std::path::{Path, PathBuf};

    static CHECKPOINT: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../models/mini/checkpoint");

    pub(super) fn bundle_in(cache: &Path) -> Result<PathBuf, Error> {
        // Another checkpoint, format or version of the exporter makes another folder.
        let name = format!("mini-{}-v{}-{FORMAT}", digest().short(), env!("CARGO_PKG_VERSION"));
        let folder = cache.join(name);
        if Bundle::open(&folder).is_ok() {
            return Ok(folder);
        }
        std::fs::create_dir_all(cache).map_err(bundle::Error::file("create", cache))?;
        let staging = cache.join(format!("mini-checkpoint.{}", std::process::id()));
        // The model is called after its folder.
        let checkpoint = staging.join("mini");
        let exported = write(&checkpoint).and_then(|()| {
            // The folder is unusable, or Bundle::open would have taken it.
            if folder.exists() {
                std::fs::remove_dir_all(&folder).map_err(bundle::Error::file("remove", &folder))?;
            }
            let request = ExportRequest::new(&checkpoint, &folder);
            Ok(export::export(&request, &mut |_| ()).map(|_| ())?)
        });
        let removed = std::fs::remove_dir_all(&staging);
        match exported {
            // Another process may have been faster; what it made serves as well.
            Err(_) if Bundle::open(&folder).is_ok() => Ok(folder),
            Err(error) => Err(error),
            Ok(()) => {
                removed.map_err(bundle::Error::file("remove", &staging))?;
                Ok(folder)
            }
        }
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
    use crate::Error;
    use std::path::{Path, PathBuf};

    pub(super) fn bundle_in(_cache: &Path) -> Result<PathBuf, Error> {
        Err(Error::NoEmbeddedModel)
    }
}
