//! The weights that graphs without weights are made for: recorded when a graph set is exported, compared when it is
//! attached to a checkpoint.
//!
//! A weight is compared by itself, by its canonical name, so the names and cuts of files do not matter.

use crate::Error;
use crate::checkpoint::Source;
use crate::checkpoint::inventory::Required;
use crate::checkpoint::shards::{Shards, StoredTensor};
use crate::differences::Differences;
use crate::weights::scan::Scan;
use bundle::file_digest::{self, FileDigest};
use bundle::graph_set::{Binding, BoundTensor};
use bundle::stop::Stop;
use bundle::units::ByteCount;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Returns the binding of a component whose weights were all read by `scan`.
///
/// # Errors
/// I/O errors, and an error if a weight is missing or a stop was requested.
pub(crate) fn bind(source: &Source, scan: &Scan, stop: &Stop) -> Result<Binding, Error> {
    let whole: BTreeMap<&str, &String> =
        source.shards.tensors().map(|tensor| tensor.name).zip(&scan.tensors).collect();
    let bound = |required: &Required| {
        stop.check()?;
        let tensor = source.shards.tensor(&required.name)?;
        let unread = || Error::MissingTensor {
            name: required.name.clone(),
            folder: source.shards.folder().to_owned(),
        };
        let whole = (*whole.get(tensor.name).ok_or_else(unread)?).clone();
        let (element, shape) = (tensor.element, tensor.shape.to_vec());
        Ok((required.name.clone(), BoundTensor { element, shape, sampled: sampled(&tensor)?, whole }))
    };
    let tensors = source.required.par_iter().map(bound).collect::<Result<BTreeMap<_, _>, Error>>()?;
    let mut files = BTreeMap::new();
    for (file, whole) in source.shards.files().iter().zip(&scan.files) {
        let name = file.path().file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let sampled = file_digest::sampled_with(file.bytes(), |start, buffer| file.read_at(start, buffer))?;
        let digest = FileDigest { bytes: ByteCount(file.bytes()), sampled, whole: Some(whole.clone()) };
        files.insert(name.to_owned(), digest);
    }
    Ok(Binding { component: source.component.clone(), files, tensors })
}

/// Returns the sampled digest of a weight.
fn sampled(tensor: &StoredTensor<'_>) -> Result<String, Error> {
    let read = |start: u64, buffer: &mut [u8]| tensor.file.read_at(tensor.offset + start, buffer);
    file_digest::sampled_with(tensor.length as u64, read)
}

/// Compares the weights of a checkpoint with a binding: by samples, or by every byte with the `scan` of `shards`.
/// Weights whose names begin with one of `unused` are ignored.
///
/// # Errors
/// I/O errors, and an error if a stop was requested.
pub(crate) fn compare(
    binding: &Binding,
    shards: &Shards,
    unused: &[&str],
    scan: Option<&Scan>,
    stop: &Stop,
) -> Result<Differences, Error> {
    let mut found = Differences { bound: binding.tensors.len(), ..Differences::default() };
    let stored: BTreeMap<&str, (StoredTensor<'_>, Option<&String>)> = shards
        .tensors()
        .enumerate()
        .map(|(index, tensor)| (tensor.name, (tensor, scan.and_then(|scan| scan.tensors.get(index)))))
        .collect();
    let is_unused = |name: &str| unused.iter().any(|start| name.starts_with(start));
    for (name, (tensor, _)) in &stored {
        if !binding.tensors.contains_key(*name) && !is_unused(name) {
            found.extra.push(((*name).to_owned(), tensor.file.path().to_owned()));
        }
    }
    let missing = binding.tensors.keys().filter(|name| !stored.contains_key(name.as_str()));
    found.missing = missing.cloned().collect();
    let pairs: Vec<_> = binding
        .tensors
        .iter()
        .filter_map(|(name, bound)| Some((bound, stored.get(name.as_str())?)))
        .collect();
    let differing = pairs.par_iter().map(|(bound, (tensor, whole))| {
        stop.check()?;
        let why = difference(bound, tensor, *whole)?;
        Ok(why.map(|why| (tensor.name.to_owned(), tensor.file.path().to_owned(), why)))
    });
    found.different = differing.collect::<Result<Vec<_>, Error>>()?.into_iter().flatten().collect();
    Ok(found)
}

/// Returns what differs; none if nothing does.
fn difference(
    bound: &BoundTensor,
    tensor: &StoredTensor<'_>,
    whole: Option<&String>,
) -> Result<Option<String>, Error> {
    if (bound.element, &bound.shape[..]) != (tensor.element, tensor.shape) {
        let (expected, found) = (bound.element, tensor.element);
        return Ok(Some(format!("is {found} {:?} instead of {expected} {:?}", tensor.shape, bound.shape)));
    }
    let is_equal = match whole {
        Some(whole) => *whole == bound.whole,
        None => sampled(tensor)? == bound.sampled,
    };
    Ok((!is_equal).then(|| "has other values".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::names::Family;
    use crate::checkpoint::samples::{bytes_of, write_shard};
    use crate::weights::scan::{Verify, scan};
    use bundle::manifest::Component;
    use std::path::Path;

    const COUNT: usize = 600_000;
    const NAME: &str = "blocks.0.ffn.net.2.weight";

    fn source(folder: &Path, values: &[f32]) -> Source {
        let bytes = bytes_of(values);
        let tensors: [(&str, &[usize], &[u8]); 2] =
            [(NAME, &[2, COUNT / 2], &bytes), ("x.bias", &[1], &bytes[..4])];
        write_shard(&folder.join("m.safetensors"), &tensors);
        let shards = Shards::open(folder, Family::Denoiser).unwrap();
        let required = vec![Required { name: NAME.into(), shape: vec![2, COUNT / 2] }];
        Source { component: Component::Decoder, shards, required }
    }

    #[test]
    fn samples_find_other_weights_and_reading_finds_every_change() {
        let folder = tempfile::tempdir().unwrap();
        let (stop, mut values) = (Stop::new(), vec![1.0; COUNT]);
        let scanned = |source: &Source| scan(&source.shards, Verify::Whole, &stop).unwrap();
        let made = source(folder.path(), &values);
        let binding = bind(&made, &scanned(&made), &stop).unwrap();
        assert_eq!(binding.tensors.keys().collect::<Vec<_>>(), [NAME]);
        let differences = |source: &Source, is_read: bool| {
            let scan = is_read.then(|| scanned(source));
            compare(&binding, &source.shards, &["x."], scan.as_ref(), &stop).unwrap()
        };
        for is_read in [false, true] {
            assert_eq!(differences(&made, is_read), Differences { bound: 1, ..Differences::default() });
        }
        let known = compare(&binding, &made.shards, &[], None, &stop).unwrap().extra;
        assert_eq!(known[0].0, "x.bias");

        // Between two samples, as far apart as they are.
        let sampled = file_digest::sampled_ranges(4 * COUNT as u64);
        let gap = sampled.windows(2).max_by_key(|pair| pair[1].start - pair[0].end).unwrap();
        let between = usize::try_from((gap[0].end + gap[1].start) / 8).unwrap();
        for (place, is_sampled) in [(between, false), (0, true), (COUNT - 1, true)] {
            values[place] = 2.0;
            let changed = source(folder.path(), &values);
            assert_eq!(differences(&changed, false).is_empty(), !is_sampled, "{place}");
            assert_eq!(differences(&changed, true).different[0].0, NAME, "{place}");
            values[place] = 1.0;
        }
    }
}
