//! Bearer tokens: made at random, shown once, kept as digests in `tokens.json`.
//!
//! A running server reads the file again when it has changed, so that a token that is revoked is refused at once.

use crate::ids;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bundle::lock::{Locked, Refusal};
use bundle::{Diagnose, Report, atomic};
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// The start of every token, by which scanners for leaked secrets know it.
const PREFIX: &str = "rushes_";
/// The file of the tokens in the data folder.
const FILE: &str = "tokens.json";
/// The longest name of a token.
const MOST_NAME: usize = 64;

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// Names its holder in lists. No two tokens have the same.
    pub name: String,
    /// Random, so that a new token with an old name does not see what the old one made.
    pub id: String,
    /// BLAKE3 of the secret, 64 hexadecimal digits. The secret has 256 random bits, so no slow digest is needed.
    digest: String,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// The most jobs of this token that may wait or run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_jobs: Option<usize>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    tokens: Vec<Token>,
}

/// An error of the file of the tokens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read or written.
    File(#[from] bundle::Error),
    /// The file is not what was written.
    Damaged {
        /// The file.
        path: PathBuf,
        /// The problem.
        why: String,
    },
    /// The name cannot be given to a token.
    Name {
        /// The name.
        name: String,
        /// The problem.
        why: &'static str,
    },
    /// There is no token with this name.
    Unknown {
        /// The name.
        name: String,
        /// The names that there are.
        known: Vec<String>,
    },
    /// Another process is changing the tokens.
    Busy {
        /// The file.
        path: PathBuf,
    },
}

bundle::display_as_report!(Error);

impl Diagnose for Error {
    fn report(&self) -> Report {
        match self {
            Self::File(error) => error.report(),
            Self::Damaged { path, why } => Report::damaged(
                format!("{} is damaged", path.display()),
                why.clone(),
                "restore the file, or remove it and add the tokens again",
            ),
            Self::Name { name, why } => Report::bad_input(
                format!("a token cannot be named `{name}`"),
                *why,
                "use up to 64 letters, digits, dots, dashes and underscores",
            ),
            Self::Unknown { name, known } => Report::bad_input(
                format!("there is no token `{name}`"),
                if known.is_empty() {
                    "there are no tokens".to_owned()
                } else {
                    format!("there are {}", known.join(", "))
                },
                "see `rushes serve token list`",
            ),
            Self::Busy { path } => Report::failed(
                "the tokens were not changed",
                format!("another process is changing {}", path.display()),
                "try again",
            ),
        }
    }
}

/// Makes a token and stores its digest. Returns the secret, which is not stored.
///
/// # Errors
/// The name is used or cannot be, or the file cannot be read or written.
pub fn add(data: &Path, name: &str, max_jobs: Option<usize>) -> Result<String, Error> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let refused = |why| Err(Error::Name { name: name.to_owned(), why });
    if name.is_empty() || name.len() > MOST_NAME || !name.bytes().all(is_plain) {
        return refused("it is not a plain name");
    }
    change(data, |tokens| {
        if tokens.iter().any(|token| token.name == name) {
            return refused("another token has this name");
        }
        let secret = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(ids::random::<32>()));
        tokens.push(Token {
            name: name.to_owned(),
            id: ids::hex(&ids::random::<8>()),
            digest: blake3::hash(secret.as_bytes()).to_hex().to_string(),
            created: seconds(),
            max_jobs,
        });
        Ok(secret)
    })
}

/// Removes a token.
///
/// # Errors
/// There is no such token, or the file cannot be read or written.
pub fn revoke(data: &Path, name: &str) -> Result<(), Error> {
    change(data, |tokens| {
        let count = tokens.len();
        tokens.retain(|token| token.name != name);
        if tokens.len() == count {
            let known = tokens.iter().map(|token| token.name.clone()).collect();
            return Err(Error::Unknown { name: name.to_owned(), known });
        }
        Ok(())
    })
}

/// The tokens of a data folder, without their secrets.
///
/// # Errors
/// The file cannot be read, or is damaged.
pub fn list(data: &Path) -> Result<Vec<Token>, Error> {
    read(&data.join(FILE))
}

fn seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

fn read(path: &Path) -> Result<Vec<Token>, Error> {
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.map_err(bundle::Error::file("read", path))?,
    };
    let damaged = |why: String| Error::Damaged { path: path.to_owned(), why };
    let File { tokens } = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    match tokens.iter().find(|token| blake3::Hash::from_hex(&token.digest).is_err()) {
        Some(token) => Err(damaged(format!("the digest of `{}` is none", token.name))),
        None => Ok(tokens),
    }
}

fn change<T>(data: &Path, with: impl FnOnce(&mut Vec<Token>) -> Result<T, Error>) -> Result<T, Error> {
    std::fs::create_dir_all(data).map_err(bundle::Error::file("create", data))?;
    let path = data.join(FILE);
    let lock = data.join("tokens.lock");
    let _lock = Locked::file(&lock).map_err(|refusal| match refusal {
        Refusal::Busy => Error::Busy { path: path.clone() },
        Refusal::Foreign(why) => Error::Damaged { path: lock.clone(), why: format!("it {why}") },
        Refusal::Io(error) => bundle::Error::file("lock", &lock)(error).into(),
    })?;
    let mut tokens = read(&path)?;
    let result = with(&mut tokens)?;
    let json = serde_json::to_vec_pretty(&File { tokens })
        .map_err(|error| Error::Damaged { path: path.clone(), why: error.to_string() })?;
    atomic::write_atomic(&path, &json)?;
    // Digests are no secrets, but names and counts are nobody's business.
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600))
        .map_err(bundle::Error::file("write", &path))?;
    Ok(result)
}

