//! The weights of one component: memory-mapped safetensors files, looked at through canonical names.

use super::header;
use super::inventory::Required;
use super::names::Family;
use super::pointer;
use crate::Error;
use bundle::dtype::ElementType;
use memmap2::Mmap;
use serde::Deserialize;
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// One weight file, mapped read-only.
#[derive(Debug)]
pub struct ShardFile {
    path: PathBuf,
    map: Mmap,
}

impl ShardFile {
    /// Maps a file.
    #[expect(unsafe_code, reason = "weights of 57 GB are read in place")]
    fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(Error::file("read", path))?;
        // SAFETY: the map is private and read-only, and every bit pattern is a valid u8. Changing or shortening a
        // checkpoint while it is being exported is not supported: a change would be exported half, a cut ends the
        // process with SIGBUS; both are within the user's control alone.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::file("read", path))?;
        pointer::refuse(path, &map)?;
        Ok(Self { path: path.to_owned(), map })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        self.map.len() as u64
    }
}

/// A weight as it is stored.
#[derive(Debug, Clone, Copy)]
pub struct StoredTensor<'a> {
    /// Its canonical name.
    pub name: &'a str,
    /// The file that holds it.
    pub file: &'a ShardFile,
    /// Its number format.
    pub element: ElementType,
    /// Its shape, row-major.
    pub shape: &'a [usize],
    /// Position of its first byte in the file. May be unaligned.
    pub offset: u64,
    /// Its bytes, little-endian.
    pub bytes: &'a [u8],
}

impl StoredTensor<'_> {
    /// Checks the shape.
    ///
    /// # Errors
    /// [`Error::WrongShape`] with the name, the expected and the stored shape.
    pub fn expect_shape(&self, expected: &[usize]) -> Result<(), Error> {
        if self.shape == expected {
            return Ok(());
        }
        Err(Error::WrongShape {
            name: self.name.to_owned(),
            expected: expected.to_vec(),
            found: self.shape.to_vec(),
        })
    }
}

/// All weight files of a component.
#[derive(Debug)]
pub struct Shards {
    folder: PathBuf,
    files: Vec<ShardFile>,
    tensors: BTreeMap<String, Location>,
}

/// The embedding of umT5, which encoder and decoder share.
const EMBEDDING: &str = "shared.weight";
/// The same where the encoder alone was saved.
const EMBEDDING_COPY: &str = "encoder.embed_tokens.weight";
/// The bytes of `spiece.model`, which single-file repacks of umT5 hold as a tensor. It is no weight.
const STORED_TOKENIZER: &str = "spiece_model";

#[derive(Debug)]
struct Location {
    file: usize,
    element: ElementType,
    shape: Vec<usize>,
    span: Range<usize>,
}

impl Shards {
    /// Opens the weights in a component's folder: shards with an index, or a single file.
    ///
    /// # Errors
    /// No weights, a missing shard, and every way in which a header, an index or a file's length can be wrong.
    pub fn open(folder: &Path, family: Family) -> Result<Self, Error> {
        Self::of_listing(folder, &Listing::of(folder)?, family)
    }

    /// Opens the weights in one file.
    ///
    /// # Errors
    /// A file that is absent, or whose header does not hold.
    pub fn open_file(path: &Path, family: Family) -> Result<Self, Error> {
        let listing = Listing { files: vec![path.to_owned()], index: None };
        Self::of_listing(path.parent().unwrap_or(path), &listing, family)
    }

    /// Opens weights in files that are known by name.
    ///
    /// # Errors
    /// A file that is missing, and every way in which a header or a file's length can be wrong.
    pub fn of_files(folder: &Path, files: Vec<PathBuf>, family: Family) -> Result<Self, Error> {
        Self::of_listing(folder, &Listing { files, index: None }, family)
    }

