//! The progress of one pipeline, and waits that cannot hang.
//!
//! A stalled sink posts no message on the bus. A wait therefore ends when its condition is met, when the pipeline
//! fails, or when the pipeline makes no progress for some time.

use bundle::Cancel;
use gstreamer as gst;
use gstreamer::prelude::*;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The most frames that are queued before the encoder.
pub(super) const QUEUE: usize = 4;

/// A timeout is split into at least this many intervals, all of which must pass without progress. A process that was suspended
/// (Ctrl-Z, a closed lid) then loses one interval, not the whole timeout.
const INTERVALS: u32 = 50;

/// The longest interval, at which a wait checks whether the run was cancelled.
const LONGEST_INTERVAL: Duration = Duration::from_millis(250);

/// The longest time without progress after the run was cancelled.
const CANCELLED_TIMEOUT: Duration = Duration::from_secs(5);

/// The first error of a pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// The element that failed.
    pub(super) element: String,
    /// Its message.
    pub(super) why: String,
    /// True if the disk is full.
    pub(super) disk_full: bool,
}

impl Fault {
    /// An I/O error of a collector.
    pub(super) fn from_io(element: &str, error: &io::Error) -> Self {
        let disk_full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        Self { element: element.into(), why: error.to_string(), disk_full }
    }
}

/// The reason why a wait ended before its condition was met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Halt {
    /// The pipeline failed.
    Fault(Fault),
    /// The pipeline made no progress.
    Stalled,
    /// The run was cancelled. The pipeline has not failed.
    Cancelled,
}

#[derive(Debug, Default)]
struct Progress {
    /// Frames pushed into the pipeline.
    pushed: usize,
    /// Frames that the encoder has taken from the queue.
    taken: usize,
    /// Frames that the encoder has passed to the muxer.
    encoded: usize,
    /// Buffers that passed any of the watched pads.
    movements: u64,
    ended: bool,
    /// The time when the encoder passed on its first frame.
    first_encoded: Option<Instant>,
    /// Set once the pipeline has failed or stalled.
    halt: Option<Halt>,
}

/// Counts the frames of one pipeline and detects errors and stalls.
#[derive(Debug)]
pub(super) struct PipelineMonitor {
    progress: Mutex<Progress>,
    moved: Condvar,
    limit: Duration,
    cancel: Cancel,
}

impl Progress {
    fn encode(&mut self) {
        self.encoded += 1;
        self.first_encoded.get_or_insert_with(Instant::now);
    }
}

impl PipelineMonitor {
    /// A monitor whose waits end when there is no progress for `limit`, or soon after the run was cancelled.
    pub(super) fn new(limit: Duration, cancel: &Cancel) -> Arc<Self> {
        Arc::new(Self { progress: Mutex::default(), moved: Condvar::new(), limit, cancel: cancel.clone() })
    }

    /// Handles the messages on the bus of a pipeline.
    pub(super) fn watch_bus(self: &Arc<Self>, pipeline: &gst::Pipeline) {
        if let Some(bus) = pipeline.bus() {
            let monitor = Arc::clone(self);
            bus.set_sync_handler(move |_, message| {
                monitor.handle_message(message);
                gst::BusSyncReply::Drop
            });
        }
    }

    /// Counts frames that leave the queue through a pad.
    pub(super) fn count_taken(self: &Arc<Self>, pad: &gst::Pad) {
        self.count(pad, |progress| progress.taken += 1);
    }

    /// Counts frames that leave the encoder through a pad.
    pub(super) fn count_encoded(self: &Arc<Self>, pad: &gst::Pad) {
        self.count(pad, Progress::encode);
    }

    /// Records any buffer that passes a pad as progress.
    pub(super) fn watch_pad(self: &Arc<Self>, pad: &gst::Pad) {
        self.count(pad, |_| ());
    }

    /// Records a frame that a collector has written.
    pub(super) fn frame_written(&self) {
        self.update(Progress::encode);
    }

    /// Records a fault. Faults after the first are its consequences and are ignored.
    pub(super) fn fail(&self, fault: Fault) {
        self.update(|progress| _ = progress.halt.get_or_insert(Halt::Fault(fault)));
    }

