//! The single-byte encodings with which UTF-8 text is most often misread.
//!
//! Sources: the mapping tables of the Unicode consortium. The selection, the order and the treatment of unassigned
//! bytes follow ftfy.

use std::sync::LazyLock;

/// The byte of U+FFFD in the Windows pages, so that text with lost characters can be encoded.
pub(super) const LOST: u8 = 0x1A;

/// A single-byte encoding whose lower half is ASCII.
pub(super) struct CodePage {
    /// The characters of bytes 0x80 to 0xFF.
    upper: [char; 128],
    /// The same characters with their bytes, sorted by character.
    bytes: Vec<(char, u8)>,
    /// True if byte 0x1A represents U+FFFD.
    pub(super) lossy: bool,
    /// True if a space may represent byte 0xA0. In Mac Roman that would also match dashes before a space.
    pub(super) space_for_a0: bool,
}

impl CodePage {
    /// A page of 128 characters. U+FFFD marks an unassigned byte, which is decoded to the code point with its number.
    fn new(table: &str, lossy: bool, space_for_a0: bool) -> Self {
        let mut upper = ['\0'; 128];
        let mut bytes = Vec::with_capacity(upper.len());
        for ((byte, slot), listed) in (0x80..=0xFF_u8).zip(&mut upper).zip(table.chars()) {
            *slot = if listed == char::REPLACEMENT_CHARACTER { char::from(byte) } else { listed };
            bytes.push((*slot, byte));
        }
        bytes.sort_unstable();
        Self { upper, bytes, lossy, space_for_a0 }
    }

    /// Encodes a text. Returns `None` if a character is not in the page.
    pub(super) fn encode(&self, text: &[char]) -> Option<Vec<u8>> {
        text.iter().map(|&character| self.byte(character)).collect()
    }

    fn byte(&self, character: char) -> Option<u8> {
        match u8::try_from(character) {
            Ok(LOST) if self.lossy => None,
            Ok(byte) if byte.is_ascii() => Some(byte),
            _ if self.lossy && character == char::REPLACEMENT_CHARACTER => Some(LOST),
            _ => {
                let at = self.bytes.binary_search_by_key(&character, |&(listed, _)| listed).ok()?;
                Some(self.bytes[at].1)
            }
        }
    }

    /// The characters of the bytes `from..=to`, both at least 0x80.
    fn range(&self, from: u8, to: u8) -> impl Iterator<Item = char> + '_ {
        (from..=to).filter_map(|byte| self.upper.get(usize::from(byte).checked_sub(0x80)?).copied())
    }
}

/// All pages, in the order in which they are tried.
pub(super) static PAGES: LazyLock<[CodePage; 10]> = LazyLock::new(|| {
    [
        CodePage::new(LATIN_1, false, true),
        CodePage::new(WINDOWS_1252, true, true),
        CodePage::new(WINDOWS_1251, true, true),
        CodePage::new(WINDOWS_1250, true, true),
        CodePage::new(WINDOWS_1253, true, true),
        CodePage::new(WINDOWS_1254, true, true),
        CodePage::new(WINDOWS_1257, true, true),
        CodePage::new(ISO_8859_2, false, true),
        CodePage::new(MAC_ROMAN, false, false),
        CodePage::new(CP437, false, true),
    ]
});

/// The number of [`PAGES`], from the first, that resemble Latin-1: letters of one alphabet at 0xC0 and above.
const LATIN_1_LIKE: usize = 7;

/// The role of a character in UTF-8 that was misread with a page like Latin-1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Utf8Role {
    /// The length of the sequence that the character starts: 2, 3 or 4. 0 if it starts none.
    pub(super) lead: usize,
    /// True if it can be a continuation byte. A space can, in place of a no-break space.
    pub(super) continuation: bool,
    /// True if it can be a continuation byte and is rarely intended next to misread text.
    pub(super) strict_continuation: bool,
}

impl Utf8Role {
    /// The role of a character.
    pub(super) fn of(character: char) -> Self {
        let at = ROLES.binary_search_by_key(&character, |&(listed, _)| listed);
        at.map_or_else(|_| Self::default(), |at| ROLES[at].1)
    }
}