    fn of_listing(folder: &Path, listing: &Listing, family: Family) -> Result<Self, Error> {
        let mut files = Vec::with_capacity(listing.files.len());
        let mut stored = Vec::new();
        for path in &listing.files {
            let file = ShardFile::open(path)?;
            let tensors = header::parse(path, &file.map)?;
            stored.extend(tensors.into_iter().map(|tensor| (files.len(), tensor)));
            files.push(file);
        }
        listing.check_index(stored.iter().map(|(file, tensor)| (*file, tensor.name.as_str())))?;

        let naming = family.naming(stored.iter().map(|(_, tensor)| tensor.name.as_str()));
        let mut tensors = BTreeMap::new();
        for (file, tensor) in stored {
            let name = family.canonical(naming, &tensor.name);
            if family == Family::TextEncoder && name == STORED_TOKENIZER {
                continue;
            }
            let location = Location { file, element: tensor.element, shape: tensor.shape, span: tensor.span };
            if let Some(other) = tensors.insert(name.clone(), location) {
                let other: Location = other;
                return Err(Error::DuplicateTensor {
                    name,
                    first: files[other.file].path.clone(),
                    second: files[file].path.clone(),
                });
            }
        }
        if family == Family::TextEncoder && !tensors.contains_key(EMBEDDING) {
            let copy = tensors.remove(EMBEDDING_COPY);
            tensors.extend(copy.map(|location| (EMBEDDING.to_owned(), location)));
        }
        Ok(Self { folder: folder.to_owned(), files, tensors })
    }

    /// The component's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its weight files.
    pub fn files(&self) -> &[ShardFile] {
        &self.files
    }

    /// All weights, sorted by canonical name.
    pub fn tensors(&self) -> impl Iterator<Item = StoredTensor<'_>> {
        self.tensors.iter().map(|(name, location)| self.stored(name, location))
    }

    /// A weight by its canonical name.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn tensor(&self, name: &str) -> Result<StoredTensor<'_>, Error> {
        self.tensors
            .get_key_value(name)
            .map(|(name, location)| self.stored(name, location))
            .ok_or_else(|| Error::MissingTensor { name: name.to_owned(), folder: self.folder.clone() })
    }

    fn stored<'a>(&'a self, name: &'a str, location: &'a Location) -> StoredTensor<'a> {
        let file = &self.files[location.file];
        StoredTensor {
            name,
            file,
            element: location.element,
            shape: &location.shape,
            offset: location.span.start as u64,
            bytes: &file.map[location.span.clone()],
        }
    }

    /// The number format of the given weights when all have the same.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn uniform_element(&self, required: &[Required]) -> Result<Option<ElementType>, Error> {
        let mut uniform = None;
        for tensor in required {
            let element = self.tensor(&tensor.name)?.element;
            if *uniform.get_or_insert(element) != element {
                return Ok(None);
            }
        }
        Ok(uniform)
    }

    /// Checks that the required weights are there, floating-point and of the right shape, and that no other weight
    /// is there except those whose name begins with one of `unused`.
    ///
    /// # Errors
    /// The first weight that is missing, of a wrong shape or number format, or has no place.
    pub fn check(&self, required: &[Required], unused: &[&str]) -> Result<(), Error> {
        let mut known = HashSet::new();
        for Required { name, shape } in required {
            let tensor = self.tensor(name)?;
            tensor.expect_shape(shape)?;
            if !matches!(tensor.element, ElementType::F32 | ElementType::F16 | ElementType::Bf16) {
                return Err(Error::WrongType { name: name.clone(), found: tensor.element });
            }
            known.insert(name.as_str());
        }
        let extra = self.tensors().find(|tensor| {
            !known.contains(tensor.name) && !unused.iter().any(|start| tensor.name.starts_with(start))
        });
        match extra {
            None => Ok(()),
            Some(tensor) => {
                Err(Error::UnexpectedTensor { name: tensor.name.to_owned(), path: tensor.file.path.clone() })
            }
        }
    }
}

