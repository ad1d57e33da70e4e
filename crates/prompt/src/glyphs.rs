//! Fixes of characters and short sequences: widths, ligatures, quotes, line breaks, control characters.
//!
//! Source: the corresponding functions of ftfy 6.3.1.

use super::code_page::c1_as_windows_1252;
use unicode_normalization::UnicodeNormalization;

/// Applies every fix, in ftfy's order.
pub(super) fn fix(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.replace("\r\n", "\n").chars() {
        push_plain(c1_as_windows_1252(character), &mut out);
    }
    let mut text = remove_terminal_escapes(&out);
    text.retain(|character| !is_control(character));
    text
}

/// Appends a character with ligatures split, in normal width, with straight quotes and `\n` line breaks.
fn push_plain(character: char, out: &mut String) {
    if let Some(letters) = ligature(character) {
        return out.push_str(letters);
    }
    match character {
        '\u{3000}' => out.push(' '),
        // May become several characters: the full-width macron is a space and a combining macron.
        '\u{FF01}'..='\u{FFEF}' => out.extend(std::iter::once(character).nfkc()),
        '\u{201C}'..='\u{201F}' => out.push('"'),
        '\u{2BC}' | '\u{2018}'..='\u{201B}' => out.push('\''),
        '\r' | '\u{2028}' | '\u{2029}' => out.push('\n'),
        _ => out.push(character),
    }
}

/// The letters of a Latin ligature or digraph that is rarely used on purpose.
fn ligature(character: char) -> Option<&'static str> {
    Some(match character {
        'Ĳ' => "IJ",
        'ĳ' => "ij",
        // With a straight apostrophe, like all quotes.
        'ŉ' => "'n",
        'Ǳ' => "DZ",
        'ǲ' => "Dz",
        'ǳ' => "dz",
        'Ǆ' => "DŽ",
        'ǅ' => "Dž",
        'ǆ' => "dž",
        'Ǉ' => "LJ",
        'ǈ' => "Lj",
        'ǉ' => "lj",
        'Ǌ' => "NJ",
        'ǋ' => "Nj",
        'ǌ' => "nj",
        'ﬀ' => "ff",
        'ﬁ' => "fi",
        'ﬂ' => "fl",
        'ﬃ' => "ffi",
        'ﬄ' => "ffl",
        'ﬅ' => "ſt",
        'ﬆ' => "st",
        _ => return None,
    })
}

/// Removes terminal escape sequences like `ESC [ 0 ; 1 m`.
fn remove_terminal_escapes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("\u{1B}[") {
        out.push_str(&rest[..at]);
        let parameters = &rest[at + 2..];
        let command = parameters.trim_start_matches(|next: char| next.is_ascii_digit() || next == ';');
        if command.starts_with(|next: char| next.is_ascii_alphabetic()) {
            rest = &command[1..];
        } else {
            out.push_str("\u{1B}[");
            rest = parameters;
        }
    }
    out.push_str(rest);
    out
}

/// Returns true for control characters without effect on the text, which are not white space, joiners, direction marks
/// or tags.
fn is_control(character: char) -> bool {
    matches!(
        character,
        '\0'..='\u{8}' | '\u{B}' | '\u{E}'..='\u{1F}' | '\u{7F}' | '\u{206A}'..='\u{206F}' | '\u{FEFF}'
            | '\u{FFF9}'..='\u{FFFC}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fix_is_applied() {
        let cases = [
            ("ＬＯＵＤ　ＮＯＩＳＥＳ，！", "LOUD NOISES,!"),
            ("Ｕﾀｰﾝ ￣", "Uターン  \u{304}"),
            ("ﬂuﬃeﬆ ŉ Ǆ", "fluffiest 'n DŽ"),
            ("“a” ‘b’ ʼc «d» ‹e›", "\"a\" 'b' 'c «d» ‹e›"),
            ("a\r\nb\rc\u{2028}d\u{2029}e\r\u{2028}", "a\nb\nc\nd\ne\n\n"),
            ("\u{1B}[36;44mblue\u{1B}[0m \u{1B}[;", "blue [;"),
            // ftfy removes this one too.
            ("\u{1B}[٣mblue", "[٣mblue"),
            ("\u{FEFF}a\0b\u{7F}c\u{FFFC}d\u{200D}e\tf", "abcd\u{200D}e\tf"),
            ("it\u{92}s\u{85}\u{81}", "it's…\u{81}"),
        ];
        for (text, expected) in cases {
            assert_eq!(fix(text), expected, "{text:?}");
        }
    }
}
