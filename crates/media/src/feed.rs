//! What the threads of one pipeline have done so far, and waiting for them without hanging.
//!
//! A stalled sink says nothing on the bus, so waiting ends either with what was waited for, with the pipeline's own
//! error, or when nothing at all has moved for a while.

use bundle::Cancel;
use gstreamer as gst;
use gstreamer::prelude::*;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Frames that may wait in front of the encoder.
pub(super) const QUEUE: usize = 4;

/// A wait is made of this many shorter ones that must all be quiet: a process that was stopped for a while (Ctrl-Z, a
/// closed lid) then loses one of them and not all its output_timeout.
const QUIET_WAITS: u32 = 50;

/// How long nothing may move once the run is being stopped.
const LAST_LIMIT: Duration = Duration::from_secs(5);

/// The first error of a pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// The element that failed.
    pub(super) element: String,
    /// What it said.
    pub(super) why: String,
    /// Whether it was for want of room.
    pub(super) disk_full: bool,
}

impl Fault {
    /// What the system said to a writer of our own.
    pub(super) fn of_io(element: &str, error: &io::Error) -> Self {
        let disk_full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        Self { element: element.into(), why: error.to_string(), disk_full }
    }
}

/// Why waiting ended without what was waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Halt {
    /// The pipeline failed.
    Fault(Fault),
    /// Nothing moved.
    Stalled,
    /// The run is being stopped; the pipeline itself is well.
    Cancelled,
}

#[derive(Debug, Default)]
struct Progress {
    /// Frames given to the pipeline.
    pushed: usize,
    /// Frames that the encoder has taken from the queue.
    taken: usize,
    /// Frames that the encoder has handed to the muxer.
    encoded: usize,
    /// Anything that went through one of the watched pads.
    movements: u64,
    ended: bool,
    /// When the encoder had handed over its first frame.
    first_encoded: Option<Instant>,
    /// Why the pipeline is no longer of use.
    halt: Option<Halt>,
}

/// The watched state of one pipeline.
#[derive(Debug)]
pub(super) struct Feed {
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

impl Feed {
    /// A feed whose waits end when nothing moves for `limit`, or soon after the run is cancelled.
    pub(super) fn new(limit: Duration, cancel: &Cancel) -> Arc<Self> {
        Arc::new(Self { progress: Mutex::default(), moved: Condvar::new(), limit, cancel: cancel.clone() })
    }

    /// Hears what a pipeline says on its bus.
    pub(super) fn listen(self: &Arc<Self>, pipeline: &gst::Pipeline) {
        if let Some(bus) = pipeline.bus() {
            let feed = Arc::clone(self);
            bus.set_sync_handler(move |_, message| {
                feed.hear(message);
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

    /// Sees movement at a pad.
    pub(super) fn see(self: &Arc<Self>, pad: &gst::Pad) {
        self.count(pad, |_| ());
    }

    /// A frame has been written by a writer of our own.
    pub(super) fn collected(&self) {
        self.update(Progress::encode);
    }

    /// The pipeline cannot go on. What comes after the first fault is its consequence.
    pub(super) fn fail(&self, fault: Fault) {
        self.update(|progress| _ = progress.halt.get_or_insert(Halt::Fault(fault)));
    }

    /// For how long nothing may move.
    pub(super) fn limit(&self) -> Duration {
        if self.cancel.is_cancelled() { self.limit.min(LAST_LIMIT) } else { self.limit }
    }

    /// When the encoder had handed over its first frame.
    pub(super) fn first_encoded(&self) -> Option<Instant> {
        self.progress().first_encoded
    }

    /// Frames given to the pipeline.
    pub(super) fn pushed(&self) -> usize {
        self.progress().pushed
    }

    /// Frames that have come out of the encoder.
    pub(super) fn encoded(&self) -> usize {
        self.progress().encoded
    }

    /// Waits until another frame may be pushed, and counts it.
    ///
    /// # Errors
    /// The pipeline failed or stalled, or the run is cancelled.
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

    /// Waits until the sink has written everything.
    ///
    /// # Errors
    /// The pipeline failed or stalled.
    pub(super) fn wait_for_end(&self) -> Result<(), Halt> {
        self.wait(|progress| progress.ended).map(drop)
    }

    /// The pipeline's error, waiting for one that is on its way.
    pub(super) fn wait_for_fault(&self) -> Halt {
        self.wait(|_| false).map_or_else(|halt| halt, |_| Halt::Stalled)
    }

    fn wait(&self, mut ready: impl FnMut(&Progress) -> bool) -> Result<MutexGuard<'_, Progress>, Halt> {
        let mut progress = self.progress();
        let mut quiet = Duration::ZERO;
        loop {
            if let Some(halt) = &progress.halt {
                return Err(halt.clone());
            }
            if ready(&progress) {
                return Ok(progress);
            }
            let before = progress.movements;
            let one = self.limit / QUIET_WAITS;
            let (after, waited) =
                self.moved.wait_timeout(progress, one).unwrap_or_else(PoisonError::into_inner);
            progress = after;
            if progress.movements != before {
                quiet = Duration::ZERO;
            } else if waited.timed_out() {
                quiet += one;
                if quiet >= self.limit() {
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
        let feed = Arc::clone(self);
        pad.add_probe(gst::PadProbeType::BUFFER | gst::PadProbeType::BUFFER_LIST, move |_, _| {
            feed.update(&change);
            gst::PadProbeReturn::Ok
        });
    }

    fn hear(&self, message: &gst::Message) {
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
