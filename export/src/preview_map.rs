//! The linear map of previews that a checkpoint may contain as `preview_map.json`.

use crate::{Error, pointer};
use bundle::digest::Digest;
use bundle::layout;
use bundle::preview::LatentToRgb;
use std::path::Path;

/// Name of the map in a checkpoint.
pub const PREVIEW_MAP: &str = "preview_map.json";

/// Checks that the checkpoint's map can be read, if it has one.
///
/// # Errors
/// Returns an error if the map is damaged or a Git LFS pointer.
pub(crate) fn check(checkpoint: &Path) -> Result<(), Error> {
    let path = checkpoint.join(PREVIEW_MAP);
    if path.is_file() {
        pointer::read(&path)?;
        LatentToRgb::read(&path)?;
    }
    Ok(())
}

/// Copies the checkpoint's map into the bundle if it was fitted for this decoder. Returns true if there is a map for
/// another decoder.
///
/// If the weights of the decoder were not all read, it cannot be identified and the checkpoint's map is used.
///
/// # Errors
/// Returns an error if the map is damaged or the bundle cannot be written.
pub(crate) fn place(
    checkpoint: &Path,
    bundle: &Path,
    decoder: &Digest,
    channels: usize,
) -> Result<bool, Error> {
    let path = checkpoint.join(PREVIEW_MAP);
    if !path.is_file() {
        return Ok(false);
    }
    let map = LatentToRgb::read(&path)?;
    let map = if decoder.whole {
        map
    } else {
        LatentToRgb::new(map.first, map.later, map.error, map.positions, decoder.clone())
    };
    if !map.approximates(decoder, channels) {
        return Ok(true);
    }
    let target = bundle.join(layout::PREVIEW_MAP);
    if let Some(folder) = target.parent() {
        std::fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
    }
    map.write(&target)?;
    Ok(false)
}

/// Copies the map of a graph set into the bundle, if it has one.
///
/// # Errors
/// Returns an error if the map is damaged or the bundle cannot be written.
pub(crate) fn copy(graphs: &Path, bundle: &Path) -> Result<(), Error> {
    let (source, target) = (graphs.join(layout::PREVIEW_MAP), bundle.join(layout::PREVIEW_MAP));
    if !source.is_file() {
        return Ok(());
    }
    if let Some(folder) = target.parent() {
        std::fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
    }
    Ok(LatentToRgb::read(&source)?.write(&target)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::preview::{LinearColours, NEIGHBOURS};

    #[test]
    fn a_map_is_copied_if_it_was_fitted_for_the_decoder() {
        let (checkpoint, bundle) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let digest = |bytes: &'static [u8], whole| Digest { whole, ..Digest::of_parts([bytes]) };
        let (this, other) = (digest(b"this", true), digest(b"other", true));
        let place = |decoder, channels| place(checkpoint.path(), bundle.path(), decoder, channels).unwrap();
        let target = bundle.path().join(layout::PREVIEW_MAP);
        assert!(!place(&this, 2));
        let colours = || LinearColours { weights: vec![[0.5; 3]; 2 * NEIGHBOURS], offset: [0.0; 3] };
        let map = LatentToRgb::new(colours(), colours(), 0.1, 9, this.clone());
        map.write(&checkpoint.path().join(PREVIEW_MAP)).unwrap();
        assert!(place(&other, 2) && place(&this, 3));
        assert!(!target.exists());
        assert!(!place(&this, 2));
        assert_eq!(LatentToRgb::read(&target).unwrap(), map);
        // Not every weight was read: the checkpoint's map is used.
        let sampled = digest(b"other", false);
        assert!(!place(&sampled, 2));
        assert!(LatentToRgb::read(&target).unwrap().approximates(&sampled, 2));
    }
}
