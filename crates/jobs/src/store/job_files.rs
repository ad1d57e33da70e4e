//! The files in the folder of a job that say what it is.
//!
//! | file | content |
//! |---|---|
//! | `request.json` | the [`Request`] |
//! | `submitted.json` | when it was submitted, and with which other jobs |
//! | `outcome.json` | the [`Outcome`], once the job has ended |

use super::durable;
use super::layout::RUN;
use super::types::Outcome;
use crate::Error;
use crate::request::Request;
use runtime::scheduler::JobId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::Path;
use std::time::UNIX_EPOCH;

const REQUEST: &str = "request.json";
const SUBMITTED: &str = "submitted.json";
const OUTCOME: &str = "outcome.json";
/// The name of the job folder of the runs while it is removed.
const RUN_GONE: &str = "run.gone";

/// How a job was submitted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Submitted {
    /// When, in seconds since 1970.
    pub(super) at: f64,
    /// The first of the jobs that were submitted together.
    pub(super) first: JobId,
}

/// What was found under the name of a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Found<T> {
    /// Nothing.
    Absent,
    /// Something else than what was written, and why.
    Damaged(String),
    /// The content.
    Whole(T),
}

/// The files of a job.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct JobFiles {
    /// The request.
    pub(super) request: Found<Request>,
    /// The outcome.
    pub(super) outcome: Found<Outcome>,
    /// When it was submitted, in seconds since 1970.
    pub(super) submitted: Option<f64>,
    /// When the request was written last, in seconds since 1970.
    pub(super) written: Option<f64>,
    /// True if the folder holds anything that a job leaves there.
    pub(super) is_ours: bool,
}

impl JobFiles {
    /// Reads the files in the folder of a job.
    ///
    /// # Errors
    /// A file cannot be read, or is of a newer program.
    pub(super) fn read(folder: &Path) -> Result<Self, Error> {
        let request = match read_text(&folder.join(REQUEST))? {
            Found::Absent => Found::Absent,
            Found::Damaged(why) => Found::Damaged(why),
            Found::Whole(text) => match Request::from_json(&text) {
                Ok(request) => Found::Whole(request),
                Err(error @ Error::Newer { .. }) => return Err(error),
                Err(Error::Request { why }) => Found::Damaged(why),
                Err(error) => Found::Damaged(error.to_string()),
            },
        };
        let outcome = match read_json::<Outcome>(&folder.join(OUTCOME))? {
            Found::Whole(outcome) if !outcome.state.has_ended() => {
                Found::Damaged(format!("it says that the job is {}", outcome.state))
            }
            found => found,
        };
        let submitted = read_submitted(folder)?.map(|submitted| submitted.at);
        let written = modified(&folder.join(REQUEST));
        let names = [REQUEST, SUBMITTED, OUTCOME, RUN];
        let is_ours = names.iter().any(|name| folder.join(name).exists());
        Ok(Self { request, outcome, submitted, written, is_ours })
    }
}

/// Writes the request of a job.
///
/// # Errors
/// It cannot be stored as JSON, or the file cannot be written.
pub(super) fn write_request(folder: &Path, request: &Request) -> Result<(), Error> {
    durable::write(&folder.join(REQUEST), request.to_json()?.as_bytes())
}

/// Writes the files of a job that is being added. They are not flushed.
///
/// # Errors
/// The request cannot be stored as JSON, or a file cannot be written.
pub(super) fn write_new(folder: &Path, request: &Request, submitted: &Submitted) -> Result<(), Error> {
    for (name, json) in [(REQUEST, request.to_json()?.into_bytes()), (SUBMITTED, to_json(submitted)?)] {
        let path = folder.join(name);
        std::fs::write(&path, json).map_err(bundle::Error::file("write", &path))?;
    }
    Ok(())
}

/// Reads how a job was submitted; `None` if that is not known.
///
/// # Errors
/// The file cannot be read.
pub(super) fn read_submitted(folder: &Path) -> Result<Option<Submitted>, Error> {
    match read_json::<Submitted>(&folder.join(SUBMITTED))? {
        Found::Whole(submitted) if submitted.at.is_finite() => Ok(Some(submitted)),
        _ => Ok(None),
    }
}

/// Writes how a job ended.
///
/// # Errors
/// The file cannot be written.
pub(super) fn write_outcome(folder: &Path, outcome: &Outcome) -> Result<(), Error> {
    durable::write(&folder.join(OUTCOME), &to_json(outcome)?)
}

/// Removes what was written about the end of a job, which is queued again.
///
/// # Errors
/// The file cannot be removed.
pub(super) fn remove_outcome(folder: &Path) -> Result<(), Error> {
    durable::remove_file(&folder.join(OUTCOME))
}

/// Removes everything that the runs of a job have left, so that it begins at its first step.
///
/// # Errors
/// The folder cannot be removed.
pub(super) fn remove_runs(folder: &Path) -> Result<(), Error> {
    durable::remove_folder(&folder.join(RUN), &folder.join(RUN_GONE))
}

/// Removes what a crash has left of [`remove_runs`].
///
/// # Errors
/// The folder cannot be removed.
pub(super) fn remove_leftovers(folder: &Path) -> Result<(), Error> {
    durable::remove_leftover(&folder.join(RUN_GONE))
}

/// Returns true if runs of the job have left something.
pub(super) fn has_runs(folder: &Path) -> bool {
    folder.join(RUN).exists()
}

fn to_json<T: Serialize>(value: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec_pretty(value).map_err(|error| Error::Request { why: error.to_string() })
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Found<T>, Error> {
    Ok(match read_text(path)? {
        Found::Absent => Found::Absent,
        Found::Damaged(why) => Found::Damaged(why),
        Found::Whole(text) => match serde_json::from_str(&text) {
            Ok(value) => Found::Whole(value),
            Err(error) => Found::Damaged(error.to_string()),
        },
    })
}

fn read_text(path: &Path) -> Result<Found<String>, Error> {
    match std::fs::read(path) {
        Ok(bytes) => {
            Ok(String::from_utf8(bytes).map_or_else(|error| Found::Damaged(error.to_string()), Found::Whole))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Found::Absent),
        Err(error) if error.kind() == ErrorKind::IsADirectory => {
            Ok(Found::Damaged("it is a folder".to_owned()))
        }
        Err(error) => Err(bundle::Error::file("read", path)(error).into()),
    }
}

/// When a file was changed last, in seconds since 1970.
fn modified(path: &Path) -> Option<f64> {
    let modified = path.metadata().and_then(|found| found.modified()).ok()?;
    Some(modified.duration_since(UNIX_EPOCH).ok()?.as_secs_f64())
}