static ROLES: LazyLock<Vec<(char, Utf8Role)>> = LazyLock::new(|| {
    let characters = |from, to| PAGES[..LATIN_1_LIKE].iter().flat_map(move |page| page.range(from, to));
    // Of the lead bytes of four, only F0 and F3 start characters in use.
    let leads = [(2, 0xC2, 0xDF), (3, 0xE0, 0xEF), (4, 0xF0, 0xF0), (4, 0xF3, 0xF3)];
    let leads = leads.into_iter().flat_map(|(lead, from, to)| {
        characters(from, to).map(move |character| (character, Utf8Role { lead, ..Utf8Role::default() }))
    });
    let continuations = characters(0x80, 0xBF).chain([' ']).map(|character| {
        let separator = matches!(character, ' ' | '–'..='―' | '‘'..='‚' | '“'..='„' | '•' | '…');
        (character, Utf8Role { lead: 0, continuation: true, strict_continuation: !separator })
    });
    let mut roles: Vec<_> = leads.chain(continuations).collect();
    roles.sort_by_key(|&(character, _)| character);
    roles.dedup_by(|next, role| {
        let same = next.0 == role.0;
        if same {
            role.1.lead = role.1.lead.max(next.1.lead);
            role.1.continuation |= next.1.continuation;
            role.1.strict_continuation |= next.1.strict_continuation;
        }
        same
    });
    roles
});

/// Decodes a byte with Windows-1252. Returns `None` if it is unassigned.
pub(super) fn windows_1252(byte: u8) -> Option<char> {
    match byte {
        0x81 | 0x8D | 0x8F | 0x90 | 0x9D => None,
        0x80..=0x9F => PAGES[1].range(byte, byte).next(),
        _ => Some(char::from(byte)),
    }
}

/// Replaces the control characters U+0080 to U+009F with the Windows-1252 characters of these bytes, as browsers do.
pub(super) fn c1_as_windows_1252(character: char) -> char {
    u8::try_from(character).ok().and_then(windows_1252).unwrap_or(character)
}

/// The first 256 code points.
const LATIN_1: &str = "\
    ����������������\
    ����������������\
    \u{a0}¡¢£¤¥¦§¨©ª«¬\u{ad}®¯\
    °±²³´µ¶·¸¹º»¼½¾¿\
    ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏ\
    ÐÑÒÓÔÕÖ×ØÙÚÛÜÝÞß\
    àáâãäåæçèéêëìíîï\
    ðñòóôõö÷øùúûüýþÿ";

/// Western European.
const WINDOWS_1252: &str = "\
    €�‚ƒ„…†‡ˆ‰Š‹Œ�Ž�\
    �‘’“”•–—˜™š›œ�žŸ\
    \u{a0}¡¢£¤¥¦§¨©ª«¬\u{ad}®¯\
    °±²³´µ¶·¸¹º»¼½¾¿\
    ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏ\
    ÐÑÒÓÔÕÖ×ØÙÚÛÜÝÞß\
    àáâãäåæçèéêëìíîï\
    ðñòóôõö÷øùúûüýþÿ";

/// Cyrillic.
const WINDOWS_1251: &str = "\
    ЂЃ‚ѓ„…†‡€‰Љ‹ЊЌЋЏ\
    ђ‘’“”•–—�™љ›њќћџ\
    \u{a0}ЎўЈ¤Ґ¦§Ё©Є«¬\u{ad}®Ї\
    °±Ііґµ¶·ё№є»јЅѕї\
    АБВГДЕЖЗИЙКЛМНОП\
    РСТУФХЦЧШЩЪЫЬЭЮЯ\
    абвгдежзийклмноп\
    рстуфхцчшщъыьэюя";

/// Central European.
const WINDOWS_1250: &str = "\
    €�‚�„…†‡�‰Š‹ŚŤŽŹ\
    �‘’“”•–—�™š›śťžź\
    \u{a0}ˇ˘Ł¤Ą¦§¨©Ş«¬\u{ad}®Ż\
    °±˛ł´µ¶·¸ąş»Ľ˝ľż\
    ŔÁÂĂÄĹĆÇČÉĘËĚÍÎĎ\
    ĐŃŇÓÔŐÖ×ŘŮÚŰÜÝŢß\
    ŕáâăäĺćçčéęëěíîď\
    đńňóôőö÷řůúűüýţ˙";

/// Greek.
const WINDOWS_1253: &str = "\
    €�‚ƒ„…†‡�‰�‹����\
    �‘’“”•–—�™�›����\
    \u{a0}΅Ά£¤¥¦§¨©�«¬\u{ad}®―\
    °±²³΄µ¶·ΈΉΊ»Ό½ΎΏ\
    ΐΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟ\
    ΠΡ�ΣΤΥΦΧΨΩΪΫάέήί\
    ΰαβγδεζηθικλμνξο\
    πρςστυφχψωϊϋόύώ�";

/// Turkish.
const WINDOWS_1254: &str = "\
    €�‚ƒ„…†‡ˆ‰Š‹Œ���\
    �‘’“”•–—˜™š›œ��Ÿ\
    \u{a0}¡¢£¤¥¦§¨©ª«¬\u{ad}®¯\
    °±²³´µ¶·¸¹º»¼½¾¿\
    ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏ\
    ĞÑÒÓÔÕÖ×ØÙÚÛÜİŞß\
    àáâãäåæçèéêëìíîï\
    ğñòóôõö÷øùúûüışÿ";

