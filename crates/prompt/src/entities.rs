//! HTML character references, as `html.unescape` of Python and ftfy parse them.

use super::code_page::c1_as_windows_1252;
use htmlize::ENTITIES;

/// The longest name after an `&`, in characters.
const MAX_NAME: usize = 32;
/// The longest name that [`unescape_complete`] replaces, in characters.
const MAX_COMPLETE_NAME: usize = 24;

/// Replaces every reference once: named ones of HTML5 (longest prefix where the semicolon is missing), decimal and
/// hexadecimal ones.
///
/// Source: `html.unescape` of Python, which follows the HTML standard, but drops invalid code points.
pub(super) fn unescape(text: &str) -> String {
    replace(text, |after| numeric(after).or_else(|| named(after)))
}

/// Replaces every reference that ends in a semicolon and is unambiguous, and names of lower-case letters in capitals
/// (`&NTILDE;`).
///
/// Source: `unescape_html` of ftfy.
pub(super) fn unescape_complete(text: &str) -> String {
    replace(text, complete)
}

/// Calls `read` with the text after each `&`. It returns a replacement and the number of bytes that it replaces.
fn replace(text: &str, read: impl Fn(&str) -> Option<(String, usize)>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some((replacement, used)) = read(rest) {
            out.push_str(&replacement);
            rest = &rest[used..];
        } else {
            out.push('&');
        }
    }
    out.push_str(rest);
    out
}

/// Parses `#123` or `#x7B`, with an optional semicolon.
fn numeric(after: &str) -> Option<(String, usize)> {
    let body = after.strip_prefix('#')?;
    let (digits, radix, skipped) = match body.strip_prefix(['x', 'X']) {
        Some(digits) => (digits, 16, 2),
        None => (body, 10, 1),
    };
    let length = digits.find(|digit: char| !digit.is_digit(radix)).unwrap_or(digits.len());
    if length == 0 {
        return None;
    }
    let code = digits[..length]
        .chars()
        .filter_map(|digit| digit.to_digit(radix))
        .fold(0_u32, |code, digit| code.saturating_mul(radix).saturating_add(digit));
    let semicolon = usize::from(digits[length..].starts_with(';'));
    Some((code_point(code), skipped + length + semicolon))
}

/// The text of a numeric reference: Windows-1252 for U+0080 to U+009F, nothing for invalid code points.
fn code_point(code: u32) -> String {
    match code {
        0x1..=0x8 | 0xB | 0xE..=0x1F | 0x7F | 0xFDD0..=0xFDEF => String::new(),
        0xFFFE..=0x0010_FFFF if code & 0xFFFE == 0xFFFE => String::new(),
        0 => char::REPLACEMENT_CHARACTER.into(),
        _ => char::from_u32(code).map_or(char::REPLACEMENT_CHARACTER, c1_as_windows_1252).into(),
    }
}

/// Parses a name with an optional semicolon.
fn named(after: &str) -> Option<(String, usize)> {
    let ends = |character| matches!(character, '\t' | '\n' | '\u{C}' | ' ' | '<' | '&' | '#' | ';');
    let bounds: Vec<usize> = after
        .char_indices()
        .take_while(|&(_, next)| !ends(next))
        .take(MAX_NAME)
        .map(|(at, next)| at + next.len_utf8())
        .collect();
    let end = *bounds.last()?;
    if after[end..].starts_with(';')
        && let Some(found) = entity(&after[..=end])
    {
        return Some((found.to_owned(), end + 1));
    }
    // A name has at least two characters.
    let prefixes = bounds.iter().skip(1).rev();
    prefixes.copied().find_map(|end| Some((entity(&after[..end])?.to_owned(), end)))
}

/// The text of a name. The name includes its semicolon, unless HTML5 defines it without.
fn entity(name: &str) -> Option<&'static str> {
    let key = [b"&", name.as_bytes()].concat();
    std::str::from_utf8(ENTITIES.get(key.as_slice())?).ok()
}

/// Parses a reference of at most [`MAX_COMPLETE_NAME`] letters and digits with its semicolon.
fn complete(after: &str) -> Option<(String, usize)> {
    let hash = usize::from(after.starts_with('#'));
    let letters =
        after.bytes().skip(hash).take(MAX_COMPLETE_NAME).take_while(u8::is_ascii_alphanumeric).count();
    let end = hash + letters;
    if letters == 0 || !after[end..].starts_with(';') {
        return None;
    }
    let reference = &after[..=end];
    let replacement = if hash == 1 {
        let replaced = unescape(&format!("&{reference}"));
        (!replaced.contains(';')).then_some(replaced)?
    } else {
        entity(reference).map(str::to_owned).or_else(|| capitals(reference))?
    };
    Some((replacement, reference.len()))
}

/// Replaces `&EACUTE;` with `É`, unless HTML5 defines a name in capitals.
fn capitals(reference: &str) -> Option<String> {
    if reference.bytes().any(|byte| byte.is_ascii_lowercase()) || named(reference).is_some() {
        return None;
    }
    entity(&reference.to_ascii_lowercase()).map(str::to_uppercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_replaced_with_and_without_semicolon() {
        let cases = [
            ("&lt;b&gt; &amp; &copy &notit; &notin; &NotAName;", "<b> & © ¬it; ∉ &NotAName;"),
            ("&eacute &ampamp; &; & &#; &#x; &#xg", "é &amp; &; & &#; &#x; &#xg"),
            ("&CounterClockwiseContourIntegral;", "∳"),
            ("&a;&é;&ampé", "&a;&é;&é"),
            ("&amp;lt;", "&lt;"),
        ];
        for (text, expected) in cases {
            assert_eq!(unescape(text), expected, "{text}");
        }
    }

    #[test]
    fn numeric_references_follow_html() {
        let cases = [
            ("&#65;&#x42;&#X43&#68", "ABCD"),
            ("&#x80;&#146;&#x81;", "€’\u{81}"),
            ("&#0;&#xD800;&#x110000;&#99999999999999999999;", "\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}"),
            ("[&#1;&#11;&#127;&#xFDD0;&#xFFFE;&#x1FFFF;&#x10FFFF;]", "[]"),
            ("&#13;&#9;", "\r\t"),
        ];
        for (text, expected) in cases {
            assert_eq!(unescape(text), expected, "{text}");
        }
    }

    #[test]
    fn only_complete_references_are_replaced() {
        let cases = [
            ("this&not that &copy &amp;", "this&not that &copy &"),
            ("P&EACUTE;REZ BUNDESSTRA&SZLIG;E &nTILDE;", "PÉREZ BUNDESSTRASSE &nTILDE;"),
            ("&#x2019; &#59; &#12ab; &LT; &Lt;", "’ &#59; &#12ab; < ≪"),
        ];
        for (text, expected) in cases {
            assert_eq!(unescape_complete(text), expected, "{text}");
        }
    }
}
