//! Captions with their times, from a text or from a SubRip file.
//!
//! A file is parsed as leniently as players do: a caption starts at its line of times and ends at the next one. The
//! number before that line and blank lines are ignored, and captions may be in any order.

use bundle::text_file;
use std::time::Duration;

/// A text and its time.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caption {
    /// The start.
    pub start: Duration,
    /// The end.
    pub end: Duration,
    /// The lines.
    pub text: String,
}

/// Errors of a SubRip file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SrtError {
    /// The bytes are not text.
    #[error("it is neither UTF-8 nor UTF-16 with a byte-order mark")]
    Encoding,
    /// A line of times is missing or malformed.
    #[error("line {0} has no times like 00:00:01,000 --> 00:00:02,500")]
    Times(usize),
    /// A caption ends before it starts.
    #[error("the caption at line {0} ends before it starts")]
    Backwards(usize),
    /// The file contains no caption.
    #[error("it contains no caption")]
    Empty,
}

impl Caption {
    /// A text that is always shown.
    pub fn always(text: impl Into<String>) -> Self {
        Self { start: Duration::ZERO, end: Duration::MAX, text: text.into() }
    }

    /// Parses a SubRip file in UTF-8 or UTF-16. Returns its captions in the order of their starts, without empty ones.
    ///
    /// # Errors
    /// Returns an error if the bytes are not text, if times are missing or malformed, or if there is no caption.
    pub fn read_srt(bytes: &[u8]) -> Result<Vec<Self>, SrtError> {
        let text = text_file::from_bytes(bytes).ok_or(SrtError::Encoding)?;
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let mut found: Vec<Block<'_>> = vec![];
        for (index, &line) in lines.iter().enumerate() {
            let next = lines.get(index + 1).copied().unwrap_or_default();
            let is_head = index == 0 && line == "WEBVTT";
            if line.is_empty() || is_head || (is_number(line) && has_times(next)) {
                continue;
            }
            if has_times(line) {
                let (start, end) = times(line).ok_or(SrtError::Times(index + 1))?;
                if end < start {
                    return Err(SrtError::Backwards(index + 1));
                }
                found.push(Block { start, end, lines: vec![] });
            } else if is_number(line) && !next.is_empty() && (index == 0 || lines[index - 1].is_empty()) {
                // A number after a blank line and before a text: the times between them are missing.
                return Err(SrtError::Times(index + 2));
            } else {
                found.last_mut().ok_or(SrtError::Times(index + 1))?.lines.push(line);
            }
        }
        let mut captions: Vec<Self> = found.iter().filter_map(Block::caption).collect();
        captions.sort_by_key(|caption| caption.start);
        if captions.is_empty() { Err(SrtError::Empty) } else { Ok(captions) }
    }
}

/// The lines between two lines of times.
struct Block<'a> {
    start: Duration,
    end: Duration,
    lines: Vec<&'a str>,
}

impl Block<'_> {
    fn caption(&self) -> Option<Caption> {
        let text = without_tags(&self.lines.join("\n"));
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        (!lines.is_empty()).then(|| Caption { start: self.start, end: self.end, text: lines.join("\n") })
    }
}

