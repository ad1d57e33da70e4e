//! The list of tasks.

use super::types::TaskStatus;
use crate::access::Caller;
use crate::app::App;
use crate::clips::index::Clip;
use crate::fault::{DashScopeError, Fault};
use crate::ids;
use crate::query::Query;
use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// Tasks of a page, unless asked for otherwise, and at most.
const PAGE: usize = 10;
const MOST_OF_PAGE: usize = 100;

/// Which tasks are listed.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Number of the page, from 1.
    #[param(minimum = 1)]
    page_no: Option<usize>,
    /// Tasks of a page.
    #[param(minimum = 1, maximum = 100)]
    page_size: Option<usize>,
    /// Tasks queued from this time on: `20261129000000`, in UTC.
    #[param(pattern = "^[0-9]{14}$")]
    start_time: Option<String>,
    /// Tasks queued before this time.
    #[param(pattern = "^[0-9]{14}$")]
    end_time: Option<String>,
    /// Tasks of this model.
    model_name: Option<String>,
    /// Tasks in this state, such as `SUCCEEDED`.
    status: Option<String>,
}

/// A page of tasks.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TaskList {
    /// The number of the request, for the log.
    request_id: String,
    /// The tasks, newest first.
    data: Vec<ListedTask>,
    /// Tasks of all pages.
    total: usize,
    /// Pages.
    total_page: usize,
    /// Number of this page.
    page_no: usize,
    /// Tasks of a page.
    page_size: usize,
}

/// A task of a list.
#[derive(Debug, Serialize, ToSchema)]
struct ListedTask {
    /// Its name.
    task_id: String,
    /// The model as it was named in the request.
    model_name: String,
    /// Its state.
    status: TaskStatus,
    /// When it was queued, in milliseconds since 1970.
    gmt_create: i64,
    /// When it began.
    start_time: Option<i64>,
    /// When it ended.
    end_time: Option<i64>,
}

impl ListedTask {
    fn of(clip: &Clip) -> Self {
        let status = clip.status();
        Self {
            task_id: clip.ticket.id.clone(),
            model_name: clip.ticket.model.clone(),
            status: TaskStatus::of(status.shown_state()),
            gmt_create: milliseconds(clip.submitted),
            start_time: status.started.map(milliseconds),
            end_time: status.ended.map(milliseconds),
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "milliseconds since 1970")]
fn milliseconds(seconds: f64) -> i64 {
    (seconds * 1000.0) as i64
}

/// The digits of a time, which order as the times do.
fn digits(name: &str, text: Option<&str>) -> Result<Option<String>, Fault> {
    let Some(text) = text else { return Ok(None) };
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    if !(8..=17).contains(&digits.len()) || text.chars().any(char::is_alphabetic) {
        return Err(Fault::parameter(name, format!("`{name}` is written like 20261129093000, in UTC")));
    }
    Ok(Some(format!("{digits:0<17}")))
}

/// List the tasks of the token
#[utoipa::path(
    get, path = "/api/v1/tasks", tag = "DashScope tasks", params(ListQuery),
    responses(
        (status = 200, description = "A page of tasks", body = TaskList),
        (status = "4XX", description = "The request is refused", body = DashScopeError),
    ),
)]
pub(super) async fn list_tasks(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<Json<TaskList>, Fault> {
    let (page, size) = (query.page_no.unwrap_or(1), query.page_size.unwrap_or(PAGE));
    if page == 0 {
        return Err(Fault::parameter("page_no", "`page_no` is a number from 1"));
    }
    if !(1..=MOST_OF_PAGE).contains(&size) {
        return Err(Fault::parameter(
            "page_size",
            format!("`page_size` is a number from 1 to {MOST_OF_PAGE}"),
        ));
    }
    let from = digits("start_time", query.start_time.as_deref())?;
    let until = digits("end_time", query.end_time.as_deref())?;
    let is_meant = |clip: &Arc<Clip>| {
        let submitted: String =
            crate::times::dashscope(clip.submitted).chars().filter(char::is_ascii_digit).collect();
        let status = TaskStatus::of(clip.status().state);
        from.as_ref().is_none_or(|from| submitted >= *from)
            && until.as_ref().is_none_or(|until| submitted < *until)
            && query.model_name.as_ref().is_none_or(|model| *model == clip.ticket.model)
            && query.status.as_ref().is_none_or(|asked| format!("{status:?}").eq_ignore_ascii_case(asked))
    };
    let mut clips: Vec<_> = app.clips.list(&caller).into_iter().filter(is_meant).collect();
    clips.reverse();
    let start = (page - 1).saturating_mul(size);
    Ok(Json(TaskList {
        request_id: ids::request_id(),
        data: clips.iter().skip(start).take(size).map(|clip| ListedTask::of(clip)).collect(),
        total: clips.len(),
        total_page: clips.len().div_ceil(size),
        page_no: page,
        page_size: size,
    }))
}
