//! Texts of users, and clips that may have gone through other programs.

use bundle::text_file;
use media::clip_record;
use media::post_process::Caption;
use serde::de::IgnoredAny;
use std::io::Cursor;
use std::path::Path;

/// The longest record that a file carries, in bytes of base64.
const RECORD_MAX: usize = 1 << 16;

/// A SubRip file.
///
/// # Panics
/// Captions that were read are not in order, are empty, end before they start, or contain control characters.
pub fn srt(bytes: &[u8]) -> bool {
    let Ok(captions) = Caption::read_srt(bytes) else { return false };
    assert!(!captions.is_empty());
    assert!(captions.is_sorted_by_key(|caption| caption.start));
    for caption in &captions {
        assert!(caption.start <= caption.end, "{caption:?}");
        assert!(!caption.text.trim().is_empty(), "{caption:?}");
        assert!(caption.text.chars().all(|c| c == '\n' || !c.is_control()), "{caption:?}");
    }
    true
}

/// A file with a prompt on each line, as `calibrate` reads it.
///
/// # Panics
/// A prompt that was read is empty, a comment, or more than a line, or the list changes when it is written and read
/// again.
pub fn prompts(bytes: &[u8]) -> bool {
    let Some(text) = text_file::from_bytes(bytes) else { return false };
    let found: Vec<&str> = text_file::items(&text).collect();
    for prompt in &found {
        assert!(!prompt.is_empty() && !prompt.starts_with('#') && prompt.trim() == *prompt, "{prompt:?}");
        assert!(!prompt.contains(['\n', '\r', '\0']), "{prompt:?}");
    }
    let written = found.join("\n");
    let again = text_file::from_bytes(written.as_bytes()).unwrap_or_default();
    assert_eq!(text_file::items(&again).collect::<Vec<_>>(), found);
    !found.is_empty()
}

/// A clip, of which the record is read.
///
/// # Panics
/// A record that was read is not JSON, or is longer than a file carries.
pub fn clip_file(bytes: &[u8]) -> bool {
    let Ok(record) = clip_record::read_open(Cursor::new(bytes), Path::new("clip")) else { return false };
    assert!(record.len() <= RECORD_MAX);
    if let Err(error) = serde_json::from_str::<IgnoredAny>(&record) {
        panic!("{error}: {record}");
    }
    super::clip_record(record.as_bytes());
    true
}