    /// The longest time without progress.
    pub(super) fn limit(&self) -> Duration {
        if self.cancel.is_cancelled() { self.limit.min(CANCELLED_TIMEOUT) } else { self.limit }
    }

    /// The time when the encoder passed on its first frame.
    pub(super) fn first_encoded(&self) -> Option<Instant> {
        self.progress().first_encoded
    }

    /// Frames pushed into the pipeline.
    pub(super) fn pushed(&self) -> usize {
        self.progress().pushed
    }

    /// Frames that have come out of the encoder.
    pub(super) fn encoded(&self) -> usize {
        self.progress().encoded
    }

    /// Waits until another frame may be pushed, and counts that frame.
    ///
    /// # Errors
    /// Returns an error if the pipeline failed or stalled, or if the run was cancelled.
    pub(super) fn wait_for_room(&self) -> Result<(), Halt> {
        let mut cancelled = false;
        let mut progress = self.wait(|progress| {
            let room = progress.pushed - progress.taken.min(progress.pushed) < QUEUE;
            cancelled = !room && self.cancel.is_cancelled();
            room || cancelled
        })?;
        if cancelled {
            return Err(Halt::Cancelled);
        }
        progress.pushed += 1;
        Ok(())
    }

    /// Waits for the end of the stream.
    ///
    /// # Errors
    /// Returns an error if the pipeline failed or stalled.
    pub(super) fn wait_for_end(&self) -> Result<(), Halt> {
        self.wait(|progress| progress.ended).map(drop)
    }

    /// Waits until the end of the stream has passed a pipeline that has failed, at most for `limit`.
    pub(super) fn wait_for_close(&self, limit: Duration) {
        let ended = |progress: &mut Progress| !progress.ended;
        let waited = self.moved.wait_timeout_while(self.progress(), limit, ended);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits for the error message of a pipeline that has failed.
    pub(super) fn wait_for_fault(&self) -> Halt {
        self.wait(|_| false).map_or_else(|halt| halt, |_| Halt::Stalled)
    }

    fn wait(&self, mut ready: impl FnMut(&Progress) -> bool) -> Result<MutexGuard<'_, Progress>, Halt> {
        let mut progress = self.progress();
        let mut idle = Duration::ZERO;
        loop {
            if let Some(halt) = &progress.halt {
                return Err(halt.clone());
            }
            if ready(&progress) {
                return Ok(progress);
            }
            let before = progress.movements;
            let one = (self.limit / INTERVALS).min(LONGEST_INTERVAL);
            let (after, waited) =
                self.moved.wait_timeout(progress, one).unwrap_or_else(PoisonError::into_inner);
            progress = after;
            if progress.movements != before {
                idle = Duration::ZERO;
            } else if waited.timed_out() {
                idle += one;
                if idle >= self.limit() {
                    progress.halt = Some(Halt::Stalled);
                }
            }
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut Progress)) {
        let mut progress = self.progress();
        change(&mut progress);
        progress.movements += 1;
        drop(progress);
        self.moved.notify_all();
    }

    fn count(self: &Arc<Self>, pad: &gst::Pad, change: impl Fn(&mut Progress) + Send + Sync + 'static) {
        let monitor = Arc::clone(self);
        pad.add_probe(gst::PadProbeType::BUFFER | gst::PadProbeType::BUFFER_LIST, move |_, _| {
            monitor.update(&change);
            gst::PadProbeReturn::Ok
        });
    }

    fn handle_message(&self, message: &gst::Message) {
        let element =
            || message.src().map_or_else(|| "the pipeline".into(), |source| source.name().to_string());
        match message.view() {
            gst::MessageView::Eos(_) => self.update(|progress| progress.ended = true),
            gst::MessageView::Error(error) => {
                let fault = Fault {
                    element: element(),
                    why: error.error().message().to_owned(),
                    disk_full: error.error().matches(gst::ResourceError::NoSpaceLeft),
                };
                tracing::debug!(element = fault.element, details = ?error.debug(), "pipeline error");
                self.fail(fault);
            }
            gst::MessageView::Warning(warning) => {
                tracing::warn!(element = element(), "{}", warning.error().message());
            }
            _ => {}
        }
    }
}