/// Baltic.
const WINDOWS_1257: &str = "\
    €�‚�„…†‡�‰�‹�¨ˇ¸\
    �‘’“”•–—�™�›�¯˛�\
    \u{a0}�¢£¤�¦§Ø©Ŗ«¬\u{ad}®Æ\
    °±²³´µ¶·ø¹ŗ»¼½¾æ\
    ĄĮĀĆÄÅĘĒČÉŹĖĢĶĪĻ\
    ŠŃŅÓŌÕÖ×ŲŁŚŪÜŻŽß\
    ąįāćäåęēčéźėģķīļ\
    šńņóōõö÷ųłśūüżž˙";

/// Central European.
const ISO_8859_2: &str = "\
    ����������������\
    ����������������\
    \u{a0}Ą˘Ł¤ĽŚ§¨ŠŞŤŹ\u{ad}ŽŻ\
    °ą˛ł´ľśˇ¸šşťź˝žż\
    ŔÁÂĂÄĹĆÇČÉĘËĚÍÎĎ\
    ĐŃŇÓÔŐÖ×ŘŮÚŰÜÝŢß\
    ŕáâăäĺćçčéęëěíîď\
    đńňóôőö÷řůúűüýţ˙";

/// Western European on classic Mac OS.
const MAC_ROMAN: &str = "\
    ÄÅÇÉÑÖÜáàâäãåçéè\
    êëíìîïñóòôöõúùûü\
    †°¢£§•¶ß®©™´¨≠ÆØ\
    ∞±≤≥¥µ∂∑∏π∫ªºΩæø\
    ¿¡¬√ƒ≈∆«»…\u{a0}ÀÃÕŒœ\
    –—“”‘’÷◊ÿŸ⁄€‹›ﬁﬂ\
    ‡·‚„‰ÂÊÁËÈÍÎÏÌÓÔ\
    \u{f8ff}ÒÚÛÙıˆ˜¯˘˙˚¸˝˛ˇ";

/// The original IBM PC.
const CP437: &str = "\
    ÇüéâäàåçêëèïîìÄÅ\
    ÉæÆôöòûùÿÖÜ¢£¥₧ƒ\
    áíóúñÑªº¿⌐¬½¼¡«»\
    ░▒▓│┤╡╢╖╕╣║╗╝╜╛┐\
    └┴┬├─┼╞╟╚╔╩╦╠═╬╧\
    ╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀\
    αßΓπΣσµτΦΘΩδ∞φε∩\
    ≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_has_128_distinct_characters() {
        for page in PAGES.iter() {
            let mut upper = page.upper.to_vec();
            upper.sort_unstable();
            upper.dedup();
            assert_eq!(upper.len(), 128);
            assert!(!upper.contains(&'\0'));
        }
    }

    #[test]
    fn every_byte_round_trips() {
        for page in PAGES.iter() {
            for byte in 0x80..=0xFF {
                let character: Vec<_> = page.range(byte, byte).collect();
                assert_eq!(page.encode(&character), Some(vec![byte]));
            }
        }
    }

    #[test]
    fn only_the_windows_pages_encode_lost_characters() {
        assert_eq!(PAGES[0].encode(&['\u{FFFD}']), None);
        assert_eq!(PAGES[0].encode(&['\u{1A}']), Some(vec![LOST]));
        assert_eq!(PAGES[1].encode(&['\u{FFFD}']), Some(vec![LOST]));
        assert_eq!(PAGES[1].encode(&['\u{1A}']), None);
    }

    #[test]
    fn roles_are_the_union_of_all_pages() {
        assert_eq!(Utf8Role::of('Ã').lead, 2);
        assert_eq!(Utf8Role::of('Ђ'), Utf8Role { lead: 0, continuation: true, strict_continuation: true });
        assert_eq!(Utf8Role::of('â').lead, 3);
        assert_eq!(Utf8Role::of('ð').lead, 4);
        assert_eq!(Utf8Role::of('ñ').lead, 0);
        assert_eq!(Utf8Role::of('Š'), Utf8Role { lead: 2, continuation: true, strict_continuation: true });
        assert_eq!(Utf8Role::of(' '), Utf8Role { lead: 0, continuation: true, strict_continuation: false });
        assert_eq!(Utf8Role::of('a'), Utf8Role::default());
        let count = |role: fn(&Utf8Role) -> bool| ROLES.iter().filter(|(_, found)| role(found)).count();
        assert_eq!(count(|role| role.lead == 2), 124);
        assert_eq!(count(|role| role.lead == 3), 66);
        assert_eq!(count(|role| role.lead == 4), 9);
        assert_eq!(count(|role| role.continuation), 159);
        assert_eq!(count(|role| role.strict_continuation), 147);
    }
}
