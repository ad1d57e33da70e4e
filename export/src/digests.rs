//! The digests of a bundle's files: computed on export, and checked in full by `rushes inspect` on request.

use crate::Error;
use crate::checkpoint::weight_file;
use crate::file_data::{DataRanges, hash_of_zeros};
use crate::pieces::ReadPieces;
use bundle::file_digest::{self, FileDigest, of_pieces, pieces};
use bundle::layout;
use bundle::manifest::{Bundle, Manifest};
use bundle::units::ByteCount;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::fs::File;
use std::iter::once;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Known digests over every byte, by file; none for a file that is not to be read for a digest.
pub type Known = BTreeMap<String, Option<String>>;

/// Adds the digest of every file in `manifest` and of the tokenizer, and removes those of other files. A file that is
/// not in `known` is read once.
///
/// # Errors
/// I/O errors.
pub fn complete(folder: &Path, manifest: &mut Manifest, known: &Known) -> Result<(), Error> {
    let mut digests = std::mem::take(&mut manifest.digests);
    for file in manifest.files().into_iter().chain([layout::TOKENIZER]).map(str::to_owned).collect::<Vec<_>>()
    {
        let digest = match digests.remove(&file) {
            Some(digest) => digest,
            None => digest(&folder.join(&file), known.get(&file))?,
        };
        manifest.digests.insert(file, digest);
    }
    Ok(())
}

fn digest(path: &Path, known: Option<&Option<String>>) -> Result<FileDigest, Error> {
    let io = || Error::file("read", path);
    let file = File::open(path).map_err(io())?;
    let bytes = file.metadata().map_err(io())?.len();
    let whole = match known {
        Some(known) => known.clone(),
        None => Some(whole(path, &file, bytes)?),
    };
    let sampled = file_digest::sampled(&file, bytes).map_err(io())?;
    Ok(FileDigest { bytes: ByteCount(bytes), sampled, whole })
}

/// Checks every byte of a file.
///
/// # Errors
/// [`bundle::Error::Damaged`] if it differs from what was written, and I/O errors.
pub(crate) fn check_whole(path: &Path, stated: &FileDigest) -> Result<(), Error> {
    let io = || Error::file("read", path);
    let found = std::fs::metadata(path).map_err(io())?;
    // Opening a pipe would block until a writer opens it.
    if !found.is_file() {
        return Err(bundle::Error::damaged(path, "it is not a regular file").into());
    }
    let file = File::open(path).map_err(io())?;
    if stated.whole == Some(whole(path, &file, found.len())?) {
        Ok(())
    } else {
        Err(bundle::Error::damaged(path, "its content differs from what was written").into())
    }
}

/// Computes the digest over every byte of a new file, whose pieces in `known` are not read.
pub(crate) fn whole_of_new(path: &Path, known: &ReadPieces) -> Result<String, Error> {
    let file = File::open(path).map_err(Error::file("read", path))?;
    let bytes = file.metadata().map_err(Error::file("read", path))?.len();
    whole_with(path, &file, bytes, known)
}

/// Computes the digest over every byte of a file, see [`of_pieces`]. Pieces that are holes are not read.
fn whole(path: &Path, file: &File, bytes: u64) -> Result<String, Error> {
    whole_with(path, file, bytes, &ReadPieces::default())
}

fn whole_with(path: &Path, file: &File, bytes: u64, known: &ReadPieces) -> Result<String, Error> {
    let parts = if weight_file::is_named(path) {
        weight_file::parts(&weight_file::read(path, file, bytes)?, bytes)
    } else {
        once(0..bytes).collect()
    };
    let pieces: Vec<Range<u64>> = pieces(parts).collect();
    let data = DataRanges::of(file, bytes);
    let hash = |buffer: &mut Vec<u8>, piece: &Range<u64>| {
        if let Some(known) = known.get(0, piece) {
            return Ok(known.hash);
        }
        let length = usize::try_from(piece.end - piece.start).unwrap_or_default();
        if data.is_hole(piece) {
            return Ok(hash_of_zeros(length));
        }
        buffer.resize(length, 0);
        file.read_exact_at(buffer, piece.start).map(|()| blake3::hash(buffer))
    };
    let hashes = pieces.par_iter().map_init(Vec::new, hash).collect::<Result<Vec<_>, _>>();
    Ok(of_pieces(&hashes.map_err(Error::file("read", path))?))
}

