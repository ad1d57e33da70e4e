//! JSON files of a checkpoint, as written by Python.

use crate::{Error, pointer};
use serde::de::DeserializeOwned;
use std::path::Path;

/// Reads a JSON file of the checkpoint, with or without a byte-order mark.
///
/// # Errors
/// Returns an error if the file cannot be read or has unexpected content.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let text = pointer::read(path)?;
    if text.starts_with(b"\xff\xfe") || text.starts_with(b"\xfe\xff") {
        return Err(Error::config(path, "it is UTF-16, and JSON is UTF-8: save it as UTF-8"));
    }
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
    serde_json::from_slice(&quote_non_finite(text)).map_err(|error| Error::config(path, error.to_string()))
}

/// Quotes `NaN`, `Infinity` and `-Infinity`, which Python writes but JSON does not allow. A key that is not read may
/// then have such a value, such as `lambda_min_clipped` of schedulers; a key that is read as a number is refused.
fn quote_non_finite(text: &[u8]) -> Vec<u8> {
    let mut quoted = Vec::with_capacity(text.len() + 16);
    let mut rest = text;
    let mut in_string = false;
    while let Some(byte) = rest.first() {
        let word: Option<&[u8]> = [&b"-Infinity"[..], b"Infinity", b"NaN"]
            .into_iter()
            .find(|word| !in_string && rest.starts_with(word));
        let length = match word {
            Some(word) => word.len(),
            None if in_string && *byte == b'\\' => 2.min(rest.len()),
            None => 1,
        };
        let (token, after) = rest.split_at(length);
        if word.is_some() {
            quoted.extend([b"\"", token, b"\""].concat());
        } else {
            quoted.extend(token);
        }
        in_string ^= *byte == b'"';
        rest = after;
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn non_finite_numbers_are_quoted_outside_strings() {
        let text = br#"{"a": -Infinity, "b": [NaN, Infinity], "c \"NaN": "-Infinity \\", "d": NaN}"#;
        let expected =
            br#"{"a": "-Infinity", "b": ["NaN", "Infinity"], "c \"NaN": "-Infinity \\", "d": "NaN"}"#;
        assert_eq!(quote_non_finite(text), expected);
        assert!(serde_json::from_slice::<Value>(&quote_non_finite(text)).is_ok());
    }

    #[test]
    fn a_byte_order_mark_is_skipped_and_utf_16_is_reported() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |bytes: &[u8]| {
            std::fs::write(file.path(), bytes).unwrap();
            read_json::<Value>(file.path())
        };
        assert_eq!(read(b"\xef\xbb\xbf{}").unwrap(), json!({}));
        for utf_16 in [b"\xff\xfe{\0}\0", b"\xfe\xff\0{\0}"] {
            let error = read(utf_16).unwrap_err();
            assert!(matches!(&error, Error::Config { why, .. } if why.contains("UTF-16")), "{error}");
        }
    }
}
