//! Text files of users: UTF-8 or UTF-16, with or without a byte-order mark, with any line ends.

use crate::{Diagnose, Report};
use std::path::{Path, PathBuf};

/// A file that cannot be read as text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It could not be read.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: std::io::Error,
    },
    /// It is not text, or text in another encoding.
    Encoding {
        /// The file.
        path: PathBuf,
        /// The line with the first wrong byte, from 1.
        line: usize,
        /// The problem in that line.
        what: &'static str,
        /// A suggested fix.
        fix: String,
    },
}

impl Diagnose for Error {
    fn report(&self) -> Report {
        match self {
            Self::Unreadable { path, source } => Report::bad_input(
                format!("cannot read {}", path.display()),
                source.to_string(),
                "check that it is a file, and that you may read it",
            ),
            Self::Encoding { path, line, what, fix } => Report::bad_input(
                format!("{} cannot be read as text", path.display()),
                format!("line {line} {what}"),
                fix.clone(),
            ),
        }
    }
}

crate::display_as_report!(Error);

/// Reads a text file. Line ends become `\n`; byte-order marks are removed.
///
/// UTF-16 is recognised by its byte-order mark.
///
/// # Errors
/// Returns an error if the file cannot be read, is in another encoding, or is not text.
pub fn read(path: &Path) -> Result<String, crate::Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::Unreadable { path: path.to_owned(), source })?;
    let text = decode(&bytes).map_err(|Wrong { line, what, from }| Error::Encoding {
        path: path.to_owned(),
        line,
        what,
        fix: match from {
            Some(from) => format!(
                "save it as UTF-8 in an editor, or with `iconv -f {from} -t UTF-8 {} > NEW`",
                path.display()
            ),
            None => "give a text file".into(),
        },
    })?;
    Ok(text)
}

/// The text of bytes, as [`read`] returns that of a file. Returns `None` if they are not text.
pub fn from_bytes(bytes: &[u8]) -> Option<String> {
    decode(bytes).ok()
}

/// The items of a list, one on each line: lines without the space around them. Empty lines and lines that begin with `#`
/// are not items.
pub fn items(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// The byte-order mark as a character.
const MARK: char = '\u{feff}';

/// A decoding error.
#[derive(Debug, PartialEq)]
struct Wrong {
    line: usize,
    what: &'static str,
    /// The most likely encoding, by its iconv name.
    from: Option<&'static str>,
}

fn decode(bytes: &[u8]) -> Result<String, Wrong> {
    let text = match bytes {
        [0xEF, 0xBB, 0xBF, rest @ ..] => utf_8(rest)?,
        [0xFF, 0xFE, 0, 0, ..] | [0, 0, 0xFE, 0xFF, ..] => {
            return Err(Wrong { line: 1, what: "begins like UTF-32", from: Some("UTF-32") });
        }
        [0xFF, 0xFE, rest @ ..] => utf_16(rest, u16::from_le_bytes, "UTF-16LE")?,
        [0xFE, 0xFF, rest @ ..] => utf_16(rest, u16::from_be_bytes, "UTF-16BE")?,
        _ => utf_8(bytes)?,
    };
    if let Some(at) = text.find('\0') {
        let from = match (bytes.first(), bytes.get(1)) {
            (Some(0), Some(1..)) => Some("UTF-16BE"),
            (Some(1..), Some(0)) => Some("UTF-16LE"),
            _ => None,
        };
        return Err(Wrong { line: line_of(&text.as_bytes()[..at]), what: "contains a NUL", from });
    }
    // Files that were joined have marks in their middle, and programs that mark a marked file double it.
    Ok(text.replace(MARK, "").replace("\r\n", "\n").replace('\r', "\n"))
}

fn utf_8(bytes: &[u8]) -> Result<String, Wrong> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|error| Wrong {
        line: line_of(&bytes[..error.valid_up_to()]),
        what: "contains bytes that are not UTF-8",
        from: if bytes.contains(&0) { None } else { Some("WINDOWS-1252") },
    })
}

fn utf_16(bytes: &[u8], unit: fn([u8; 2]) -> u16, from: &'static str) -> Result<String, Wrong> {
    let (units, rest) = bytes.as_chunks::<2>();
    let mut text = String::with_capacity(bytes.len());
    for character in char::decode_utf16(units.iter().map(|bytes| unit(*bytes))) {
        let Ok(character) = character else {
            let line = line_of(text.as_bytes());
            return Err(Wrong { line, what: "contains half a UTF-16 character", from: Some(from) });
        };
        text.push(character);
    }
    if rest.is_empty() {
        Ok(text)
    } else {
        Err(Wrong { line: line_of(text.as_bytes()), what: "ends in half a UTF-16 unit", from: Some(from) })
    }
}

fn line_of(before: &[u8]) -> usize {
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "# two\na boat 🚤\nein Ballonö\n";

    fn units(text: &str, mark: bool, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        mark.then_some(0xFEFF).into_iter().chain(text.encode_utf16()).flat_map(bytes).collect()
    }

    #[test]
    fn a_text_reads_the_same_in_every_encoding_and_with_every_line_end() {
        let marked = |text: &str| [&b"\xEF\xBB\xBF"[..], text.as_bytes()].concat();
        let windows = TEXT.replace('\n', "\r\n");
        for bytes in [
            TEXT.as_bytes().to_vec(),
            marked(TEXT),
            marked(&windows),
            TEXT.replace('\n', "\r").into_bytes(),
            units(TEXT, true, u16::to_le_bytes),
            units(&windows, true, u16::to_be_bytes),
        ] {
            assert_eq!(decode(&bytes).unwrap(), TEXT, "{bytes:?}");
        }
        let joined = [marked(TEXT), marked(&windows)].concat();
        assert_eq!(decode(&joined).unwrap(), TEXT.repeat(2));
        assert_eq!(decode(&marked("\u{feff}# two")).unwrap(), "# two");
        assert_eq!(decode(b"").unwrap(), "");
        assert_eq!(decode(b"\xFF\xFE").unwrap(), "");
    }

    #[test]
    fn other_encodings_are_reported_with_the_line() {
        let wrong = |line, what, from| Err(Wrong { line, what, from });
        let latin = b"a boat\nein Ballon\xF6\n";
        assert_eq!(decode(latin), wrong(2, "contains bytes that are not UTF-8", Some("WINDOWS-1252")));
        for (order, from) in
            [(u16::to_le_bytes as fn(u16) -> [u8; 2], "UTF-16LE"), (u16::to_be_bytes, "UTF-16BE")]
        {
            assert_eq!(decode(&units("a boat", false, order)), wrong(1, "contains a NUL", Some(from)));
        }
        assert_eq!(decode(b"a boat\n\0x"), wrong(2, "contains a NUL", None));
        assert_eq!(decode(b"\xFF\xFEa\0b"), wrong(1, "ends in half a UTF-16 unit", Some("UTF-16LE")));
        assert_eq!(
            decode(b"\xFE\xFF\xD8\0\0a"),
            wrong(1, "contains half a UTF-16 character", Some("UTF-16BE"))
        );
        assert_eq!(decode(b"\xFF\xFE\0\0a\0\0\0"), wrong(1, "begins like UTF-32", Some("UTF-32")));
    }

    #[test]
    fn items_are_the_lines_that_are_neither_empty_nor_comments() {
        let found: Vec<_> = items("# two\n a boat \n\n  # no\n\ta #1 hit\n").collect();
        assert_eq!(found, ["a boat", "a #1 hit"]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_text_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(text) = decode(&bytes) {
                prop_assert!(!text.contains(['\0', '\r', MARK]));
            }
        }
    }
}
