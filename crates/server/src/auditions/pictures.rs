//! The pictures of takes, and the contact sheet of an audition as it is now.

use super::index::{Audition, number_of};
use super::types::{TakeStatus, picture_name, status_of};
use crate::app::App;
use crate::clips::index::Clip;
use crate::fault::Fault;
use crate::media_files;
use crate::pictures::Clean;
use crate::pictures::files::small;
use crate::pictures::preview::{PreviewFormat, draw, picture};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bundle::geometry::PixelSize;
use jobs::store::PICTURE;
use media::{ContactSheet, ContactSheetError};
use ndarray::Array3;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

/// The contact sheet in links.
pub(super) const SHEET: &str = "sheet.png";
/// The step that a picture shows, as long as it is not complete.
static STEP: HeaderName = HeaderName::from_static("rushes-step");
/// The longest side of a picture on a sheet, in pixels, and on one of many takes.
const SIDE: usize = 512;
const SIDE_OF_MANY: usize = 256;
const MANY: usize = 16;
/// The grey of a take without a picture, in -1..1.
const EMPTY: f32 = -0.6;

/// A picture of an audition that a signed link names; `None` if the link is to something else.
pub(crate) async fn by_link(
    app: &App,
    id: &str,
    name: &str,
    request: &Parts,
) -> Option<Result<Response, Fault>> {
    let audition = app.auditions.get(&app.clips, id)?;
    if name == SHEET {
        return Some(send_sheet(app, &audition).await);
    }
    let clips = audition.clips(&app.clips);
    let take = clips.iter().find(|clip| picture_name(number_of(clip)) == name);
    match take {
        Some(take) => Some(send_picture(app, take, request).await),
        None => Some(Err(Fault::not_found("take"))),
    }
}

/// The file of the complete picture of a take, if it may be seen.
fn complete(app: &App, take: &Clip) -> Option<PathBuf> {
    let path = app.queue.job_folder(take.job).join(PICTURE);
    (take.status().refused.is_none() && path.is_file()).then_some(path)
}

/// What the last step of a take predicts, while it is being made.
fn predicted(app: &App, take: &Clip) -> Option<Clean> {
    let status = take.status();
    if status.is_kept || status.refused.is_some() || status.state.has_ended() {
        return None;
    }
    app.pictures.watch(take).borrow().clone()
}

/// Sends the picture of a take: the complete one, or what its last step predicts.
///
/// # Errors
/// It has none yet, or has ended without one.
pub(super) async fn send_picture(app: &App, take: &Clip, request: &Parts) -> Result<Response, Fault> {
    if let Some(path) = complete(app, take) {
        return media_files::send(request, &path, "image/png").await;
    }
    if let Some(clean) = predicted(app, take) {
        let step = clean.step;
        let drawn = draw(take, clean, PreviewFormat::Png).await?;
        let mut response = png(drawn);
        response.headers_mut().insert(STEP.clone(), HeaderValue::from(step));
        return Ok(response);
    }
    if take.status().state.has_ended() {
        return Err(Fault::conflict("no_preview", "the take has ended without a picture"));
    }
    let message = "the take has not made a step since the server started";
    Err(Fault { retry_after: Some(1), ..Fault::conflict("no_preview_yet", message) })
}

fn png(file: Vec<u8>) -> Response {
    let headers = [(header::CONTENT_TYPE, "image/png"), (header::CACHE_CONTROL, "private, no-cache")];
    (headers, file).into_response()
}

/// What a cell of the sheet shows.
struct Cell {
    number: usize,
    seed: u64,
    /// What its label says of its state: nothing if it is complete, and nobody has kept it.
    state: Option<String>,
    complete: Option<PathBuf>,
    predicted: Option<Clean>,
    bundle: PathBuf,
    size: PixelSize,
}

impl Cell {
    fn of(app: &App, take: &Arc<Clip>) -> Self {
        let status = take.status();
        let complete = complete(app, take);
        let state = match status_of(&status) {
            TakeStatus::Queued => "waits".to_owned(),
            TakeStatus::InProgress => {
                format!("step {} of {}", status.progress.steps_done, status.progress.steps)
            }
            TakeStatus::Completed => "complete".to_owned(),
            TakeStatus::Kept => "kept".to_owned(),
            TakeStatus::Cancelled => "given up".to_owned(),
            TakeStatus::Failed => "failed".to_owned(),
        };
        Self {
            number: number_of(take),
            seed: take.request.clip.seed.0,
            state: (complete.is_none() || status.is_kept).then_some(state),
            predicted: if complete.is_none() { predicted(app, take) } else { None },
            complete,
            bundle: take.request.bundle.clone(),
            size: take.request.clip.size.unwrap_or(PixelSize { width: SIDE, height: SIDE }),
        }
    }

