//! Signing in with a browser: a token becomes a cookie that scripts cannot read.

use super::tokens::Tokens;
use crate::links::keys::Keys;
use axum::http::{HeaderMap, header};
use std::sync::Arc;

/// The name of the cookie.
const NAME: &str = "rushes_session";
/// How long a cookie is valid, in seconds.
const LIFE: u64 = 7 * 24 * 3600;

/// The value of `Set-Cookie` that signs the holder of a token in.
pub(crate) fn cookie(keys: &Keys, token: &str, now: u64, is_secure: bool) -> String {
    let expires = now + LIFE;
    let (key, code) = keys.sign(&message(token, expires), now);
    let secure = if is_secure { "; Secure" } else { "" };
    format!(
        "{NAME}={token}.{expires}.{key}.{code}; Path=/; Max-Age={LIFE}; HttpOnly; SameSite=Strict{secure}"
    )
}

/// The value of `Set-Cookie` that signs out.
pub(crate) fn no_cookie(is_secure: bool) -> String {
    let secure = if is_secure { "; Secure" } else { "" };
    format!("{NAME}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict{secure}")
}

/// Returns true if a request has such a cookie, valid or not.
pub(crate) fn has_cookie(headers: &HeaderMap) -> bool {
    value(headers).is_some()
}

/// The token that a request is signed in with.
pub(crate) fn signed_in(
    headers: &HeaderMap,
    keys: &Keys,
    tokens: &Tokens,
    now: u64,
) -> Option<Arc<super::tokens::Token>> {
    let value = value(headers)?;
    let mut parts = value.split('.');
    let (token, expires, key, code) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let expires: u64 = expires.parse().ok()?;
    if parts.next().is_some() || expires <= now || !keys.verify(key, &message(token, expires), code, now) {
        return None;
    }
    tokens.by_id(token)
}

fn value(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
    let mut pairs =
        cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == NAME).map(|(_, value)| value)
}

/// What is signed. No link has such a text.
fn message(token: &str, expires: u64) -> String {
    format!("session\n{token}\n{expires}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::tokens;

    fn request(cookie: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::COOKIE, cookie.parse().unwrap())])
    }

    #[test]
    fn a_cookie_signs_in_until_it_expires_or_its_token_is_revoked() {
        let data = tempfile::tempdir().unwrap();
        let secret = tokens::add(data.path(), "alice", None).unwrap();
        let tokens = Tokens::open(data.path()).unwrap();
        let keys = Keys::open(data.path(), 100).unwrap();
        let id = tokens.find(&secret).unwrap().id.clone();
        let set = cookie(&keys, &id, 100, true);
        for attribute in ["HttpOnly", "SameSite=Strict", "Secure", "Path=/"] {
            assert!(set.contains(&format!("; {attribute}")), "{set}");
        }
        assert!(!cookie(&keys, &id, 100, false).contains("Secure") && !set.contains(&secret));
        let pair = set.split(';').next().unwrap();
        let at = |cookie: &str, now| {
            signed_in(&request(cookie), &keys, &tokens, now).map(|token| token.name.clone())
        };
        assert_eq!(at(pair, 101).as_deref(), Some("alice"));
        assert_eq!(at(&format!("other=1; {pair}"), 101).as_deref(), Some("alice"));
        assert_eq!(at(pair, 100 + LIFE), None);
        for wrong in [
            pair.replacen(&id, "0000", 1),
            pair.replacen(&(100 + LIFE).to_string(), "999999999", 1),
            format!("{pair}.x"),
        ] {
            assert_eq!(at(&wrong, 101), None, "{wrong}");
        }
        tokens::revoke(data.path(), "alice").unwrap();
        assert_eq!(at(pair, 101), None);
    }
}
