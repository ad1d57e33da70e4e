//! The encoded form of the record of a clip: base64url without padding (RFC 4648 §5) of a JSON text.
//!
//! A container with a free choice of names has it in a tag [`KEY`]. Other containers have it in a text of their own
//! that starts with [`LABEL`].

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::IgnoredAny;

/// The name of the tag.
pub(crate) const KEY: &str = "RUSHES_JOB";
/// The start of a text that is not in a tag of its own.
pub(crate) const LABEL: &str = "RUSHES_JOB:";
/// The identifier of the application extension of a GIF (GIF89a §26): 8 bytes of name and 3 of code.
pub(crate) const GIF_APPLICATION: [u8; 11] = *b"RUSHES_JOB1";
/// The most bytes of an encoded record.
pub(crate) const MAX_BYTES: usize = 1 << 16;

/// An encoded record of at most [`MAX_BYTES`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EncodedRecord(String);

impl EncodedRecord {
    /// Encodes a JSON text.
    ///
    /// # Errors
    /// Returns the reason if the text is too long or is not JSON.
    pub(crate) fn new(json: &str) -> Result<Self, String> {
        let length = base64::encoded_len(json.len(), false).unwrap_or(usize::MAX);
        if length > MAX_BYTES {
            return Err(format!("it has {length} bytes in base64, and a file carries at most {MAX_BYTES}"));
        }
        check_json(json)?;
        Ok(Self(URL_SAFE_NO_PAD.encode(json)))
    }

    /// The text for a tag [`KEY`].
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The text for a tag of another name.
    pub(crate) fn labelled(&self) -> String {
        format!("{LABEL}{}", self.0)
    }
}

/// Decodes a record, without its label.
///
/// # Errors
/// Returns the reason if it is too long, is not base64url, or does not contain a whole JSON text.
pub(crate) fn decode(encoded: &[u8]) -> Result<String, String> {
    let encoded = encoded.trim_ascii();
    if encoded.len() > MAX_BYTES {
        return Err(format!("it has more than {MAX_BYTES} bytes"));
    }
    let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|error| format!("it is not base64url: {error}"))?;
    let json =
        String::from_utf8(bytes).map_err(|error| format!("it is not UTF-8: {}", error.utf8_error()))?;
    check_json(&json)?;
    Ok(json)
}

/// A truncated record is not JSON.
fn check_json(text: &str) -> Result<(), String> {
    serde_json::from_str::<IgnoredAny>(text).map(drop).map_err(|error| format!("it is not JSON: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_code_is_base64url_without_padding() {
        let encoded = EncodedRecord::new(r#"{"a":"?>~"}"#).unwrap();
        assert_eq!(encoded.as_str(), "eyJhIjoiPz5-In0");
        assert_eq!(encoded.labelled(), "RUSHES_JOB:eyJhIjoiPz5-In0");
        assert_eq!(decode(b" eyJhIjoiPz5-In0\n").unwrap(), r#"{"a":"?>~"}"#);
    }

    #[test]
    fn the_length_is_bounded() {
        let json = |length: usize| format!("\"{}\"", "x".repeat(length - 2));
        let longest = MAX_BYTES / 4 * 3;
        let encoded = EncodedRecord::new(&json(longest)).unwrap();
        assert_eq!(encoded.as_str().len(), MAX_BYTES);
        assert_eq!(decode(encoded.as_str().as_bytes()).unwrap(), json(longest));
        let error = EncodedRecord::new(&json(longest + 1)).unwrap_err();
        assert_eq!(error, "it has 65538 bytes in base64, and a file carries at most 65536");
        let error = decode(format!("{}AA", encoded.as_str()).as_bytes()).unwrap_err();
        assert_eq!(error, "it has more than 65536 bytes");
    }

    #[test]
    fn truncated_and_foreign_texts_are_refused() {
        let encoded = EncodedRecord::new(r#"{"spec":{"seed":42,"prompt":"一只猫"}}"#).unwrap();
        for length in 0..encoded.as_str().len() {
            assert!(decode(&encoded.as_str().as_bytes()[..length]).is_err(), "{length}");
        }
        assert!(decode(b"e30=").unwrap_err().starts_with("it is not base64url"));
        assert!(decode(b"_w").unwrap_err().starts_with("it is not UTF-8"));
        assert!(EncodedRecord::new("{} {}").unwrap_err().starts_with("it is not JSON"));
    }

    proptest! {
        #[test]
        fn every_text_is_decoded_unchanged(text in "\\PC{0,300}") {
            let json = serde_json::to_string(&text).unwrap();
            let encoded = EncodedRecord::new(&json).unwrap();
            prop_assert_eq!(decode(encoded.as_str().as_bytes()), Ok(json));
        }
    }
}
