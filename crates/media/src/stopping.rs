//! Stopping a pipeline that has failed or stalled, within a bounded time.
//!
//! Stopping waits for the threads of the pipeline. Those that wait for a reader, a viewer or a server end: GStreamer's
//! network elements are interrupted by the stop, and the collectors check `closing` (see `collect`). One kind cannot be
//! ended by any program: a write to a file system that hangs, for example a network mount whose server is gone. Its
//! thread, and the one that stops the pipeline, end with that write or with the process.

use bundle::Cancel;
use gstreamer as gst;
use gstreamer::prelude::*;
use std::io;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

/// The name of the thread that stops a pipeline.
const THREAD: &str = "media-stop";

/// Ends the waits of the collectors and stops the pipeline. Returns false if a thread of the pipeline does not return
/// within `limit`.
///
/// # Errors
/// Returns an error if no thread can be started.
pub(super) fn stop_within(pipeline: &gst::Pipeline, closing: &Cancel, limit: Duration) -> io::Result<bool> {
    closing.cancel();
    let (done, stopped) = sync_channel(1);
    let stopping = pipeline.clone();
    let thread = std::thread::Builder::new().name(THREAD.into()).spawn(move || {
        stop(&stopping);
        drop(stopping);
        // Nobody waits after the limit.
        let _ = done.send(());
    })?;
    match stopped.recv_timeout(limit) {
        Err(RecvTimeoutError::Timeout) => Ok(false),
        Ok(()) | Err(RecvTimeoutError::Disconnected) => {
            // It has ended or is about to.
            let _ = thread.join();
            Ok(true)
        }
    }
}

/// Stops a pipeline whose threads do not wait.
pub(super) fn stop(pipeline: &gst::Pipeline) {
    if pipeline.set_state(gst::State::Null).is_err() {
        tracing::warn!("the video pipeline could not be stopped");
    }
}
