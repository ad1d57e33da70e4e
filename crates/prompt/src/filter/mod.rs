//! The content filter: refuses texts by lists of terms.
//!
//! `letters` undoes look-alikes, `views` reads a text in the ways in which a word can be hidden in it, `lists` parses
//! the lists, and `matching` finds their terms in a view. [`ContentFilter`] decides.
//!
//! A filter of terms is coarse. It refuses what is written plainly or hidden in one of the ways that `views` knows; it
//! does not understand a text, and it knows Chinese and English only.

mod letters;
mod lists;
mod matching;
mod views;

pub use lists::{ListError, Problem};

use lists::{Lists, Rule};
use matching::{Places, places};
use std::collections::BTreeSet;
use views::View;

/// The lists that are compiled in.
const BUILT_IN: &str = include_str!("../../data/content-filter.txt");
/// The category from which no allow-list excepts anything.
const NEVER_ALLOWED: &str = "minors";
/// The terms of a rule are within so many words, or Chinese characters, of each other.
const NEAR: usize = 24;

/// Decides which texts are refused, and for which category.
///
/// ```
/// let filter = prompt::ContentFilter::built_in();
/// assert!(filter.check("a comet that the naked eye can see").is_empty());
/// assert_eq!(filter.check("a n a k e d woman")[0].category, "sexual");
/// ```
#[derive(Debug, Clone)]
pub struct ContentFilter {
    lists: Lists,
    allowed: Lists,
}

/// Why a text is refused.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The category, as the lists name it.
    pub category: String,
    /// The line of the lists with the rule, from 1.
    pub line: usize,
}

impl ContentFilter {
    /// The filter with the lists of this crate.
    ///
    /// # Panics
    /// Panics if they cannot be parsed, which a test rules out.
    pub fn built_in() -> Self {
        match Self::parse(BUILT_IN) {
            Ok(filter) => filter,
            Err(error) => unreachable!("the lists that are compiled in: {error}"),
        }
    }

    /// The filter with other lists, in the format that `docs/content-filter.md` describes.
    ///
    /// # Errors
    /// A line cannot be read.
    pub fn parse(lists: &str) -> Result<Self, ListError> {
        Ok(Self { lists: Lists::parse(lists)?, allowed: Lists::default() })
    }

    /// The same filter, which finds nothing in these phrases, one per line. The category `minors` is not affected.
    ///
    /// # Errors
    /// A line is not a phrase.
    pub fn allowing(mut self, phrases: &str) -> Result<Self, ListError> {
        self.allowed = Lists::parse_phrases(phrases, &self.lists)?;
        Ok(self)
    }

    /// The number of rules.
    pub fn rules(&self) -> usize {
        self.lists.rules.len()
    }

    /// The categories, in alphabetical order.
    pub fn categories(&self) -> Vec<&str> {
        let names: BTreeSet<&str> = self.lists.rules.iter().map(|rule| &*rule.category).collect();
        names.into_iter().collect()
    }

    /// What is found in a text that describes a clip, at most once for each rule, in the order of the rules.
    pub fn check(&self, text: &str) -> Vec<Finding> {
        self.found(text, |rule| rule.with.is_none())
    }

    /// What is found in a negative prompt that keeps things out of a clip. It may name them: only rules about negative
    /// prompts apply, and only if the prompt has what they need.
    pub fn check_negative(&self, negative: &str, prompt: &str) -> Vec<Finding> {
        let views = View::all(prompt, &self.lists.simplified);
        let prompt: Vec<Places> = views.iter().map(|view| places(view, &self.lists)).collect();
        let is_needed = |rule: &Rule| {
            let with = rule.with.as_ref();
            with.is_some_and(|with| prompt.iter().any(|places| places.has(with)))
        };
        self.found(negative, is_needed)
    }

