//! Weight files that are hard-linked into the bundle without conversion.

use super::{Destination, ExternalTensor, PlacedWeights, Transfer, file_entry, location};
use crate::Error;
use crate::checkpoint::shards::{ShardFile, Shards};
use bundle::atomic;
use bundle::manifest::Component;
use bundle::units::ByteCount;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Bytes that are copied between two checks for a stop.
const COPY_BLOCK: u64 = 64 << 20;

/// Links every weight file of a component into the bundle, or copies it if requested or if the file system refuses
/// links.
///
/// A link shares the file with the checkpoint: overwriting the checkpoint in place also changes the bundle; replacing
/// or deleting the checkpoint's file does not.
///
/// # Errors
/// [`Error::CopyRefused`] if links are refused and the copies would exceed the destination's limit; and I/O errors.
pub fn place(shards: &Shards, destination: Destination<'_>) -> Result<PlacedWeights, Error> {
    place_with(shards, destination, |original, link| std::fs::hard_link(original, link))
}

/// [`place`] with another function that creates a link.
fn place_with(
    shards: &Shards,
    destination: Destination<'_>,
    link: impl Fn(&Path, &Path) -> io::Result<()>,
) -> Result<PlacedWeights, Error> {
    let folder = destination.create_folder()?;
    let mut to_copy: Vec<(PathBuf, PathBuf)> = Vec::new();
    let mut bytes = ByteCount(0);
    let mut refusal = None;
    for file in shards.files() {
        let name = file_name(file.path())?;
        // Download caches contain symbolic links; a hard link must refer to the file itself.
        let original = std::fs::canonicalize(file.path()).map_err(Error::file("read", file.path()))?;
        let target = folder.join(name);
        if is_same_file(&original, &target) {
            continue;
        }
        remove_if_exists(&target)?;
        if destination.transfer == Transfer::Copy {
            to_copy.push((original, target));
        } else if let Err(source) = link(&original, &target) {
            bytes = bytes + ByteCount(file.bytes());
            refusal.get_or_insert(source);
            to_copy.push((original, target));
        }
    }
    if let (Some(source), Some((path, _))) = (refusal, to_copy.first()) {
        if let Transfer::Link { copy_limit: Some(limit) } = destination.transfer
            && bytes > limit
        {
            let path = path.clone();
            return Err(Error::CopyRefused { path, target: folder, bytes, limit, source });
        }
        tracing::info!(%bytes, %source, "the file system refuses hard links; weights are copied");
    }
    to_copy.iter().try_for_each(|(original, target)| copy(original, target, destination))?;
    located(shards, destination.component)
}

/// Returns the places that the weights of a component have once its files are in the bundle.
///
/// # Errors
/// Returns an error if the name of a file is not UTF-8.
pub(super) fn located(shards: &Shards, component: &Component) -> Result<PlacedWeights, Error> {
    let entry = |file: &ShardFile| Ok(file_entry(component, file_name(file.path())?, file.bytes()));
    let files = shards.files().iter().map(entry).collect::<Result<_, Error>>()?;
    let tensors = shards
        .tensors()
        // A graph would read others in a wrong order.
        .filter(|tensor| tensor.strides.is_none())
        .map(|tensor| {
            let placed = ExternalTensor {
                location: location(file_name(tensor.file.path())?),
                offset: tensor.offset,
                length: tensor.length as u64,
                element: tensor.element,
                shape: tensor.shape.to_vec(),
            };
            Ok((tensor.name.to_owned(), placed))
        })
        .collect::<Result<_, Error>>()?;
    Ok(PlacedWeights { tensors, files, from: shards.folder().to_owned() })
}

/// Returns true if a file in the bundle is hard-linked.
pub(crate) fn is_linked(path: &Path) -> Result<bool, Error> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).map_err(Error::file("read", path))?;
    Ok(metadata.nlink() > 1)
}

fn file_name(path: &Path) -> Result<&str, Error> {
    path.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
        let source = io::Error::new(io::ErrorKind::InvalidFilename, "the name is not valid UTF-8");
        Error::File { action: "link", path: path.to_owned(), source }
    })
}

fn is_same_file(original: &Path, target: &Path) -> bool {
    std::fs::canonicalize(target).is_ok_and(|target| target == original)
}

fn remove_if_exists(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::file("replace", path)(error)),
        _ => Ok(()),
    }
}

