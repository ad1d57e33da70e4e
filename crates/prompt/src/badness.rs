//! Detection of text that was decoded with the wrong encoding.
//!
//! Source: the heuristic of ftfy 6.3.1. The few hundred characters that occur in misread UTF-8 have categories. Some
//! sequences of categories are far more likely an error than intended.

use unicode_normalization::char::is_combining_mark;

/// A set of categories, one bit each.
type Categories = u16;

/// Common in intended text too.
const COMMON: Categories = 1;
/// The control characters U+0080 to U+009F.
const C1: Categories = 1 << 1;
/// Rarely intended.
const BAD: Categories = 1 << 2;
const LAW: Categories = 1 << 3;
const CURRENCY: Categories = 1 << 4;
/// Punctuation that starts something.
const START: Categories = 1 << 5;
/// Punctuation that ends something.
const END: Categories = 1 << 6;
const NUMERIC: Categories = 1 << 7;
/// Letters of kaomoji, which are used in unusual positions on purpose.
const KAOMOJI: Categories = 1 << 8;
const UPPER_ACCENTED: Categories = 1 << 9;
const LOWER_ACCENTED: Categories = 1 << 10;
/// Capital letters of other alphabets, which may end a word.
const UPPER_COMMON: Categories = 1 << 11;
const LOWER_COMMON: Categories = 1 << 12;
/// Box drawing, except the single horizontal line, which kaomoji use.
const BOX: Categories = 1 << 13;

const ACCENTED: Categories = UPPER_ACCENTED | LOWER_ACCENTED;
const SYMBOL: Categories = CURRENCY | NUMERIC | LAW;

#[rustfmt::skip]
fn categories(character: char) -> Categories {
    match character {
        '\0'..='\u{7F}' => 0,
        '\u{80}'..='\u{9F}' => C1,
        '\u{a0}' | '\u{ad}' | '´' | '·' | '–'..='―' | '’' | '…' => COMMON,
        '¤' | '¦' | '¨' | 'ª' | '¬' | '¯' | '¸' | 'º' | 'ƒ' | 'ˆ' | 'ˇ' | '˘' | '˛' | '˜' | '†' | '‡' | '‰'
        | '⌐' | '◊' | '\u{fffd}' => BAD,
        '§' | '¶' => LAW,
        '¢' | '£' | '¥' | '₧' | '€' => CURRENCY,
        '¡' | '©' | '«' | '¿' | '΄' | '΅' | '‘' | '‚' | '“' | '„' | '•' | '‹' | '\u{f8ff}' => START,
        '®' | '»' | '˝' | '”' | '›' | '™' => END,
        '±'..='³' | 'µ' | '¹' | '¼'..='¾' | '×' | '÷' | '⁄' | '№' | '∂' | '∆' | '∏' | '∑' | '√' | '∞' | '∩'
        | '∫' | '≈' | '≠' | '≡' | '≤' | '≥' => NUMERIC,
        'Ü' => UPPER_ACCENTED | KAOMOJI,
        'ü' => LOWER_ACCENTED | KAOMOJI,
        '°' | 'Ò'..='Ö' | 'Ù'..='Û' | 'ò'..='ö' | 'ø'..='û' | 'Ō' | 'Ő' | 'Ū' | 'Ų' => KAOMOJI,
        'À'..='Ñ' | 'Ø' | 'Ý' | 'Ā' | 'Ă' | 'Ą' | 'Ć' | 'Č' | 'Ď' | 'Đ' | 'Ē' | 'Ė' | 'Ę' | 'Ě' | 'Ğ' | 'Ģ'
        | 'Ī' | 'İ' | 'Ķ' | 'Ĺ' | 'Ļ' | 'Ľ' | 'Ł' | 'Ń' | 'Ņ' | 'Ň' | 'Œ' | 'Ř' | 'Ś' | 'Ş' | 'Š' | 'Ţ' | 'Ť'
        | 'Ů' | 'Ű' | 'Ÿ' | 'Ź' | 'Ż' | 'Ž' | 'Ґ' => UPPER_ACCENTED,
        'ß'..='ñ' | 'ā' | 'ă' | 'ą' | 'ć' | 'č' | 'ď' | 'đ' | 'ē' | 'ė' | 'ę' | 'ě' | 'ğ' | 'ģ' | 'ī' | 'į'
        | 'ķ' | 'ĺ' | 'ļ' | 'ľ' | 'ł' | 'œ' | 'ŕ' | 'ś' | 'ş' | 'š' | 'ť' | 'ź' | 'ż' | 'ž' | 'ґ' | 'ﬁ'
        | 'ﬂ' => LOWER_ACCENTED,
        'Þ' | 'Ά' | 'Έ'..='Ί' | 'Ό' | 'Ύ' | 'Ώ' | 'Α'..='Ϋ' | 'Ё'..='Я' => UPPER_COMMON,
        'ά'..='ω' | 'а'..='џ' => LOWER_COMMON,
        '│' | '┌' | '┐' | '┘' | '├' | '┤' | '┬' | '┼' | '═'..='╬' | '▀' | '▄' | '█' | '▌' | '▐'..='▓' => BOX,
        _ => 0,
    }
}

