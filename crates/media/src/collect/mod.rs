//! What stands at the end of a pipeline where GStreamer has no element for it: writers of our own, fed by an `appsink`.
//!
//! A collector runs in the pipeline's thread. What it cannot write ends its own pipeline and no other.

mod delays;
mod gif;
mod hls;
mod hls_folder;
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

use super::feed::{Fault, Feed};
use gstreamer as gst;
use gstreamer_app::{AppSink, AppSinkCallbacks};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// Takes what comes out of a pipeline.
pub(super) trait Collector: Send {
    /// What comes, before the first of it and whenever that changes.
    fn format(&mut self, _caps: &gst::CapsRef) {}

    /// Takes a picture or a packet.
    ///
    /// # Errors
    /// What the system said; nothing more comes after that.
    fn take(&mut self, buffer: &gst::BufferRef) -> io::Result<()>;

    /// Nothing more comes: what is open is closed.
    ///
    /// # Errors
    /// What the system said.
    fn finish(&mut self) -> io::Result<()>;

    /// Taking or finishing failed, and neither is asked for again: what is left is closed as well as it goes.
    fn give_up(&mut self) {}
}

/// A collector that is asked for nothing more once it has failed.
struct UntilItFails {
    collector: Box<dyn Collector>,
    failed: bool,
}

impl UntilItFails {
    fn run(&mut self, work: impl FnOnce(&mut dyn Collector) -> io::Result<()>) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("it has failed before"));
        }
        let done = work(self.collector.as_mut());
        if done.is_err() {
            self.failed = true;
            self.collector.give_up();
        }
        done
    }
}

/// When a collector gets what comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// As soon as it is there.
    AtOnce,
    /// When it is to be shown: viewers get a clip that is made faster than it plays at the speed at which it plays.
    ByTheClock,
}

/// What a collector takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// Frames, which are counted.
    Frames,
    /// Pieces of a stream.
    Packets,
}

/// An `appsink` that gives everything to a collector and tells the feed.
pub(super) fn sink(
    name: &str,
    collector: Box<dyn Collector>,
    feed: &Arc<Feed>,
    (unit, pace): (Unit, Pace),
) -> AppSink {
    let collector = Arc::new(Mutex::new(UntilItFails { collector, failed: false }));
    let (taking, ending) = (Arc::clone(&collector), collector);
    let (fed, ended) = (Arc::clone(feed), Arc::clone(feed));
    let (taker, ender) = (name.to_owned(), name.to_owned());
    let mut caps: Option<gst::Caps> = None;
    let callbacks = AppSinkCallbacks::builder()
        .new_sample(move |sink| {
            let sample = sink.pull_sample().map_err(|_ended| gst::FlowError::Eos)?;
            let Some(buffer) = sample.buffer() else { return Ok(gst::FlowSuccess::Ok) };
            let mut collector = taking.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(new) = sample.caps_owned().filter(|new| caps.as_ref() != Some(new)) {
                collector.collector.format(&new);
                caps = Some(new);
            }
            match collector.run(|collector| collector.take(buffer)) {
                Ok(()) => {
                    if unit == Unit::Frames {
                        fed.collected();
                    }
                    Ok(gst::FlowSuccess::Ok)
                }
                Err(error) => {
                    fed.fail(Fault::of_io(&taker, &error));
                    Err(gst::FlowError::Error)
                }
            }
        })
        .eos(move |_| {
            let mut collector = ending.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = collector.run(|collector| collector.finish()) {
                ended.fail(Fault::of_io(&ender, &error));
            }
        })
        .build();
    AppSink::builder().name(name).sync(pace == Pace::ByTheClock).max_buffers(1).callbacks(callbacks).build()
}

/// The bytes of a buffer.
pub(super) fn bytes(buffer: &gst::BufferRef) -> io::Result<gst::BufferMap<'_, gst::buffer::Readable>> {
    buffer.map_readable().map_err(|error| io::Error::other(error.to_string()))
}

/// The rows of an RGB picture without their padding.
fn rgb_rows(picture: &[u8], layout: super::frames::RgbLayout) -> Vec<u8> {
    let row = 3 * layout.width;
    picture.chunks_exact(layout.stride()).flat_map(|padded| &padded[..row]).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Fails at one of its calls and counts all.
    struct Counting {
        fails_at: usize,
        calls: Arc<AtomicUsize>,
        given_up: Arc<AtomicUsize>,
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

        fn give_up(&mut self) {
            self.given_up.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_collector_that_failed_is_asked_for_nothing_more() {
        gst::init().unwrap();
        let buffer = gst::Buffer::new();
        for fails_at in 0..4 {
            let (calls, given_up) = (Arc::default(), Arc::default());
            let collector = Counting { fails_at, calls: Arc::clone(&calls), given_up: Arc::clone(&given_up) };
            let mut collector = UntilItFails { collector: Box::new(collector), failed: false };
            for call in 0..3 {
                let done = collector
                    .run(|collector| if call == 2 { collector.finish() } else { collector.take(&buffer) });
                assert_eq!(done.is_ok(), call < fails_at);
            }
            assert_eq!(calls.load(Ordering::Relaxed), (fails_at + 1).min(3));
            assert_eq!(given_up.load(Ordering::Relaxed), usize::from(fails_at < 3));
        }
    }
}
