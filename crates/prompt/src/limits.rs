//! Limits of prompts.

use super::{Error, clean};

/// The longest prompt in bytes of UTF-8, far more than the 512 tokens that are used.
pub const MAX_PROMPT_BYTES: usize = 64 * 1024;

/// Returns an error if a prompt is empty after cleaning or longer than [`MAX_PROMPT_BYTES`].
pub fn check(prompt: &str) -> Result<(), Error> {
    check_negative(prompt)?;
    if clean(prompt).is_empty() { Err(Error::Empty) } else { Ok(()) }
}

/// Returns an error if a negative prompt is longer than [`MAX_PROMPT_BYTES`]. It may be empty.
pub fn check_negative(prompt: &str) -> Result<(), Error> {
    if prompt.len() > MAX_PROMPT_BYTES { Err(Error::TooLong { bytes: prompt.len() }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_not_empty_after_cleaning() {
        for empty in ["", "  \n", "\u{3000}\u{FEFF}", "&nbsp;", "\u{1B}[0m"] {
            assert!(matches!(check(empty), Err(Error::Empty)), "{empty:?}");
            assert!(check_negative(empty).is_ok());
        }
        assert!(check("a cat").is_ok());
    }

    #[test]
    fn the_limit_is_64_kib_of_utf_8() {
        let longest = "猫".repeat(MAX_PROMPT_BYTES / 3);
        assert!(check(&longest).is_ok());
        let longer = format!("{longest}猫");
        assert!(matches!(check(&longer), Err(Error::TooLong { bytes: 65_538 })));
        assert!(matches!(check_negative(&longer), Err(Error::TooLong { .. })));
    }
}
