//! The routes of uploads.

use super::form::{self, File};
use super::policy::{Policy, PolicyData};
use super::{Content, Upload, Uploads};
use crate::access::Caller;
use crate::app::App;
use crate::body::{Body, Fields};
use crate::fault::{DashScopeError, ErrorBody, Fault};
use crate::ids;
use crate::query::{Path, Query};
use axum::Json;
use axum::extract::{DefaultBodyLimit, FromRequest, Request, State};
use axum::http::header;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The routes of this server's own.
pub(crate) fn router() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(create_upload, list_uploads))
        .routes(routes!(get_upload, delete_upload))
        .routes(routes!(post_file))
        // The form counts for itself.
        .layer(DefaultBodyLimit::disable())
}

/// The route of DashScope that hands out policies.
pub(crate) fn policy_router() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(get_policy))
}

/// A picture or a sound that was uploaded.
#[derive(Debug, Serialize, ToSchema)]
struct UploadObject {
    /// Its name, for `post.logo` or `post.sound`.
    id: String,
    /// Always `upload`.
    #[schema(pattern = "^upload$")]
    object: &'static str,
    /// The name of the file.
    filename: String,
    /// Bytes that it takes of the quota.
    bytes: u64,
    /// `picture` or `sound`.
    #[schema(pattern = "^(picture|sound)$")]
    kind: &'static str,
    /// What it is.
    #[serde(flatten)]
    content: Content,
    /// When it was uploaded, in seconds since 1970.
    created_at: u64,
    /// When it is removed.
    expires_at: u64,
}

impl From<Upload> for UploadObject {
    fn from(upload: Upload) -> Self {
        let Upload { id, name, bytes, content, created, expires, owner: _ } = upload;
        let (kind, created_at, expires_at) = (content.kind(), created, expires);
        Self { id, object: "upload", filename: name, bytes, kind, content, created_at, expires_at }
    }
}

/// The form of an upload.
#[derive(Debug, Deserialize, ToSchema)]
#[expect(dead_code, reason = "describes what `form` reads")]
struct UploadForm {
    /// A PNG, JPEG, WebP or WAV file.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
}

/// A picture or a sound on another server.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes what `Body` reads")]
struct UploadUrl {
    /// Its address, on a server that the operator allows.
    url: String,
}

/// The form of an upload with a policy. The file is its last part.
#[derive(Debug, Deserialize, ToSchema)]
#[expect(dead_code, reason = "describes what `form` reads")]
struct PolicyForm {
    /// The id of the key, from the policy.
    #[serde(rename = "OSSAccessKeyId")]
    key_id: String,
    /// The signature, from the policy.
    #[serde(rename = "Signature")]
    signature: String,
    /// The policy.
    policy: String,
    /// The directory of the policy, a slash and the name of the file.
    key: String,
    /// A PNG, JPEG, WebP or WAV file.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
}

/// Uploads that a token has.
#[derive(Debug, Serialize, ToSchema)]
struct UploadList {
    /// Always `list`.
    #[schema(pattern = "^list$")]
    object: &'static str,
    /// The uploads, oldest first.
    data: Vec<UploadObject>,
}

/// An upload that was deleted.
#[derive(Debug, Serialize, ToSchema)]
struct DeletedUpload {
    /// Its name.
    id: String,
    /// Always `upload.deleted`.
    #[schema(pattern = "^upload\\.deleted$")]
    object: &'static str,
    /// Always true.
    deleted: bool,
}

/// Reads a file, and keeps its content.
async fn keep<T>(
    app: &Arc<App>,
    request: Request,
    decide: impl FnOnce(&std::collections::HashMap<String, String>) -> Result<T, Fault> + Send,
    place: impl FnOnce(&T) -> (String, Option<String>),
) -> Result<Upload, Fault> {
    let Ok(_reading) = app.uploads.reading.try_acquire() else {
        return Err(Fault::too_many("other files are being uploaded: try again in a moment", 2));
    };
    let File { right, name, content } = form::file(app, request, decide).await?;
    let (id, owner) = place(&right);
    let _decoding = app.uploads.decoding.acquire().await.map_err(Fault::internal)?;
    let (uploads, now) = (Arc::clone(&app.uploads), app.now());
    let added = tokio::task::spawn_blocking(move || uploads.add(&id, owner.as_deref(), &name, &content, now));
    added.await.map_err(Fault::internal)?
}

/// Gets a file from another server, if the operator allows it, and keeps it.
async fn fetched(app: &Arc<App>, owner: Option<String>, mut fields: Fields) -> Result<Upload, Fault> {
    let url = fields.text("url")?;
    let url = url.ok_or_else(|| Fault::parameter("url", "`url` is missing: name the file"))?;
    fields.finish()?;
    let Ok(_reading) = app.uploads.reading.try_acquire() else {
        return Err(Fault::too_many("other files are being uploaded: try again in a moment", 2));
    };
    // The name of the file, without what may be a secret.
    let name = url.split(['?', '#']).next().unwrap_or_default().to_owned();
    let fetcher = app.fetcher.clone();
    let content = tokio::task::spawn_blocking(move || fetcher.get(&url)).await.map_err(Fault::internal)?;
    let content =
        content.map_err(|why| Fault::unsupported("url", format!("the file cannot be fetched: {why}")))?;
    let _decoding = app.uploads.decoding.acquire().await.map_err(Fault::internal)?;
    let (uploads, now) = (Arc::clone(&app.uploads), app.now());
    let added = tokio::task::spawn_blocking(move || {
        uploads.add(&Uploads::new_id(), owner.as_deref(), &name, &content, now)
    });
    let added = added.await.map_err(Fault::internal)?;
    added.map_err(|fault| if fault.param.is_some() { fault.about("url") } else { fault })
}