fn is_number(line: &str) -> bool {
    !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns true if a line is intended as a line of times: it has an arrow, and a colon between digits.
fn has_times(line: &str) -> bool {
    let bytes = line.as_bytes();
    let clock = bytes.windows(3).any(|at| at[0].is_ascii_digit() && at[1] == b':' && at[2].is_ascii_digit());
    clock && ["->", "=>", "→", "–>", "—>"].iter().any(|arrow| line.contains(arrow))
}

fn times(line: &str) -> Option<(Duration, Duration)> {
    let (start, end) = line.split_once("-->")?;
    let start: String = start.split_whitespace().collect();
    // A position on the screen may follow the time.
    let is_time =
        |part: &&str| part.starts_with(|first: char| first.is_ascii_digit() || first == ',' || first == '.');
    let end: String = end.split_whitespace().take_while(is_time).collect();
    Some((time(&start)?, time(&end)?))
}

/// Parses `HH:MM:SS,mmm`. The comma may be a dot; hours and milliseconds are optional.
fn time(text: &str) -> Option<Duration> {
    let (clock, milliseconds) = text.split_once([',', '.']).unwrap_or((text, "0"));
    let whole = |text: &str| is_number(text).then(|| text.parse::<u64>().ok()).flatten();
    let parts = clock.split(':').map(whole).collect::<Option<Vec<_>>>()?;
    let (2 | 3) = parts.len() else { return None };
    let seconds =
        parts.iter().try_fold(0_u64, |seconds, part| seconds.checked_mul(60)?.checked_add(*part))?;
    // Digits after the third are fractions of a millisecond.
    let milliseconds = whole(milliseconds.get(..3).unwrap_or(milliseconds))?;
    whole(text.rsplit([',', '.', ':']).next()?)?;
    Some(Duration::from_millis(seconds.checked_mul(1000)?.checked_add(milliseconds)?))
}

/// Removes HTML tags, the position tags of other formats, and control characters, and converts line breaks.
fn without_tags(text: &str) -> String {
    let text = text.replace("\\N", "\n").replace("\\h", " ").replace('\t', " ");
    let mut out = String::new();
    let mut rest = &*text;
    while let Some(start) = rest.find(['<', '{']) {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let (open, close) = if rest.starts_with('<') { ('<', '>') } else { ('{', '}') };
        let end = rest[1..].find(['<', '>', '{', '}']).map(|end| end + 1);
        let tag = end.filter(|end| rest[*end..].starts_with(close)).map(|end| &rest[1..end]);
        match tag.and_then(|tag| Some((tag, replacement_of(open, tag)?))) {
            Some((tag, replacement)) => {
                out.push_str(replacement);
                rest = &rest[tag.len() + 2..];
            }
            None => {
                out.push(open);
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    out.retain(|c| c == '\n' || !c.is_control());
    out
}

/// The text that replaces a tag. Returns `None` if it is not a tag.
fn replacement_of(open: char, tag: &str) -> Option<&'static str> {
    if open == '{' {
        return tag.starts_with('\\').then_some("");
    }
    let name = tag.strip_prefix('/').unwrap_or(tag).split([' ', '=', '/']).next().unwrap_or_default();
    match name.to_ascii_lowercase().as_str() {
        "br" => Some("\n"),
        "b" | "i" | "u" | "s" | "font" => Some(""),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(u128, u128, String)>, SrtError> {
        let captions = Caption::read_srt(text.as_bytes())?;
        Ok(captions.into_iter().map(|c| (c.start.as_millis(), c.end.as_millis(), c.text)).collect())
    }

    fn texts(text: &str) -> Vec<String> {
        read(text).unwrap().into_iter().map(|(_, _, text)| text).collect()
    }

    const TWO: &str =
        "1\n00:00:00,500 --> 00:00:01,000\none\nsecond line\n\n2\n00:01:02,003 --> 01:00:00,000\n一只猫\n";

    #[test]
    fn encodings_and_line_ends_make_no_difference() {
        let expected =
            vec![(500, 1000, "one\nsecond line".to_owned()), (62_003, 3_600_000, "一只猫".to_owned())];
        let wide = |mark: u16, bytes: fn(u16) -> [u8; 2]| -> Vec<u8> {
            std::iter::once(mark).chain(TWO.encode_utf16()).flat_map(bytes).collect()
        };
        let cases: [Vec<u8>; 8] = [
            TWO.into(),
            TWO.replace('\n', "\r\n").into(),
            TWO.replace('\n', "\r").into(),
            format!("\u{feff}{TWO}").into(),
            wide(0xfeff, u16::to_le_bytes),
            wide(0xfeff, u16::to_be_bytes),
            format!("\n\n {TWO}\n\n\n").into(),
            TWO.replace("1\n00", "00").replace("2\n00", "00").replace("\n\n", "\n").into(),
        ];
        for (number, case) in cases.iter().enumerate() {
            let found = Caption::read_srt(case).unwrap();
            let found: Vec<_> =
                found.into_iter().map(|c| (c.start.as_millis(), c.end.as_millis(), c.text)).collect();
            assert_eq!(found, expected, "case {number}");
        }
    }

    #[test]
    fn blank_lines_neither_end_nor_join_captions() {
        for blank in ["", " ", "\t", "\u{a0}", "  \t "] {
            let file = TWO.replace("\n\n", &format!("\n{blank}\n"));
            assert_eq!(texts(&file), ["one\nsecond line", "一只猫"], "{blank:?}");
            let file = TWO.replace("one\nsecond", &format!("one\n{blank}\nsecond"));
            assert_eq!(texts(&file), ["one\nsecond line", "一只猫"], "{blank:?}");
        }
        // No blank line at all; numbers that are part of a text.
        assert_eq!(texts(&TWO.replace("\n\n", "\n")), ["one\nsecond line", "一只猫"]);
        assert_eq!(texts(&TWO.replace("second line", "42")), ["one\n42", "一只猫"]);
        assert_eq!(texts(&TWO.replace("一只猫", "3 cats\n2")), ["one\nsecond line", "3 cats\n2"]);
    }

    #[test]
    fn times_are_parsed_in_all_common_forms() {
        let with = |times: &str| read(&format!("1\n{times}\na")).map(|found| (found[0].0, found[0].1));
        for times in [
            "00:00:01,500 --> 00:00:02,000",
            "00:00:01.500 --> 00:00:02.000",
            "0:0:1,500-->0:0:2,0",
            "00:01,500 --> 00:02",
            " 00:00:01,500\t-->  00:00:02,000 ",
            "00: 00: 01,500 --> 00:00:02 ,000 X1:5 X2:7 Y1:1 Y2:9",
            "00:00:01,500000 --> 00:00:02,000 align:start",
        ] {
            assert_eq!(with(times), Ok((1500, 2000)), "{times}");
        }
        assert_eq!(with("100:00:00,000 --> 1000:00:00,000"), Ok((360_000_000, 3_600_000_000)));
        assert_eq!(with("00:00:01,000 --> 00:00:01,000"), Ok((1000, 1000)));
        assert_eq!(with("00:00:02,000 --> 00:00:01,000"), Err(SrtError::Backwards(2)));
        for times in [
            "00:00:01,000 --> later",
            "00:00:01,000 -> 00:00:02,000",
            "00:00:01,000 → 00:00:02,000",
            "00:00:01,000 --> ",
            "1 --> 00:00:02,000",
            "00:00:01,x00 --> 00:00:02,000",
            "00:00:01,000 --> 99999999999999999:00:02,000",
        ] {
            assert_eq!(with(times), Err(SrtError::Times(2)), "{times}");
        }
    }

    #[test]
    fn the_error_of_missing_times_has_the_line() {
        assert_eq!(read("1\n00:00:00,000 --> 00:00:01,000\na\n\n2\nb"), Err(SrtError::Times(6)));
        assert_eq!(read("1\nb\n\n2\n00:00:00,000 --> 00:00:01,000\na"), Err(SrtError::Times(2)));
        assert_eq!(read("just a text"), Err(SrtError::Times(1)));
        for nothing in
            ["", "\n \n", "1\n00:00:00,000 --> 00:00:01,000\n\n", "00:00:00,000 --> 00:00:01,000\n<i></i>"]
        {
            assert_eq!(read(nothing), Err(SrtError::Empty), "{nothing:?}");
        }
        let latin: &[u8] = b"00:00:00,000 --> 00:00:01,000\ncaf\xe9";
        let odd: &[u8] = b"\xff\xfea\0b";
        let unmarked: &[u8] = b"1\0\n\0a\0";
        for bytes in [latin, odd, unmarked] {
            assert_eq!(Caption::read_srt(bytes), Err(SrtError::Encoding), "{bytes:?}");
        }
    }

    #[test]
    fn captions_are_sorted_by_their_starts() {
        let file = "2\n00:00:05,000 --> 00:00:06,000\nlater\n\n1\n00:00:01,000 --> 00:00:02,000\nfirst\n";
        assert_eq!(texts(file), ["first", "later"]);
    }

    #[test]
    fn tags_are_removed_and_similar_text_is_kept() {
        let shown = |text: &str| texts(&format!("00:00:00,000 --> 00:00:01,000\n{text}")).remove(0);
        assert_eq!(shown("<i>R&D</i>: a < b <b>and</B> c > d"), "R&D: a < b and c > d");
        assert_eq!(shown("<font color=\"#ff0000\">red</font> <u>x</u>"), "red x");
        assert_eq!(shown("{\\an8}above{\\i1}!"), "above!");
        assert_eq!(shown("a<br>b<br/>c\\Nd"), "a\nb\nc\nd");
        assert_eq!(shown("{no tag} <none> <i unclosed"), "{no tag} <none> <i unclosed");
        assert_eq!(shown("A --> B at 3 --> 4"), "A --> B at 3 --> 4");
        assert_eq!(shown("tab\u{7}bell"), "tabbell");
    }
}
