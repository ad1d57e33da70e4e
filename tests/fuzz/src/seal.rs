//! Digests of snapshots, computed anew. Without them every change of a snapshot is refused by its digest, and nothing
//! behind that check is tested.

use safetensors::SafeTensors;
use std::collections::HashMap;

/// Returns the snapshot with the digest of its content. Returns `None` if it is not a safetensors file with a JSON text.
///
/// The digest is BLAKE3 over parts, each after its length as u64, little-endian: the JSON, then name, extents (as u64)
/// and bytes of each tensor, `latent`, `clean` and `start` first, others by name.
pub(crate) fn sealed(bytes: &[u8]) -> Option<Vec<u8>> {
    let (_, head) = SafeTensors::read_metadata(bytes).ok()?;
    let json = head.metadata().as_ref()?.get("snapshot")?;
    let mut tensors = SafeTensors::deserialize(bytes).ok()?.tensors();
    let rank = |name: &str| ["latent", "clean", "start"].iter().position(|known| *known == name).unwrap_or(3);
    tensors.sort_by_key(|(name, _)| (rank(name), name.clone()));
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
    };
    part(json.as_bytes());
    for (name, view) in &tensors {
        part(name.as_bytes());
        view.shape().iter().for_each(|extent| part(&(*extent as u64).to_le_bytes()));
        part(view.data());
    }
    let digest = hasher.finalize().to_hex().to_string();
    let metadata = HashMap::from([("snapshot".to_owned(), json.clone()), ("digest".to_owned(), digest)]);
    safetensors::serialize(tensors, Some(metadata)).ok()
}
