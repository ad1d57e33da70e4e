//! The tokenizer of a checkpoint, and truncation to the rows that the denoiser attends to.

use super::Error;
use bundle::spec::TEXT_ROWS;
use std::path::Path;
use tokenizers::Tokenizer;

/// The token that ends every prompt.
const END: &str = "</s>";
/// The most characters of a text on either side of a cut.
const CONTEXT: usize = 40;

/// The tokenizer of a text encoder.
///
/// ```no_run
/// use prompt::{PromptTokenizer, clean};
///
/// let tokenizer = PromptTokenizer::open("bundle/tokenizer/tokenizer.json".as_ref())?;
/// let prompt = tokenizer.encode(&clean("Two cats box on a stage"))?;
/// if let Some(cut) = &prompt.cut {
///     println!("{} tokens are not used: {}…", cut.dropped, cut.after);
/// }
/// println!("{:?}", prompt.ids);
/// # Ok::<(), prompt::Error>(())
/// ```
#[derive(Debug)]
pub struct PromptTokenizer {
    tokenizer: Tokenizer,
    /// The id of `</s>`.
    end: u32,
    /// One more than the highest id.
    vocabulary: usize,
}

/// The input of the text encoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedPrompt {
    /// At most [`TEXT_ROWS`] ids. The last one is that of `</s>`.
    pub ids: Vec<i64>,
    /// The position of the cut, if the prompt was too long.
    pub cut: Option<Cut>,
}

/// The position at which a prompt was truncated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Tokens that are used, without `</s>`.
    pub kept: usize,
    /// Tokens that are not used.
    pub dropped: usize,
    /// The end of the text that is used, at most 40 characters.
    pub before: String,
    /// The start of the text that is not used, at most 40 characters.
    pub after: String,
}

impl Cut {
    /// The warning for the user. `which` names the prompt.
    pub fn warning(&self, which: &str) -> String {
        format!(
            "the {which} is longer than {} tokens; {} tokens are cut off at the bar: …{} | {}…",
            TEXT_ROWS, self.dropped, self.before, self.after
        )
    }
}

impl PromptTokenizer {
    /// Opens a `tokenizer.json`. Truncation and padding settings of the file are ignored.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, is not a tokenizer or has no `</s>`.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let text =
            std::fs::read(path).map_err(|source| Error::Unreadable { path: path.to_owned(), source })?;
        let broken = |why: tokenizers::Error| Error::Broken { path: path.to_owned(), why: why.to_string() };
        let mut tokenizer = Tokenizer::from_bytes(text).map_err(broken)?;
        tokenizer.with_truncation(None).map_err(broken)?;
        tokenizer.with_padding(None);
        let end = tokenizer.token_to_id(END).ok_or_else(|| Error::NoEnd { path: path.to_owned() })?;
        let highest = tokenizer.get_vocab(true).into_values().max().unwrap_or(end);
        Ok(Self { tokenizer, end, vocabulary: index(highest) + 1 })
    }

    /// One more than the highest id: the minimum number of rows of the embedding table.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Encodes a cleaned text and appends `</s>`.
    ///
    /// # Errors
    /// Returns an error if the tokenizer cannot encode the text.
    pub fn encode(&self, cleaned: &str) -> Result<TokenizedPrompt, Error> {
        let encoding =
            self.tokenizer.encode(cleaned, true).map_err(|why| Error::Encode { why: why.to_string() })?;
        let content = encoding.get_ids();
        let content = content.strip_suffix(&[self.end]).unwrap_or(content);
        let kept = content.len().min(TEXT_ROWS - 1);
        let ids = content[..kept].iter().chain([&self.end]).copied().map(i64::from).collect();
        let cut = (kept < content.len()).then(|| {
            let (used, unused) = split_at(cleaned, encoding.get_offsets()[kept].0);
            Cut {
                kept,
                dropped: content.len() - kept,
                before: last(used, CONTEXT).into(),
                after: first(unused, CONTEXT).into(),
            }
        });
        Ok(TokenizedPrompt { ids, cut })
    }
}

fn index(id: u32) -> usize {
    usize::try_from(id).unwrap_or(usize::MAX - 1)
}

/// Splits a text at a byte, or at the last character boundary before it.
fn split_at(text: &str, byte: usize) -> (&str, &str) {
    text.split_at(text.floor_char_boundary(byte))
}

fn first(text: &str, characters: usize) -> &str {
    text.char_indices().nth(characters).map_or(text, |(end, _)| &text[..end])
}

