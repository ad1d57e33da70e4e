//! What stands at the end of a pipeline where GStreamer has no element for it: writers of our own, fed by an `appsink`.
//!
//! A collector runs in the pipeline's thread. What it cannot write ends its own pipeline and no other.

mod gif;
mod png_folder;
mod webp;
mod y4m;

pub(super) use gif::GifFile;
pub(super) use png_folder::PngFolder;
pub(super) use webp::WebPFile;
pub(super) use y4m::{Y4mTarget, Y4mWriter};

use super::feed::{Fault, Feed};
use gstreamer as gst;
use gstreamer_app::{AppSink, AppSinkCallbacks};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// Takes what comes out of a pipeline.
pub(super) trait Collector: Send {
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
}

/// An `appsink` that gives everything to a collector and tells the feed.
pub(super) fn sink(name: &str, collector: Box<dyn Collector>, feed: &Arc<Feed>) -> AppSink {
    let collector = Arc::new(Mutex::new(collector));
    let (taking, ending) = (Arc::clone(&collector), collector);
    let (fed, ended) = (Arc::clone(feed), Arc::clone(feed));
    let (taker, ender) = (name.to_owned(), name.to_owned());
    let callbacks = AppSinkCallbacks::builder()
        .new_sample(move |sink| {
            let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
            let Some(buffer) = sample.buffer() else { return Ok(gst::FlowSuccess::Ok) };
            match taking.lock().unwrap_or_else(PoisonError::into_inner).take(buffer) {
                Ok(()) => {
                    fed.collected();
                    Ok(gst::FlowSuccess::Ok)
                }
                Err(error) => {
                    fed.fail(Fault::of_io(&taker, &error));
                    Err(gst::FlowError::Error)
                }
            }
        })
        .eos(move |_| {
            if let Err(error) = ending.lock().unwrap_or_else(PoisonError::into_inner).finish() {
                ended.fail(Fault::of_io(&ender, &error));
            }
        })
        .build();
    AppSink::builder().name(name).sync(false).max_buffers(1).callbacks(callbacks).build()
}

/// The bytes of a buffer.
fn bytes(buffer: &gst::BufferRef) -> io::Result<gst::BufferMap<'_, gst::buffer::Readable>> {
    buffer.map_readable().map_err(|error| io::Error::other(error.to_string()))
}

/// The rows of an RGB picture without their padding.
fn rgb_rows(picture: &[u8], layout: super::frames::RgbLayout) -> Vec<u8> {
    let row = 3 * layout.width;
    picture.chunks_exact(layout.stride()).flat_map(|padded| &padded[..row]).copied().collect()
}