/// Suspicious pairs.
const PAIRS: [(Categories, Categories); 10] = [
    (BAD | ACCENTED | BOX | START | END | SYMBOL, BAD),
    (BAD, ACCENTED | BOX | START | END | SYMBOL),
    (LOWER_ACCENTED | LOWER_COMMON | BOX | END | CURRENCY | NUMERIC, UPPER_ACCENTED),
    (BOX | END | CURRENCY | NUMERIC, LOWER_ACCENTED),
    (LOWER_ACCENTED | BOX | END, CURRENCY),
    (UPPER_ACCENTED | BOX, NUMERIC | LAW),
    (CURRENCY | NUMERIC | BOX, START),
    (BOX, KAOMOJI),
    (ACCENTED | SYMBOL | START | END, BOX),
    (BOX, END),
];

/// Suspicious triples.
const TRIPLES: [(Categories, Categories, Categories); 2] =
    [(ACCENTED | BOX | CURRENCY | END, START, NUMERIC), (ACCENTED | SYMBOL | BOX, END, START)];

/// Returns true if a text has a sequence that is more likely misread UTF-8 than intended.
pub(super) fn is_bad(text: &[char]) -> bool {
    matches!(text, ['Ã' | 'Â', ' ', ..]) || (0..text.len()).any(|at| starts_bad(&text[at..]))
}

/// Returns true if a suspicious sequence starts at the first character.
fn starts_bad(text: &[char]) -> bool {
    let character = |index: usize| text.get(index).copied().unwrap_or('\0');
    let found = [0, 1, 2, 3].map(|index| categories(character(index)));
    let is = |index: usize, wanted: Categories| found[index] & wanted != 0;

    is(0, C1)
        || PAIRS.iter().any(|&(first, second)| is(0, first) && is(1, second))
        || TRIPLES.iter().any(|&(first, second, third)| is(0, first) && is(1, second) && is(2, third))
        || bad_after_plain(text, is)
        || (is(0, ACCENTED) && is(1, START | END) && is_word(character(2)))
        || bad_sequence(text, is)
}

/// Sequences that are suspicious after a plain letter, a space or punctuation.
fn bad_after_plain(text: &[char], is: impl Fn(usize, Categories) -> bool) -> bool {
    let Some(&first) = text.first() else { return false };
    let letter = first.is_ascii_alphabetic() && is(1, LOWER_COMMON | UPPER_COMMON) && is(2, BAD);
    let space = is_space(first) && is(1, UPPER_ACCENTED) && is(2, CURRENCY);
    let lower = first.is_ascii_lowercase()
        && ((is(1, UPPER_ACCENTED) && is(2, START | CURRENCY))
            || matches!(text[1..], ['Ã' | 'Â', ' ', ..])
            || matches!(text[1..], [space, 'Ã' | 'Â', ' ', ..] if is_space(space)));
    let before_a_hat = first.is_ascii_lowercase() || matches!(first, '.' | ',' | '?' | '!') || is(0, END);
    let a_hat = before_a_hat && matches!(text, [_, 'Â', third, ..] if *third == ' ' || is(2, START | END));
    letter || space || lower || a_hat
}

