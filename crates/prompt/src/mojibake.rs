//! Repair of text that was encoded as UTF-8 and decoded with a single-byte encoding.
//!
//! Source: `fix_encoding` of ftfy 6.3.1 with its default options.

use super::badness::is_bad;
use super::code_page::{CodePage, LOST, PAGES, Utf8Role, windows_1252};

/// Repairs a text until it no longer looks misread or a repair changes nothing.
pub(super) fn repair(text: &str) -> String {
    let mut text = text.to_owned();
    // Every repair removes a misread sequence, so the length bounds the number of repairs.
    for _ in 0..=text.len() {
        match repair_once(&text) {
            Some(repaired) if repaired != text => text = repaired,
            _ => break,
        }
    }
    text
}

/// Repairs a text once. Returns `None` if it does not look misread.
fn repair_once(text: &str) -> Option<String> {
    if text.is_ascii() {
        return None;
    }
    let characters: Vec<char> = text.chars().collect();
    if !is_bad(&characters) {
        return None;
    }
    let reread = |page: &CodePage| decode_utf8(&restore(page.encode(&characters)?, page));
    if let Some(reread) = PAGES.iter().find_map(reread) {
        return Some(reread);
    }
    let embedded = repair_embedded(&characters);
    if embedded != text {
        return Some(embedded);
    }
    // Windows-1252 that was decoded as Latin-1, if all bytes are assigned.
    let byte = |&character: &char| u8::try_from(character).ok().and_then(windows_1252);
    let windows: Option<String> = characters.iter().map(byte).collect();
    Some(
        windows.unwrap_or_else(|| characters.into_iter().map(super::code_page::c1_as_windows_1252).collect()),
    )
}

/// Repairs the runs of misread UTF-8 in a text that is not misread as a whole.
fn repair_embedded(text: &[char]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(&character) = text.get(at) {
        let after_continuation = at > 0 && Utf8Role::of(text[at - 1]).strict_continuation;
        let length = if after_continuation { 0 } else { misread_run(&text[at..]) };
        let run: String = text[at..at + length].iter().collect();
        match length {
            0 => out.push(character),
            // A run of the length of the text has already been tried.
            _ if length < text.len() && is_bad(&text[at..at + length]) => out.push_str(&repair(&run)),
            _ => out.push_str(&run),
        }
        at += length.max(1);
    }
    out
}

/// The length of the run of misread UTF-8 sequences at the start of a text, in characters.
fn misread_run(text: &[char]) -> usize {
    let mut length = 0;
    while let Some(&first) = text.get(length) {
        let lead = Utf8Role::of(first).lead;
        let Some(sequence) = text.get(length + 1..length + lead.max(1)) else { break };
        if lead == 0 || !sequence.iter().all(|&character| Utf8Role::of(character).continuation) {
            break;
        }
        length += lead;
    }
    length
}

/// Restores lost bytes: no-break spaces that became spaces, and bytes that became U+FFFD.
fn restore(mut bytes: Vec<u8>, page: &CodePage) -> Vec<u8> {
    if page.space_for_a0 && (0..bytes.len()).any(|at| spaced_sequence(&bytes[at..]).is_some()) {
        bytes = substitute(&bytes, |rest| lone_a_grave(rest).then(|| (b"\xC3\xA0 ".to_vec(), 2)));
        bytes = substitute(&bytes, |rest| {
            let length = spaced_sequence(rest)?;
            let restored = rest[..length].iter().map(|&byte| if byte == b' ' { 0xA0 } else { byte });
            Some((restored.collect(), length))
        });
    }
    if page.lossy {
        let lost = char::REPLACEMENT_CHARACTER.to_string().into_bytes();
        bytes = substitute(&bytes, |rest| Some((lost.clone(), lossy_sequence(rest)?)));
    }
    bytes
}

/// Calls `read` at each position. It returns a replacement and the number of bytes that it replaces.
fn substitute(bytes: &[u8], read: impl Fn(&[u8]) -> Option<(Vec<u8>, usize)>) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        if let Some((replacement, used)) = read(rest) {
            out.extend(replacement);
            rest = &rest[used..];
        } else {
            out.push(byte);
            rest = after;
        }
    }
    out
}

/// Returns true if the bytes start with the word `à`, whose no-break space was merged with the following space.
///
/// Portuguese `às`, `àquele` and similar words are excluded.
fn lone_a_grave(bytes: &[u8]) -> bool {
    let joined: [&[u8]; 5] = [b" ", b"quele", b"quela", b"quilo", b"s "];
    bytes.strip_prefix(b"\xC3 ").is_some_and(|next| !joined.iter().any(|word| next.starts_with(word)))
}

/// The length of a sequence that is likely UTF-8 if its space is a no-break space.
fn spaced_sequence(bytes: &[u8]) -> Option<usize> {
    let continuation = |byte: u8| matches!(byte, 0x80..=0xBF);
    // Neither a no-break space nor an ellipsis in Windows-1252.
    let narrow = |byte: u8| continuation(byte) && !matches!(byte, 0x85 | 0xA0);
    match *bytes {
        [0xC2 | 0xC3 | 0xC5 | 0xCE | 0xD0 | 0xD9, b' ', ..] => Some(2),
        [0xE2 | 0xE3, b' ', third, ..] if narrow(third) => Some(3),
        [0xE0..=0xE3, second, b' ', ..] if narrow(second) => Some(3),
        [0xF0, b' ', a, b, ..] | [0xF0, a, b' ', b, ..] | [0xF0, a, b, b' ', ..]
            if continuation(a) && continuation(b) =>
        {
            Some(4)
        }
        _ => None,
    }
}

