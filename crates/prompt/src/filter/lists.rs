//! The lists of a filter as text, parsed.

use super::letters::is_han;
use super::views::View;
use bundle::{Diagnose, Report};
use std::collections::{HashMap, HashSet};

/// The number of a term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct TermId(usize);

/// A word of a term.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Word {
    /// Exactly this word.
    Whole(Box<str>),
    /// A word that begins so.
    Begins(Box<str>),
    /// A number below a bound.
    Below(u32),
    /// A number below a bound, directly followed by letters.
    BelowThen(u32, Box<str>),
}

/// One or more words that follow each other in a phrase.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Term {
    pub(super) words: Box<[Word]>,
}

/// All terms of lists, each once.
#[derive(Debug, Clone, Default)]
pub(super) struct Terms {
    all: Vec<Term>,
    ids: HashMap<Term, TermId>,
    /// The terms by their first word, or the first character of one that begins so.
    whole: HashMap<Box<str>, Vec<TermId>>,
    begins: HashMap<char, Vec<TermId>>,
    /// The terms by the first character of their first word.
    first: HashMap<char, Vec<TermId>>,
    /// The terms that begin with a number.
    numbers: Vec<TermId>,
}

/// When a text is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    /// What for.
    pub(super) category: String,
    /// The line of the rule, from 1.
    pub(super) line: usize,
    /// One term of each is needed.
    pub(super) sides: Vec<Vec<TermId>>,
    /// None of these may be there.
    pub(super) unless: Vec<TermId>,
    /// For a rule about negative prompts: one of these must be in the prompt.
    pub(super) with: Option<Vec<TermId>>,
}

/// Parsed lists.
#[derive(Debug, Clone, Default)]
pub(super) struct Lists {
    pub(super) terms: Terms,
    pub(super) rules: Vec<Rule>,
    /// Phrases in which nothing is found.
    pub(super) harmless: HashSet<TermId>,
    /// Simplified characters by their traditional forms.
    pub(super) simplified: HashMap<char, char>,
}

/// A line of lists that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ListError {
    /// The line, from 1.
    pub line: usize,
    /// The problem.
    pub problem: Problem,
}

/// What is wrong with a line of lists.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// A text between two `|` is no term.
    Term {
        /// The text.
        given: String,
    },
    /// A name of terms is used before its line.
    Name {
        /// The name.
        given: String,
    },
    /// A rule comes before the first category.
    NoCategory,
    /// A line of traditional characters is not made of pairs.
    Pairs {
        /// What is no pair.
        given: String,
    },
}

bundle::display_as_report!(ListError);

impl Diagnose for ListError {
    fn report(&self) -> Report {
        let (why, fix) = match &self.problem {
            Problem::Term { given } => (
                format!("`{given}` is no term"),
                "write words in lower case or simplified Chinese characters, separated by `|`",
            ),
            Problem::Name { given } => {
                (format!("`@{given}` has no line before it"), "write `@NAME = TERM | TERM` first")
            }
            Problem::NoCategory => {
                ("the rule belongs to no category".to_owned(), "write `[CATEGORY]` in a line before it")
            }
            Problem::Pairs { given } => (
                format!("`{given}` is no pair of two characters"),
                "write a traditional form and then the simplified one",
            ),
        };
        Report::bad_input(format!("line {} of the filter lists cannot be read", self.line), why, fix)
    }
}

impl Terms {
    pub(super) fn get(&self, id: TermId) -> Option<&Term> {
        self.all.get(id.0)
    }

    /// Every term.
    pub(super) fn ids(&self) -> impl Iterator<Item = TermId> {
        (0..self.all.len()).map(TermId)
    }

    /// The terms whose first word may be this one.
    pub(super) fn beginning_with(&self, word: &str) -> impl Iterator<Item = TermId> {
        let begins = word.chars().next().and_then(|first| self.begins.get(&first));
        self.whole.get(word).into_iter().chain(begins).flatten().copied()
    }