/// Copies a file; it has its name only once it is complete.
fn copy(original: &Path, target: &Path, destination: Destination<'_>) -> Result<(), Error> {
    let failed = |source| Error::File { action: "copy into", path: target.to_owned(), source };
    let mut from = File::open(original).map_err(Error::file("read", original))?;
    let mut part = atomic::create_part(target).map_err(failed)?;
    loop {
        destination.check()?;
        // In the kernel if both file systems support it.
        if io::copy(&mut (&mut from).take(COPY_BLOCK), part.as_file_mut()).map_err(failed)? == 0 {
            break;
        }
    }
    atomic::publish(part, target).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::names::Family;
    use crate::checkpoint::samples::{bytes_of, write_shard};
    use std::os::unix::fs::MetadataExt;
    use tempfile::TempDir;

    const FILE: &str = "m.safetensors";

    fn checkpoint() -> (TempDir, Shards) {
        let folder = tempfile::tempdir().unwrap();
        let values = bytes_of(&[1.0, 2.0, 3.0]);
        let tensors: [(&str, &[usize], &[u8]); 2] =
            [("head.modulation", &[3], &values), ("blocks.0.norm3.bias", &[1, 2], &values[4..])];
        write_shard(&folder.path().join(FILE), &tensors);
        let shards = Shards::open(folder.path(), Family::Denoiser).unwrap();
        (folder, shards)
    }

    fn destination(bundle: &TempDir, copy_limit: Option<u64>) -> Destination<'_> {
        let transfer = Transfer::Link { copy_limit: copy_limit.map(ByteCount) };
        Destination { bundle: bundle.path(), component: &Component::Decoder, transfer, stop: None }
    }

    fn inode(path: &Path) -> u64 {
        std::fs::metadata(path).unwrap().ino()
    }

    #[test]
    fn files_are_linked_and_tensors_have_canonical_names() {
        let (folder, shards) = checkpoint();
        let bundle = tempfile::tempdir().unwrap();
        // A second export into the same folder must work.
        for _ in 0..2 {
            let placed = place(&shards, destination(&bundle, Some(0))).unwrap();
            let file = bundle.path().join(&placed.files[0].file);
            assert_eq!(placed.files[0].file, "decoder/weights/m.safetensors");
            assert_eq!(inode(&file), inode(&folder.path().join(FILE)));
            let tensor = placed.expect("blocks.0.norm2.bias", &[1, 2]).unwrap();
            let (start, length) =
                (usize::try_from(tensor.offset).unwrap(), usize::try_from(tensor.length).unwrap());
            let stored = std::fs::read(bundle.path().join("decoder").join(&tensor.location)).unwrap();
            assert_eq!(stored[start..start + length], bytes_of(&[2.0, 3.0]));
        }
    }

    #[test]
    fn a_symbolic_link_is_followed_before_it_is_linked() {
        let (folder, _) = checkpoint();
        let cache = tempfile::tempdir().unwrap();
        std::fs::rename(folder.path().join(FILE), cache.path().join("blob")).unwrap();
        std::os::unix::fs::symlink(cache.path().join("blob"), folder.path().join(FILE)).unwrap();
        let shards = Shards::open(folder.path(), Family::Denoiser).unwrap();
        let bundle = tempfile::tempdir().unwrap();
        place(&shards, destination(&bundle, Some(0))).unwrap();
        let placed = bundle.path().join("decoder/weights/m.safetensors");
        assert!(std::fs::symlink_metadata(&placed).unwrap().is_file());
        assert_eq!(inode(&placed), inode(&cache.path().join("blob")));
    }

    #[test]
    fn a_refused_link_becomes_a_copy_up_to_the_limit() {
        let (folder, shards) = checkpoint();
        let refuse = |_: &Path, _: &Path| Err(io::ErrorKind::CrossesDevices.into());
        let size = shards.files()[0].bytes();
        let bundle = tempfile::tempdir().unwrap();
        let error = place_with(&shards, destination(&bundle, Some(size - 1)), refuse).unwrap_err();
        assert!(matches!(&error, Error::CopyRefused { bytes, .. } if bytes.0 == size), "{error}");
        assert_eq!(std::fs::read_dir(bundle.path().join("decoder/weights")).unwrap().count(), 0);
        for limit in [Some(size), None] {
            let placed = place_with(&shards, destination(&bundle, limit), refuse).unwrap();
            let file = bundle.path().join(&placed.files[0].file);
            assert_ne!(inode(&file), inode(&folder.path().join(FILE)));
            assert_eq!(std::fs::read(&file).unwrap(), std::fs::read(folder.path().join(FILE)).unwrap());
        }
        assert_eq!(std::fs::read_dir(bundle.path().join("decoder/weights")).unwrap().count(), 1);
    }

    #[test]
    fn a_requested_copy_is_independent_of_the_checkpoint() {
        let (folder, shards) = checkpoint();
        let bundle = tempfile::tempdir().unwrap();
        let copied = Destination { transfer: Transfer::Copy, ..destination(&bundle, None) };
        let before = std::fs::read(folder.path().join(FILE)).unwrap();
        // Also replaces an existing link.
        for destination in [copied, destination(&bundle, None), copied] {
            place(&shards, destination).unwrap();
        }
        let placed = bundle.path().join("decoder/weights").join(FILE);
        assert_ne!(inode(&placed), inode(&folder.path().join(FILE)));
        let mut changed = before.clone();
        *changed.last_mut().unwrap() ^= 1;
        std::fs::write(folder.path().join(FILE), &changed).unwrap();
        assert_eq!(std::fs::read(&placed).unwrap(), before);
        assert_eq!(std::fs::read_dir(bundle.path().join("decoder/weights")).unwrap().count(), 1);
    }

    #[test]
    fn weights_that_are_already_in_the_bundle_are_kept() {
        let bundle = tempfile::tempdir().unwrap();
        let folder = bundle.path().join("decoder/weights");
        std::fs::create_dir_all(&folder).unwrap();
        write_shard(&folder.join(FILE), &[("x", &[1], &bytes_of(&[1.0]))]);
        let shards = Shards::open(&folder, Family::Denoiser).unwrap();
        place(&shards, destination(&bundle, Some(0))).unwrap();
        assert!(folder.join(FILE).is_file());
    }

    #[test]
    fn an_unwritable_destination_is_reported() {
        let (_folder, shards) = checkpoint();
        let bundle = tempfile::tempdir().unwrap();
        std::fs::write(bundle.path().join("decoder"), "a file is in the way").unwrap();
        let error = place(&shards, destination(&bundle, None)).unwrap_err();
        assert!(matches!(&error, Error::File { action: "create", .. }), "{error}");
    }
}