/// Sequences that result from UTF-8 in a particular code page.
#[rustfmt::skip]
fn bad_sequence(text: &[char], is: impl Fn(usize, Categories) -> bool) -> bool {
    let marks = BAD | START | END | CURRENCY;
    let arabic = |index: usize| {
        matches!(text.get(index), Some('Ÿ' | 'Š' | '®' | '°' | 'µ' | '»'))
            || is(index, COMMON | CURRENCY | BAD | NUMERIC | START)
    };
    match *text {
        // The ligature œ is normally followed by an unaccented letter.
        ['Œ' | 'œ', next, ..] if !next.is_ascii_alphabetic() => true,
        [_, '°', ..] if is(0, UPPER_ACCENTED) => true,
        // Windows-1252.
        ['Â' | 'Ã' | 'Î' | 'Ð', '€' | 'œ' | 'Š' | 'š' | '¢' | '£' | 'Ÿ' | 'ž' | '\u{a0}' | '\u{ad}' | '°' | '·'
            | '–' | '—' | '´', ..] => true,
        ['Â' | 'Ã' | 'Î' | 'Ð', _, ..] if is(1, START | END) => true,
        ['×', '²' | '³', ..] => true,
        // Arabic text in it: two pairs, because a single one may be intended.
        ['Ø' | 'Ù', _, 'Ø' | 'Ù', _, ..] if arabic(1) && arabic(3) => true,
        // South Asian scripts in it.
        ['à', '²' | 'µ' | '¹' | '¼' | '½' | '¾', ..] => true,
        // Mac Roman.
        ['√', '±' | '∂' | '†' | '≠' | '®' | '™' | '´' | '≤' | '≥' | '¥' | 'µ' | 'ø', ..] => true,
        ['≈', '°' | '¢', ..] => true,
        ['‚', 'Ä', 'ì' | 'î' | 'ï' | 'ò' | 'ô' | 'ú' | 'ù' | 'û' | '†' | '°' | '¢' | 'π', ..] => true,
        ['‚', 'â' | 'ó', 'à' | 'ä' | '°' | 'ê', ..] => true,
        // Windows-1251.
        ['в', 'Ђ', ..] => true,
        ['В' | 'Г' | 'Р' | 'С', middle, 'В' | 'Г' | 'Р' | 'С', ..]
            if matches!(middle, '°' | 'µ') || is(1, marks) => true,
        // Misread twice, before a Latin letter.
        ['Г', 'ў', 'В', 'Ђ', 'В', any, letter, ..]
            if any != '\n' && (letter == ' ' || letter.is_ascii_alphabetic()) => true,
        // Windows-1253.
        ['β', '€', '™' | '\u{a0}' | 'Ά' | '\u{ad}' | '®' | '°', ..] => true,
        ['Β' | 'Γ' | 'Ξ' | 'Ο', middle, 'Β' | 'Γ' | 'Ξ' | 'Ο', ..] if middle == '°' || is(1, marks) => true,
        // Windows-1257.
        ['ā', '€', ..] => true,
        _ => false,
    }
}

/// White space in Python: Unicode white space and the four ASCII separators.
pub(super) fn is_space(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\u{1C}'..='\u{1F}')
}

/// A letter, a digit or an underscore in Python: by category, without marks and circled letters.
fn is_word(character: char) -> bool {
    let circled = matches!(character, 'Ⓐ'..='ⓩ' | '\u{1F130}'..='\u{1F149}' | '\u{1F150}'..='\u{1F169}'
        | '\u{1F170}'..='\u{1F189}');
    character == '_' || (character.is_alphanumeric() && !circled && !is_combining_mark(character))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bad(text: &str) -> bool {
        is_bad(&text.chars().collect::<Vec<_>>())
    }

    #[test]
    fn misread_text_is_bad() {
        let cases = [
            "\u{85}",
            "â€œ",
            "Ã©",
            "Ã ",
            "voilÃ le",
            "donâ€™t",
            "Â©",
            "cafÂ ",
            "√©",
            "‚Äì",
            "вЂ™",
            "β€™",
            "ā€",
            "Ð¿Ñ€Ð¸",
            "Ø§Ù„",
            "ГўВЂВ™s",
            "à²•",
            "Œ.",
            "É°",
            "£«",
            "e Ã x",
            "ok.Â ",
        ];
        for case in cases {
            assert!(bad(case), "{case}");
        }
    }

    #[test]
    fn intended_text_is_not_bad() {
        let cases = [
            "",
            "plain",
            "Ångström",
            "naïve café",
            "¿Qué? ¡Sí!",
            "«да»",
            "Ελληνικά",
            "œuvre",
            "½ × 3",
            "§ 5",
            "Ã",
            "猫が走る",
            "àé",
            "•",
            "20 °C",
            "x Ã",
            "„gut“",
            "(╯°□°)╯",
        ];
        for case in cases {
            assert!(!bad(case), "{case}");
        }
    }
}
