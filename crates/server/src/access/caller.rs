//! Who has sent a request.

use super::tokens::Token;
use crate::fault::Fault;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use std::sync::Arc;

/// Who has sent a request.
#[derive(Debug, Clone)]
pub(crate) enum Caller {
    /// Somebody on this machine, where the server has no tokens.
    Local,
    /// The holder of a token.
    Token(Arc<Token>),
}

impl Caller {
    /// The id of the token, which owns what the caller makes; `None` for a local caller.
    pub(crate) fn owner(&self) -> Option<&str> {
        match self {
            Self::Local => None,
            Self::Token(token) => Some(&token.id),
        }
    }

    /// Returns true if the caller may know of something that `owner` made.
    pub(crate) fn may_see(&self, owner: Option<&str>) -> bool {
        match self {
            Self::Local => true,
            Self::Token(token) => owner == Some(&*token.id),
        }
    }

    /// The most jobs of the caller that may wait or run, if its token has a limit.
    pub(crate) fn most_jobs(&self) -> Option<usize> {
        match self {
            Self::Local => None,
            Self::Token(token) => token.max_jobs,
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Fault> {
        // The guard lets no request without a caller pass to a route that asks for one.
        parts.extensions.get::<Self>().cloned().ok_or_else(|| Fault::unauthorized("a token is needed"))
    }
}
