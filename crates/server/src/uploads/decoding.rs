//! Decoding of uploads. The bytes of a file decide what it is, never its name.

use super::content::Decoded;
use super::{foreign, picture, sound};
use crate::config::Limits;
use crate::fault::Fault;

/// Decodes a file.
///
/// # Errors
/// It is no picture and no sound that this server reads, it is damaged, or it is outside the limits.
pub(super) fn decoded(sent: &[u8], limits: &Limits) -> Result<Decoded, Fault> {
    if sound::is_wav(sent) {
        sound::decoded(sent, limits.upload_sound)
    } else if let Some(format) = picture::format(sent) {
        picture::decoded(sent, format, limits.upload_side)
    } else {
        Err(foreign::refused(sent))
    }
}

#[cfg(test)]
mod tests {
    use super::super::content::Content;
    use super::super::picture::tests::png;
    use super::super::sound::tests::wav;
    use super::*;

    #[test]
    fn the_bytes_decide_what_a_file_is() {
        let limits = Limits::default();
        let picture = decoded(&png(8, 4), &limits).unwrap().content;
        assert_eq!(picture, Content::Picture { width: 8, height: 4 });
        let sound = decoded(&wav(8000, 1, 2000), &limits).unwrap().content;
        assert_eq!(sound, Content::Sound { duration: 0.25, sample_rate: 8000, channels: 1 });
        assert_eq!((picture.kind(), sound.kind()), ("picture", "sound"));
    }
}
