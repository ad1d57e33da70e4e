//! Where the terms of lists are in a view of a text.

use super::lists::{Lists, Rule, Term, TermId, Terms, Word};
use super::views::{Token, View};
use std::collections::HashMap;
use std::ops::Range;

/// The most words of a term that is looked for beside another one.
const LONGEST: usize = 16;

/// Where the terms of lists are in a view, without those within harmless phrases.
#[derive(Debug, Clone, Default)]
pub(super) struct Places {
    found: HashMap<TermId, Vec<Range<usize>>>,
}

/// The parts of a view in which nothing is found.
#[derive(Debug, Clone, Default)]
pub(super) struct Covered {
    /// For each word, where the last of the phrases ends that begin there or before.
    ends: Vec<usize>,
}

impl Covered {
    fn new<'a>(tokens: usize, phrases: impl Iterator<Item = &'a Range<usize>>) -> Self {
        let mut ends = vec![0; tokens];
        for phrase in phrases {
            if let Some(end) = ends.get_mut(phrase.start) {
                *end = phrase.end.max(*end);
            }
        }
        let mut last = 0;
        for end in &mut ends {
            last = last.max(*end);
            *end = last;
        }
        Self { ends }
    }

    /// Returns true if a place is within one of the phrases.
    fn has(&self, place: &Range<usize>) -> bool {
        self.ends.get(place.start).is_some_and(|end| place.end <= *end)
    }
}

/// Finds the terms of lists in a view.
pub(super) fn places(view: &View, lists: &Lists) -> Places {
    let mut found = all(view, &lists.terms);
    let phrases = lists.harmless.iter().filter_map(|id| found.get(id)).flatten();
    let harmless = Covered::new(view.tokens.len(), phrases);
    for (id, places) in &mut found {
        if !lists.harmless.contains(id) {
            places.retain(|place| !harmless.has(place));
        }
    }
    Places { found }
}

/// The parts of a view that are phrases of lists.
pub(super) fn covered(view: &View, lists: &Lists) -> Covered {
    let found = all(view, &lists.terms);
    Covered::new(view.tokens.len(), found.values().flatten())
}

impl Places {
    /// Returns true if one of these terms is there.
    pub(super) fn has(&self, terms: &[TermId]) -> bool {
        terms.iter().any(|id| self.found.get(id).is_some_and(|places| !places.is_empty()))
    }

    /// Returns true if a rule applies: a term of each side, outside of `allowed`, within `near` words of the first, and
    /// none of the exceptions.
    pub(super) fn satisfy(&self, rule: &Rule, allowed: Option<&Covered>, near: usize) -> bool {
        let is_there = rule.sides.iter().all(|terms| self.has(terms));
        if !is_there || self.has(&rule.unless) {
            return false;
        }
        let side = |terms: &Vec<TermId>| -> Vec<Range<usize>> {
            let places = terms.iter().filter_map(|id| self.found.get(id)).flatten();
            let is_counted = |place: &&Range<usize>| allowed.is_none_or(|allowed| !allowed.has(place));
            let mut places: Vec<_> = places.filter(is_counted).cloned().collect();
            places.sort_by_key(|place| place.start);
            places
        };
        let mut sides = rule.sides.iter().map(side);
        let Some(first) = sides.next() else { return false };
        let others: Vec<_> = sides.collect();
        first.iter().any(|place| others.iter().all(|other| has_near(other, place, near)))
    }
}

/// Returns true if one of the places, sorted by their starts, has fewer than `near` words between it and another one.
fn has_near(places: &[Range<usize>], place: &Range<usize>, near: usize) -> bool {
    let from = places.partition_point(|other| other.start + LONGEST + near < place.start);
    let within = places.iter().skip(from).take_while(|other| other.start < place.end + near);
    within
        .into_iter()
        .any(|other| place.start.saturating_sub(other.end).max(other.start.saturating_sub(place.end)) < near)
}

/// Every place of every term.
fn all(view: &View, terms: &Terms) -> HashMap<TermId, Vec<Range<usize>>> {
    let mut found: HashMap<TermId, Vec<Range<usize>>> = HashMap::new();
    for (at, token) in view.tokens.iter().enumerate() {
        for id in terms.candidates(token) {
            let Some(term) = terms.get(id) else { continue };
            if let Some(end) = end_of(term, &view.tokens, at) {
                found.entry(id).or_default().push(at..end);
            }
        }
    }
    found
}

/// Where a term that begins at a token ends, if it is there.
fn end_of(term: &Term, tokens: &[Token], at: usize) -> Option<usize> {
    if let [Word::Whole(word) | Word::Begins(word)] = &*term.words
        && let Some(token) = tokens.get(at).filter(|token| token.is_spelled)
        && word.len() >= 3
        && contains(&token.text, word)
    {
        return Some(at + 1);
    }
    for (offset, word) in term.words.iter().enumerate() {
        let token = tokens.get(at + offset)?;
        let is_joined = offset == 0 || tokens.get(at + offset - 1).is_some_and(|before| before.goes_on);
        if !is_joined || !is_word(word, token) {
            return None;
        }
    }
    Some(at + term.words.len())
}

/// Returns true if a word that was spelled letter by letter has a term in it. It may follow an article.
fn contains(spelled: &str, word: &str) -> bool {
    if word.len() >= 4 {
        spelled.contains(word)
    } else {
        spelled.starts_with(word) || spelled.ends_with(word)
    }
}

fn is_word(word: &Word, token: &Token) -> bool {
    match word {
        Word::Below(bound) => token.text.parse::<u32>().is_ok_and(|number| number < *bound),
        // Such as 12yo.
        Word::BelowThen(bound, rest) => token
            .text
            .strip_suffix(&**rest)
            .and_then(|number| number.parse::<u32>().ok())
            .is_some_and(|number| number < *bound),
        Word::Whole(text) => each_form(token).any(|form| form == &**text || is_masked(form, text, true)),
        Word::Begins(text) => {
            each_form(token).any(|form| form.starts_with(&**text) || is_masked(form, text, false))
        }
    }
}

fn each_form(token: &Token) -> impl Iterator<Item = &str> {
    std::iter::once(&*token.text).chain(token.shorter.iter().map(String::as_str))
}

/// Returns true if a form with at least two letters, and masks for at most half of them, can be the text.
fn is_masked(form: &str, text: &str, whole: bool) -> bool {
    if !form.contains('*') || form.len() < text.len() || (whole && form.len() != text.len()) {
        return false;
    }
    let masks = form.bytes().filter(|byte| *byte == b'*').count();
    let letters = form.len() - masks;
    letters >= 2 && letters >= masks && form.bytes().zip(text.bytes()).all(|(a, b)| a == b'*' || a == b)
}

impl Terms {
    /// The terms that may begin at a token.
    fn candidates(&self, token: &Token) -> Vec<TermId> {
        if token.is_spelled {
            return self.ids().collect();
        }
        if token.text.contains('*') {
            return self.beginning_like(&token.text).collect();
        }
        let forms = each_form(token).flat_map(|form| self.beginning_with(form));
        if token.text.starts_with(|first: char| first.is_ascii_digit()) {
            return forms.chain(self.numbers()).collect();
        }
        forms.collect()
    }
}
