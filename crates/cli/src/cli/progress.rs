//! Progress of a run on standard error: a bar, or JSON lines.

use super::render;
use crate::Error;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use std::io::IsTerminal;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// The value of `--progress`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProgressKind {
    /// A bar if standard error is a terminal, else nothing.
    Auto,
    /// A bar.
    Bar,
    /// JSON lines.
    Json,
    /// Nothing.
    None,
}

bundle::named!(ProgressKind, "auto" => Auto, "bar" => Bar, "json" => Json, "none" => None);

impl FromStr for ProgressKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
            let rule = format!("unknown progress; expected one of {}", Self::ALL.map(Self::name).join(", "));
            Error::argument("--progress", format!("`{text}`"), rule, "use one of these")
        })
    }
}

/// Reports the phases of a run, one after the other.
#[derive(Debug)]
pub(super) struct Progress {
    display: Display,
    phase: &'static str,
    began: Instant,
    /// Parts that were done before the phase began.
    before: usize,
    done: usize,
    total: usize,
}

#[derive(Debug)]
enum Display {
    Nothing,
    Bar(ProgressBar),
    Json,
}

impl Progress {
    pub(super) fn new(kind: ProgressKind) -> Self {
        let bar = || {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10));
            // If the template did not parse, indicatif would use its default style.
            if let Ok(style) = ProgressStyle::with_template("{prefix:<8} {bar:30} {pos}/{len} {msg}") {
                bar.set_style(style);
            }
            Display::Bar(bar)
        };
        let display = match kind {
            ProgressKind::Auto if std::io::stderr().is_terminal() => bar(),
            ProgressKind::Auto | ProgressKind::None => Display::Nothing,
            ProgressKind::Bar => bar(),
            ProgressKind::Json => Display::Json,
        };
        Self { display, phase: "start", began: Instant::now(), before: 0, done: 0, total: 0 }
    }

    /// Begins a phase of `total` parts.
    pub(super) fn begin(&mut self, phase: &'static str, total: usize) {
        self.begin_after(phase, 0, total);
    }

    /// Begins a phase of `total` parts of which `done` were done before.
    pub(super) fn begin_after(&mut self, phase: &'static str, done: usize, total: usize) {
        (self.phase, self.began) = (phase, Instant::now());
        (self.before, self.done, self.total) = (done, done, total);
        match &self.display {
            Display::Nothing => {}
            Display::Bar(bar) => {
                bar.set_length(total as u64);
                bar.set_position(done as u64);
                bar.set_prefix(phase);
                bar.set_message("");
            }
            Display::Json => render::line_on_stderr(&json!({"event": "phase", "phase": phase, "of": total})),
        }
    }

    /// Reports that `done` parts of the phase are done; `detail` is for example the expert that runs.
    pub(super) fn advance(&mut self, done: usize, detail: &str) {
        self.done = done;
        let left = self.time_left();
        match &self.display {
            Display::Nothing => {}
            Display::Bar(bar) => {
                bar.set_position(done as u64);
                let seconds =
                    left.map_or(String::new(), |left| format!("{:.0} s left", left.as_secs_f64().ceil()));
                bar.set_message(format!("{detail}  {seconds}"));
            }
            Display::Json => render::line_on_stderr(&json!({
                "event": "progress",
                "phase": self.phase,
                "done": done,
                "of": self.total,
                "detail": detail,
                "seconds_left": left.map(|left| left.as_secs_f64()),
            })),
        }
    }

    /// Removes the bar, so that other lines can be printed.
    pub(super) fn clear(&self) {
        if let Display::Bar(bar) = &self.display {
            bar.finish_and_clear();
        }
    }

    fn time_left(&self) -> Option<Duration> {
        let done = u32::try_from(self.done.saturating_sub(self.before)).ok().filter(|done| *done > 0)?;
        let left = u32::try_from(self.total.saturating_sub(self.done)).ok()?;
        Some(self.began.elapsed() / done * left)
    }
}
