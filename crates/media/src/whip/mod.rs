//! WHIP (RFC 9725): an offer over HTTP, H.264 in RTP over DTLS and ICE, and a DELETE request at the end.
//!
//! In reading order: [`signalling`] (the requests), [`session`] (WebRTC on its own thread, paced in real time),
//! [`sender`] (the collector of the pipeline).

mod sender;
mod session;
mod signalling;

pub(super) use sender::WhipSender;

use std::fmt;
use std::io;
use std::time::Duration;

/// Errors of a WHIP session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum WhipError {
    /// No answer to a request.
    Unreachable { why: String },
    /// The server requires a token, or another one.
    Token { status: u16, sent: bool },
    /// The server refused the offer.
    Refused { status: u16, body: String },
    /// The answer is not a valid session description for the stream.
    Answer { why: String },
    /// ICE found no route to the server's media port.
    NoConnection { limit: Duration },
    /// The server ended the session or no longer responds.
    Ended,
    /// An I/O or protocol error.
    Failed { why: String },
}

impl fmt::Display for WhipError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { why } => write!(f, "the server does not respond: {why}"),
            Self::Token { status, sent: true } => write!(f, "the server refused the token (HTTP {status})"),
            Self::Token { status, sent: false } => {
                write!(f, "the server requires a token (HTTP {status}), and none was given")
            }
            Self::Refused { status, body } if body.is_empty() => {
                write!(f, "the server refused the stream (HTTP {status})")
            }
            Self::Refused { status, body } => {
                write!(f, "the server refused the stream (HTTP {status}: {body})")
            }
            Self::Answer { why } => write!(f, "the server's answer cannot be used: {why}"),
            Self::NoConnection { limit } => {
                write!(f, "ICE found no route to the server's media port in {} s", limit.as_secs())
            }
            Self::Ended => f.write_str("the server ended the session or no longer responds"),
            Self::Failed { why } => f.write_str(why),
        }
    }
}

impl From<WhipError> for io::Error {
    fn from(error: WhipError) -> Self {
        Self::other(error.to_string())
    }
}
