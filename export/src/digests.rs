//! The digests of a bundle's files: made when it is written, and checked in full when somebody asks.

use crate::Error;
use crate::checkpoint::header;
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

/// The digest of a file over every byte that is known already; none where nobody wants it to be read for one.
pub type Known = BTreeMap<String, Option<String>>;

/// Gives every file that `manifest` names, and the tokenizer, its digest, and removes those of other files. A file of which
/// `known` says nothing is read once.
///
/// # Errors
/// A file in `folder` that cannot be read.
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

/// The digest over every byte of a file, as of [`of_pieces`].
fn whole(path: &Path, file: &File, bytes: u64) -> Result<String, Error> {
    let is_weights = path.extension().is_some_and(|extension| extension == "safetensors");
    let parts = if is_weights {
        header::parts(&header::read(path, file, bytes)?, bytes)
    } else {
        once(0..bytes).collect()
    };
    let pieces: Vec<Range<u64>> = pieces(parts).collect();
    let hash = |buffer: &mut Vec<u8>, piece: &Range<u64>| {
        buffer.resize(usize::try_from(piece.end - piece.start).unwrap_or_default(), 0);
        file.read_exact_at(buffer, piece.start).map(|()| blake3::hash(buffer))
    };
    let hashes = pieces.par_iter().map_init(Vec::new, hash).collect::<Result<Vec<_>, _>>();
    Ok(of_pieces(&hashes.map_err(Error::file("read", path))?))
}

/// What a check of every byte found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verified {
    /// Files whose every byte is as it was written.
    pub whole: Vec<String>,
    /// Files of which only the sampled digest is known, or none.
    pub unknown: Vec<String>,
    /// Files that cannot be used, each with the reason.
    pub damaged: Vec<(String, String)>,
    /// Bytes that were read.
    pub bytes: ByteCount,
}

/// Reads every byte of every file that has a digest, and checks all else that is checked when a bundle is opened.
/// `on_file` hears of each file and its length before it is read.
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
                found.damaged.push((file.to_owned(), "its bytes are not those that were written".into()));
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
    fn a_scan_gives_files_the_digests_that_reading_them_gives() {
        let folder = tempfile::tempdir().unwrap();
        let large = bytes_of(&vec![0.5; 700_000]);
        let tensors: [(&str, &[usize], &[u8]); 3] =
            [("b", &[700_000], &large), ("none", &[0], &[]), ("a", &[1], &bytes_of(&[1.0]))];
        let path = folder.path().join("model.safetensors");
        write_shard(&path, &tensors);
        let shards = Shards::open(folder.path(), Family::Denoiser).unwrap();
        let scanned = scan(&shards, Verify::Whole, &bundle::stop::Stop::new()).unwrap();
        let read = || {
            let file = File::open(&path).unwrap();
            whole(&path, &file, file.metadata().unwrap().len()).unwrap()
        };
        assert_eq!(scanned.files, [read()]);
        assert!(scan(&shards, Verify::Beginnings, &bundle::stop::Stop::new()).unwrap().files.is_empty());
        // Every byte counts, of the first piece and of the last.
        let length = path.metadata().unwrap().len();
        for place in [length / 4, length - 1] {
            let file = File::options().write(true).open(&path).unwrap();
            file.write_all_at(&[0xa5], place).unwrap();
            assert_ne!(scanned.files, [read()], "{place}");
            write_shard(&path, &tensors);
        }
        assert_eq!(scanned.files, [read()]);
    }
}