    /// The label with less and less: a narrow picture has no room for a long one.
    fn labels(&self) -> [String; 3] {
        let short = format!("take {}", self.number);
        let seeded = format!("{short} · seed {}", self.seed);
        let whole = self.state.as_ref().map_or(seeded.clone(), |state| format!("{seeded} · {state}"));
        [whole, seeded, short]
    }

    /// Its picture, with a longer side of at most `side` pixels.
    fn drawn(&self, side: usize) -> Array3<f32> {
        let complete = self.complete.as_ref().and_then(|path| {
            media::still::read(path).inspect_err(|error| tracing::warn!("a take is not shown: {error}")).ok()
        });
        let predicted = || picture(&self.bundle, Some(self.size), self.predicted.as_ref()?).ok();
        let PixelSize { width, height } = self.size;
        let found = complete.or_else(predicted).filter(|found| found.dim() == (3, height, width));
        let whole = found.unwrap_or_else(|| Array3::from_elem((3, height, width), EMPTY));
        small(whole.view(), side).unwrap_or(whole)
    }
}

/// Sends the contact sheet of an audition: each take at its place, with its picture as far as there is one.
///
/// # Errors
/// There is nothing to show, or it cannot be drawn.
pub(super) async fn send_sheet(app: &App, audition: &Audition) -> Result<Response, Fault> {
    let _drawing = app.auditions.drawing.lock().await;
    let cells: Vec<Cell> = audition.clips(&app.clips).iter().map(|take| Cell::of(app, take)).collect();
    if cells.is_empty() {
        return Err(Fault::not_found("audition"));
    }
    let drawn = tokio::task::spawn_blocking(move || sheet(&cells)).await.map_err(Fault::internal)?;
    drawn.map(png).map_err(Fault::internal)
}

fn sheet(cells: &[Cell]) -> Result<Vec<u8>, ContactSheetError> {
    let side = if cells.len() > MANY { SIDE_OF_MANY } else { SIDE };
    let pictures: Vec<Array3<f32>> = cells.iter().map(|cell| cell.drawn(side)).collect();
    let (_, height, width) = pictures.first().map_or((3, 0, 0), |picture| picture.dim());
    let labels: Vec<[String; 3]> = cells.iter().map(Cell::labels).collect();
    let sheet_with = |length: usize| {
        let labels: Vec<String> = labels.iter().filter_map(|label| label.get(length).cloned()).collect();
        ContactSheet::new(&labels, PixelSize { width, height }, NonZeroUsize::MAX)
    };
    let is_too_long = |error: &ContactSheetError| matches!(error, ContactSheetError::Label { .. });
    let mut found = sheet_with(0);
    for length in 1..3 {
        if found.as_ref().err().is_some_and(is_too_long) {
            found = sheet_with(length);
        }
    }
    let views: Vec<_> = pictures.iter().map(|picture| picture.view()).collect();
    found?.png(&views, &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(number: usize, seed: u64, state: Option<&str>, size: PixelSize) -> Cell {
        Cell {
            number,
            seed,
            state: state.map(str::to_owned),
            complete: None,
            predicted: None,
            bundle: PathBuf::new(),
            size,
        }
    }

    #[test]
    fn a_sheet_has_a_place_for_each_take_and_labels_that_fit() {
        let size = PixelSize { width: 1280, height: 720 };
        let cells: Vec<Cell> =
            (1..=100).map(|number| cell(number, u64::MAX, Some("step 100 of 100"), size)).collect();
        let file = sheet(&cells).unwrap();
        let drawn = image::load_from_memory(&file).unwrap();
        assert!(drawn.width() > 2560 && drawn.width() < 8192, "{}", drawn.width());
        let narrow = [cell(1, 7, None, PixelSize { width: 16, height: 32 })];
        assert!(image::load_from_memory(&sheet(&narrow).unwrap()).is_ok());
    }

    #[test]
    fn a_label_says_what_a_take_does_unless_it_is_complete() {
        let size = PixelSize { width: 16, height: 16 };
        let labels = |state| cell(3, 9, state, size).labels();
        assert_eq!(labels(Some("waits")), ["take 3 · seed 9 · waits", "take 3 · seed 9", "take 3"]);
        assert_eq!(labels(None)[0], "take 3 · seed 9");
    }
}
