//! Collectors: writers behind an `appsink`, for formats that GStreamer has no element for.
//!
//! A collector runs in a thread of the pipeline. Its errors end only that pipeline. Its waits for others (readers of a
//! pipe, servers) end when the output is closed: collectors that wait have the `Cancel` of [`OutputPipeline::closing`].
//!
//! [`OutputPipeline::closing`]: super::pipeline::OutputPipeline::closing

mod delays;
mod gif;
mod hls;
mod hls_folder;
mod pipe;
mod png_folder;
mod rtsp;
mod rtsp_request;
mod store;
mod webp;
mod y4m;

pub(super) use delays::Delays;
pub(super) use gif::GifFile;
pub(super) use hls::HlsWriter;
pub(super) use hls_folder::{HlsFolder, PLAYLIST};
pub(super) use png_folder::PngFolder;
pub(super) use rtsp::RtspServer;
pub(super) use store::FolderStore;
pub(super) use webp::WebPFile;
pub(super) use y4m::{Y4mTarget, Y4mWriter};

use super::monitor::{Fault, PipelineMonitor};
use gstreamer as gst;
use gstreamer_app::{AppSink, AppSinkCallbacks};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// Writes the buffers of a pipeline.
pub(super) trait Collector: Send {
    /// Receives the caps, before the first buffer and after every change.
    fn format(&mut self, _caps: &gst::CapsRef) {}

    /// Writes a picture or a packet.
    ///
    /// # Errors
    /// I/O errors. After an error neither this nor [`Self::finish`] is called again.
    fn take(&mut self, buffer: &gst::BufferRef) -> io::Result<()>;

    /// Closes the output at the end of the stream.
    ///
    /// # Errors
    /// I/O errors.
    fn finish(&mut self) -> io::Result<()>;

    /// Closes the output as far as possible after an error.
    fn abort(&mut self) {}
}

/// Stops calling a collector after its first error.
struct CollectorGuard {
    collector: Box<dyn Collector>,
    failed: bool,
}

impl CollectorGuard {
    fn run(&mut self, operation: impl FnOnce(&mut dyn Collector) -> io::Result<()>) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("it has already failed"));
        }
        let result = operation(self.collector.as_mut());
        if result.is_err() {
            self.failed = true;
            self.collector.abort();
        }
        result
    }
}

/// The time at which a collector receives buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// As soon as they are encoded.
    Immediate,
    /// At their timestamps, so that a clip is not sent faster than it plays.
    RealTime,
}

/// The content of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// A frame. Frames are counted.
    Frames,
    /// A part of a stream.
    Packets,
}

/// An `appsink` that passes buffers to a collector and reports progress and errors to the monitor.
pub(super) fn sink(
    name: &str,
    collector: Box<dyn Collector>,
    monitor: &Arc<PipelineMonitor>,
    (unit, pace): (Unit, Pace),
) -> AppSink {
    let collector = Arc::new(Mutex::new(CollectorGuard { collector, failed: false }));
    let (collector, eos_collector) = (Arc::clone(&collector), collector);
    let (monitor, eos_monitor) = (Arc::clone(monitor), Arc::clone(monitor));
    let (element, eos_element) = (name.to_owned(), name.to_owned());
    let mut caps: Option<gst::Caps> = None;
    let callbacks = AppSinkCallbacks::builder()
        .new_sample(move |sink| {
            let sample = sink.pull_sample().map_err(|_ended| gst::FlowError::Eos)?;
            let Some(buffer) = sample.buffer() else { return Ok(gst::FlowSuccess::Ok) };
            let mut collector = collector.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(new) = sample.caps_owned().filter(|new| caps.as_ref() != Some(new)) {
                collector.collector.format(&new);
                caps = Some(new);
            }
            match collector.run(|collector| collector.take(buffer)) {
                Ok(()) => {
                    if unit == Unit::Frames {
                        monitor.frame_written();
                    }
                    Ok(gst::FlowSuccess::Ok)
                }
                Err(error) => {
                    monitor.fail(Fault::from_io(&element, &error));
                    Err(gst::FlowError::Error)
                }
            }
        })
        .eos(move |_| {
            let mut collector = eos_collector.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = collector.run(|collector| collector.finish()) {
                eos_monitor.fail(Fault::from_io(&eos_element, &error));
            }
        })
        .build();
    AppSink::builder().name(name).sync(pace == Pace::RealTime).max_buffers(1).callbacks(callbacks).build()
}

/// The bytes of a buffer.
pub(super) fn bytes(buffer: &gst::BufferRef) -> io::Result<gst::BufferMap<'_, gst::buffer::Readable>> {
    buffer.map_readable().map_err(|error| io::Error::other(error.to_string()))
}

/// The rows of an RGB picture without padding.
fn rgb_rows(picture: &[u8], layout: super::frames::RgbLayout) -> Vec<u8> {
    let row = 3 * layout.width();
    picture.chunks_exact(layout.stride()).flat_map(|padded| &padded[..row]).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Counts all calls and fails at one of them.
    struct Counting {
        fails_at: usize,
        calls: Arc<AtomicUsize>,
        aborted: Arc<AtomicUsize>,
    }

    impl Counting {
        fn call(&self) -> io::Result<()> {
            let call = self.calls.fetch_add(1, Ordering::Relaxed);
            if call == self.fails_at { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }
    }

    impl Collector for Counting {
        fn take(&mut self, _: &gst::BufferRef) -> io::Result<()> {
            self.call()
        }

        fn finish(&mut self) -> io::Result<()> {
            self.call()
        }

        fn abort(&mut self) {
            self.aborted.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_collector_is_not_called_after_an_error() {
        gst::init().unwrap();
        let buffer = gst::Buffer::new();
        for fails_at in 0..4 {
            let (calls, aborted) = (Arc::default(), Arc::default());
            let collector = Counting { fails_at, calls: Arc::clone(&calls), aborted: Arc::clone(&aborted) };
            let mut collector = CollectorGuard { collector: Box::new(collector), failed: false };
            for call in 0..3 {
                let done = collector
                    .run(|collector| if call == 2 { collector.finish() } else { collector.take(&buffer) });
                assert_eq!(done.is_ok(), call < fails_at);
            }
            assert_eq!(calls.load(Ordering::Relaxed), (fails_at + 1).min(3));
            assert_eq!(aborted.load(Ordering::Relaxed), usize::from(fails_at < 3));
        }
    }
}
