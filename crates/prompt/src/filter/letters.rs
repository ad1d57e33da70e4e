//! One form for letters that look alike.

use std::collections::HashMap;
use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;
use unicode_security::confusable_detection::skeleton;

/// The text in lower case, with plain Latin letters for those that look like them, simplified characters for the
/// traditional ones of the table, and nothing that cannot be seen.
pub(super) fn plain(text: &str, simplified: &HashMap<char, char>) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars().filter(|character| !is_invisible(*character)).nfkd() {
        if character.is_ascii() {
            out.push(character.to_ascii_lowercase());
        } else if is_han(character) {
            out.push(*simplified.get(&character).unwrap_or(&character));
        } else if !is_combining_mark(character) && !is_invisible(character) {
            push_look_alike(character, &mut out);
        }
    }
    out
}

/// Appends the Latin letters that a character looks like, or the character in lower case.
fn push_look_alike(character: char, out: &mut String) {
    if let Some(letter) = squared(character) {
        return out.push(letter);
    }
    if character.is_alphanumeric() || character.is_numeric() {
        let mut one = [0; 4];
        let prototype: String = skeleton(character.encode_utf8(&mut one)).collect();
        if !prototype.is_empty() && prototype.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            out.extend(prototype.chars().map(|letter| letter.to_ascii_lowercase()));
            return;
        }
        if let Some(letter) = small_capital(character) {
            return out.push(letter);
        }
    }
    out.extend(character.to_lowercase());
}

/// The letters in circles, squares and flags, which have no decomposition.
fn squared(character: char) -> Option<char> {
    let code = u32::from(character);
    let from = |first: u32| char::from_u32(u32::from('a') + code - first);
    match code {
        0x1F150..=0x1F169 => from(0x1F150),
        0x1F170..=0x1F189 => from(0x1F170),
        0x1F1E6..=0x1F1FF => from(0x1F1E6),
        _ => None,
    }
}

/// Letters whose look-alikes are not Latin in the tables of Unicode.
fn small_capital(character: char) -> Option<char> {
    Some(match character {
        'ʙ' | 'в' | 'ь' => 'b',
        'ᴅ' => 'd',
        'є' | 'э' | 'ᴇ' => 'e',
        'ɢ' => 'g',
        'ʜ' | 'н' => 'h',
        'ɪ' => 'i',
        'ᴋ' | 'к' => 'k',
        'ʟ' => 'l',
        'ᴍ' | 'м' => 'm',
        'ɴ' | 'и' | 'п' => 'n',
        'ᴘ' => 'p',
        'ʀ' | 'я' => 'r',
        'т' | 'ᴛ' => 't',
        'ω' | 'ш' => 'w',
        _ => return None,
    })
}

/// Returns true for Chinese characters.
pub(super) fn is_han(character: char) -> bool {
    matches!(character, '\u{3007}' | '\u{3400}'..='\u{4DBF}' | '\u{4E00}'..='\u{9FFF}' | '\u{F900}'..='\u{FAFF}' | '\u{20000}'..='\u{323AF}')
}

/// Returns true for characters that take no place on the screen.
fn is_invisible(character: char) -> bool {
    matches!(
        character,
        '\u{AD}' | '\u{34F}' | '\u{61C}' | '\u{115F}'..='\u{1160}' | '\u{17B4}'..='\u{17B5}' | '\u{180B}'..='\u{180F}'
            | '\u{200B}'..='\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2060}'..='\u{206F}' | '\u{2800}' | '\u{3164}'
            | '\u{FE00}'..='\u{FE0F}' | '\u{FEFF}' | '\u{FFA0}' | '\u{FFF9}'..='\u{FFFB}' | '\u{1D173}'..='\u{1D17A}'
            | '\u{E0000}'..='\u{E0FFF}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn look_alikes_become_plain_letters() {
        let simplified = HashMap::from([('兒', '儿')]);
        for (text, expected) in [
            ("Plain TEXT 4k", "plain text 4k"),
            ("ＦＵＬＬ　width", "full width"),
            ("pоrn сlip", "porn clip"),
            ("ρorn", "porn"),
            ("𝓅𝓸𝓻𝓷 ⓟⓞⓡⓝ 🄿🅾🆁🅽", "porn porn porn"),
            ("ᴘᴏʀɴ", "porn"),
            ("pörn p̷o̷r̷n̷", "porn porn"),
            ("po\u{200B}rn\u{FEFF}\u{AD}", "porn"),
            ("兒 ⼈ 﨑", "儿 人 﨑"),
            ("naïve café ﬁlm", "naive cafe film"),
        ] {
            assert_eq!(plain(text, &simplified), expected, "{text}");
        }
    }
}