/// The length of a UTF-8 or CESU-8 sequence with bytes that were lost or replaced with a question mark.
fn lossy_sequence(bytes: &[u8]) -> Option<usize> {
    let gap = |byte: u8| matches!(byte, LOST | b'?');
    let kept = |byte: u8| matches!(byte, LOST | 0x80..=0xBF);
    let any = |byte: u8| gap(byte) || kept(byte);
    match *bytes {
        [LOST, ..] => Some(1),
        [0xC2..=0xDF, LOST, ..] | [0xC2 | 0xC3, b'?', ..] => Some(2),
        [0xED, 0xA0..=0xAF, a, 0xED, 0xB0..=0xBF, b, ..] if (gap(a) && any(b)) || (any(a) && gap(b)) => {
            Some(6)
        }
        [0xE0..=0xEF, a, b, ..] if (gap(a) && kept(b)) || (kept(a) && gap(b)) => Some(3),
        [0xF0..=0xF4, a, b, c, ..]
            if (gap(a) && kept(b) && kept(c))
                || (kept(a) && ((gap(b) && kept(c)) || (kept(b) && gap(c)))) =>
        {
            Some(4)
        }
        _ => None,
    }
}

/// Decodes UTF-8, in which a character above U+FFFF may be a pair of encoded surrogates (CESU-8) and U+0000 may have
/// two bytes (Java).
fn decode_utf8(bytes: &[u8]) -> Option<String> {
    let mut out = String::with_capacity(bytes.len());
    let (mut start, mut at) = (0, 0);
    while at < bytes.len() {
        let Some((character, length)) = utf_8_variant(&bytes[at..]) else {
            at += 1;
            continue;
        };
        out.push_str(std::str::from_utf8(&bytes[start..at]).ok()?);
        out.push(character);
        at += length;
        start = at;
    }
    out.push_str(std::str::from_utf8(&bytes[start..]).ok()?);
    Some(out)
}

/// Parses a sequence of CESU-8 or Java at the start. Returns the character and the length.
///
/// As in ftfy, a line break at the end of the text counts as the last byte of a sequence.
fn utf_8_variant(bytes: &[u8]) -> Option<(char, usize)> {
    match *bytes {
        [0xC0, 0x80, ..] | [0xC0, b'\n'] => Some(('\0', 2)),
        [0xED, a @ 0xA0..=0xAF, b @ 0x80..=0xBF, 0xED, c @ 0xB0..=0xBF, d @ 0x80..=0xBF, ..]
        | [0xED, a @ 0xA0..=0xAF, b @ 0x80..=0xBF, 0xED, c @ 0xB0..=0xBF, d @ b'\n'] => {
            let bits = |byte: u8, mask: u8, shift: u32| u32::from(byte & mask) << shift;
            let code = bits(a, 0x0F, 16) + bits(b, 0x3F, 10) + bits(c, 0x0F, 6) + bits(d, 0x3F, 0) + 0x1_0000;
            Some((char::from_u32(code)?, 6))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misread_texts_are_repaired() {
        let cases = [
            ("âœ” No problems", "✔ No problems"),
            ("voilÃ le travail", "voilà le travail"),
            ("Ã la mode", "à la mode"),
            ("Ã s vezes, Ã quele dia", "às vezes, àquele dia"),
            ("â€œ like this â€\u{FFFD}", "“ like this \u{FFFD}"),
            ("Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "привет"),
            ("ÃƒÂ©", "é"),
            ("ð\u{9f}\u{98}\u{80}", "😀"),
            ("í\u{a0}½í¸\u{80}", "😀"),
        ];
        for (text, expected) in cases {
            assert_eq!(repair(text), expected, "{text}");
        }
    }

    #[test]
    fn intended_texts_are_not_changed() {
        for text in ["", "plain", "Ångström à côté", "猫 ñ", "«да» № 5", "½ × 3"] {
            assert_eq!(repair(text), text);
        }
    }

    #[test]
    fn misread_parts_of_a_text_are_repaired() {
        assert_eq!(repair("猫 donâ€™t"), "猫 don’t");
        assert_eq!(repair("a\u{92}b ÿ"), "a’b ÿ");
        assert_eq!(repair("猫 \u{92}"), "猫 ’");
    }

    #[test]
    fn variants_of_utf_8_are_decoded() {
        assert_eq!(decode_utf8(b"a\xC0\x80b").as_deref(), Some("a\0b"));
        assert_eq!(decode_utf8(b"a\xC0\n").as_deref(), Some("a\0"));
        assert_eq!(decode_utf8(b"\xED\x95\x9C").as_deref(), Some("한"));
        for broken in
            [&b"\xC0"[..], b"\xC0\nb", b"\xED\xA0\x80", b"\xED\xB0\x80\xED\xA0\x80", b"\xF4\x90\x80\x80"]
        {
            assert_eq!(decode_utf8(broken), None, "{broken:?}");
        }
    }
}
