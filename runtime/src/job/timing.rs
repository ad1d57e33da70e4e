//! The times until previews, frames and the end of a job. The time to open graphs is counted separately.

use crate::model::Model;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A moment of a job, and the time spent opening graphs until then.
#[derive(Debug, Clone, Copy)]
struct Moment {
    at: Instant,
    opening: Duration,
}

/// The phases of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// The text is encoded.
    Encoded,
    /// The first step is done.
    FirstStep,
    /// The decoder is about to start.
    Decoding,
    /// The first frames are decoded.
    FirstFrames,
}

/// Records the moments of a job.
#[derive(Debug)]
pub(super) struct Clock {
    model: Model,
    /// The time spent opening and trying graphs before the job.
    prepared: Duration,
    began: Moment,
    marks: Vec<(Mark, Moment)>,
    /// When each phase began.
    phases: Vec<(&'static str, Instant)>,
    steps: Duration,
    step_count: u32,
}

/// The times of a job in seconds since its start, without the opening of graphs, which is `loading`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobTimes {
    /// Opening graphs.
    pub loading: f64,
    /// Until the text was encoded.
    pub text: Option<f64>,
    /// Until the first step was done.
    pub first_step: Option<f64>,
    /// Mean duration of a step that was computed.
    pub step: Option<f64>,
    /// Until the first preview was shown.
    pub first_preview: Option<f64>,
    /// Until an encoder had produced the first frame, or it was decoded.
    pub first_frame: Option<f64>,
    /// From the start of decoding until the first frame.
    pub first_frame_of_decode: Option<f64>,
    /// From the start of decoding to the end.
    pub decode: Option<f64>,
    /// Everything.
    pub whole: f64,
}

impl Clock {
    /// Starts the clock, after `prepared` of loading.
    pub(super) fn start(model: &Model, prepared: Duration) -> Self {
        let began = Moment { at: Instant::now(), opening: model.time_opening() };
        let (marks, phases, steps) = (Vec::new(), Vec::new(), Duration::ZERO);
        Self { model: model.clone(), prepared, began, marks, phases, steps, step_count: 0 }
    }

    /// Begins a phase, unless the job is in it.
    pub(super) fn begin(&mut self, phase: &'static str) {
        if self.phases.last().is_none_or(|(last, _)| *last != phase) {
            self.phases.push((phase, Instant::now()));
        }
    }

    /// The last phase that began.
    pub(super) fn phase(&self) -> Option<&'static str> {
        self.phases.last().map(|(phase, _)| *phase)
    }

    /// The duration of each phase until now, in seconds, with the opening of graphs.
    pub(super) fn phases(&self) -> BTreeMap<String, f64> {
        let now = Instant::now();
        let mut seconds = BTreeMap::new();
        for (index, (phase, began)) in self.phases.iter().enumerate() {
            let ended = self.phases.get(index + 1).map_or(now, |(_, next)| *next);
            *seconds.entry((*phase).to_owned()).or_insert(0.0) += (ended - *began).as_secs_f64();
        }
        seconds
    }

    /// The model whose opening of graphs is not counted.
    pub(super) fn model(&self) -> &Model {
        &self.model
    }

    fn now(&self) -> Moment {
        Moment { at: Instant::now(), opening: self.model.time_opening() }
    }

    /// Records a moment the first time that it is reached.
    pub(super) fn mark(&mut self, mark: Mark) {
        let now = self.now();
        if self.moment(mark).is_none() {
            self.marks.push((mark, now));
        }
    }

    /// Records a step, and how long it ran if it was computed.
    pub(super) fn step(&mut self, ran: Option<Duration>) {
        self.steps += ran.unwrap_or_default();
        self.step_count += u32::from(ran.is_some());
        self.mark(Mark::FirstStep);
    }

    fn moment(&self, mark: Mark) -> Option<Moment> {
        self.marks.iter().find(|(found, _)| *found == mark).map(|(_, moment)| *moment)
    }

    /// The times until now. The first frame counts when an encoder has produced it, if there is one.
    pub(super) fn times(&self, first_preview: Option<Instant>, first_encoded: Option<Instant>) -> JobTimes {
        let since = |moment: Moment| {
            let opening = moment.opening.saturating_sub(self.began.opening);
            moment.at.saturating_duration_since(self.began.at).saturating_sub(opening).as_secs_f64()
        };
        let decoding = self.moment(Mark::Decoding);
        // The first preview is shown after the first step and before the next graph is opened.
        let preview = first_preview.zip(self.moment(Mark::FirstStep));
        // Likewise, the first encoded frame follows the first decoded one.
        let first_frame = self
            .moment(Mark::FirstFrames)
            .map(|made| Moment { at: first_encoded.unwrap_or(made.at), ..made });
        let between = |from: Option<Moment>, to: Option<Moment>| Some(since(to?) - since(from?));
        let end = self.now();
        let loading = self.prepared + end.opening.saturating_sub(self.began.opening);
        JobTimes {
            loading: loading.as_secs_f64(),
            text: self.moment(Mark::Encoded).map(since),
            first_step: self.moment(Mark::FirstStep).map(since),
            step: (self.step_count > 0).then(|| self.steps.as_secs_f64() / f64::from(self.step_count)),
            first_preview: preview.map(|(at, step)| since(Moment { at, opening: step.opening })),
            first_frame: first_frame.map(since),
            first_frame_of_decode: between(decoding, first_frame),
            decode: between(decoding, Some(end)),
            whole: since(end),
        }
    }
}