/// The result of a check of every byte.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verified {
    /// Files that are unchanged in every byte.
    pub whole: Vec<String>,
    /// Files with a sampled digest only, or none.
    pub unknown: Vec<String>,
    /// Files that cannot be used, each with the reason.
    pub damaged: Vec<(String, String)>,
    /// Number of bytes read.
    pub bytes: ByteCount,
}

/// Reads every byte of every file with a digest, and does the checks of [`Bundle::open`]. `on_file` is called with each
/// file and its length before it is read.
pub fn verify(bundle: &Bundle, on_file: &mut dyn FnMut(&str, ByteCount)) -> Verified {
    let mut found = Verified::default();
    for file in bundle.files() {
        let path = bundle.path(file);
        let stated = bundle.manifest.digests.get(file).and_then(|digest| digest.whole.as_ref());
        let checked = bundle.check_file(file).map_err(Error::from).and_then(|()| {
            let Some(stated) = stated else { return Ok(None) };
            let opened = File::open(&path).map_err(Error::file("read", &path))?;
            let bytes = opened.metadata().map_err(Error::file("read", &path))?.len();
            on_file(file, ByteCount(bytes));
            found.bytes = found.bytes + ByteCount(bytes);
            Ok(Some(whole(&path, &opened, bytes)? == *stated))
        });
        match checked {
            Ok(Some(true)) => found.whole.push(file.to_owned()),
            Ok(Some(false)) => {
                found.damaged.push((file.to_owned(), "its content differs from what was written".into()));
            }
            Ok(None) => found.unknown.push(file.to_owned()),
            Err(error) => found.damaged.push((file.to_owned(), bundle::Diagnose::report(&error).why)),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::names::Family;
    use crate::checkpoint::samples::{bytes_of, write_shard};
    use crate::checkpoint::shards::Shards;
    use crate::weights::scan::{Verify, scan};

    #[test]
    fn a_scan_returns_the_same_file_digests_as_reading_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let large = bytes_of(&vec![0.5; 700_000]);
        let tensors: [(&str, &[usize], &[u8]); 3] =
            [("b", &[700_000], &large), ("none", &[0], &[]), ("a", &[1], &bytes_of(&[1.0]))];
        let path = folder.path().join("model.safetensors");
        write_shard(&path, &tensors);
        let shards = Shards::open(folder.path(), Family::Denoiser).unwrap();
        let scanned = scan(&shards, Verify::Whole, &bundle::stop::Stop::new()).unwrap();
        let read_at = |path: &Path| {
            let file = File::open(path).unwrap();
            whole(path, &file, file.metadata().unwrap().len()).unwrap()
        };
        let read = || read_at(&path);
        assert_eq!(scanned.files, [read()]);
        assert!(scan(&shards, Verify::Beginnings, &bundle::stop::Stop::new()).unwrap().files.is_empty());
        // A change in the first or last piece changes the digest.
        let length = path.metadata().unwrap().len();
        for place in [length / 4, length - 1] {
            let file = File::options().write(true).open(&path).unwrap();
            file.write_all_at(&[0xa5], place).unwrap();
            assert_ne!(scanned.files, [read()], "{place}");
            write_shard(&path, &tensors);
        }
        assert_eq!(scanned.files, [read()]);
        // Zeros and a hole of the same length.
        let (zeros, hole) = (folder.path().join("zeros"), folder.path().join("hole"));
        std::fs::write(&zeros, vec![0; 3 * file_digest::PIECE + 5]).unwrap();
        File::create(&hole).unwrap().set_len(3 * file_digest::PIECE as u64 + 5).unwrap();
        assert_eq!(read_at(&zeros), read_at(&hole));
    }
}
