//! The times until previews, frames and the end of a run. The time to open graphs is counted separately.

use runtime::model::Model;
use runtime::pipeline::Event;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A moment of the run, and the time spent opening graphs until then.
#[derive(Debug, Clone, Copy)]
struct Moment {
    at: Instant,
    opening: Duration,
}

/// The moments of a run.
#[derive(Debug)]
pub(super) struct Timing {
    model: Model,
    /// The time spent opening and trying graphs before the run.
    prepared: Duration,
    began: Moment,
    encoded: Option<Moment>,
    first_step: Option<Moment>,
    steps: Duration,
    first_frames: Option<Moment>,
    decoding: Option<Moment>,
}

impl Timing {
    /// Starts the clock of a run, after `prepared` of loading.
    pub(super) fn start(model: &Model, prepared: Duration) -> Self {
        let mut timing = Self {
            model: model.clone(),
            prepared,
            began: Moment { at: Instant::now(), opening: Duration::ZERO },
            encoded: None,
            first_step: None,
            steps: Duration::ZERO,
            first_frames: None,
            decoding: None,
        };
        timing.began = timing.now();
        timing
    }

    fn now(&self) -> Moment {
        Moment { at: Instant::now(), opening: self.model.time_opening() }
    }

    /// Records the moment of an event.
    pub(super) fn record(&mut self, event: &Event<'_>) {
        let now = self.now();
        match event {
            Event::Encoded { .. } => self.encoded = Some(now),
            Event::Step(step) => {
                self.steps += step.ran;
                self.first_step.get_or_insert(now);
            }
            Event::Decoding => self.decoding = Some(now),
            Event::Encoding | Event::Denoising | Event::Frames(_) => {}
        }
    }

    /// Records the moment of the first frames.
    pub(super) fn record_frames(&mut self) {
        let now = self.now();
        self.first_frames.get_or_insert(now);
    }

    /// The times as JSON, in seconds since the start, without the opening of graphs, which is `loading`. The first
    /// frame counts when an encoder has produced it.
    pub(super) fn value(
        &self,
        first_preview: Option<Instant>,
        first_encoded: Option<Instant>,
        steps: usize,
    ) -> Value {
        let since = |moment: Moment| {
            let opening = moment.opening.saturating_sub(self.began.opening);
            moment.at.saturating_duration_since(self.began.at).saturating_sub(opening).as_secs_f64()
        };
        // The first preview is shown after the first step and before the next graph is opened.
        let preview = first_preview.zip(self.first_step);
        let preview = preview.map(|(at, step)| since(Moment { at, opening: step.opening }));
        // Likewise, the first encoded frame follows the first decoded one.
        let first_frame =
            self.first_frames.map(|made| Moment { at: first_encoded.unwrap_or(made.at), ..made });
        let between = |from: Option<Moment>, to: Option<Moment>| Some(since(to?) - since(from?));
        let end = self.now();
        #[expect(clippy::cast_precision_loss, reason = "at most a thousand steps")]
        let step = (steps > 0).then(|| self.steps.as_secs_f64() / steps as f64);
        let loading = self.prepared + end.opening.saturating_sub(self.began.opening);
        json!({
            "loading": loading.as_secs_f64(),
            "text": self.encoded.map(since),
            "first_step": self.first_step.map(since),
            "step": step,
            "first_preview": preview,
            "first_frame": first_frame.map(since),
            "first_frame_of_decode": between(self.decoding, first_frame),
            "decode": between(self.decoding, Some(end)),
            "whole": since(end),
        })
    }
}