    fn found(&self, text: &str, applies: impl Fn(&Rule) -> bool) -> Vec<Finding> {
        let mut found = BTreeSet::new();
        for view in View::all(text, &self.lists.simplified) {
            let places = places(&view, &self.lists);
            let allowed = matching::covered(&view, &self.allowed);
            for (number, rule) in self.lists.rules.iter().enumerate().filter(|(_, rule)| applies(rule)) {
                let allowed = (rule.category != NEVER_ALLOWED).then_some(&allowed);
                if places.satisfy(rule, allowed, NEAR) {
                    found.insert(number);
                }
            }
        }
        let rules = found.into_iter().filter_map(|number| self.lists.rules.get(number));
        rules.map(|rule| Finding { category: rule.category.clone(), line: rule.line }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filter() -> ContentFilter {
        let lists = "@who = woman | man\n[a]\nbad* | very worse & @who unless museum\n坏人\nharmless bad luck | 不坏人\n\
                     negative clothes with @who\n[minors]\nsecret\ntraditional 壞坏";
        ContentFilter::parse(lists).unwrap()
    }

    fn lines(text: &str) -> Vec<usize> {
        filter().check(text).into_iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn the_built_in_lists_have_rules_of_every_category() {
        let filter = ContentFilter::built_in();
        let expected =
            ["extremism", "hate", "minors", "self-harm", "sexual", "violence", "weapons-and-drugs"];
        assert_eq!(filter.categories(), expected);
        assert!(filter.rules() > 100);
    }

    #[test]
    fn a_rule_needs_one_term_of_each_side_near_each_other() {
        for text in ["a bad woman", "badly, said the man", "very worse woman", "Man! Very-worse."] {
            assert_eq!(lines(text), [3], "{text}");
        }
        let far = format!("bad {} woman", "word ".repeat(NEAR));
        for text in ["bad", "woman", "a worse woman", "very. worse woman", "a bad woman in a museum", &far] {
            assert!(lines(text).is_empty(), "{text}");
        }
    }

    #[test]
    fn nothing_is_found_in_harmless_phrases() {
        assert!(lines("a woman with bad luck").is_empty());
        assert_eq!(lines("a bad woman with bad luck"), [3]);
        assert!(lines("这不坏人家").is_empty());
        assert_eq!(lines("这坏人家"), [4]);
    }

    #[test]
    fn hidden_words_are_found() {
        for text in [
            "b a d woman",
            "b.a.d woman",
            "B-A-D WOMAN",
            "b4d w0man",
            "ｂａｄ woman",
            "bа\u{200B}d woman",
            "b\u{301}ad woman",
            "𝕓𝕒𝕕 woman",
            "🅱🅰🅳 woman",
            "baaaaad woman",
            "b*d woman",
            "b@d woman",
            "b a d m a n",
            "b*d w0man",
        ] {
            assert_eq!(lines(text), [3], "{text}");
        }
        for text in ["坏 人", "壞人", "坏*人", "坏-人", "坏\u{200B}人", "坏·人", "一个 坏 人 来了"]
        {
            assert_eq!(lines(text), [4], "{text}");
        }
        for text in ["坏，人", "这个坏 人们", "坏。人"] {
            assert!(lines(text).is_empty(), "{text}");
        }
    }

    #[test]
    fn a_negative_prompt_may_name_what_is_not_wanted() {
        let filter = filter();
        assert!(filter.check_negative("bad woman, 坏人, secret", "a woman").is_empty());
        assert!(filter.check_negative("clothes", "a cat").is_empty());
        assert_eq!(filter.check_negative("clothes", "a woman").len(), 1);
        assert!(filter.check("a woman in clothes").is_empty());
    }

    #[test]
    fn an_operator_can_allow_phrases_but_not_about_minors() {
        let allowing = filter().allowing("# ours\nbad woman\nsecret\n").unwrap();
        assert!(allowing.check("the Bad Woman, a play").is_empty());
        assert_eq!(allowing.check("a bad man").len(), 1);
        assert_eq!(allowing.check("a secret")[0].category, "minors");
        assert!(matches!(filter().allowing("x\n,\n").unwrap_err().problem, Problem::Term { .. }));
    }

    proptest! {
        #[test]
        fn any_text_can_be_checked(text in "\\PC{0,200}", negative in any::<String>()) {
            let filter = filter();
            filter.check(&text);
            filter.check_negative(&negative, &text);
        }

        #[test]
        fn a_word_that_is_spelled_out_is_found(before in "[a-z]{2,8}", gap in "[ ._*-]") {
            let word = ["m", "u", "t", "i", "l", "a", "t", "e", "d"].join(&gap);
            let filter = ContentFilter::parse("[violence]\nmutilat*").unwrap();
            prop_assert_eq!(filter.check(&format!("{before} {word} body")).len(), 1);
        }
    }
}