fn last(text: &str, characters: usize) -> &str {
    text.char_indices().rev().take(characters).last().map_or("", |(start, _)| &text[start..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    /// A Unigram tokenizer with a few pieces, similar to that of umT5, with truncation and padding settings.
    fn description() -> Value {
        let pieces = [
            ("<pad>", 0.0),
            ("</s>", 0.0),
            ("<s>", 0.0),
            ("<unk>", 0.0),
            ("▁", -2.0),
            ("▁cat", -3.0),
            ("s", -4.0),
            ("▁ü", -5.0),
        ];
        let special = |id: usize| {
            let content = pieces[id].0;
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        };
        json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
                        "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"},
            "added_tokens": [special(0), special(1), special(2), special(3)],
            "normalizer": null,
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}
            },
            "decoder": null,
            "model": {"type": "Unigram", "unk_id": 3, "vocab": pieces, "byte_fallback": false}
        })
    }

    fn open(description: &Value) -> Result<PromptTokenizer, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, description.to_string()).unwrap();
        PromptTokenizer::open(&path)
    }

    fn tokenizer() -> PromptTokenizer {
        open(&description()).unwrap()
    }

    #[test]
    fn a_prompt_ends_with_the_end_token() {
        let tokenizer = tokenizer();
        assert_eq!(tokenizer.vocabulary(), 8);
        let ids = |text| tokenizer.encode(text).unwrap().ids;
        assert_eq!(ids(""), [1]);
        assert_eq!(ids("cats cat"), [5, 6, 5, 1]);
        assert_eq!(ids("cats cats cats cats"), [5, 6, 5, 6, 5, 6, 5, 6, 1]);
        assert_eq!(ids("🦙"), [4, 3, 1]);
    }

    #[test]
    fn the_end_token_is_added_if_the_tokenizer_adds_none() {
        let mut description = description();
        description["post_processor"] = Value::Null;
        let ids = |text| open(&description).unwrap().encode(text).unwrap().ids;
        assert_eq!(ids(""), [1]);
        assert_eq!(ids("cats"), [5, 6, 1]);
    }

    #[test]
    fn the_cut_of_a_long_prompt_is_reported() {
        let text = format!("{}üs ü{}", "cat ".repeat(510), " cat".repeat(20));
        let prompt = tokenizer().encode(&text).unwrap();
        assert_eq!(prompt.ids.len(), TEXT_ROWS);
        assert_eq!(prompt.ids[508..], [5, 5, 7, 1]);
        let cut = prompt.cut.unwrap();
        assert_eq!((cut.kept, cut.dropped), (511, 22));
        assert_eq!(cut.before, format!("{}ü", "cat ".repeat(10))[1..]);
        assert_eq!(cut.after, format!("s ü{}", " cat".repeat(10))[..41]);
    }

    #[test]
    fn the_longest_prompt_is_not_cut() {
        let prompt = tokenizer().encode("cat ".repeat(511).trim_end()).unwrap();
        assert_eq!((prompt.ids.len(), prompt.cut), (TEXT_ROWS, None));
    }

    #[test]
    fn invalid_tokenizers_are_refused() {
        let missing = PromptTokenizer::open(Path::new("none/tokenizer.json"));
        assert!(matches!(missing, Err(Error::Unreadable { .. })));
        for broken in [json!(null), json!({"model": {"type": "Unigram"}}), json!({"version": "9"})] {
            assert!(matches!(open(&broken), Err(Error::Broken { .. })), "{broken}");
        }
        let mut endless = description();
        endless["model"]["vocab"][1][0] = json!("end");
        endless["added_tokens"] = json!([]);
        endless["post_processor"] = Value::Null;
        assert!(matches!(open(&endless), Err(Error::NoEnd { .. })));
    }

    proptest! {
        #[test]
        fn any_text_has_at_most_512_ids(text in prop_oneof![any::<String>(), "(cats? |ü|s){0,900}"]) {
            let prompt = tokenizer().encode(&text).unwrap();
            prop_assert!((1..=TEXT_ROWS).contains(&prompt.ids.len()));
            prop_assert_eq!(prompt.ids.last(), Some(&1));
            prop_assert!(prompt.ids.iter().all(|id| (0..8).contains(id)));
            if let Some(cut) = prompt.cut {
                prop_assert_eq!(cut.kept, TEXT_ROWS - 1);
                prop_assert!(cut.dropped > 0);
                let joined = format!("{}{}", cut.before, cut.after);
                prop_assert!(text.contains(&joined));
            }
        }
    }
}