/// Upload a picture or a sound, for a day, as a file or by its address
#[utoipa::path(
    post, path = "/v1/uploads", tag = "Rushes",
    request_body(content((UploadForm = "multipart/form-data"), (UploadUrl = "application/json"))),
    responses(
        (status = 200, description = "The upload", body = UploadObject),
        (status = "4XX", description = "The file is refused", body = ErrorBody),
        (status = 503, description = "The disk of the server is full", body = ErrorBody),
    ),
)]
async fn create_upload(
    State(app): State<Arc<App>>,
    caller: Caller,
    request: Request,
) -> Result<Json<UploadObject>, Fault> {
    let owner = caller.owner().map(str::to_owned);
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if kind.is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("application/json")) {
        let body = Body::from_request(request, &app).await?;
        return Ok(Json(fetched(&app, owner, body.fields).await?.into()));
    }
    let upload = keep(&app, request, |_texts| Ok(()), |()| (Uploads::new_id(), owner)).await?;
    Ok(Json(upload.into()))
}

/// Upload a picture or a sound with a policy instead of a token, as the SDK of DashScope does
#[utoipa::path(
    post, path = "/uploads", tag = "DashScope tasks", security(()),
    request_body(content((PolicyForm = "multipart/form-data"))),
    responses(
        (status = 200, description = "The upload", body = UploadObject),
        (status = "4XX", description = "The policy is not valid or was used, or the file is refused", body = ErrorBody),
        (status = 503, description = "The disk of the server is full", body = ErrorBody),
    ),
)]
async fn post_file(State(app): State<Arc<App>>, request: Request) -> Result<Json<UploadObject>, Fault> {
    let checked = Arc::clone(&app);
    let decide = move |texts: &std::collections::HashMap<String, String>| {
        let text = |name: &str| {
            let found = texts.get(name).map(String::as_str);
            found.ok_or_else(|| Fault::parameter(name, format!("`{name}` is missing before the file")))
        };
        let policy = Policy::checked(&checked, text("policy")?, text("OSSAccessKeyId")?, text("Signature")?)?;
        let expected = format!("{}/{}/", super::policy::FOLDER, policy.id);
        if !text("key")?.starts_with(&expected) {
            return Err(Fault::forbidden("the key is not in the directory of the policy"));
        }
        Ok(policy)
    };
    let upload = keep(&app, request, decide, |policy| (policy.id.clone(), policy.owner.clone())).await?;
    Ok(Json(upload.into()))
}

/// List the uploads of the token
#[utoipa::path(
    get, path = "/v1/uploads", tag = "Rushes",
    responses(
        (status = 200, description = "The uploads", body = UploadList),
        (status = "4XX", description = "The request is refused", body = ErrorBody),
    ),
)]
async fn list_uploads(State(app): State<Arc<App>>, caller: Caller) -> Json<UploadList> {
    let found = app.uploads.list(&caller, app.now());
    Json(UploadList { object: "list", data: found.into_iter().map(Into::into).collect() })
}

/// Show an upload
#[utoipa::path(
    get, path = "/v1/uploads/{id}", tag = "Rushes",
    params(("id" = String, Path, description = "The name of the upload")),
    responses(
        (status = 200, description = "The upload", body = UploadObject),
        (status = "4XX", description = "The request is refused", body = ErrorBody),
    ),
)]
async fn get_upload(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<UploadObject>, Fault> {
    Ok(Json(app.uploads.find(&caller, &id, app.now())?.into()))
}

/// Delete an upload; clips that were queued with it keep it
#[utoipa::path(
    delete, path = "/v1/uploads/{id}", tag = "Rushes",
    params(("id" = String, Path, description = "The name of the upload")),
    responses(
        (status = 200, description = "The upload is deleted", body = DeletedUpload),
        (status = "4XX", description = "The request is refused", body = ErrorBody),
    ),
)]
async fn delete_upload(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<DeletedUpload>, Fault> {
    let upload = app.uploads.find(&caller, &id, app.now())?;
    app.uploads.delete(&upload)?;
    Ok(Json(DeletedUpload { id: upload.id, object: "upload.deleted", deleted: true }))
}

/// What is asked for.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct PolicyQuery {
    /// Always `getPolicy`.
    #[param(pattern = "^getPolicy$")]
    action: String,
    /// The model that the file is for.
    model: String,
}

/// A policy, in the form of DashScope.
#[derive(Debug, Serialize, ToSchema)]
struct PolicyAnswer {
    /// The number of the request, for the log.
    request_id: String,
    /// The policy.
    data: PolicyData,
}

/// Ask for the right to upload one file, within ten minutes
#[utoipa::path(
    get, path = "/api/v1/uploads", tag = "DashScope tasks", params(PolicyQuery),
    responses(
        (status = 200, description = "The policy", body = PolicyAnswer),
        (status = "4XX", description = "The request is refused", body = DashScopeError),
    ),
)]
async fn get_policy(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(query): Query<PolicyQuery>,
) -> Result<Json<PolicyAnswer>, Fault> {
    if query.action != "getPolicy" {
        return Err(Fault::parameter("action", "`action` is getPolicy"));
    }
    app.models.find(Some(&query.model))?;
    Ok(Json(PolicyAnswer { request_id: ids::request_id(), data: PolicyData::new(&app, &caller)? }))
}
