//! Links to media that need no token: who has one may read this file, until it expires.
//!
//! A link is signed over the method, the clip, the variant, the time at which it expires and the id of the key. It is
//! built from the public address of the configuration, never from headers of a request.

pub(crate) mod keys;

use keys::Keys;
use serde::Deserialize;

/// How long a link is valid, in seconds.
pub(crate) const LIFE: u64 = 24 * 3600;

/// What a link gives access to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grant<'a> {
    /// `GET` or `POST`. `HEAD` needs a link for `GET`.
    pub method: &'a str,
    /// The clip or upload.
    pub id: &'a str,
    /// Which file of it, such as `video`.
    pub variant: &'a str,
}

/// The query of a link.
#[derive(Debug, Clone, Deserialize, utoipa::IntoParams)]
pub(crate) struct Signature {
    /// When the link expires, in seconds since 1970.
    pub expires: u64,
    /// The id of the key.
    pub key: String,
    /// The code.
    pub signature: String,
}

impl Grant<'_> {
    fn message(&self, expires: u64, key: &str) -> String {
        let Self { method, id, variant } = self;
        format!("link\n{method}\n{id}\n{variant}\n{expires}\n{key}")
    }

    /// The query that is added to the address.
    pub(crate) fn query(&self, keys: &Keys, now: u64, life: u64) -> String {
        let expires = now + life;
        // The id of the key is signed too, so it must be known before.
        let (key, _) = keys.sign("", now);
        let (signer, code) = keys.sign(&self.message(expires, &key), now);
        // A key that was rotated between the two calls would sign for the id of the old one.
        let (key, code) =
            if signer == key { (key, code) } else { keys.sign(&self.message(expires, &signer), now) };
        format!("expires={expires}&key={key}&signature={code}")
    }

    /// Returns true if a query was made for this grant and has not expired.
    pub(crate) fn allows(&self, query: &Signature, keys: &Keys, now: u64) -> bool {
        let Signature { expires, key, signature } = query;
        now < *expires && keys.verify(key, &self.message(*expires, key), signature, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Signature {
        let value = |name: &str| {
            let pair = query.split('&').find_map(|pair| pair.strip_prefix(&format!("{name}=")));
            pair.unwrap().to_owned()
        };
        Signature {
            expires: value("expires").parse().unwrap(),
            key: value("key"),
            signature: value("signature"),
        }
    }

    #[test]
    fn a_link_is_for_one_method_clip_and_variant_until_it_expires() {
        let data = tempfile::tempdir().unwrap();
        let keys = Keys::open(data.path(), 0).unwrap();
        let grant = Grant { method: "GET", id: "video_1", variant: "video" };
        let query = parse(&grant.query(&keys, 0, 60));
        assert!(grant.allows(&query, &keys, 59));
        assert!(!grant.allows(&query, &keys, 60));
        for other in [
            Grant { method: "POST", ..grant },
            Grant { id: "video_2", ..grant },
            Grant { variant: "thumbnail", ..grant },
            Grant { id: "video_1\nvideo", variant: "video", ..grant },
        ] {
            assert!(!other.allows(&query, &keys, 0), "{other:?}");
        }
        assert!(!grant.allows(&Signature { expires: 120, ..query.clone() }, &keys, 0));
        assert!(!grant.allows(&Signature { key: "00000000".into(), ..query }, &keys, 0));
    }
}