const SHARD_END: &str = ".safetensors";
/// What diffusers and transformers call the weights when there is one version of them.
const USUAL_STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];

/// Which files make up a component, and what the index says about them.
struct Listing {
    files: Vec<PathBuf>,
    /// The index's path, and for each tensor the position of its shard in `files`.
    index: Option<(PathBuf, BTreeMap<String, usize>)>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Listing {
    fn of(folder: &Path) -> Result<Self, Error> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(Error::file("list", folder))? {
            let name = entry.map_err(Error::file("list", folder))?.file_name();
            // Hidden files are no weights: macOS writes `._NAME` beside NAME where a file system has no room for its own.
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
                found: "there is no .safetensors file in it".into(),
            }),
        }
    }

    /// Takes the index with a usual name, else the only one; where shards of it are missing, as when one variant of a model
    /// was downloaded with the indexes of all, the only one whose shards are all there.
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
                return Err(Error::config(path, format!("`{name}` is not the name of a file beside it")));
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

    /// Checks that every tensor of the index is stored, and in the shard that it names.
    fn check_index<'a>(&self, stored: impl Iterator<Item = (usize, &'a str)>) -> Result<(), Error> {
        let Some((path, shard_of)) = &self.index else { return Ok(()) };
        let stored: HashSet<(usize, &str)> = stored.collect();
        match shard_of.iter().find(|(tensor, shard)| !stored.contains(&(**shard, tensor.as_str()))) {
            None => Ok(()),
            Some((tensor, shard)) => Err(Error::header(
                &self.files[*shard],
                format!("{} says that it holds tensor {tensor}, and it does not", path.display()),
            )),
        }
    }
}

/// What an index is named after: `STEM.safetensors.index.json`, or with a variant `STEM.safetensors.index.VARIANT.json`, whose
/// stem counts with it.
fn index_stem(name: &str) -> Option<&str> {
    let (stem, end) = name.split_once(".safetensors.index.")?;
    match end.strip_suffix("json")? {
        "" => Some(stem),
        variant => variant.ends_with('.').then_some(name),
    }
}

