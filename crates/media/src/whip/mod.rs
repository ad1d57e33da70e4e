//! A stream to a server that takes WHIP (RFC 9725): an offer by HTTP, H.264 in RTP over DTLS and ICE, a farewell by HTTP.
//!
//! In reading order: [`signalling`] (the requests), [`session`] (WebRTC on a thread of its own, at the speed at which the
//! clip plays), [`sender`] (what the pipeline writes to).

mod sender;
mod session;
mod signalling;

pub(super) use sender::WhipSender;

use std::fmt;
use std::io;
use std::time::Duration;

/// What went wrong with a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum WhipError {
    /// No answer to a request.
    Unreachable { why: String },
    /// The server wants another token, or one at all.
    Token { status: u16, given: bool },
    /// Another answer than one that begins a session.
    Refused { status: u16, body: String },
    /// An answer that is no session description, or none for our stream.
    Answer { why: String },
    /// No way to the server's media port was found.
    NoConnection { limit: Duration },
    /// The server ended the session, or answers no longer.
    Gone,
    /// The system or the protocol.
    Broken { why: String },
}

impl fmt::Display for WhipError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { why } => write!(f, "the server does not answer: {why}"),
            Self::Token { status, given: true } => write!(f, "the server refused the token (HTTP {status})"),
            Self::Token { status, given: false } => {
                write!(f, "the server asks for a token (HTTP {status}); give it with --whip-token")
            }
            Self::Refused { status, body } if body.is_empty() => {
                write!(f, "the server refused the stream (HTTP {status})")
            }
            Self::Refused { status, body } => {
                write!(f, "the server refused the stream (HTTP {status}: {body})")
            }
            Self::Answer { why } => write!(f, "the server's answer cannot be used: {why}"),
            Self::NoConnection { limit } => {
                write!(f, "ICE found no way to the server's media port in {} s", limit.as_secs())
            }
            Self::Gone => f.write_str("the server has gone, or ended the session"),
            Self::Broken { why } => f.write_str(why),
        }
    }
}

impl From<WhipError> for io::Error {
    fn from(error: WhipError) -> Self {
        Self::other(error.to_string())
    }
}
