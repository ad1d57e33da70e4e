//! C2PA content credentials: a signed statement in an mp4 that a model made it.

use super::{Error, Tags};
use std::path::{Path, PathBuf};

/// A certificate chain and its private key, both as PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningKey {
    /// The certificate, followed by those that lead to its root.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl std::str::FromStr for SigningKey {
    type Err = bundle::Error;

    fn from_str(text: &str) -> Result<Self, bundle::Error> {
        let parts =
            text.split_once(',').filter(|(certificate, key)| !certificate.is_empty() && !key.is_empty());
        parts.map(|(certificate, key)| Self { certificate: certificate.into(), key: key.into() }).ok_or_else(
            || {
                let (rule, fix) =
                    ("it names no certificate and key", "write it like --sign chain.pem,key.pem");
                bundle::Error::value("--sign", format!("`{text}`"), rule, fix)
            },
        )
    }
}

impl SigningKey {
    /// Checks that clips can be signed with it, before any work starts.
    ///
    /// # Errors
    /// A build without the feature, files that cannot be read, a key of no known kind or of another certificate.
    pub fn check(&self) -> Result<(), Error> {
        #[cfg(feature = "sign")]
        return c2pa_edge::signer(self).map(drop);
        #[cfg(not(feature = "sign"))]
        Err(Error::NotBuilt { what: "--sign".into(), feature: "sign" })
    }

    /// Writes the clip of `from` with signed credentials to a new file beside it, which is removed unless it is kept.
    #[cfg_attr(not(feature = "sign"), expect(unused_variables, reason = "there is nothing to sign with"))]
    pub(super) fn sign(&self, from: &Path, tags: &Tags) -> Result<tempfile::TempPath, Error> {
        #[cfg(feature = "sign")]
        return c2pa_edge::sign(self, from, tags);
        #[cfg(not(feature = "sign"))]
        Err(Error::NotBuilt { what: "--sign".into(), feature: "sign" })
    }

    #[cfg(feature = "sign")]
    fn failed(&self, why: &dyn std::fmt::Display) -> Error {
        Error::Signing { certificate: self.certificate.clone(), why: why.to_string() }
    }
}

#[cfg(feature = "sign")]
mod c2pa_edge {
    use super::{Error, Path, SigningKey, Tags};
    use crate::tags::SOURCE_TYPE;
    use c2pa::{BoxedSigner, Builder, Context, SigningAlg, create_signer};
    use serde_json::json;
    use std::fs::File;

    /// The kinds of keys that C2PA allows.
    const KINDS: [SigningAlg; 5] =
        [SigningAlg::Es256, SigningAlg::Es384, SigningAlg::Es512, SigningAlg::Ed25519, SigningAlg::Ps256];

    pub(super) fn signer(keys: &SigningKey) -> Result<BoxedSigner, Error> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|error| keys.failed(&format!("{}: {error}", path.display())))
        };
        let (chain, key) = (read(&keys.certificate)?, read(&keys.key)?);
        let mut why = None;
        for kind in KINDS {
            match create_signer::from_keys(&chain, &key, kind, None) {
                Ok(signer) => return Ok(signer),
                Err(error) => why = why.or(Some(error)),
            }
        }
        Err(keys.failed(&why.map_or_else(String::new, |why| why.to_string())))
    }

    pub(super) fn sign(keys: &SigningKey, from: &Path, tags: &Tags) -> Result<tempfile::TempPath, Error> {
        let signer = signer(keys)?;
        let agent = json!({"name": "Rushes", "version": env!("CARGO_PKG_VERSION")});
        let statement = json!({
            "claim_generator_info": [agent],
            "title": tags.comment(),
            "assertions": [{"label": "c2pa.actions", "data": {"actions": [{
                "action": "c2pa.created",
                "digitalSourceType": SOURCE_TYPE,
                "softwareAgent": agent,
                "description": tags.comment(),
            }]}}],
        });
        let failed = |error: &dyn std::fmt::Display| keys.failed(error);
        let folder = from.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut signed = tempfile::Builder::new()
            .prefix(".rushes-signed-")
            .suffix(".mp4")
            .tempfile_in(folder)
            .map_err(|error| failed(&error))?;
        let mut clip = File::open(from).map_err(|error| failed(&error))?;
        let permissions = clip.metadata().map_err(|error| failed(&error))?.permissions();
        Builder::from_context(Context::new())
            .with_definition(statement)
            .and_then(|mut builder| {
                builder.sign(signer.as_ref(), "video/mp4", &mut clip, signed.as_file_mut())
            })
            .map_err(|error| failed(&error))?;
        signed
            .as_file()
            .set_permissions(permissions)
            .and_then(|()| signed.as_file().sync_all())
            .map_err(|error| failed(&error))?;
        Ok(signed.into_temp_path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_and_a_key_are_named() {
        let keys: SigningKey = "chain.pem,key.pem".parse().unwrap();
        assert_eq!(keys, SigningKey { certificate: "chain.pem".into(), key: "key.pem".into() });
        for text in ["", "chain.pem", "chain.pem,", ",key.pem"] {
            let error = text.parse::<SigningKey>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("--sign cannot be `{text}`: ")), "{error}");
        }
    }

    #[cfg(not(feature = "sign"))]
    #[test]
    fn a_build_without_it_says_how_to_get_it() {
        let error = "a.pem,b.pem".parse::<SigningKey>().unwrap().check().unwrap_err();
        insta::assert_snapshot!(error, @"--sign is not for this build of the program: it was built without the feature `sign` (build it with `cargo build --release -p rushes --features embed-mini,sign`, or with `full`)");
    }
}
