//! What is answered to a request that cannot be served: a status, a code for programs, and a sentence for people.
//!
//! Every API has its own JSON for errors. A [`Fault`] is answered in that of OpenAI and travels with the response, so
//! that [`styled`] can write it as the API of the path does.

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bundle::{Diagnose, ErrorClass, Field, Report};
use serde::Serialize;
use utoipa::ToSchema;

/// Why a request is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The status of the answer.
    pub status: StatusCode,
    /// A word for programs, such as `model_not_found`.
    pub code: &'static str,
    /// What happened, why, and what to do.
    pub message: String,
    /// The parameter that is wrong, if it is one.
    pub param: Option<String>,
    /// Seconds after which the same request may be served.
    pub retry_after: Option<u32>,
}

impl Fault {
    /// A fault with this status.
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), param: None, retry_after: None }
    }

    /// A parameter that cannot be used.
    pub(crate) fn parameter(name: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(name.into()), ..Self::new(StatusCode::BAD_REQUEST, "invalid_value", message) }
    }

    /// A body or query that cannot be read.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", message)
    }

    /// Something that does not exist, or that the caller may not know of.
    pub(crate) fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no such {what}"))
    }

    /// A caller without a valid token.
    pub(crate) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "invalid_token", message)
    }

    /// A request that is never served to this caller.
    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    /// A request that does not suit the state of something.
    pub(crate) fn conflict(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, message)
    }

    /// Something that this server cannot do. The parameter is named.
    pub(crate) fn unsupported(name: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: "unsupported_parameter", ..Self::parameter(name, message) }
    }

    /// More than the bound of a queue.
    pub(crate) fn too_many(message: impl Into<String>, retry_after: u32) -> Self {
        let fault = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message);
        Self { retry_after: Some(retry_after), ..fault }
    }

    /// More bytes than the limit.
    pub(crate) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    /// Something that passes, such as a server that ends.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        let fault = Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message);
        Self { retry_after: Some(5), ..fault }
    }

    /// A failure of the server. The client learns that there was one; the log says which.
    pub(crate) fn internal(error: impl std::fmt::Display) -> Self {
        tracing::error!("a request failed: {error}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", "the server failed; its log says why")
    }

    /// The same fault about a parameter.
    #[must_use]
    pub(crate) fn about(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// The fault of a report. Paths are not shown: only reports about settings that a client sends come from here.
    pub(crate) fn of_report(report: &Report) -> Self {
        let report = &report.clone().with_names(parameter_of);
        let param = report.field.map(|field| parameter_of(field).to_owned());
        match report.class {
            ErrorClass::BadInput if param.is_some() => {
                Self { param, ..Self::new(StatusCode::BAD_REQUEST, "invalid_value", report.to_string()) }
            }
            ErrorClass::BadInput | ErrorClass::DoesNotFit => Self::bad_request(report.to_string()),
            _ => Self::internal(report),
        }
    }

    /// The type of the error in the words of OpenAI.
    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }
}

/// The name that clients have for a setting.
pub(crate) fn parameter_of(field: Field) -> &'static str {
    match field {
        Field::Frames => "num_frames",
        Field::Steps => "num_inference_steps",
        Field::Shift => "flow_shift",
        Field::Guidance => "guidance_scale",
        other => other.name(),
    }
}

impl From<runtime::Error> for Fault {
    fn from(error: runtime::Error) -> Self {
        Self::of_report(&error.report())
    }
}

impl From<bundle::Error> for Fault {
    fn from(error: bundle::Error) -> Self {
        Self::of_report(&error.report())
    }
}

impl From<jobs::Error> for Fault {
    fn from(error: jobs::Error) -> Self {
        if error.passes() {
            tracing::warn!("the queue cannot be used for now: {error}");
            let why = if error.is_disk_full() { "its disk is full" } else { "it is locked" };
            return Self {
                retry_after: Some(30),
                ..Self::unavailable(format!("the queue cannot be used: {why}"))
            };
        }
        match error {
            jobs::Error::NoJob { .. } => Self::not_found("video"),
            jobs::Error::Unsuitable { .. } => Self::conflict("unsuitable_state", error.to_string()),
            error => Self::of_report(&error.report()),
        }
    }
}

/// An error as OpenAI writes it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// The content of an [`ErrorBody`].
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorDetail {
    /// What happened, why, and what to do.
    pub message: String,
    /// The kind of error.
    pub r#type: String,
    /// The parameter that is wrong.
    pub param: Option<String>,
    /// A word for programs.
    pub code: String,
}

/// An error as DashScope writes it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DashScopeError {
    /// A word for programs.
    pub code: String,
    /// What happened, why, and what to do.
    pub message: String,
    /// The number of the request, for the log.
    pub request_id: String,
}

/// The word of DashScope for a fault.
fn dashscope_code(fault: &Fault) -> String {
    match fault.status {
        StatusCode::UNAUTHORIZED => "InvalidApiKey".to_owned(),
        StatusCode::FORBIDDEN => "AccessDenied".to_owned(),
        StatusCode::NOT_FOUND => "NotFound".to_owned(),
        StatusCode::TOO_MANY_REQUESTS => "Throttling".to_owned(),
        StatusCode::INTERNAL_SERVER_ERROR => "InternalError".to_owned(),
        StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable".to_owned(),
        _ if fault.code == crate::screening::POLICY => "DataInspectionFailed".to_owned(),
        _ => "InvalidParameter".to_owned(),
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let body = ErrorBody {
            error: ErrorDetail {
                message: self.message.clone(),
                r#type: self.kind().to_owned(),
                param: self.param.clone(),
                code: self.code.to_owned(),
            },
        };
        answered(self, Json(body).into_response())
    }
}

/// The response with the status, the headers and the fault itself.
fn answered(fault: Fault, mut response: Response) -> Response {
    *response.status_mut() = fault.status;
    if let Some(seconds) = fault.retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if fault.status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response.extensions_mut().insert(fault);
    response
}

/// Writes faults as the API of the path does.
pub(crate) async fn styled(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let is_dashscope = path.starts_with("/api/v1/") || path.starts_with("/proxy/wan/api/v1/");
    let response = next.run(request).await;
    match response.extensions().get::<Fault>() {
        Some(fault) if is_dashscope => {
            let fault = fault.clone();
            let body = DashScopeError {
                code: dashscope_code(&fault),
                message: fault.message.clone(),
                request_id: crate::ids::request_id(),
            };
            let mut styled = answered(fault, Json(body).into_response());
            // Such as the methods that are allowed.
            for (name, value) in response.headers() {
                if !styled.headers().contains_key(name) && name != header::CONTENT_LENGTH {
                    styled.headers_mut().insert(name.clone(), value.clone());
                }
            }
            styled
        }
        _ => response,
    }
}
