//! Random names: of clips, requests, tokens and keys.

use std::fmt::Write;

/// Bytes from the random number generator of the system.
///
/// # Panics
/// Panics if the system has no random numbers, without which nothing here is safe.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    #[expect(clippy::expect_used, reason = "a server without random numbers must not go on")]
    getrandom::fill(&mut bytes).expect("random numbers of the system");
    bytes
}

/// Bytes in lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The public name of a new clip, which nobody can guess.
pub(crate) fn clip_id() -> String {
    format!("video_{}", hex(&random::<16>()))
}

/// The public name of a new audition, which nobody can guess.
pub(crate) fn audition_id() -> String {
    format!("audition_{}", hex(&random::<16>()))
}

/// Returns true if a text has the form of the name of a clip.
pub(crate) fn is_clip_id(text: &str) -> bool {
    let digits = text.strip_prefix("video_").unwrap_or_default();
    digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase())
}

/// The number of a request, in the form of a UUID.
pub(crate) fn request_id() -> String {
    let digits = hex(&random::<16>());
    let part = |range: std::ops::Range<usize>| digits.get(range).unwrap_or_default();
    format!("{}-{}-4{}-8{}-{}", part(0..8), part(8..12), part(13..16), part(17..20), part(20..32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_their_forms_and_are_not_repeated() {
        assert!(is_clip_id(&clip_id()));
        assert_ne!(clip_id(), clip_id());
        for wrong in
            ["", "video_", "video_../../etc/passwd", &clip_id().to_uppercase(), &format!("{}0", clip_id())]
        {
            assert!(!is_clip_id(wrong), "{wrong}");
        }
        assert_eq!(request_id().len(), 36);
        assert_eq!(hex(&[0, 10, 255]), "000aff");
    }
}
