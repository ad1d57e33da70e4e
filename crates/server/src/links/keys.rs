//! The keys that links and cookies are signed with. A new one is made every 30 days; the one before it stays valid for
//! as long as what it has signed.

use crate::ids;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bundle::atomic;
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

const FILE: &str = "link-keys.json";
/// How long a key signs, in seconds.
const SIGNS: u64 = 30 * 24 * 3600;
/// How long a key is valid after it has stopped to sign: longer than any link or cookie.
const OUTLIVES: u64 = 8 * 24 * 3600;

/// The keys of a data folder.
#[derive(Debug)]
pub(crate) struct Keys {
    path: PathBuf,
    keys: RwLock<Vec<Key>>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    id: String,
    secret: String,
    created: u64,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({})", self.id)
    }
}

impl Keys {
    /// Reads the keys, and makes a new one if none is young enough at the time `now`, in seconds since 1970.
    ///
    /// # Errors
    /// The file cannot be read or written, or is damaged.
    pub(crate) fn open(data: &Path, now: u64) -> Result<Self, bundle::Error> {
        let path = data.join(FILE);
        let keys = match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            bytes => {
                let bytes = bytes.map_err(bundle::Error::file("read", &path))?;
                serde_json::from_slice(&bytes)
                    .map_err(|error| bundle::Error::file("read", &path)(std::io::Error::other(error)))?
            }
        };
        let opened = Self { path, keys: RwLock::new(keys) };
        opened.rotate(now)?;
        Ok(opened)
    }

    /// Makes a new key if the newest one has signed for long enough, and forgets those that nothing needs.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn rotate(&self, now: u64) -> Result<(), bundle::Error> {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        // A clock that was set back does not make keys of the future invalid.
        if keys.last().is_some_and(|key| now < key.created.saturating_add(SIGNS)) {
            return Ok(());
        }
        let mut changed = keys.clone();
        changed.retain(|key| now < key.created.saturating_add(SIGNS + OUTLIVES));
        changed.push(Key {
            id: ids::hex(&ids::random::<4>()),
            secret: URL_SAFE_NO_PAD.encode(ids::random::<32>()),
            created: now,
        });
        let json = serde_json::to_vec_pretty(&changed)
            .map_err(|error| bundle::Error::file("write", &self.path)(std::io::Error::other(error)))?;
        atomic::write_atomic(&self.path, &json)?;
        std::fs::set_permissions(&self.path, PermissionsExt::from_mode(0o600))
            .map_err(bundle::Error::file("write", &self.path))?;
        *keys = changed;
        Ok(())
    }

    /// Signs a text: the id of the key, and the code.
    pub(crate) fn sign(&self, message: &str, now: u64) -> (String, String) {
        if let Err(error) = self.rotate(now) {
            // The old key goes on signing.
            tracing::warn!("the keys of links cannot be rotated: {error}");
        }
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let Some(key) = keys.last() else { unreachable!("opening makes a key") };
        (key.id.clone(), URL_SAFE_NO_PAD.encode(mac(key, message).finalize().into_bytes()))
    }

    /// Returns true if a code was made by [`Self::sign`] for the same text. Takes constant time for a known key.
    pub(crate) fn verify(&self, key: &str, message: &str, code: &str, now: u64) -> bool {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let is_valid = |known: &&Key| known.id == key && now < known.created.saturating_add(SIGNS + OUTLIVES);
        let Some(key) = keys.iter().find(is_valid) else { return false };
        URL_SAFE_NO_PAD.decode(code).is_ok_and(|code| mac(key, message).verify_slice(&code).is_ok())
    }
}

fn mac(key: &Key, message: &str) -> Hmac<Sha256> {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key.secret.as_bytes()) else {
        unreachable!("HMAC takes keys of every length")
    };
    mac.update(message.as_bytes());
    mac
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_code_belongs_to_its_text_and_key() {
        let data = tempfile::tempdir().unwrap();
        let keys = Keys::open(data.path(), 10).unwrap();
        let (key, code) = keys.sign("a", 10);
        assert!(keys.verify(&key, "a", &code, 10));
        assert!(!keys.verify(&key, "b", &code, 10));
        assert!(!keys.verify("00000000", "a", &code, 10));
        for wrong in ["", "!", &code[1..]] {
            assert!(!keys.verify(&key, "a", wrong, 10));
        }
        let other = tempfile::tempdir().unwrap();
        assert!(!Keys::open(other.path(), 10).unwrap().verify(&key, "a", &code, 10));
        assert_eq!(data.path().join(FILE).metadata().unwrap().mode() & 0o777, 0o600);
        assert!(!format!("{keys:?}").contains(&code));
    }

    #[test]
    fn keys_are_rotated_and_old_ones_verify_until_nothing_needs_them() {
        let data = tempfile::tempdir().unwrap();
        let keys = Keys::open(data.path(), 0).unwrap();
        let (first, code) = keys.sign("a", SIGNS - 1);
        let (second, _) = keys.sign("a", SIGNS);
        assert_ne!(first, second);
        assert!(keys.verify(&first, "a", &code, SIGNS + OUTLIVES - 1));
        assert!(!keys.verify(&first, "a", &code, SIGNS + OUTLIVES));
        // They are the same after a restart.
        let again = Keys::open(data.path(), SIGNS).unwrap();
        assert_eq!(again.sign("a", SIGNS).0, second);
        assert!(again.verify(&first, "a", &code, SIGNS));
    }
}
