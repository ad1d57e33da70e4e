//! Tests of weight files.

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
    assert_eq!(tensor.read().unwrap(), bytes_of(&[3.0]));
    let file = std::fs::read(tensor.file.path()).unwrap();
    assert_eq!(file[usize::try_from(tensor.offset).unwrap()..], bytes_of(&[3.0]));
    assert_eq!(shards.tensors().map(|tensor| tensor.name).collect::<Vec<_>>(), ["x", "y"]);
    assert!(matches!(shards.tensor("z"), Err(Error::MissingTensor { .. })));
}

#[test]
fn a_missing_shard_is_reported() {
    let folder = two_shards();
    std::fs::remove_file(folder.path().join("a-2.safetensors")).unwrap();
    let error = open(&folder).unwrap_err();
    assert!(
        matches!(&error, Error::MissingShard { shard, tensors: 1, .. } if shard == "a-2.safetensors"),
        "{error}"
    );
}

#[test]
fn a_truncated_or_empty_shard_is_reported() {
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
fn a_file_that_is_truncated_or_changed_after_opening_is_reported() {
    let folder = two_shards();
    let path = folder.path().join("a-2.safetensors");
    let shards = open(&folder).unwrap();
    assert!(shards.check_unchanged().is_ok());
    let file = File::options().write(true).open(&path).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(length - 1).unwrap();
    for error in [shards.tensor("y").unwrap().read().unwrap_err(), shards.check_unchanged().unwrap_err()] {
        assert!(
            matches!(&error, Error::Changed { path: found, before, now } if *found == path
                && *before == length && *now == length - 1),
            "{error}"
        );
    }
    assert!(shards.tensor("x").unwrap().read().is_ok());
    file.set_len(length).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert!(matches!(shards.check_unchanged(), Err(Error::Changed { .. })));
}

#[test]
fn a_folder_in_place_of_a_weight_file_is_refused() {
    let folder = two_shards();
    let path = folder.path().join("a-2.safetensors");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(matches!(open(&folder), Err(Error::Header { path: found, .. }) if found == path));
}

#[test]
fn an_index_with_a_tensor_that_the_shard_lacks_is_refused() {
    let folder = two_shards();
    write_index(&folder, json!({ "x": "a-1.safetensors", "y": "a-2.safetensors", "z": "a-2.safetensors" }));
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
fn two_names_with_the_same_canonical_name_are_refused() {
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
fn a_single_file_may_have_any_name_but_several_files_are_refused() {
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
fn a_variant_is_used_if_it_is_the_only_complete_set() {
    let folder = two_shards();
    let usual = folder.path().join("diffusion_pytorch_model.safetensors.index.json");
    let variant = folder.path().join("diffusion_pytorch_model.safetensors.index.fp16.json");
    let value = bytes_of(&[9.0]);
    write_shard(&folder.path().join("a.fp16-1.safetensors"), &[("x", &[1], &value)]);
    let map = json!({ "weight_map": { "x": "a.fp16-1.safetensors" } });
    std::fs::write(&variant, map.to_string()).unwrap();
    assert_eq!(open(&folder).unwrap().files().len(), 2);
    std::fs::remove_file(folder.path().join("a-1.safetensors")).unwrap();
    assert_eq!(open(&folder).unwrap().tensor("x").unwrap().read().unwrap(), value);
    std::fs::remove_file(usual).unwrap();
    assert_eq!(open(&folder).unwrap().tensor("x").unwrap().read().unwrap(), value);
    std::fs::copy(&variant, folder.path().join("model.safetensors.index.bf16.json")).unwrap();
    assert!(matches!(open(&folder), Err(Error::NoWeights { .. })));
    std::fs::remove_file(folder.path().join("a.fp16-1.safetensors")).unwrap();
    assert!(matches!(open(&folder), Err(Error::NoWeights { .. })));
}

#[test]
fn a_missing_shared_embedding_is_replaced_by_its_copy() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (bytes_of(&[1.0]), bytes_of(&[2.0]));
    let path = folder.path().join("model.safetensors");
    let embedding = |tensors: &[(&str, &[usize], &[u8])]| {
        write_shard(&path, tensors);
        let shards = Shards::open(folder.path(), Family::TextEncoder).unwrap();
        shards.tensor("shared.weight").unwrap().read().unwrap()
    };
    assert_eq!(embedding(&[("encoder.embed_tokens.weight", &[1], &one)]), one);
    let both: [(&str, &[usize], &[u8]); 2] =
        [("shared.weight", &[1], &two), ("encoder.embed_tokens.weight", &[1], &one)];
    assert_eq!(embedding(&both), two);
}

#[test]
fn missing_wrong_and_unexpected_weights_are_reported() {
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
