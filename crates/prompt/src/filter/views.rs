//! A text as words, read in each of the ways in which a word can be hidden.

use super::letters::{is_han, plain};
use std::collections::HashMap;

/// What is between two words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gap {
    /// Nothing.
    None,
    /// Signs that do not end a phrase, such as `*` or a hyphen.
    Sign,
    /// White space.
    Space,
    /// The end of a phrase, or of the text.
    End,
}

/// A word, or one Chinese character.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    /// The word in plain letters, with `*` for letters that are masked.
    pub(super) text: String,
    /// The word with letters that are repeated more than twice written once, and twice.
    pub(super) shorter: Vec<String>,
    /// True if the word was spelled letter by letter, so that it may be several words.
    pub(super) is_spelled: bool,
    /// True if the next word belongs to the same phrase.
    pub(super) goes_on: bool,
}

/// A way to read a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View {
    pub(super) tokens: Vec<Token>,
}

/// How the signs and digits within words are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// Signs separate words; `*` and `#` mask letters.
    Plain,
    /// Signs within words are left out.
    Joined,
    /// Digits and signs are letters that look like them; `1` and `!` are `i`, or `l`.
    Letters { one: char },
}

impl View {
    /// Every way to read a text.
    pub(super) fn all(text: &str, simplified: &HashMap<char, char>) -> Vec<Self> {
        let text = plain(text, simplified);
        let mut views: Vec<Self> = Vec::new();
        let readings =
            [Reading::Plain, Reading::Joined, Reading::Letters { one: 'i' }, Reading::Letters { one: 'l' }];
        for reading in readings {
            let view = Self::of(&text, reading);
            if !views.contains(&view) {
                views.push(view);
            }
        }
        views
    }

    /// A text of a list.
    pub(super) fn words(text: &str) -> Vec<String> {
        Self::of(text, Reading::Plain).tokens.into_iter().map(|token| token.text).collect()
    }

    fn of(text: &str, reading: Reading) -> Self {
        let mut pieces: Vec<(String, Gap)> = Vec::new();
        // The characters between two spaces, because what a sign means depends on what is beside it.
        for chunk in text.split_inclusive(char::is_whitespace) {
            let (chunk, ends) = match chunk.strip_suffix(char::is_whitespace) {
                Some(word) => (word, chunk.ends_with(['\n', '\r'])),
                None => (chunk, false),
            };
            read_chunk(chunk, reading, &mut pieces);
            if let Some((_, gap)) = pieces.last_mut() {
                *gap = match (*gap, ends) {
                    (_, true) | (Gap::End, _) => Gap::End,
                    _ => Gap::Space,
                };
            }
        }
        Self { tokens: spelled(pieces) }
    }
}

/// Appends the words of a text without white space, each with what follows it.
fn read_chunk(chunk: &str, reading: Reading, pieces: &mut Vec<(String, Gap)>) {
    let characters: Vec<char> = chunk.chars().collect();
    let beside = |at: Option<usize>| at.and_then(|at| characters.get(at)).copied();
    let is_word = |character: Option<char>| {
        character.is_some_and(|character| character.is_alphanumeric() && !is_han(character))
    };
    let has_letters = characters.iter().any(char::is_ascii_alphabetic);
    let begin = pieces.len();
    // True while the last piece is a word that goes on.
    let mut is_open = false;
    for (at, &character) in characters.iter().enumerate() {
        let (before, after) = (is_word(beside(at.checked_sub(1))), is_word(beside(Some(at + 1))));
        let inside = before && after;
        let letter = match reading {
            Reading::Letters { one } if has_letters => look_alike(character, one, inside, after),
            _ => None,
        };
        let masks = reading != Reading::Joined && inside && matches!(character, '*' | '#');
        if is_han(character) {
            pieces.push((character.to_string(), Gap::None));
            is_open = false;
        } else if character.is_alphanumeric() || letter.is_some() || masks {
            let character = if masks { '*' } else { letter.unwrap_or(character) };
            match pieces.last_mut() {
                Some((word, _)) if is_open => word.push(character),
                _ => pieces.push((character.to_string(), Gap::None)),
            }
            is_open = true;
        } else if inside && reading != Reading::Plain {
            // Left out: the word goes on.
        } else {
            is_open = false;
            let ends = !inside && ends_phrase(character);
            if let Some((_, gap)) = pieces.get_mut(begin..).and_then(<[_]>::last_mut) {
                *gap = if ends || *gap == Gap::End { Gap::End } else { Gap::Sign };
            } else if ends && let Some((_, gap)) = pieces.last_mut() {
                *gap = Gap::End;
            }
        }
    }
}

/// Signs that end a phrase, except between two letters without spaces.
fn ends_phrase(character: char) -> bool {
    matches!(
        character,
        ',' | '.'
            | ';'
            | ':'
            | '!'
            | '?'
            | '('
            | ')'
            | '['
            | ']'
            | '"'
            | '，'
            | '！'
            | '？'
            | '；'
            | '：'
            | '。'
            | '、'
            | '《'
            | '》'
            | '“'
            | '”'
            | '…'
    )
}

