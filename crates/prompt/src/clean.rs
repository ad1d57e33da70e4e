//! Text cleaning, as in training: encoding repair, character references, white space.
//!
//! Source: `prompt_clean` of diffusers, which is `fix_text` of ftfy 6.3.1 with default options, `html.unescape` twice,
//! and one space for each run of white space. Differences:
//!
//! * The parameters of a terminal escape sequence are ASCII digits; ftfy accepts any decimal digit.
//! * A line of any length is repaired as a whole; ftfy splits lines at a million characters.
//! * Letters and normal forms follow the Unicode version of the libraries, not that of Python. Only characters newer
//!   than Python's tables are affected.

use super::badness::is_space;
use super::{entities, glyphs, mojibake};
use unicode_normalization::UnicodeNormalization;

/// Cleans a prompt for the tokenizer.
///
/// ```
/// assert_eq!(prompt::clean("  a&nbsp;cat\n &amp; a dog "), "a cat & a dog");
/// // UTF-8 that was read as Windows-1252.
/// assert_eq!(prompt::clean("a cafÃ© in Paris"), "a café in Paris");
/// ```
pub fn clean(text: &str) -> String {
    let text = entities::unescape(&entities::unescape(&fix_text(text)));
    let words = text.split(is_space).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

/// Repairs a text line by line.
fn fix_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // From the first `<` on the text counts as HTML, in which character references are intended.
    let mut unescape = true;
    for line in text.split_inclusive('\n') {
        unescape &= !line.contains('<');
        out.push_str(&fix_line(line, unescape));
    }
    out
}

/// Applies all fixes until none changes anything.
fn fix_line(line: &str, unescape: bool) -> String {
    let mut line = line.to_owned();
    // Every round removes a level of escaping or misreading, so the length bounds the number of rounds.
    for _ in 0..=line.len() {
        let unescaped = if unescape { entities::unescape_complete(&line) } else { line.clone() };
        // Printable ASCII needs no other fix, which keeps long chains of escapes cheap.
        let printable = |byte| matches!(byte, b'\t' | b'\n' | b' '..=b'~');
        if unescaped.bytes().all(printable) {
            if unescaped == line {
                break;
            }
            line = unescaped;
            continue;
        }
        let fixed: String = glyphs::fix(&mojibake::repair(&unescaped)).nfc().collect();
        if fixed == line {
            break;
        }
        line = fixed;
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Pairs of a text and what `prompt_clean` of diffusers 0.42.1 makes of it with ftfy 6.3.1.
    const CASES: &str = include_str!("../tests/data/clean_cases.json");

    #[test]
    fn cleaning_equals_the_reference() {
        let cases: Vec<(String, String)> = serde_json::from_str(CASES).unwrap();
        assert!(cases.len() > 150);
        let wrong: Vec<_> = cases.iter().filter(|(text, expected)| clean(text) != *expected).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn cleaning_differs_from_the_reference_where_documented() {
        // Reference: "blue", and the marks in this order, because Python 3.11 has no entry for the first one.
        assert_eq!(clean("\u{1B}[٣mblue"), "[٣mblue");
        assert_eq!(clean("x\u{1AEA}\u{8F9}"), "x\u{8F9}\u{1AEA}");
    }

    #[test]
    fn all_levels_of_escapes_are_removed() {
        assert_eq!(clean(&format!("&{}lt;b", "amp;".repeat(500))), "<b");
    }

    #[test]
    fn html_keeps_one_more_level_of_escapes() {
        assert_eq!(clean("&amp;amp;amp;amp;"), "&");
        assert_eq!(clean("<b>&amp;amp;amp;amp;"), "<b>&amp;amp;");
        // Only from the line of the first tag on.
        assert_eq!(clean("&amp;amp;amp;amp;\n<b>\n&amp;amp;amp;amp;"), "& <b> &amp;amp;");
    }

    /// Text that the fixes apply to.
    fn fixable() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            "[a-zA-Z .,<]{1,6}",
            "&(amp;)*#?x?[a-zA-Z0-9]{1,8};?",
            "[\u{80}-\u{24F}]{1,6}",
            "[Ð-Ñ][\u{80}-\u{BF}]",
            "[âãÂÃ€‚Ă][\u{80}-\u{BF}€™“ ]{1,2}",
            "[\u{2000}-\u{206F}\u{FE00}-\u{FFFD}]{1,3}",
            "[\u{0}-\u{1F}\u{7F}]{1,3}",
            "\\PC{1,4}",
        ];
        proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn cleaned_words_are_separated_by_single_spaces(text in prop_oneof![any::<String>(), fixable()]) {
            let cleaned = clean(&text);
            prop_assert_eq!(cleaned.trim(), cleaned.as_str());
            prop_assert!(!cleaned.contains("  "));
            prop_assert!(!cleaned.chars().any(|character| is_space(character) && character != ' '));
        }

        #[test]
        fn repairing_a_line_again_changes_nothing(line in fixable()) {
            let line = line.replace(['\n', '\r'], "");
            for unescape in [false, true] {
                let fixed = fix_line(&line, unescape);
                prop_assert_eq!(fix_line(&fixed, unescape), fixed);
            }
        }

        #[test]
        fn plain_words_are_not_changed(text in "[a-zA-Z0-9,.!?'\"()-]{1,12}( [a-zA-Z0-9,.!?'\"()-]{1,12}){0,9}") {
            prop_assert_eq!(clean(&text), text);
        }
    }
}
