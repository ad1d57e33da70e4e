//! How far a run is: a bar for people, JSON lines for programs, both on standard error.

use super::render;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// What `--progress` can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProgressKind {
    /// A bar on a terminal, else nothing.
    Auto,
    /// A bar.
    Bar,
    /// JSON lines.
    Json,
    /// Nothing.
    None,
}

bundle::named!(ProgressKind, "--progress", "progress", "auto" => Auto, "bar" => Bar, "json" => Json, "none" => None);

/// Shows one phase after the other.
#[derive(Debug)]
pub(super) struct Progress {
    shown: Shown,
    phase: &'static str,
    began: Instant,
    done: usize,
    total: usize,
}

#[derive(Debug)]
enum Shown {
    Nothing,
    Bar(ProgressBar),
    Json,
}

impl Progress {
    pub(super) fn new(kind: ProgressKind) -> Self {
        let bar = || {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10));
            // A template that does not parse would leave indicatif's own style.
            if let Ok(style) = ProgressStyle::with_template("{prefix:<8} {bar:30} {pos}/{len} {msg}") {
                bar.set_style(style);
            }
            Shown::Bar(bar)
        };
        let shown = match kind {
            ProgressKind::Auto if std::io::stderr().is_terminal() => bar(),
            ProgressKind::Auto | ProgressKind::None => Shown::Nothing,
            ProgressKind::Bar => bar(),
            ProgressKind::Json => Shown::Json,
        };
        Self { shown, phase: "start", began: Instant::now(), done: 0, total: 0 }
    }

    /// A phase of `total` parts begins.
    pub(super) fn begin(&mut self, phase: &'static str, total: usize) {
        (self.phase, self.began, self.done, self.total) = (phase, Instant::now(), 0, total);
        match &self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => {
                bar.set_length(total as u64);
                bar.set_position(0);
                bar.set_prefix(phase);
                bar.set_message("");
            }
            Shown::Json => render::line_on_stderr(&json!({"event": "phase", "phase": phase, "of": total})),
        }
    }

    /// `done` parts of the phase are done; `detail` says of what kind, like the expert that runs.
    pub(super) fn advance(&mut self, done: usize, detail: &str) {
        self.done = done;
        let left = self.time_left();
        match &self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => {
                bar.set_position(done as u64);
                let seconds =
                    left.map_or(String::new(), |left| format!("{:.0} s left", left.as_secs_f64().ceil()));
                bar.set_message(format!("{detail}  {seconds}"));
            }
            Shown::Json => render::line_on_stderr(&json!({
                "event": "progress",
                "phase": self.phase,
                "done": done,
                "of": self.total,
                "detail": detail,
                "seconds_left": left.map(|left| left.as_secs_f64()),
            })),
        }
    }

    /// The phase that is under way.
    pub(super) fn phase(&self) -> &'static str {
        self.phase
    }

    /// Time since the phase began.
    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Takes the bar away, so that other lines can be printed.
    pub(super) fn clear(&self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }

    fn time_left(&self) -> Option<Duration> {
        let done = u32::try_from(self.done).ok().filter(|done| *done > 0)?;
        let left = u32::try_from(self.total.saturating_sub(self.done)).ok()?;
        Some(self.began.elapsed() / done * left)
    }
}