/// The letter that a digit or sign looks like. `inside` is true between two letters, and `after` before one.
fn look_alike(character: char, one: char, inside: bool, after: bool) -> Option<char> {
    Some(match character {
        '0' => 'o',
        '1' => one,
        '!' | '|' if inside => one,
        '3' => 'e',
        '4' => 'a',
        '5' => 's',
        '7' => 't',
        '8' => 'b',
        '9' => 'g',
        '@' if after => 'a',
        '$' if after => 's',
        '€' if after => 'e',
        '+' if inside => 't',
        _ => return None,
    })
}

/// Words from pieces. Three or more letters that stand alone become one word.
fn spelled(pieces: Vec<(String, Gap)>) -> Vec<Token> {
    let is_alone =
        |piece: Option<&(String, Gap)>| piece.is_some_and(|(text, _)| text.len() == 1 && text.is_ascii());
    let mut tokens = Vec::with_capacity(pieces.len());
    let mut before = Gap::End;
    let mut at = 0;
    while let Some((text, gap)) = pieces.get(at) {
        let mut end = at;
        while is_alone(pieces.get(end)) {
            end += 1;
            if pieces.get(end - 1).is_some_and(|(_, gap)| *gap == Gap::End) {
                break;
            }
        }
        if end - at >= 3 {
            let word: String = pieces.iter().take(end).skip(at).map(|(text, _)| text.as_str()).collect();
            let gap = pieces.get(end - 1).map_or(Gap::End, |(_, gap)| *gap);
            tokens.push(token(word, true, gap != Gap::End && end < pieces.len()));
            before = gap;
            at = end;
            continue;
        }
        let next = pieces.get(at + 1);
        let is_chinese = |text: &str| text.chars().next().is_some_and(is_han);
        let goes_on = match (gap, next) {
            (Gap::End, _) | (_, None) => false,
            // Chinese has no spaces, so they end a phrase, unless every character has them.
            (Gap::Space, Some((next, after))) if is_chinese(text) && is_chinese(next) => {
                before != Gap::None && *after != Gap::None
            }
            _ => true,
        };
        tokens.push(token(text.clone(), false, goes_on));
        before = *gap;
        at += 1;
    }
    tokens
}

fn token(text: String, is_spelled: bool, goes_on: bool) -> Token {
    let shorter = if has_run(&text) { vec![shortened(&text, 1), shortened(&text, 2)] } else { Vec::new() };
    Token { text, shorter, is_spelled, goes_on }
}

/// Returns true if a letter is there three times in a row.
fn has_run(text: &str) -> bool {
    let characters: Vec<char> = text.chars().collect();
    characters.windows(3).any(|three| matches!(three, [a, b, c] if a == b && b == c && a.is_alphabetic()))
}

/// The text with at most `most` of a letter in a row, where there are more than two.
fn shortened(text: &str, most: usize) -> String {
    let mut out = String::with_capacity(text.len());
    let characters: Vec<char> = text.chars().collect();
    for run in characters.chunk_by(|a, b| a == b) {
        let count = if run.len() > 2 { most } else { run.len() };
        out.extend(run.iter().take(count));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, reading: Reading) -> Vec<(String, bool)> {
        let view = View::of(text, reading);
        view.tokens.into_iter().map(|token| (token.text, token.goes_on)).collect()
    }

    fn phrases(text: &str, reading: Reading) -> String {
        let words = read(text, reading).into_iter();
        words.map(|(word, goes_on)| if goes_on { word + " " } else { word + "/" }).collect()
    }

    #[test]
    fn words_are_separated_and_phrases_end() {
        for (text, expected) in [
            ("a red ball, on the beach.", "a red ball/on the beach/"),
            ("same-sex couple", "same sex couple/"),
            ("一只猫，红色", "一 只 猫/红 色/"),
            ("红色 气球", "红 色/气 球/"),
            ("红 色 气 球", "红 色 气 球/"),
            ("4k 视频", "4k 视 频/"),
            ("one\ntwo", "one/two/"),
            ("s*x", "s*x/"),
            ("p o r n clip", "porn clip/"),
            ("b.a.d", "bad/"),
            ("(a) cat", "a/cat/"),
        ] {
            assert_eq!(phrases(text, Reading::Plain), expected, "{text}");
        }
    }

    #[test]
    fn signs_and_digits_within_words_are_read_in_several_ways() {
        assert_eq!(phrases("po-rn cl.ip", Reading::Joined), "porn clip/");
        assert_eq!(phrases("做*爱", Reading::Plain), "做 爱/");
        assert_eq!(phrases("n4k3d w0man 16:9", Reading::Letters { one: 'i' }), "naked woman 169/");
        assert_eq!(phrases("k1ll", Reading::Letters { one: 'i' }), "kill/");
        assert_eq!(phrases("b1ood", Reading::Letters { one: 'l' }), "blood/");
        assert_eq!(View::of("seeeex", Reading::Plain).tokens[0].shorter, ["sex", "seex"]);
    }
}
