//! What a clip is made from and what it shows, looked at before a client gets it: texts before a clip is queued, and
//! frames while it is decoded.

use crate::fault::Fault;
use axum::http::StatusCode;
use ndarray::Array4;
use prompt::{ContentFilter, Finding};

/// The texts that a clip is made from, as the model and the post-processing get them: cleaned, and with everything that
/// was filled in.
#[derive(Debug, Clone, Copy)]
pub struct FinalTexts<'a> {
    /// The prompt.
    pub prompt: &'a str,
    /// The negative prompt.
    pub negative: &'a str,
    /// True if the clip is led towards the negative prompt instead of away from it, as a guidance scale below 1 does.
    pub shows_negative: bool,
    /// The captions that are drawn on the frames.
    pub captions: &'a [String],
}

/// One reason against a clip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// The category, such as `violence`.
    pub category: String,
    /// The parameter that has the text, or `frames`.
    pub field: &'static str,
}

/// Why a clip is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Each reason once.
    pub reasons: Vec<Reason>,
}

/// The code of refusals.
pub(crate) const POLICY: &str = "content_policy_violation";

impl Refusal {
    /// The reasons as a person can read them.
    pub(crate) fn text(&self) -> String {
        let reasons: Vec<String> = self
            .reasons
            .iter()
            .map(|Reason { category, field }| format!("`{field}` belongs to the category {category}"))
            .collect();
        format!("the content filter of this server has refused the clip: {}", reasons.join(", and "))
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.text() + "; describe another clip, or ask the operator to allow the phrase";
        let fault = Self::new(StatusCode::BAD_REQUEST, POLICY, message);
        match refusal.reasons.first() {
            Some(reason) => fault.about(reason.field),
            None => fault,
        }
    }
}

/// Decides whether texts are refused. Every API and every fork calls the one of the configuration.
pub trait Screen: std::fmt::Debug + Send + Sync {
    /// Returns the reasons against these texts, if there are any.
    ///
    /// # Errors
    /// The texts are refused.
    fn check(&self, texts: &FinalTexts<'_>) -> Result<(), Refusal>;

    /// What it refuses, for the log of a server that starts; `None` if nothing is refused.
    fn describe(&self) -> Option<String>;
}

/// Refuses nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoScreen;

impl Screen for NoScreen {
    fn check(&self, _texts: &FinalTexts<'_>) -> Result<(), Refusal> {
        Ok(())
    }

    fn describe(&self) -> Option<String> {
        None
    }
}

impl Screen for ContentFilter {
    fn check(&self, texts: &FinalTexts<'_>) -> Result<(), Refusal> {
        let FinalTexts { prompt, negative, shows_negative, captions } = *texts;
        let negatives =
            if shows_negative { self.check(negative) } else { self.check_negative(negative, prompt) };
        let captions = captions.iter().flat_map(|caption| self.check(caption)).collect();
        let found = [("prompt", self.check(prompt)), ("negative_prompt", negatives), ("captions", captions)];
        let mut reasons = Vec::new();
        for (field, findings) in found {
            for Finding { category, line } in findings {
                tracing::info!(field, category, line, "the content filter has refused a text");
                let reason = Reason { category, field };
                if !reasons.contains(&reason) {
                    reasons.push(reason);
                }
            }
        }
        if reasons.is_empty() { Ok(()) } else { Err(Refusal { reasons }) }
    }

    fn describe(&self) -> Option<String> {
        Some(format!("{} rules for {}", self.rules(), self.categories().join(", ")))
    }
}

/// Looks at the frames of a clip while it is decoded. A clip that it refuses has failed: it ends within the current
/// chunk, and its file is removed. Nothing is known of the machine's previews, which are pictures of earlier steps.
///
/// The program has none. An embedder sets `Config::classifier`, such as to a model that is run by ONNX Runtime.
pub trait FrameClassifier: std::fmt::Debug + Send + Sync {
    /// Returns the reasons against frames `[N,3,H,W]` in -1..1, if there are any. `first` is the number of the first
    /// one in the clip, from 0. It is called on the thread that decodes, which waits for it.
    ///
    /// # Errors
    /// The clip is refused. The field of each reason is `frames`.
    fn check(&self, first: usize, frames: &Array4<f32>) -> Result<(), Refusal>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reasons(texts: FinalTexts<'_>) -> Vec<(String, &'static str)> {
        let filter = ContentFilter::built_in();
        let found = Screen::check(&filter, &texts);
        let reasons = found.err().map(|refusal| refusal.reasons).unwrap_or_default();
        reasons.into_iter().map(|reason| (reason.category, reason.field)).collect()
    }

    #[test]
    fn each_text_is_refused_for_what_it_asks_for() {
        let harmless = FinalTexts { prompt: "a cat", negative: "", shows_negative: false, captions: &[] };
        assert!(reasons(harmless).is_empty());
        let unwanted = FinalTexts { negative: "nudity, porn, blood, gore", ..harmless };
        assert!(reasons(unwanted).is_empty());
        let wanted = FinalTexts { shows_negative: true, ..unwanted };
        assert_eq!(
            reasons(wanted),
            [("sexual".to_owned(), "negative_prompt"), ("violence".to_owned(), "negative_prompt")]
        );
        let undressed = FinalTexts { prompt: "a woman at the pool", negative: "clothes", ..harmless };
        assert_eq!(reasons(undressed), [("sexual".to_owned(), "negative_prompt")]);
        let caption = ["hello".to_owned(), "heil hitler".to_owned()];
        let captioned = FinalTexts { captions: &caption, ..harmless };
        assert_eq!(reasons(captioned), [("hate".to_owned(), "captions")]);
    }

    #[test]
    fn a_refusal_says_what_and_why() {
        let reason = Reason { category: "violence".into(), field: "prompt" };
        let fault = Fault::from(Refusal { reasons: vec![reason] });
        assert_eq!((fault.code, fault.param.as_deref()), (POLICY, Some("prompt")));
        insta::assert_snapshot!(fault.message, @"the content filter of this server has refused the clip: `prompt` belongs to the category violence; describe another clip, or ask the operator to allow the phrase");
    }
}
