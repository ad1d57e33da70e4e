//! The place where texts can be refused before a clip is queued.

use crate::fault::Fault;
use axum::http::StatusCode;

/// The texts that a clip is made from, as the model and the post-processing get them: cleaned, and with everything that
/// was filled in.
#[derive(Debug, Clone, Copy)]
pub struct FinalTexts<'a> {
    /// The prompt.
    pub prompt: &'a str,
    /// The negative prompt.
    pub negative: &'a str,
    /// The captions that are drawn on the frames.
    pub captions: &'a [String],
}

/// Why texts are refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Each reason, as a person can read it.
    pub reasons: Vec<String>,
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        let message = format!("the text was refused: {}", refusal.reasons.join("; "));
        Self::new(StatusCode::BAD_REQUEST, "content_policy_violation", message)
    }
}

/// Decides whether texts are refused. Every API and every fork calls the one of the configuration.
pub trait Screen: std::fmt::Debug + Send + Sync {
    /// Returns the reasons against these texts, if there are any.
    ///
    /// # Errors
    /// The texts are refused.
    fn check(&self, texts: &FinalTexts<'_>) -> Result<(), Refusal>;
}

/// Refuses nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoScreen;

impl Screen for NoScreen {
    fn check(&self, _texts: &FinalTexts<'_>) -> Result<(), Refusal> {
        Ok(())
    }
}
