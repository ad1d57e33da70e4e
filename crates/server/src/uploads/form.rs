//! The form of an upload, read part by part: the file only after everything that decides whether it is taken.

use crate::app::App;
use crate::body::timed;
use crate::fault::Fault;
use axum::extract::multipart::Field;
use axum::extract::{FromRequest, Multipart, Request};
use std::collections::HashMap;
use std::time::Duration;

/// The most bytes of all parts that are no file.
const MOST_TEXT: usize = 16 << 10;
/// How long an upload may take.
const TIME: Duration = Duration::from_secs(300);

/// A file of a form.
#[derive(Debug)]
pub(super) struct File<T> {
    /// What the parts before it have decided.
    pub(super) right: T,
    /// The name that the client has for it.
    pub(super) name: String,
    /// Its bytes.
    pub(super) content: Vec<u8>,
}

/// Reads the part `file` of a form, if `decide` allows it by the texts before it.
///
/// # Errors
/// Those of `decide`; the form has no file, is too large, or does not arrive in time.
pub(super) async fn file<T>(
    app: &App,
    request: Request,
    decide: impl FnOnce(&HashMap<String, String>) -> Result<T, Fault> + Send,
) -> Result<File<T>, Fault> {
    timed(TIME, read(request, app.config.limits.upload, decide)).await
}

async fn read<T>(
    request: Request,
    most: usize,
    decide: impl FnOnce(&HashMap<String, String>) -> Result<T, Fault> + Send,
) -> Result<File<T>, Fault> {
    let broken =
        |error: &dyn std::fmt::Display| Fault::bad_request(format!("the form cannot be read: {error}"));
    let mut parts = Multipart::from_request(request, &()).await.map_err(|error| broken(&error))?;
    let mut texts = HashMap::new();
    let mut left = MOST_TEXT;
    while let Some(part) = parts.next_field().await.map_err(|error| broken(&error))? {
        let name = part.name().unwrap_or_default().to_owned();
        if name == "file" {
            let right = decide(&texts)?;
            let name = part.file_name().unwrap_or_default().to_owned();
            let content = bytes(part, most).await?;
            return Ok(File { right, name, content });
        }
        let content = bytes(part, left).await?;
        left -= content.len();
        let text = String::from_utf8(content)
            .map_err(|_not_text| Fault::parameter(&*name, format!("`{name}` is not UTF-8 text")))?;
        texts.insert(name, text);
    }
    decide(&texts)?;
    Err(Fault::parameter("file", "`file` is missing: send the picture or the sound as a part of a form"))
}

/// The bytes of a part, if there are at most so many.
async fn bytes(mut part: Field<'_>, most: usize) -> Result<Vec<u8>, Fault> {
    let mut content = Vec::new();
    loop {
        let chunk = part.chunk().await;
        let chunk = chunk.map_err(|error| Fault::bad_request(format!("the form cannot be read: {error}")))?;
        let Some(chunk) = chunk else { return Ok(content) };
        if content.len() + chunk.len() > most {
            return Err(Fault::too_large(format!("the file has more than {most} bytes")));
        }
        content.extend_from_slice(&chunk);
    }
}
