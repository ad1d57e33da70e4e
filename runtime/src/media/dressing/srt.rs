//! Captions with their times: one text for the whole clip, or a SubRip file.

use std::time::Duration;

/// A text and when it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caption {
    /// From when on.
    pub start: Duration,
    /// Until when.
    pub end: Duration,
    /// Its lines.
    pub text: String,
}

impl Caption {
    /// A text that is shown all the time.
    pub fn always(text: impl Into<String>) -> Self {
        Self { start: Duration::ZERO, end: Duration::MAX, text: text.into() }
    }

    /// The captions of a SubRip file; its number of the first block that cannot be understood, from 1.
    ///
    /// # Errors
    /// A block without a line of times.
    pub fn parse_srt(text: &str) -> Result<Vec<Self>, usize> {
        let text = text.trim_start_matches('\u{feff}').replace("\r\n", "\n").replace('\r', "\n");
        let blocks = text.split("\n\n").map(str::trim).filter(|block| !block.is_empty());
        blocks.enumerate().map(|(index, block)| parse_block(block).ok_or(index + 1)).collect()
    }

    /// Whether it is shown at a time.
    pub fn is_shown_at(&self, time: Duration) -> bool {
        (self.start..self.end).contains(&time)
    }
}

fn parse_block(block: &str) -> Option<Caption> {
    // The number in front is often left out, and never needed.
    let (times, text) = block.split_once('\n').unwrap_or((block, ""));
    let (times, text) = match times.contains("-->") {
        true => (times, text),
        false => text.split_once('\n').unwrap_or((text, "")),
    };
    let (start, end) = times.split_once("-->")?;
    // A place on the screen may follow the time.
    let (start, end) = (parse_time(start.trim())?, parse_time(end.split_whitespace().next()?)?);
    Some(Caption { start, end, text: without_tags(text) })
}

/// `HH:MM:SS,mmm`.
fn parse_time(text: &str) -> Option<Duration> {
    let (clock, milliseconds) = text.split_once([',', '.'])?;
    let mut seconds = 0;
    for part in clock.split(':') {
        seconds = seconds * 60 + part.parse::<u64>().ok()?;
    }
    let milliseconds = milliseconds.parse::<u64>().ok().filter(|milliseconds| *milliseconds < 1000)?;
    Some(Duration::from_millis(seconds.checked_mul(1000)?.checked_add(milliseconds)?))
}

/// Without the tags for bold, italic and so on, which SubRip borrowed from HTML.
fn without_tags(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        let tag = rest[start..].find('>').map(|end| &rest[start..=start + end]);
        let is_tag = |tag: &str| {
            let name = tag.trim_matches(['<', '>', '/']).split(' ').next().unwrap_or_default();
            matches!(name.to_ascii_lowercase().as_str(), "b" | "i" | "u" | "s" | "font")
        };
        let kept = if tag.is_some_and(is_tag) { 0 } else { 1 };
        out.push_str(&rest[..start + kept]);
        rest = &rest[start + if kept == 1 { 1 } else { tag.map_or(1, str::len) }..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_with_what_people_leave_out() {
        let file = "\u{feff}1\r\n00:00:00,500 --> 00:00:01,000\r\n<i>R&D</i>: a < b\r\nsecond\r\n\r\n\
                    00:01:02.003 --> 01:00:00,000 X1:5\r\n一只猫\r\n\r\n\r\n";
        let captions = Caption::parse_srt(file).unwrap();
        let millis = Duration::from_millis;
        assert_eq!(captions.len(), 2);
        assert_eq!((captions[0].start, captions[0].end), (millis(500), millis(1000)));
        assert_eq!(captions[0].text, "R&D: a < b\nsecond");
        assert_eq!((captions[1].start, captions[1].end), (millis(62_003), millis(3_600_000)));
        assert!(captions[0].is_shown_at(millis(500)) && !captions[0].is_shown_at(millis(1000)));
    }

    #[test]
    fn a_block_without_times_is_named() {
        assert_eq!(Caption::parse_srt("1\n00:00:00,000 --> 00:00:01,000\na\n\n2\nb"), Err(2));
        assert_eq!(Caption::parse_srt("1\n00:00:00,000 --> later\na"), Err(1));
        assert_eq!(Caption::parse_srt(""), Ok(vec![]));
    }
}
