//! The collector of a WHIP output.

use super::session::Session;
use super::signalling::Endpoint;
use crate::collect::{Collector, bytes};
use crate::spec::Token;
use bundle::Cancel;
use gstreamer as gst;
use std::io;
use std::time::Duration;

/// Sends H.264 in Annex B, one frame per buffer.
#[derive(Debug)]
pub(crate) struct WhipSender {
    session: Session,
}

impl WhipSender {
    /// Starts a session. Its waits end when `closing` is requested.
    ///
    /// # Errors
    /// Returns an error if no thread can be started.
    pub(crate) fn start(url: &str, token: Option<&Token>, closing: &Cancel) -> io::Result<Self> {
        Ok(Self { session: Session::start(Endpoint::new(url, token), closing)? })
    }
}

impl Collector for WhipSender {
    fn take(&mut self, buffer: &gst::BufferRef) -> io::Result<()> {
        let shown = Duration::from_nanos(buffer.pts().map_or(0, gst::ClockTime::nseconds));
        let data = bytes(buffer)?.as_slice().into();
        Ok(self.session.send(shown, data)?)
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(self.session.finish()?)
    }
}
