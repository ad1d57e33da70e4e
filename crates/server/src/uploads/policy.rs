//! The right to upload one file without a token: a text that this server has signed.
//!
//! The SDK of DashScope asks for one and sends it with the file, as to the object store of Alibaba.

use super::Uploads;
use crate::access::Caller;
use crate::app::App;
use crate::fault::Fault;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The first part of the keys of uploads.
pub(super) const FOLDER: &str = "uploads";
/// How long a policy can be used, in seconds.
const LIFE: u64 = 600;

/// What a policy allows: the upload of one file under this name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Policy {
    /// The name of the upload.
    pub(super) id: String,
    /// The id of the token that it will belong to.
    pub(super) owner: Option<String>,
    /// When the policy expires, in seconds since 1970.
    expires: u64,
}

/// A policy as DashScope answers it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PolicyData {
    /// The policy in base64.
    policy: String,
    /// Its signature.
    signature: String,
    /// The first parts of the key of the file. The SDK adds a slash and the name of the file.
    upload_dir: String,
    /// Where the form with the file is posted to.
    upload_host: String,
    /// How long it can be used, in seconds.
    expire_in_seconds: u64,
    /// The largest file in megabytes.
    max_file_size_mb: usize,
    /// What a token may have stored, in megabytes.
    capacity_limit_mb: u64,
    /// The id of the key that has signed it.
    oss_access_key_id: String,
    /// Always `private`.
    x_oss_object_acl: &'static str,
    /// Always `true`: a name is used once.
    x_oss_forbid_overwrite: &'static str,
}

fn message(policy: &str, key: &str) -> String {
    format!("upload\n{policy}\n{key}")
}

impl PolicyData {
    /// A new policy for a caller.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub(super) fn new(app: &App, caller: &Caller) -> Result<Self, Fault> {
        let now = app.now();
        let id = Uploads::new_id();
        let upload_dir = format!("{FOLDER}/{id}");
        let policy = Policy { id, owner: caller.owner().map(str::to_owned), expires: now + LIFE };
        let policy = STANDARD.encode(serde_json::to_vec(&policy).map_err(Fault::internal)?);
        // The id of the key is signed too, so it must be known before; it may be rotated between the two calls.
        let (key, _) = app.keys.sign("", now);
        let (signer, signature) = app.keys.sign(&message(&policy, &key), now);
        if signer != key {
            return Err(Fault::unavailable("the keys were changed this moment: try again"));
        }
        let limits = &app.config.limits;
        Ok(Self {
            policy,
            signature,
            upload_dir,
            upload_host: app.url.with("/uploads"),
            expire_in_seconds: LIFE,
            max_file_size_mb: limits.upload >> 20,
            capacity_limit_mb: limits.upload_quota >> 20,
            oss_access_key_id: key,
            x_oss_object_acl: "private",
            x_oss_forbid_overwrite: "true",
        })
    }
}

impl Policy {
    /// The policy of a form, if this server has signed it and it has not expired, and its token was not revoked.
    ///
    /// # Errors
    /// It is not valid.
    pub(super) fn checked(app: &App, policy: &str, key: &str, signature: &str) -> Result<Self, Fault> {
        let now = app.now();
        let refused =
            || Fault::forbidden("the upload policy is not valid, or has expired: ask for a new one");
        if !app.keys.verify(key, &message(policy, key), signature, now) {
            return Err(refused());
        }
        let json = STANDARD.decode(policy).map_err(|_not_base64| refused())?;
        let policy: Self = serde_json::from_slice(&json).map_err(|_not_a_policy| refused())?;
        let is_known = policy.owner.as_deref().is_none_or(|owner| app.tokens.by_id(owner).is_some());
        // A policy without a token is for a server without tokens.
        let is_open = policy.owner.is_some() || app.config.is_open(&app.tokens);
        if now < policy.expires && is_known && is_open { Ok(policy) } else { Err(refused()) }
    }
}
