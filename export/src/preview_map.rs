//! The linear map of previews that a checkpoint may ship as `preview_map.json`.

use crate::Error;
use crate::checkpoint::pointer;
use bundle::digest::Digest;
use bundle::layout;
use bundle::preview::LatentToRgb;
use std::path::Path;

/// Name of the map in a checkpoint.
pub const PREVIEW_MAP: &str = "preview_map.json";

/// Checks that the checkpoint's map can be read, if there is one.
///
/// # Errors
/// A map that is damaged or a Git LFS pointer.
pub(crate) fn check(checkpoint: &Path) -> Result<(), Error> {
    let path = checkpoint.join(PREVIEW_MAP);
    if path.is_file() {
        pointer::read(&path)?;
        LatentToRgb::read(&path)?;
    }
    Ok(())
}

/// Puts the checkpoint's map into the bundle, if there is one and it was fitted for this decoder. Says whether there was
/// one that could not be taken.
///
/// A decoder whose weights were not all read cannot be told from another, so its checkpoint is trusted.
///
/// # Errors
/// A map that is damaged, or a bundle that cannot be written.
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

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::preview::{LinearColours, NEIGHBOURS};

    #[test]
    fn a_map_is_taken_when_it_is_this_decoders() {
        let (checkpoint, bundle) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let digest = |bytes: &'static [u8], whole| Digest { whole, ..Digest::of_parts([bytes]) };
        let (ours, theirs) = (digest(b"ours", true), digest(b"theirs", true));
        let place = |decoder, channels| place(checkpoint.path(), bundle.path(), decoder, channels).unwrap();
        let target = bundle.path().join(layout::PREVIEW_MAP);
        assert!(!place(&ours, 2));
        let colours = || LinearColours { weights: vec![[0.5; 3]; 2 * NEIGHBOURS], offset: [0.0; 3] };
        let map = LatentToRgb::new(colours(), colours(), 0.1, 9, ours.clone());
        map.write(&checkpoint.path().join(PREVIEW_MAP)).unwrap();
        assert!(place(&theirs, 2) && place(&ours, 3));
        assert!(!target.exists());
        assert!(!place(&ours, 2));
        assert_eq!(LatentToRgb::read(&target).unwrap(), map);
        // Not every weight was read: the checkpoint is trusted.
        let begun = digest(b"theirs", false);
        assert!(!place(&begun, 2));
        assert!(LatentToRgb::read(&target).unwrap().approximates(&begun, 2));
    }
}
