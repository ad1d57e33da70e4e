//! The HTTP requests of WHIP: the offer and the end of a session.

use super::WhipError;
use crate::spec::Token;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;
use ureq::http::{Response, Uri, header};
use ureq::{Agent, Body};

/// The longest time until a server answers an offer.
const OFFER_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest time of the DELETE request. Its result is only logged.
const DELETE_TIMEOUT: Duration = Duration::from_secs(2);

/// The most characters of a refusal in an error.
const MAX_REFUSAL_CHARS: usize = 200;

/// A WHIP endpoint.
#[derive(Debug)]
pub(super) struct Endpoint {
    agent: Agent,
    url: String,
    token: Option<Token>,
}

/// The answer of a server.
#[derive(Debug)]
pub(super) struct Answer {
    /// Its session description.
    pub(super) description: String,
    /// The URL of the session, if the server sent one.
    pub(super) session: Option<String>,
}

impl Endpoint {
    pub(super) fn new(url: &str, token: Option<&Token>) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(OFFER_TIMEOUT))
            .user_agent(concat!("rushes/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: agent.into(), url: url.to_owned(), token: token.cloned() }
    }

    /// Resolves the addresses of the endpoint.
    pub(super) fn addresses(&self) -> io::Result<impl Iterator<Item = SocketAddr>> {
        let uri: Uri = self.url.parse().map_err(io::Error::other)?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let usual = if uri.scheme_str() == Some("http") { 80 } else { 443 };
        (host, uri.port_u16().unwrap_or(usual)).to_socket_addrs()
    }

    /// Sends an offer.
    pub(super) fn offer(&self, description: &str) -> Result<Answer, WhipError> {
        let unreachable = |error: ureq::Error| WhipError::Unreachable { why: error.to_string() };
        let request = self.agent.post(&self.url).header(header::CONTENT_TYPE, "application/sdp");
        let request = match &self.token {
            Some(token) => request.header(header::AUTHORIZATION, token.bearer()),
            None => request,
        };
        let mut response = request.send(description).map_err(unreachable)?;
        let status = response.status().as_u16();
        let session = location(&response).map(|location| resolved(&self.url, &location));
        let body = response.body_mut().read_to_string();
        match status {
            200 | 201 => Ok(Answer { description: body.map_err(unreachable)?, session }),
            401 | 403 => Err(WhipError::Token { status, sent: self.token.is_some() }),
            _ => {
                let body: String = body.unwrap_or_default().trim().chars().take(MAX_REFUSAL_CHARS).collect();
                Err(WhipError::Refused { status, body: body.replace(['\r', '\n'], " ") })
            }
        }
    }

    /// Ends a session. Without this request the server ends it after a timeout.
    pub(super) fn end(&self, session: &str) {
        let request = self.agent.delete(session).config().timeout_global(Some(DELETE_TIMEOUT)).build();
        // The token is sent only to the server that it was given for.
        let request = match self.token.as_ref().filter(|_| origin(session) == origin(&self.url)) {
            Some(token) => request.header(header::AUTHORIZATION, token.bearer()),
            None => request,
        };
        match request.call() {
            Ok(response) => tracing::debug!(status = response.status().as_u16(), "the session was ended"),
            Err(error) => tracing::debug!(%error, "the session could not be ended"),
        }
    }
}

fn location(response: &Response<Body>) -> Option<String> {
    Some(response.headers().get(header::LOCATION)?.to_str().ok()?.to_owned())
}

/// The scheme and host of a URL.
fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    &url[..end]
}

/// Resolves a `Location` header against the URL of its request.
fn resolved(base: &str, location: &str) -> String {
    if location.contains("://") {
        return location.to_owned();
    }
    if let Some(rest) = location.strip_prefix("//") {
        let scheme = base.split_once("://").map_or("http", |(scheme, _)| scheme);
        return format!("{scheme}://{rest}");
    }
    if location.starts_with('/') {
        return format!("{}{location}", origin(base));
    }
    let path = base.split(['?', '#']).next().unwrap_or(base);
    let folder = path.rfind('/').filter(|at| *at >= origin(base).len());
    match folder {
        Some(at) => format!("{}/{location}", &path[..at]),
        None => format!("{path}/{location}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_resolved_against_the_endpoint() {
        for (base, location, expected) in [
            ("http://h:8889/live/whip?a=b", "/live/whip/7", "http://h:8889/live/whip/7"),
            ("http://h/live/whip", "whip/7", "http://h/live/whip/7"),
            ("http://h", "7", "http://h/7"),
            ("https://h/a", "//other/7", "https://other/7"),
            ("https://h/a", "http://other:1/7", "http://other:1/7"),
        ] {
            assert_eq!(resolved(base, location), expected);
        }
        assert_eq!(origin("https://h:1?a=/b"), "https://h:1");
    }
}
