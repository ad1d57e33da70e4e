//! A job as JSON, and what can be done with it.

use crate::cli::render;
use ::jobs::store::{JobRow, Lease, State, Store};
use runtime::plan::Length;
use serde_json::{Value, json};

/// A job as JSON: what the store knows, `folder`, and `next`, the orders that suit its state.
pub(super) fn as_json(row: &JobRow, store: &Store) -> Value {
    let mut row = row.clone();
    let error = row.outcome.as_mut().and_then(|outcome| outcome.error.take());
    let next = next(&row);
    let folder = render::path(&store.job_folder(row.id));
    let mut value = serde_json::to_value(&row).unwrap_or_else(|_| unreachable!("it was read from JSON"));
    if let Some(error) = error {
        value["outcome"]["error"] = json!(render::named(error));
    }
    value["folder"] = json!(folder);
    value["next"] = json!(next);
    value
}

/// The process that makes the jobs, as JSON; null if none does.
pub(super) fn owner_as_json(lease: Option<&Lease>) -> Value {
    lease.map_or(Value::Null, |lease| json!({"pid": lease.pid}))
}

/// The orders that suit the state of a job, as the commands are called. A fork needs snapshots too.
pub(super) fn next(row: &JobRow) -> &'static [&'static str] {
    match (row.state, is_open_take(row)) {
        (State::Queued | State::Running, _) => &["cancel"],
        (State::Stopped, true) => &["keep", "cancel"],
        (State::Stopped, false) => &["resume", "cancel"],
        (State::Failed | State::Cancelled, true) => &["retry", "keep"],
        (State::Failed, false) => &["retry"],
        (State::Cancelled, false) => &["resume", "retry"],
        (State::Done, _) => &[],
    }
}

/// Returns true for a take of an audition whose whole clip nobody asked for.
pub(super) fn is_open_take(row: &JobRow) -> bool {
    row.request.take.is_some() && row.request.outputs.is_empty()
}

/// The steps that a job makes, with those of the job that it is a fork of.
pub(super) fn steps(row: &JobRow) -> usize {
    let running = Some(row.progress.steps).filter(|steps| row.state == State::Running && *steps > 0);
    running.or(row.request.stop_after).or(row.request.steps()).unwrap_or_default()
}

/// The steps that are done, with those of the job that it is a fork of.
pub(super) fn steps_done(row: &JobRow) -> usize {
    let ended =
        row.outcome.as_ref().filter(|_| row.state.has_ended()).map_or(0, |outcome| outcome.steps_done);
    let before = row.request.origin.as_ref().map_or(0, |origin| origin.step);
    row.progress.steps_done.max(ended).max(before)
}

/// The size and the number of frames of a clip, as `832x480x81`.
pub(super) fn clip(row: &JobRow) -> String {
    let clip = &row.request.clip;
    let size = clip.size.map_or_else(|| "?".to_owned(), |size| size.to_string());
    match clip.length {
        Some(Length::Frames(frames)) => format!("{size}x{frames}"),
        _ => size,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use ::jobs::request::{REQUEST_VERSION, Request};
    use ::jobs::store::{Outcome, Progress};
    use bundle::units::Seed;
    use bundle::{ErrorClass, Field, Report};
    use media::post_process::PostProcessSpec;
    use runtime::job::KeepSteps;
    use runtime::plan::GenerateRequest;
    use runtime::scheduler::{JobId, Priority, Seconds};
    use std::collections::BTreeMap;

    /// A job in a state, submitted at second 1000.
    pub(in super::super) fn row(id: u64, state: State) -> JobRow {
        let clip = GenerateRequest {
            size: Some("112x64".parse().unwrap()),
            length: Some(Length::Frames(17)),
            fps: Some("16".parse().unwrap()),
            steps: Some(8),
            ..GenerateRequest::new("a red ball bounces on the beach", Seed(42))
        };
        let request = Request {
            version: REQUEST_VERSION,
            bundle: "/models/mini".into(),
            model: "mini".into(),
            precision: None,
            kernels: None,
            clip,
            noise: None,
            priority: Priority::Normal,
            deadline: None,
            stop_after: None,
            keep_steps: KeepSteps::None,
            outputs: vec![format!("/home/me/clip-{id}.mp4").parse().unwrap()],
            post_process: PostProcessSpec::default(),
            extras: BTreeMap::new(),
            metadata: true,
            mark: true,
            sign: None,
            output_timeout: Seconds::try_new(30.0).unwrap(),
            origin: None,
            take: None,
        };
        JobRow {
            id: JobId(id),
            state,
            request,
            progress: Progress::default(),
            submitted: 1000.0,
            started: None,
            ended: None,
            outcome: None,
        }
    }

    /// How a job ended at second 1100.
    pub(in super::super) fn outcome(state: State, error: Option<Report>) -> Outcome {
        Outcome { state, error, outputs: Vec::new(), warnings: Vec::new(), steps_done: 3, ended: 1100.0 }
    }

    /// The error of a job.
    pub(in super::super) fn refusal() -> Report {
        let fix = "choose another `output`";
        Report::new(ErrorClass::Failed, "output cannot be written", "its disk is full", fix)
            .about(Field::Output)
    }

    #[test]
    fn each_state_has_its_orders() {
        let names = |state| next(&row(1, state)).join(" ");
        let expected = ["cancel", "cancel", "resume cancel", "", "retry", "resume retry"];
        assert_eq!(State::ALL.map(names), expected);
        let take = |state| {
            let mut take = row(1, state);
            take.request.take = Some(::jobs::request::Take { audition: JobId(1), number: 1, of: 9 });
            take
        };
        assert_eq!(next(&take(State::Stopped)), ["resume", "cancel"]);
        let open = |state| {
            let mut open = take(state);
            open.request.outputs.clear();
            next(&open).join(" ")
        };
        assert_eq!(open(State::Stopped), "keep cancel");
        assert_eq!(open(State::Failed), "retry keep");
    }

    #[test]
    fn errors_in_json_name_flags() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("queue")).unwrap();
        let failed =
            JobRow { outcome: Some(outcome(State::Failed, Some(refusal()))), ..row(7, State::Failed) };
        let value = as_json(&failed, &store);
        assert_eq!(value["outcome"]["error"]["what"], "--output cannot be written");
        assert_eq!(value["outcome"]["error"]["fix"], "choose another --output");
        assert_eq!(value["outcome"]["state"], "failed");
        assert_eq!((&value["id"], &value["next"]), (&json!(7), &json!(["retry"])));
        assert!(value["folder"].as_str().unwrap().ends_with("/queue/jobs/7"));
        assert_eq!(value["request"]["clip"]["size"], "112x64");
    }
}