/// The weight file: the one with a usual name, else the only one.
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
        found: format!("there are several files and none says which to use: {}", files.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::samples::{bytes_of, write_shard};
    use serde_json::json;
    use tempfile::TempDir;

    fn open(folder: &TempDir) -> Result<Shards, Error> {
        Shards::open(folder.path(), Family::Denoiser)
    }

    fn write_index(folder: &TempDir, map: serde_json::Value) {
        let path = folder.path().join("diffusion_pytorch_model.safetensors.index.json");
        std::fs::write(path, json!({ "metadata": {}, "weight_map": map }).to_string()).unwrap();
    }

    /// Two shards with one tensor each, and their index.
    fn two_shards() -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        write_shard(&folder.path().join("a-1.safetensors"), &[("x", &[2], &bytes_of(&[1.0, 2.0]))]);
        write_shard(&folder.path().join("a-2.safetensors"), &[("y", &[1], &bytes_of(&[3.0]))]);
        write_index(&folder, json!({ "x": "a-1.safetensors", "y": "a-2.safetensors" }));
        folder
    }

    #[test]
    fn tensors_are_found_in_their_shards() {
        let folder = two_shards();
        let shards = open(&folder).unwrap();
        let tensor = shards.tensor("y").unwrap();
        assert_eq!(tensor.bytes, bytes_of(&[3.0]));
        let file = std::fs::read(tensor.file.path()).unwrap();
        assert_eq!(file[usize::try_from(tensor.offset).unwrap()..], bytes_of(&[3.0]));
        assert_eq!(shards.tensors().map(|tensor| tensor.name).collect::<Vec<_>>(), ["x", "y"]);
        assert!(matches!(shards.tensor("z"), Err(Error::MissingTensor { .. })));
    }

    #[test]
    fn a_missing_shard_is_named() {
        let folder = two_shards();
        std::fs::remove_file(folder.path().join("a-2.safetensors")).unwrap();
        let error = open(&folder).unwrap_err();
        assert!(
            matches!(&error, Error::MissingShard { shard, tensors: 1, .. } if shard == "a-2.safetensors"),
            "{error}"
        );
    }

    #[test]
    fn a_truncated_or_empty_shard_is_named() {
        let folder = two_shards();
        let path = folder.path().join("a-1.safetensors");
        let whole = std::fs::read(&path).unwrap();
        for length in [0, 3, 20, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            let error = open(&folder).unwrap_err();
            assert!(
                matches!(&error, Error::Truncated { path: found, .. } if *found == path),
                "{length}: {error}"
            );
        }
    }

    #[test]
    fn an_index_that_names_a_tensor_the_shard_lacks_is_refused() {
        let folder = two_shards();
        write_index(
            &folder,
            json!({ "x": "a-1.safetensors", "y": "a-2.safetensors", "z": "a-2.safetensors" }),
        );
        assert!(matches!(open(&folder), Err(Error::Header { why, .. }) if why.contains("tensor z")));
        write_index(&folder, json!({ "x": "a-2.safetensors", "y": "a-1.safetensors" }));
        assert!(matches!(open(&folder), Err(Error::Header { .. })));
    }

    #[test]
    fn an_index_cannot_reach_outside_its_folder() {
        let folder = two_shards();
        for shard in ["../a-1.safetensors", "/etc/passwd", "..", ""] {
            write_index(&folder, json!({ "x": shard }));
            assert!(matches!(open(&folder), Err(Error::Config { .. })), "{shard}");
        }
        write_index(&folder, json!({}));
        assert!(matches!(open(&folder), Err(Error::Config { .. })));
    }

    #[test]
    fn a_tensor_in_two_shards_is_refused() {
        let folder = two_shards();
        let both: [(&str, &[usize], &[u8]); 2] =
            [("x", &[2], &bytes_of(&[1.0, 2.0])), ("y", &[1], &bytes_of(&[3.0]))];
        write_shard(&folder.path().join("a-2.safetensors"), &both);
        assert!(matches!(open(&folder), Err(Error::DuplicateTensor { name, .. }) if name == "x"));
    }

    #[test]
    fn official_names_that_meet_in_one_canonical_name_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let value = bytes_of(&[1.0]);
        let tensors: [(&str, &[usize], &[u8]); 3] = [
            ("blocks.0.norm2.bias", &[1], &value),
            ("blocks.0.norm3.bias", &[1], &value),
            ("head.modulation", &[1], &value),
        ];
        write_shard(&folder.path().join("m.safetensors"), &tensors);
        let error = open(&folder).unwrap_err();
        assert!(
            matches!(&error, Error::DuplicateTensor { name, .. } if name == "blocks.0.norm2.bias"),
            "{error}"
        );
    }

    #[test]
    fn a_single_file_may_have_any_name_but_not_company() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(open(&folder), Err(Error::NoWeights { .. })));
        write_shard(&folder.path().join("wan.safetensors"), &[("x", &[1], &bytes_of(&[1.0]))]);
        assert!(open(&folder).is_ok());
        write_shard(&folder.path().join("wan.fp16.safetensors"), &[("x", &[1], &bytes_of(&[1.0]))]);
        assert!(matches!(open(&folder), Err(Error::NoWeights { .. })));
        let usual = folder.path().join("diffusion_pytorch_model.safetensors");
        write_shard(&usual, &[("x", &[1], &bytes_of(&[2.0]))]);
        assert_eq!(open(&folder).unwrap().tensor("x").unwrap().file.path(), usual);
        let absent = folder.path().join("absent");
        assert!(matches!(Shards::open(&absent, Family::Denoiser), Err(Error::File { .. })));
    }

    #[test]
    fn a_variant_is_taken_where_it_is_the_only_set_that_is_whole() {
        let folder = two_shards();
        let usual = folder.path().join("diffusion_pytorch_model.safetensors.index.json");
        let variant = folder.path().join("diffusion_pytorch_model.safetensors.index.fp16.json");
        let value = bytes_of(&[9.0]);
        write_shard(&folder.path().join("a.fp16-1.safetensors"), &[("x", &[1], &value)]);
        let map = json!({ "weight_map": { "x": "a.fp16-1.safetensors" } });
        std::fs::write(&variant, map.to_string()).unwrap();
        assert_eq!(open(&folder).unwrap().files().len(), 2);
        std::fs::remove_file(folder.path().join("a-1.safetensors")).unwrap();
        assert_eq!(open(&folder).unwrap().tensor("x").unwrap().bytes, value);
        std::fs::remove_file(usual).unwrap();
        assert_eq!(open(&folder).unwrap().tensor("x").unwrap().bytes, value);
        std::fs::copy(&variant, folder.path().join("model.safetensors.index.bf16.json")).unwrap();
        assert!(matches!(open(&folder), Err(Error::NoWeights { .. })));
        std::fs::remove_file(folder.path().join("a.fp16-1.safetensors")).unwrap();
        assert!(matches!(open(&folder), Err(Error::NoWeights { .. })));
    }

    #[test]
    fn an_encoder_without_a_shared_embedding_has_it_under_the_name_of_its_copy() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (bytes_of(&[1.0]), bytes_of(&[2.0]));
        let path = folder.path().join("model.safetensors");
        let embedding = |tensors: &[(&str, &[usize], &[u8])]| {
            write_shard(&path, tensors);
            let shards = Shards::open(folder.path(), Family::TextEncoder).unwrap();
            shards.tensor("shared.weight").unwrap().bytes.to_vec()
        };
        assert_eq!(embedding(&[("encoder.embed_tokens.weight", &[1], &one)]), one);
        let both: [(&str, &[usize], &[u8]); 2] =
            [("shared.weight", &[1], &two), ("encoder.embed_tokens.weight", &[1], &one)];
        assert_eq!(embedding(&both), two);
    }

    #[test]
    fn weights_that_are_missing_misshapen_or_left_over_are_named() {
        let folder = two_shards();
        let shards = open(&folder).unwrap();
        let required = |name: &str, shape: &[usize]| Required { name: name.into(), shape: shape.to_vec() };
        let (x, y) = (required("x", &[2]), required("y", &[1]));
        assert!(shards.check(&[x.clone(), y.clone()], &[]).is_ok());
        assert!(shards.check(std::slice::from_ref(&x), &["y"]).is_ok());
        let error = shards.check(std::slice::from_ref(&x), &[]).unwrap_err();
        assert!(matches!(&error, Error::UnexpectedTensor { name, .. } if name == "y"), "{error}");
        let error = shards.check(&[required("x", &[1, 2]), y.clone()], &[]).unwrap_err();
        assert!(
            matches!(&error, Error::WrongShape { expected, found, .. } if *expected == [1, 2] && *found == [2]),
            "{error}"
        );
        let error = shards.check(&[x, y, required("z", &[1])], &[]).unwrap_err();
        assert!(matches!(&error, Error::MissingTensor { name, .. } if name == "z"), "{error}");
    }

    #[test]
    fn quantised_weights_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = br#"........{"x":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}"#.to_vec();
        let header = file.len() as u64 - 8;
        file[..8].copy_from_slice(&header.to_le_bytes());
        file.extend([0, 0]);
        std::fs::write(folder.path().join("x.safetensors"), file).unwrap();
        let required = [Required { name: "x".into(), shape: vec![2] }];
        let error = open(&folder).unwrap().check(&required, &[]).unwrap_err();
        assert!(matches!(error, Error::WrongType { found: ElementType::F8E4M3, .. }), "{error}");
    }
}
