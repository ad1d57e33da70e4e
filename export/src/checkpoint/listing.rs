//! The weight files of a component's folder.

use crate::Error;
use serde::Deserialize;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

const SHARD_END: &str = ".safetensors";
/// The file names of diffusers and transformers for a single set of weights.
const USUAL_STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];

/// The weight files of a component, and its index.
pub(super) struct Listing {
    pub(super) files: Vec<PathBuf>,
    /// Path of the index, and for each tensor the position of its shard in `files`.
    pub(super) index: Option<(PathBuf, BTreeMap<String, usize>)>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Listing {
    pub(super) fn of(folder: &Path) -> Result<Self, Error> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(Error::file("list", folder))? {
            let name = entry.map_err(Error::file("list", folder))?.file_name();
            // Hidden files are not weights: macOS writes `._NAME` next to NAME on file systems without extended
            // attributes.
            names.extend(name.into_string().ok().filter(|name| !name.starts_with('.')));
        }
        names.sort();
        let indexes: Vec<&str> =
            names.iter().map(String::as_str).filter(|name| index_stem(name).is_some()).collect();
        if !indexes.is_empty() {
            return Self::of_indexes(folder, &indexes);
        }
        match choose(folder, &names)? {
            Some(file) => Ok(Self { files: vec![folder.join(file)], index: None }),
            None => Err(Error::NoWeights {
                folder: folder.to_owned(),
                found: "it has no .safetensors file".into(),
            }),
        }
    }

    /// Selects the index with a usual name, else the only one. If its shards are missing, as when one variant of a
    /// model was downloaded with the indexes of all variants, selects the only index whose shards all exist.
    fn of_indexes(folder: &Path, indexes: &[&str]) -> Result<Self, Error> {
        let mut listings: Vec<_> =
            indexes.iter().map(|index| Self::of_index(folder, &folder.join(index))).collect();
        let is_usual = |index: &&str| index_stem(index).is_some_and(|stem| USUAL_STEMS.contains(&stem));
        let position = |wanted: &dyn Fn(usize) -> bool| {
            let mut found = (0..indexes.len()).filter(|index| wanted(*index));
            found.next().filter(|_| found.next().is_none())
        };
        let is_whole = |index: usize| !matches!(listings[index], Err(Error::MissingShard { .. }));
        let usual = (0..indexes.len()).find(|index| is_usual(&indexes[*index]));
        let chosen = usual
            .filter(|index| is_whole(*index))
            .or_else(|| position(&is_whole))
            .or(usual)
            .or_else(|| position(&|_| true));
        match chosen {
            Some(chosen) => listings.swap_remove(chosen),
            None => Err(several(folder, indexes)),
        }
    }

    fn of_index(folder: &Path, path: &Path) -> Result<Self, Error> {
        let index: Index = super::json::read_json(path)?;
        let mut names: Vec<&String> = index.weight_map.values().collect();
        names.sort();
        names.dedup();
        if names.is_empty() {
            return Err(Error::config(path, "its weight_map is empty"));
        }
        let mut files = Vec::with_capacity(names.len());
        for name in &names {
            if Path::new(name).file_name() != Some(name.as_ref()) {
                return Err(Error::config(path, format!("`{name}` is not the name of a file in its folder")));
            }
            let file = folder.join(name);
            if !file.exists() {
                return Err(Error::MissingShard {
                    index: path.to_owned(),
                    shard: (*name).clone(),
                    tensors: index.weight_map.values().filter(|shard| shard == name).count(),
                });
            }
            files.push(file);
        }
        let shard_of = index
            .weight_map
            .iter()
            .filter_map(|(tensor, shard)| Some((tensor.clone(), names.binary_search(&shard).ok()?)))
            .collect();
        Ok(Self { files, index: Some((path.to_owned(), shard_of)) })
    }

    /// Checks that every tensor of the index is stored in its shard.
    pub(super) fn check_index<'a>(
        &self,
        stored: impl Iterator<Item = (usize, &'a str)>,
    ) -> Result<(), Error> {
        let Some((path, shard_of)) = &self.index else { return Ok(()) };
        let stored: HashSet<(usize, &str)> = stored.collect();
        match shard_of.iter().find(|(tensor, shard)| !stored.contains(&(**shard, tensor.as_str()))) {
            None => Ok(()),
            Some((tensor, shard)) => Err(Error::header(
                &self.files[*shard],
                format!("it does not contain tensor {tensor}, which {} lists", path.display()),
            )),
        }
    }
}

/// Returns the stem of an index `STEM.safetensors.index.json`. For `STEM.safetensors.index.VARIANT.json`, the whole
/// name is the stem.
fn index_stem(name: &str) -> Option<&str> {
    let (stem, end) = name.split_once(".safetensors.index.")?;
    match end.strip_suffix("json")? {
        "" => Some(stem),
        variant => variant.ends_with('.').then_some(name),
    }
}

/// Returns the weight file with a usual name, else the only one.
fn choose<'a>(folder: &Path, names: &'a [String]) -> Result<Option<&'a str>, Error> {
    let found: Vec<&str> =
        names.iter().map(String::as_str).filter(|name| name.ends_with(SHARD_END)).collect();
    let usual = USUAL_STEMS
        .iter()
        .find_map(|stem| found.iter().find(|name| name.strip_suffix(SHARD_END) == Some(stem)).copied());
    match (usual, found.as_slice()) {
        (Some(usual), _) => Ok(Some(usual)),
        (None, []) => Ok(None),
        (None, [one]) => Ok(Some(one)),
        (None, several_files) => Err(several(folder, several_files)),
    }
}

fn several(folder: &Path, files: &[&str]) -> Error {
    Error::NoWeights {
        folder: folder.to_owned(),
        found: format!("it has several files and no index: {}", files.join(", ")),
    }
}