/// The tokens that a server accepts.
#[derive(Debug)]
pub struct Tokens {
    path: PathBuf,
    read: RwLock<Read>,
}

#[derive(Debug)]
struct Read {
    stamp: Option<Stamp>,
    tokens: Vec<Arc<Token>>,
}

/// By which a changed file is known: device, inode, size and time of change.
type Stamp = (u64, u64, u64, i64, i64);

impl Tokens {
    /// Reads the tokens of a data folder.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub fn open(data: &Path) -> Result<Self, Error> {
        let path = data.join(FILE);
        let stamp = stamp(&path);
        let tokens = read(&path)?.into_iter().map(Arc::new).collect();
        Ok(Self { path, read: RwLock::new(Read { stamp, tokens }) })
    }

    /// Returns true if there is any token.
    pub fn are_used(&self) -> bool {
        self.refresh();
        !self.read.read().unwrap_or_else(PoisonError::into_inner).tokens.is_empty()
    }

    /// The token with this secret. Takes the same time for every secret of the same length.
    pub fn find(&self, secret: &str) -> Option<Arc<Token>> {
        self.refresh();
        let digest = blake3::hash(secret.as_bytes());
        let read = self.read.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = None;
        for token in &read.tokens {
            // The comparison of `blake3::Hash` takes constant time, and every token is looked at.
            if blake3::Hash::from_hex(&token.digest).is_ok_and(|known| known == digest) {
                found = Some(Arc::clone(token));
            }
        }
        found
    }

    /// The token with this id.
    pub fn by_id(&self, id: &str) -> Option<Arc<Token>> {
        self.refresh();
        let read = self.read.read().unwrap_or_else(PoisonError::into_inner);
        read.tokens.iter().find(|token| token.id == id).cloned()
    }

    /// Reads the file again if it has changed. A file that cannot be read accepts no token.
    fn refresh(&self) {
        let found = stamp(&self.path);
        if self.read.read().unwrap_or_else(PoisonError::into_inner).stamp == found {
            return;
        }
        let tokens = read(&self.path).unwrap_or_else(|error| {
            tracing::error!("no token is accepted: {error}");
            Vec::new()
        });
        let tokens = tokens.into_iter().map(Arc::new).collect();
        *self.read.write().unwrap_or_else(PoisonError::into_inner) = Read { stamp: found, tokens };
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let found = path.metadata().ok()?;
    Some((found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_stored_as_a_digest_only_and_found_by_its_secret() {
        let data = tempfile::tempdir().unwrap();
        let secret = add(data.path(), "alice", None).unwrap();
        assert!(secret.starts_with(PREFIX) && secret.len() == PREFIX.len() + 43, "{secret}");
        let path = data.path().join(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains(secret.strip_prefix(PREFIX).unwrap()) && text.contains("alice"));
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        let tokens = Tokens::open(data.path()).unwrap();
        assert_eq!(tokens.find(&secret).unwrap().name, "alice");
        for wrong in ["", "rushes_", &secret[..secret.len() - 1], &format!("{secret}x"), &text] {
            assert!(tokens.find(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_running_server_sees_tokens_that_are_added_and_revoked() {
        let data = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(data.path()).unwrap();
        assert!(!tokens.are_used());
        let (alice, bob) =
            (add(data.path(), "alice", None).unwrap(), add(data.path(), "bob", Some(3)).unwrap());
        assert!(tokens.are_used());
        let id = tokens.find(&alice).unwrap().id.clone();
        assert_eq!(tokens.find(&bob).unwrap().max_jobs, Some(3));
        revoke(data.path(), "alice").unwrap();
        assert!(tokens.find(&alice).is_none() && tokens.by_id(&id).is_none());
        // A new token with the same name is another one.
        let again = add(data.path(), "alice", None).unwrap();
        assert_ne!(tokens.find(&again).unwrap().id, id);
        std::fs::write(data.path().join(FILE), "{").unwrap();
        assert!(tokens.find(&bob).is_none());
    }

    #[test]
    fn names_are_plain_and_used_once_and_unknown_ones_are_listed() {
        let data = tempfile::tempdir().unwrap();
        add(data.path(), "a.b-c_1", None).unwrap();
        for wrong in ["", "a b", "a/b", "ü", "a.b-c_1", &"x".repeat(65)] {
            assert!(matches!(add(data.path(), wrong, None), Err(Error::Name { .. })), "{wrong}");
        }
        let error = revoke(data.path(), "nobody").unwrap_err().to_string();
        insta::assert_snapshot!(error, @"there is no token `nobody`: there are a.b-c_1 (see `rushes serve token list`)");
        assert_eq!(list(data.path()).unwrap().len(), 1);
    }
}
