//! Counts and states for monitoring, in the text format of Prometheus.

use crate::access::Caller;
use crate::app::App;
use crate::fault::{ErrorBody, Fault};
use crate::screening::Refusal;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use jobs::store::State as JobState;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The type of the answer.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The route.
pub(crate) fn router() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(get_metrics))
}

/// Counts of a server since its start.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    /// Requests, and the seconds that they took, by method, route and status.
    requests: BTreeMap<(String, String, u16), (u64, f64)>,
    /// Clips that have ended, by their state.
    ended: BTreeMap<JobState, u64>,
    /// Clips that the content filter has refused, by category. A clip may have several.
    refused: BTreeMap<String, u64>,
}

impl Metrics {
    /// Counts a request that was answered.
    pub(crate) fn request(&self, method: &str, route: &str, status: u16, took: Duration) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, seconds) =
            counts.requests.entry((method.to_owned(), route.to_owned(), status)).or_default();
        *count += 1;
        *seconds += took.as_secs_f64();
    }

    /// Counts a clip that has ended.
    pub(crate) fn ended(&self, state: JobState) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.ended.entry(state).or_default() += 1;
    }

    /// Counts a clip that was refused.
    pub(crate) fn refused(&self, refusal: &Refusal) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let categories: BTreeSet<&String> = refusal.reasons.iter().map(|reason| &reason.category).collect();
        for category in categories {
            *counts.refused.entry(category.clone()).or_default() += 1;
        }
    }

    /// The text of all, with the clips that wait and those that are made.
    fn text(&self, waiting: usize, running: usize, is_making: bool) -> String {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        let head = |text: &mut String, name: &str, kind: &str, help: &str| {
            // Writing into a String cannot fail, here and below.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        };
        head(&mut text, "rushes_requests_total", "counter", "Requests that were answered.");
        for ((method, route, status), (count, _)) in &counts.requests {
            let _ = writeln!(
                text,
                "rushes_requests_total{{method=\"{method}\",route=\"{route}\",status=\"{status}\"}} {count}"
            );
        }
        head(&mut text, "rushes_request_seconds_total", "counter", "Seconds that they took.");
        for ((method, route, status), (_, seconds)) in &counts.requests {
            let _ = writeln!(
                text,
                "rushes_request_seconds_total{{method=\"{method}\",route=\"{route}\",status=\"{status}\"}} {seconds}"
            );
        }
        head(&mut text, "rushes_clips_ended_total", "counter", "Clips that have ended.");
        for state in JobState::ALL.into_iter().filter(|state| state.has_ended()) {
            let count = counts.ended.get(&state).copied().unwrap_or(0);
            let _ = writeln!(text, "rushes_clips_ended_total{{state=\"{state}\"}} {count}");
        }
        head(&mut text, "rushes_refused_total", "counter", "Clips that the content filter has refused.");
        for (category, count) in &counts.refused {
            let category = category.replace(['"', '\\', '\n'], "");
            let _ = writeln!(text, "rushes_refused_total{{category=\"{category}\"}} {count}");
        }
        head(&mut text, "rushes_clips", "gauge", "Clips that wait or are made.");
        for (state, count) in [(JobState::Queued, waiting), (JobState::Running, running)] {
            let _ = writeln!(text, "rushes_clips{{state=\"{state}\"}} {count}");
        }
        head(
            &mut text,
            "rushes_making",
            "gauge",
            "1 while clips are made, 0 while the queue cannot be used.",
        );
        let _ = writeln!(text, "rushes_making {}", u8::from(is_making));
        text
    }
}

/// Counts and states, in the text format of Prometheus
#[utoipa::path(
    get, path = "/metrics", tag = "Operation",
    responses(
        (status = 200, description = "The metrics", body = String, content_type = "text/plain"),
        (status = "4XX", description = "The request is refused", body = ErrorBody),
    ),
)]
async fn get_metrics(State(app): State<Arc<App>>, _caller: Caller) -> Result<Response, Fault> {
    let (waiting, running) = app.clips.counts();
    let text = app.metrics.text(waiting, running, app.is_making.load(Ordering::Relaxed));
    Ok(([(header::CONTENT_TYPE, TEXT)], text).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_every_metric_with_its_type() {
        let metrics = Metrics::default();
        metrics.request("GET", "/v1/videos/{id}", 200, Duration::from_millis(250));
        metrics.request("GET", "/v1/videos/{id}", 200, Duration::from_millis(250));
        metrics.ended(JobState::Done);
        let reason = crate::screening::Reason { category: "violence".into(), field: "prompt" };
        metrics.refused(&Refusal { reasons: vec![reason] });
        insta::assert_snapshot!(metrics.text(3, 1, true));
    }
}