    /// The terms whose first word has the same first character, for words with masked letters.
    pub(super) fn beginning_like(&self, word: &str) -> impl Iterator<Item = TermId> {
        let first = word.chars().next().and_then(|first| self.first.get(&first));
        first.into_iter().flatten().copied()
    }

    /// The terms that begin with a number below a bound.
    pub(super) fn numbers(&self) -> impl Iterator<Item = TermId> {
        self.numbers.iter().copied()
    }

    fn add(&mut self, term: Term) -> TermId {
        if let Some(id) = self.ids.get(&term) {
            return *id;
        }
        let id = TermId(self.all.len());
        match term.words.first() {
            Some(Word::Whole(word)) => self.whole.entry(word.clone()).or_default().push(id),
            Some(Word::Begins(word)) => {
                self.begins.entry(word.chars().next().unwrap_or_default()).or_default().push(id);
            }
            Some(Word::Below(_) | Word::BelowThen(..)) => self.numbers.push(id),
            None => {}
        }
        if let Some(Word::Whole(word) | Word::Begins(word)) = term.words.first()
            && let Some(first) = word.chars().next()
        {
            self.first.entry(first).or_default().push(id);
        }
        self.all.push(term.clone());
        self.ids.insert(term, id);
        id
    }
}

impl Lists {
    /// Parses lists.
    ///
    /// # Errors
    /// A line cannot be read.
    pub(super) fn parse(text: &str) -> Result<Self, ListError> {
        let mut lists = Self::default();
        let mut names: HashMap<String, Vec<TermId>> = HashMap::new();
        let mut category: Option<String> = None;
        for (line, text) in joined_lines(text) {
            let failed = |problem| ListError { line, problem };
            if let Some(name) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                category = Some(name.trim().to_owned());
            } else if let Some((name, terms)) = text.strip_prefix('@').and_then(|rest| rest.split_once(" = "))
            {
                let terms = lists.terms(terms, &names).map_err(failed)?;
                names.insert(name.trim().to_owned(), terms);
            } else if let Some(terms) = text.strip_prefix("harmless ") {
                let terms = lists.terms(terms, &names).map_err(failed)?;
                lists.harmless.extend(terms);
            } else if let Some(pairs) = text.strip_prefix("traditional ") {
                lists.add_pairs(pairs).map_err(failed)?;
            } else {
                let category = category.clone().ok_or_else(|| failed(Problem::NoCategory))?;
                let rule = lists.rule(&text, line, category, &names).map_err(failed)?;
                lists.rules.push(rule);
            }
        }
        Ok(lists)
    }

    /// Parses phrases, one in each line.
    ///
    /// # Errors
    /// A line is no phrase.
    pub(super) fn parse_phrases(text: &str, like: &Self) -> Result<Self, ListError> {
        let mut lists = Self { simplified: like.simplified.clone(), ..Self::default() };
        for (line, text) in joined_lines(text) {
            let plain = super::letters::plain(&text, &like.simplified);
            let id = lists.term(&plain).map_err(|problem| ListError { line, problem })?;
            lists.harmless.insert(id);
        }
        Ok(lists)
    }

    fn rule(
        &mut self,
        text: &str,
        line: usize,
        category: String,
        names: &HashMap<String, Vec<TermId>>,
    ) -> Result<Rule, Problem> {
        let (text, with) = match text.strip_prefix("negative ") {
            Some(text) => {
                let (text, with) = text.split_once(" with ").unwrap_or((text, ""));
                (text, Some(self.terms(with, names)?))
            }
            None => (text, None),
        };
        let (sides, unless) = match text.split_once(" unless ") {
            Some((sides, unless)) => (sides, self.terms(unless, names)?),
            None => (text, Vec::new()),
        };
        let sides = sides.split(" & ").map(|side| self.terms(side, names)).collect::<Result<_, _>>()?;
        Ok(Rule { category, line, sides, unless, with })
    }

    fn terms(&mut self, text: &str, names: &HashMap<String, Vec<TermId>>) -> Result<Vec<TermId>, Problem> {
        let mut terms = Vec::new();
        for term in text.split('|').map(str::trim) {
            match term.strip_prefix('@') {
                Some(name) => {
                    let known = names.get(name).ok_or_else(|| Problem::Name { given: name.to_owned() })?;
                    terms.extend(known);
                }
                None => terms.push(self.term(term)?),
            }
        }
        Ok(terms)
    }

    fn term(&mut self, text: &str) -> Result<TermId, Problem> {
        let refused = || Problem::Term { given: text.to_owned() };
        let mut words = Vec::new();
        for piece in text.split_whitespace() {
            if let Some(bound) = piece.strip_prefix('<') {
                let digits = bound.trim_end_matches(|character: char| !character.is_ascii_digit());
                let rest = bound.get(digits.len()..).unwrap_or_default();
                let bound = digits.parse().map_err(|_no_number| refused())?;
                words.push(if rest.is_empty() {
                    Word::Below(bound)
                } else {
                    Word::BelowThen(bound, rest.into())
                });
                continue;
            }
            let (piece, begins) = match piece.strip_suffix('*') {
                Some(piece) => (piece, true),
                None => (piece, false),
            };
            let parts = View::words(piece);
            let last = parts.len().saturating_sub(1);
            for (number, part) in parts.into_iter().enumerate() {
                let ends_open = begins && number == last && !part.chars().all(is_han);
                words.push(if ends_open { Word::Begins(part.into()) } else { Word::Whole(part.into()) });
            }
        }
        if words.is_empty() || text.chars().any(char::is_uppercase) {
            return Err(refused());
        }
        Ok(self.terms.add(Term { words: words.into() }))
    }

    fn add_pairs(&mut self, text: &str) -> Result<(), Problem> {
        for pair in text.split_whitespace() {
            let mut characters = pair.chars();
            match (characters.next(), characters.next(), characters.next()) {
                (Some(traditional), Some(simplified), None) => {
                    self.simplified.insert(traditional, simplified);
                }
                _ => return Err(Problem::Pairs { given: pair.to_owned() }),
            }
        }
        Ok(())
    }
}

