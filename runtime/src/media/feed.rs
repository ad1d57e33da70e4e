//! What the threads of one pipeline have done so far, and waiting for them without hanging.
//!
//! A stalled sink says nothing on the bus, so waiting ends either with what was waited for, with the pipeline's own
//! error, or when nothing at all has moved for a while.

use gstreamer as gst;
use gstreamer::prelude::*;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Frames that may wait in front of the encoder.
pub(super) const QUEUE: usize = 4;

/// A wait is made of this many shorter ones that must all be quiet: a process that was stopped for a while (Ctrl-Z, a
/// closed lid) then loses one of them and not all its patience.
const QUIET_WAITS: u32 = 10;

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

/// Why waiting ended without what was waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Halt {
    /// The pipeline failed.
    Fault(Fault),
    /// Nothing moved.
    Stalled,
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
    /// Why the pipeline is no longer of use.
    halt: Option<Halt>,
}

/// The watched state of one pipeline.
#[derive(Debug)]
pub(super) struct Feed {
    progress: Mutex<Progress>,
    moved: Condvar,
    limit: Duration,
}

impl Feed {
    /// Watches a pipeline: what leaves `source`, what enters `muxer` and what enters `sink`, and its bus. Waits end when
    /// nothing moves for `limit`.
    pub(super) fn watch(
        pipeline: &gst::Pipeline,
        [source, muxer, sink]: [&gst::Pad; 3],
        limit: Duration,
    ) -> Arc<Self> {
        let feed = Arc::new(Self { progress: Mutex::default(), moved: Condvar::new(), limit });
        feed.count(source, |progress| progress.taken += 1);
        feed.count(muxer, |progress| progress.encoded += 1);
        feed.count(sink, |_| ());
        if let Some(bus) = pipeline.bus() {
            let feed = Arc::clone(&feed);
            bus.set_sync_handler(move |_, message| {
                feed.hear(message);
                gst::BusSyncReply::Drop
            });
        }
        feed
    }

    /// For how long nothing may move.
    pub(super) fn limit(&self) -> Duration {
        self.limit
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
    /// The pipeline failed or stalled.
    pub(super) fn wait_for_room(&self) -> Result<(), Halt> {
        self.wait(|progress| progress.pushed - progress.taken.min(progress.pushed) < QUEUE)?.pushed += 1;
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

    fn wait(&self, ready: impl Fn(&Progress) -> bool) -> Result<MutexGuard<'_, Progress>, Halt> {
        let mut progress = self.progress();
        let mut quiet = 0;
        loop {
            if let Some(halt) = &progress.halt {
                return Err(halt.clone());
            }
            if ready(&progress) {
                return Ok(progress);
            }
            let before = progress.movements;
            let (after, waited) = self
                .moved
                .wait_timeout(progress, self.limit / QUIET_WAITS)
                .unwrap_or_else(PoisonError::into_inner);
            progress = after;
            if progress.movements != before {
                quiet = 0;
            } else if waited.timed_out() {
                quiet += 1;
                if quiet == QUIET_WAITS {
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
                // What comes after the first error is its consequence.
                self.update(|progress| _ = progress.halt.get_or_insert(Halt::Fault(fault)));
            }
            gst::MessageView::Warning(warning) => {
                tracing::warn!(element = element(), "{}", warning.error().message());
            }
            _ => {}
        }
    }
}
