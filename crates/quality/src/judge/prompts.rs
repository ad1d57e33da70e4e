//! Prompts for scoring, with the expected attributes of their clips.

use super::{Attribute, Error};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The language of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Language {
    /// English.
    #[serde(rename = "en")]
    English,
    /// Chinese.
    #[serde(rename = "zh")]
    Chinese,
}

/// A prompt with the expected attributes of its clip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScoredPrompt {
    /// Language of the prompt.
    pub language: Language,
    /// The prompt.
    pub prompt: String,
    /// Seed of the clip's noise.
    pub seed: u64,
    /// Expected values by name of the attribute. Attributes that the prompt does not determine are left out.
    pub attributes: BTreeMap<String, String>,
}

/// Reads a list of prompts.
///
/// # Errors
/// The file cannot be read or is not such a list.
pub fn read(path: &Path) -> Result<Vec<ScoredPrompt>, crate::Error> {
    let text = bundle::text_file::read(path)?;
    Ok(parse(text.as_bytes(), &path.display().to_string())?)
}

/// Parses a list of prompts from JSON; `file` is its name in errors.
pub(super) fn parse(text: &[u8], file: &str) -> Result<Vec<ScoredPrompt>, Error> {
    let wrong = |why: String| Error::Prompts { file: file.to_owned(), why };
    let prompts: Vec<ScoredPrompt> =
        serde_json::from_slice(text).map_err(|error| wrong(error.to_string()))?;
    if prompts.is_empty() {
        return Err(wrong("the list is empty".into()));
    }
    Ok(prompts)
}

/// Checks that a judge has all attributes and values of the prompts.
///
/// # Errors
/// The first attribute or value that the judge does not have.
pub fn check(prompts: &[ScoredPrompt], attributes: &[Attribute], file: &str) -> Result<(), Error> {
    for (number, prompt) in (1..).zip(prompts) {
        for (name, value) in &prompt.attributes {
            let known = attributes.iter().find(|attribute| attribute.name == *name);
            let why = match known {
                Some(attribute) if attribute.values.contains(value) => continue,
                Some(attribute) => format!("the judge has only {}", attribute.values.join(", ")),
                None => "the judge does not have that attribute".to_owned(),
            };
            return Err(Error::Prompts {
                file: file.to_owned(),
                why: format!("prompt {number} asks for {name} `{value}`, and {why}"),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str =
        r#"[{"language": "zh", "prompt": "一只猫", "seed": 3, "attributes": {"subject": "cat"}}]"#;

    #[test]
    fn attributes_and_values_that_the_judge_does_not_have_are_refused() {
        let prompts = parse(LIST.as_bytes(), "prompts.json").unwrap();
        assert_eq!((prompts[0].language, prompts[0].seed), (Language::Chinese, 3));
        let judge = |name: &str, values: [&str; 2]| {
            [Attribute { name: name.into(), values: values.map(str::to_owned).to_vec(), accuracy: 1.0 }]
        };
        assert!(check(&prompts, &judge("subject", ["car", "cat"]), "prompts.json").is_ok());
        let refused =
            |attributes: &[Attribute]| check(&prompts, attributes, "prompts.json").unwrap_err().to_string();
        insta::assert_snapshot!(refused(&judge("subject", ["car", "dog"])), @r#"the prompts in prompts.json cannot be used: prompt 1 asks for subject `cat`, and the judge has only car, dog (give a JSON list of {"language": "en" or "zh", "prompt", "seed", "attributes"})"#);
        insta::assert_snapshot!(refused(&judge("color", ["red", "blue"])), @r#"the prompts in prompts.json cannot be used: prompt 1 asks for subject `cat`, and the judge does not have that attribute (give a JSON list of {"language": "en" or "zh", "prompt", "seed", "attributes"})"#);
    }

    #[test]
    fn an_invalid_list_is_refused() {
        for text in ["[]", "{}", r#"[{"language": "fr", "prompt": "un chat", "seed": 3, "attributes": {}}]"#]
        {
            assert!(matches!(parse(text.as_bytes(), "prompts.json"), Err(Error::Prompts { .. })), "{text}");
        }
    }
}