/// Lines with their numbers, without comments and empty ones. Lines that begin with a space belong to the one before.
fn joined_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let content = line.trim();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        match lines.last_mut() {
            Some((_, before)) if line.starts_with(' ') => {
                before.push(' ');
                before.push_str(content);
            }
            _ => lines.push((number, content.to_owned())),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_cannot_be_read_are_named() {
        for (text, line, problem) in [
            ("a | b", 1, Problem::NoCategory),
            ("[x]\na | | b", 2, Problem::Term { given: String::new() }),
            ("[x]\n\n# c\n@who & a", 4, Problem::Name { given: "who".into() }),
            ("traditional 兒儿 ab c", 1, Problem::Pairs { given: "c".into() }),
            ("[x]\nBad", 2, Problem::Term { given: "Bad".into() }),
            ("[x]\n<x years", 2, Problem::Term { given: "<x years".into() }),
        ] {
            assert_eq!(Lists::parse(text).unwrap_err(), ListError { line, problem }, "{text}");
        }
        insta::assert_snapshot!(Lists::parse("a").unwrap_err(), @"line 1 of the filter lists cannot be read: the rule belongs to no category (write `[CATEGORY]` in a line before it)");
    }

    #[test]
    fn a_rule_has_sides_and_exceptions() {
        let lists = Lists::parse("@n = a | b c\n[x]\n@n & d*\n | <18 岁 unless e\n<18yo").unwrap();
        let [rule, other] = &*lists.rules else { panic!("{:?}", lists.rules) };
        assert_eq!((rule.line, rule.sides.len(), rule.unless.len()), (3, 2, 1));
        assert_eq!(other.line, 5);
        let words = |id: &TermId| lists.terms.get(*id).unwrap().words.to_vec();
        assert_eq!(words(&rule.sides[1][0]), [Word::Begins("d".into())]);
        assert_eq!(words(&rule.sides[1][1]), [Word::Below(18), Word::Whole("岁".into())]);
        assert_eq!(words(&other.sides[0][0]), [Word::BelowThen(18, "yo".into())]);
    }
}
